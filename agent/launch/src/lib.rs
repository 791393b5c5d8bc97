//! Starting a workload so that it can be moved later, and standing in for it where it was started.
//!
//! A container runtime, or a shell, starts the launcher; the launcher starts the workload and does what its starter
//! expects of the workload itself: it receives signals, and it ends with the workload's exit code. Because the launcher is
//! a process of its own, the workload can be ended by a checkpoint, be brought back by a restore and be somewhere else
//! meanwhile, and the container stays.
//!
//! What always holds:
//! - The workload finds what it would have found had it been started directly: environment, arguments, user, groups,
//!   capabilities, limits, control group, working directory, umask, priority, signal mask, ignored signals and descriptors.
//!   Different are its pid, its parent, and that it leads a session of its own, without which CRIU cannot dump it: so it
//!   has a terminal's streams, but not the terminal as its controlling one. SIGPIPE has its default action, as in every
//!   container: the runtime of the language this is written in forgets another one before any of this code runs.
//! - The workload does not start before the launcher is ready to pass signals on to it. A launcher that ends before
//!   leaves nothing behind.
//! - Every signal that can be caught is passed on, but SIGCHLD, which is about the launcher's own children, and real-time
//!   signals, for which there is no safe way to send them; those are reported and dropped.
//! - Orphans of the workload become the launcher's children and are collected. A zombie would own a pid that a restored
//!   tree needs.
//! - The launcher ends when the workload ends by itself. When the workload ended because it was moved away, the launcher
//!   stays, until a signal ends it: see [`watch`].
//!
//! The modules: `start` and [`stand_in`] make the workload's process, `pids` chooses its pid, [`watch`] stays in
//! front of it, [`protocol`] and [`control`] are how an agent on the same machine talks to a launcher.

pub mod control;
mod departure;
mod error;
mod held;
mod pids;
pub mod protocol;
pub mod stand_in;
mod start;
pub mod watch;

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

pub use self::{
    error::LaunchError,
    start::Descriptors,
    watch::{ExitStatus, launch},
};

/// What to launch, and how.
#[derive(Debug)]
pub struct Launch {
    /// Name of the application, for whoever asks.
    pub app: String,
    /// The workload; waits for a tree that an agent restores if empty.
    pub command: Vec<OsString>,
    /// Where the control socket is put.
    pub control: Option<PathBuf>,
    /// The workload's pid is larger than this.
    pub pid_base: Option<u32>,
    /// The workload's pid is written here.
    pub pid_file: Option<PathBuf>,
    /// Which descriptors the workload gets.
    pub descriptors: Descriptors,
}

impl Launch {
    /// Says something to whoever looks at the workload's standard error.
    fn say(&self, text: &str) {
        use std::io::Write as _;
        // A closed standard error must not end the workload.
        let _ = writeln!(std::io::stderr(), "migration-launch: {}: {text}", self.app);
    }

    /// The workload runs already, so a file that cannot be written is said and not made a failure of it.
    fn write_pid(&self, pid: u32) {
        if let Some(path) = &self.pid_file
            && let Err(error) = write_pid_file(path, pid)
        {
            self.say(&format!("cannot write {}: {error}", path.display()));
        }
    }
}

/// Writes a pid file that is never seen half written.
///
/// # Errors
/// When it cannot be written; one that was there is as it was.
pub fn write_pid_file(path: &Path, pid: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    fs::write(&name, format!("{pid}\n")).and_then(|()| fs::rename(&name, path))
}
