//! Where a CRIU process runs: by default where its caller does, or inside the container of another process.
//!
//! A tree that CRIU finds in namespaces of its own is dumped and rebuilt together with them, with all mounts and network
//! devices. Started inside the tree's own namespaces it sees nothing special: the tree is dumped without them, and restored
//! into whatever container CRIU is started in.
//!
//! The user, pid and time namespaces stay the caller's. So the caller must see the container's processes under the pids
//! they have themselves, CRIU must be at the same path in the container as here, with all it needs to run, and `/proc` must
//! be mounted there.

use std::{fs, io, os::fd::OwnedFd, path::PathBuf};

use criu_sys::process::Isolation;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::CriuError;

/// Files of `/proc/PID/ns` and their flags for setns(2).
const KINDS: [(&str, i32); 5] = [
    ("mnt", libc::CLONE_NEWNS),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// Where a CRIU process runs.
#[derive(Debug)]
pub struct Place {
    namespaces: Option<(OwnedFd, i32)>,
    groups: Vec<OwnedFd>,
}

impl Place {
    /// In the mount, network, IPC, UTS and control group namespaces of `pid`, as far as they are not the caller's.
    ///
    /// # Errors
    /// When there is no such process, or its namespaces may not be looked at.
    pub fn of(pid: u32) -> Result<Self, CriuError> {
        let system = |source| CriuError::System { what: "look at the namespaces of a process", source };
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // Held while the files are compared, and entered afterwards: all of them are one process's.
        let pidfd = id
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|id| pidfd_open(id, PidfdFlags::empty()))
            .map_err(|errno| system(errno.into()))?;
        let mut other = 0;
        for (name, flag) in KINDS {
            if namespace(&pid.to_string(), name).map_err(system)?
                != namespace("self", name).map_err(system)?
            {
                other |= flag;
            }
        }
        Ok(Self { namespaces: (other != 0).then_some((pidfd, other)), groups: Vec::new() })
    }

    /// In this control group too: its `cgroup.procs`, open for writing. What CRIU restores stays there, see
    /// [`CgroupMode::Ignore`](crate::CgroupMode::Ignore).
    pub fn in_group(mut self, processes: OwnedFd) -> Self {
        self.groups.push(processes);
        self
    }

    /// Whether paths mean the same there as here.
    pub(crate) fn sees_other_files(&self) -> bool {
        self.namespaces.as_ref().is_some_and(|(_, kinds)| kinds & libc::CLONE_NEWNS != 0)
    }

    pub(crate) fn apply(self, isolation: &mut Isolation) {
        if let Some((pidfd, kinds)) = self.namespaces {
            isolation.enter(pidfd, kinds);
        }
        for group in self.groups {
            isolation.join_group(group);
        }
    }
}

/// What tells a namespace from others of its kind.
fn namespace(process: &str, kind: &str) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/{kind}"))
}
