//! The types all clouds' notices are brought to.

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde::de::DeserializeOwned;

/// Longest document accepted, in bytes. The real ones are well under 4 KiB; Azure's grows with the number of machines.
pub const MAX_DOCUMENT: usize = 1 << 20;

/// Something a cloud says is going to happen to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Who says it.
    pub source: Cloud,
    /// What is going to happen.
    pub kind: NoticeKind,
    /// The earliest moment at which it may happen. Absent when the cloud does not say, or when it happens already.
    pub deadline: Option<Timestamp>,
    /// When the cloud says that it announced it.
    pub announced: Option<Timestamp>,
    /// The cloud's own id of the event, where it has one: the same notice read twice has the same id.
    pub event_id: Option<String>,
    /// Names of the machines concerned, where the document speaks of several; empty means the machine that asked.
    pub resources: Vec<String>,
}

impl Notice {
    /// What tells it from other notices to the same machine, however often it is read.
    pub fn key(&self) -> String {
        let own = self.event_id.clone();
        let own = own.or_else(|| self.deadline.or(self.announced).map(|time| time.as_second().to_string()));
        format!("{}/{}/{}", self.source.word(), self.kind.word(), own.unwrap_or_default())
    }
}

/// Clouds whose notices are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cloud {
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Gcp,
    /// Microsoft Azure.
    Azure,
}

/// What is going to happen to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// It is taken away, with its memory and local disks.
    Terminate,
    /// It is stopped: memory is lost, the machine may come back.
    Stop,
    /// Its memory is written to disk and it is stopped.
    Hibernate,
    /// It is more likely than before to be interrupted; nothing is decided.
    RebalanceRecommended,
    /// It is rebooted.
    Reboot,
    /// It is moved to other hardware and loses its local disks.
    Redeploy,
    /// It is paused for some seconds, or moved live by its cloud; memory survives.
    Pause,
    /// Something this version has no word for; the cloud's own word is kept.
    Unrecognised(String),
}

impl Cloud {
    /// Its name, as in metrics and ids.
    pub fn word(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        }
    }
}

impl NoticeKind {
    /// Its name, as in metrics and ids.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
            Self::RebalanceRecommended => "rebalance",
            Self::Reboot => "reboot",
            Self::Redeploy => "redeploy",
            Self::Pause => "pause",
            Self::Unrecognised(_) => "unrecognised",
        }
    }
}

/// Why a document is not a notice.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    /// Longer than any real one.
    #[error("the document has {0} bytes, more than the {MAX_DOCUMENT} accepted")]
    TooLong(usize),
    /// Not the JSON document it should be.
    #[error("not the document expected: {0}")]
    NotTheDocument(#[from] serde_json::Error),
    /// A plain-text value that is none of those the service documents, or not text at all.
    #[error("unexpected value {0:?}")]
    UnexpectedValue(String),
    /// A time in a format other than the documented one.
    #[error("{value:?} is not a time: {source}")]
    NotATime {
        /// What stood where the time should be.
        value: String,
        /// What the time parser says.
        source: jiff::Error,
    },
}

/// Longest piece of an unexpected value that is repeated in errors and notices, in characters.
const MAX_QUOTED: usize = 64;

pub(crate) fn quoted(value: &str) -> String {
    value.chars().take(MAX_QUOTED).collect()
}

pub(crate) fn bounded(document: &[u8]) -> Result<&[u8], NoticeError> {
    if document.len() > MAX_DOCUMENT { Err(NoticeError::TooLong(document.len())) } else { Ok(document) }
}

pub(crate) fn from_json<T: DeserializeOwned>(document: &[u8]) -> Result<T, NoticeError> {
    Ok(serde_json::from_slice(bounded(document)?)?)
}

/// A time such as `2026-01-02T03:04:05Z`.
pub(crate) fn rfc3339_time(value: &str) -> Result<Timestamp, NoticeError> {
    value.parse().map_err(|source| NoticeError::NotATime { value: quoted(value), source })
}

/// A time such as `Fri, 02 Jan 2026 03:04:05 GMT`.
pub(crate) fn http_time(value: &str) -> Result<Timestamp, NoticeError> {
    rfc2822::DateTimeParser::new()
        .parse_timestamp(value)
        .map_err(|source| NoticeError::NotATime { value: quoted(value), source })
}
