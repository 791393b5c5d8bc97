//! The launcher's half of starting a workload; [`stand_in`](crate::stand_in) is the other.
//!
//! The process of the workload is made before the launcher touches its own signal mask, so it inherits the one the
//! workload is to have, and waits at a gate. Only when the launcher can pass signals on does it open the gate.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use rustix::{
    io::FdFlags,
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    error::LaunchError,
    stand_in::{self, OPEN},
};

/// Which descriptors a workload gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptors {
    /// All that the launcher was started with.
    Inherited,
    /// Standard input, output and error. An inherited one that leads elsewhere cannot be rebuilt on another machine, and
    /// interactive shells leave some open.
    Standard,
}

/// A process that will become the workload.
#[derive(Debug)]
pub(crate) struct Pending {
    pub pid: u32,
    gate: OwnedFd,
}

impl Pending {
    /// Makes the process. It ends by itself if the gate is never opened.
    pub fn new(command: &[OsString], descriptors: Descriptors) -> Result<Self, LaunchError> {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(LaunchError::io("cannot make a pipe"))?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
            .map_err(LaunchError::io("cannot hand a pipe on"))?;
        let mut stand_in = Command::new("/proc/self/exe");
        stand_in.arg0("migration-launch").args(stand_in::arguments(theirs.as_raw_fd(), descriptors, command));
        // Changes nothing, but makes the standard library fork: glibc's posix_spawn leaves signal 33 ignored, for good.
        let group = rustix::process::getgid();
        if group == rustix::process::getegid() {
            stand_in.gid(group.as_raw());
        }
        let child = stand_in
            .spawn()
            .map_err(LaunchError::io("cannot start this program a second time; is /proc mounted?"))?;
        drop(theirs);
        // They are the workload's. Were they open here too, whoever waits for their last user to be gone would wait in vain.
        close_all_but(&[0, 1, 2, ours.as_raw_fd()]);
        Ok(Self { pid: child.id(), gate: ours })
    }

    /// Lets it become the workload.
    pub fn open(self) -> Result<(), LaunchError> {
        std::fs::File::from(self.gate)
            .write_all(&[OPEN])
            .map_err(LaunchError::io("the workload's process ended before it was one"))
    }
}

/// Closes every descriptor that nothing in this program owns.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<RawFd> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in open.into_iter().filter(|number| !kept.contains(number)) {
        // The one the list was read from is closed already.
        let _ = nix::unistd::close(number);
    }
}
