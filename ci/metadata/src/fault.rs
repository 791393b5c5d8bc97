//! How the service can misbehave.

use std::time::Duration;

use hyper::StatusCode;

/// A way to misbehave. It concerns what the clouds serve, never `/control/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens: connections are refused, and those that are open break.
    Down,
    /// Every answer comes that much later.
    Slow(Duration),
    /// Every answer is 200 with a page that is none of the documents.
    Garbage,
    /// Every answer has this status.
    Status(StatusCode),
    /// Connections are closed in place of an answer.
    Drop,
    /// Requests are taken and never answered.
    Silent,
}

/// What comes in place of a document.
pub(crate) const GARBAGE: &str = "<html><body>Welcome to the captive portal</body></html>";
