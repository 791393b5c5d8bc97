//! What can keep a reconcile from going on. It is tried again; see [`error_policy`](crate::controller::error_policy).

use crate::agents::AgentError;

/// Why a reconcile stopped where it was. Nothing is lost by that: it begins again from what is written down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what it was asked.
    #[error("cannot {what}: {source}")]
    Kube {
        /// What was wanted.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// An agent did not do what it was asked.
    #[error("cannot {what}: {source}")]
    Agent {
        /// What was wanted.
        what: &'static str,
        /// Why not.
        #[source]
        source: AgentError,
    },
    /// An object without the fields that every stored one has.
    #[error("an object without {0}")]
    Incomplete(&'static str),
    /// A look took too long, because of an answer that never came.
    #[error("no answer came in time")]
    TooLong,
    /// Another operator leads now.
    #[error("another operator leads now")]
    NotLeading,
}

impl Error {
    /// For `map_err`.
    pub fn kube(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Kube { what, source: Box::new(source) }
    }

    /// For `map_err`.
    pub fn agent(what: &'static str) -> impl FnOnce(AgentError) -> Self {
        move |source| Self::Agent { what, source }
    }

    /// Somebody else has written meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube { source, .. } if is(source, 409))
    }

    /// A word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Kube { .. } if self.is_conflict() => "conflict",
            Self::Kube { .. } => "kube",
            Self::Agent { .. } => "agent",
            Self::Incomplete(_) => "incomplete",
            Self::TooLong => "too-long",
            Self::NotLeading => "not-leading",
        }
    }
}

/// Whether the API server answered with this code.
pub fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
