//! Why a metadata service was not understood.

use hyper::StatusCode;

use crate::{http::HttpError, notice::NoticeError};

/// Why it is not known whether there is a notice. It is asked again.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It refuses to answer.
    #[error("the metadata service answers {0}")]
    Status(StatusCode),
    /// It answers something else.
    #[error("the metadata service's answer is none: {0}")]
    Document(#[from] NoticeError),
    /// A session token that is none, or a machine's name that is none.
    #[error("the metadata service's answer is no {0}")]
    NotA(&'static str),
}

impl SourceError {
    /// In a word, as in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Http(HttpError::TooSlow(_)) => "timeout",
            Self::Http(_) => "unreachable",
            Self::Status(StatusCode::UNAUTHORIZED) => "unauthorized",
            Self::Status(_) => "refused",
            Self::Document(_) | Self::NotA(_) => "garbage",
        }
    }

    /// What to look at, where that is known.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Http(_) => {
                "in a container of AWS, the machine's metadata hop limit must be 2 or the pod must use the host's network"
            }
            Self::Status(StatusCode::FORBIDDEN) => "the machine's metadata service may be switched off",
            _ => "it is asked again",
        }
    }
}
