//! The processes of a restored tree, and how to kill all of them.
//!
//! What always holds: a signal goes only to a process that registered or that was seen to be a descendant of one, never
//! to another one that has its number by now: every process is known by a pidfd, and its place in the tree was checked
//! after the pidfd had been opened.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// Looks for forked children at most this many times before killing, so that a tree that forks without end is killed
/// too.
const MAX_SCANS: u32 = 100;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Tree {
    processes: HashMap<u32, OwnedFd>,
}

impl Tree {
    /// Adds a process.
    pub fn add(&mut self, pid: u32, pidfd: OwnedFd) {
        self.processes.insert(pid, pidfd);
    }

    /// One of these processes; `None` if it is not known, or has ended.
    pub fn pidfd(&self, pid: u32) -> Option<BorrowedFd<'_>> {
        self.processes.get(&pid).map(AsFd::as_fd)
    }

    /// Forgets processes that have ended and adds descendants that were not known. Returns the new ones.
    pub fn scan(&mut self) -> Vec<u32> {
        let mut found = Vec::new();
        let mut unseen: Vec<u32> = self.processes.keys().copied().collect();
        while let Some(pid) = unseen.pop() {
            let children = children(pid);
            // What was read was this process's only if it still lives.
            if self.processes.get(&pid).is_some_and(|pidfd| has_ended(pidfd.as_fd())) {
                self.processes.remove(&pid);
                continue;
            }
            for child in children {
                if child == process::id() || self.processes.contains_key(&child) {
                    continue;
                }
                if let Some(pidfd) = open_child(child, pid) {
                    self.processes.insert(child, pidfd);
                    unseen.push(child);
                    found.push(child);
                }
            }
        }
        found
    }

    /// Kills every known process and every descendant. They are stopped first, so that none of them forks away while the
    /// others are found.
    pub fn kill(&mut self) {
        self.signal(Signal::STOP);
        for _ in 0..MAX_SCANS {
            let found = self.scan();
            if found.is_empty() {
                break;
            }
            for pid in found {
                self.processes.get(&pid).map(|pidfd| pidfd_send_signal(pidfd, Signal::STOP));
            }
        }
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        for (pid, pidfd) in &self.processes {
            send(*pid, pidfd, signal);
        }
    }
}

fn send(pid: u32, pidfd: &OwnedFd, signal: Signal) {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::error!(pid, "a process cannot be signalled: {error}"),
    }
}

/// Kills one process.
pub fn kill(pid: u32, pidfd: &OwnedFd) {
    send(pid, pidfd, Signal::KILL);
}

/// Opens a process that is known to be there.
///
/// # Errors
/// When there is none of that number.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether the process has ended, collected by its parent or not.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Children of all threads of `pid`; nothing if it has ended.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// Opens `child` if it really is a child of `parent`.
fn open_child(child: u32, parent: u32) -> Option<OwnedFd> {
    let pidfd = open(child).ok()?;
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
    // The command, in parentheses, may contain anything; state and parent follow it.
    let (_, after) = stat.rsplit_once(')')?;
    let found: u32 = after.split_whitespace().nth(1)?.parse().ok()?;
    (found == parent && !has_ended(pidfd.as_fd())).then_some(pidfd)
}
