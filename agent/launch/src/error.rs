//! Why a workload was not started, or cannot be followed.

use std::{io, path::PathBuf};

/// What went wrong. Unless it says otherwise, the workload was never executed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The control directory belongs to another launcher that is alive.
    #[error("a launcher already answers at {}: give each workload a --control directory of its own", path.display())]
    AlreadyControlled {
        /// Its socket.
        path: PathBuf,
    },
    /// Nobody could learn how the workload ended.
    #[error(
        "SIGCHLD is ignored here, so the exit status of the workload would be lost: start this with its default action"
    )]
    ChildSignalIgnored,
    /// The other end of a control socket said something that has no meaning there.
    #[error("the launcher did not understand, or refused: {0}")]
    Protocol(String),
}

impl LaunchError {
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { what, source: source.into() }
    }
}
