//! Somebody outside of a page server's own processes who holds what they hold.
//!
//! A restored process sees zeros when the last descriptor of its memory is closed while pages are missing. Server, guardian
//! and standby see to it that this is not at their deaths, but for all three in the same instant. An anchor is a fourth,
//! which shares nothing with them: it has copies of the descriptors, notices that all of them are gone, and ends the
//! processes before it lets go.

use std::{fmt, io, os::fd::BorrowedFd, sync::Arc};

/// Holds descriptors of one restore. None of this waits: it is called where page faults are answered.
pub trait Anchor: Send + Sync + fmt::Debug {
    /// Holds a process's memory from now on; with the process itself, where that is known, and its pid.
    fn hold(&self, memory: BorrowedFd<'_>, process: Option<(u32, BorrowedFd<'_>)>);

    /// Nobody depends on the descriptors any more: the anchor closes its copies, for until then the processes wait where
    /// they touch pages they have given up.
    fn release(&self);
}

/// Makes the [`Anchor`] that a text of [`DaemonConfig::anchor`](super::daemon::DaemonConfig::anchor) stands for.
pub type Anchors = fn(&str) -> io::Result<Arc<dyn Anchor>>;

/// For programs that know no anchors.
///
/// # Errors
/// Always.
pub fn no_anchors(anchor: &str) -> io::Result<Arc<dyn Anchor>> {
    Err(io::Error::other(format!("this program knows no anchor {anchor}")))
}
