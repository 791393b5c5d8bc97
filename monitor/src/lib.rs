//! Interruption notices: what the clouds say before they take a machine away.
//!
//! What is here: [`Notice`], and a parser for each document a cloud's metadata service publishes about it. Parsers are
//! pure functions of the document's bytes; asking the metadata service, noticing that a document is absent (AWS answers
//! 404 when there is nothing to tell), cordoning the node and triggering migrations are not here yet, and neither is
//! the program that would do so.
//!
//! What always holds: a document that announces something never parses to "nothing". A word this version does not know
//! becomes [`NoticeKind::Unrecognised`], because an interruption by another name is still one; a document that cannot
//! be understood at all is an error. Parsers never panic, and refuse documents over [`MAX_DOCUMENT`] bytes.

pub mod aws;
pub mod azure;
pub mod gcp;
mod notice;

pub use notice::{Cloud, MAX_DOCUMENT, Notice, NoticeError, NoticeKind};
