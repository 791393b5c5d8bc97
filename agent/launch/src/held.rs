//! The memory of a restored tree, held for the page server and its guardians.
//!
//! A restored process sees zeros in place of its missing pages when the last descriptor of its memory is closed. The page
//! server hands a copy of each over, on a connection that ends with the last of its processes. If that happens before it
//! has said that nothing is missing, the tree is killed, and the copies stay open until this program ends: a process that
//! could not be found waits for its pages, which is better than zeros.

use std::{fs, os::fd::OwnedFd};

use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, setrlimit,
};

/// A tree that forks all the time is stopped after so many looks.
const LOOKS: usize = 100;

/// Makes room for as many descriptors as this program may have: there is one for each address space and each process. The
/// workload was forked before and keeps its own limit.
pub(crate) fn make_room() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused nowhere; what does not fit is told when it comes.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// What is held.
#[derive(Debug, Default)]
pub(crate) struct Held {
    memory: Vec<OwnedFd>,
    processes: Vec<(u32, OwnedFd)>,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// Holds what came with a message: a memory's descriptor, and its process's if its pid is known. Returns whether all of
    /// that came: the kernel keeps back what this program has no room for.
    pub fn add(&mut self, pid: u32, descriptors: Vec<OwnedFd>) -> bool {
        let whole = descriptors.len() == if pid == 0 { 1 } else { 2 };
        let mut descriptors = descriptors.into_iter();
        self.memory.extend(descriptors.next());
        self.processes.extend(descriptors.next().map(|pidfd| (pid, pidfd)));
        whole
    }

    /// Nothing is missing any more.
    pub fn release(&mut self) {
        *self = Self::default();
    }

    /// Kills every process that was handed over and every descendant of one. They are stopped first, so that none forks
    /// away meanwhile.
    pub fn kill(&mut self) {
        let mut stopped = 0;
        for _ in 0..LOOKS {
            for (_, pidfd) in &self.processes[stopped..] {
                let _ = pidfd_send_signal(pidfd, Signal::STOP);
            }
            stopped = self.processes.len();
            self.find_children();
            if self.processes.len() == stopped {
                break;
            }
        }
        for (_, pidfd) in &self.processes {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    fn find_children(&mut self) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let known = |pid: u32| self.processes.iter().any(|(known, _)| *known == pid);
            if known(pid) || !parent(pid).is_some_and(known) {
                continue;
            }
            let Some(pidfd) = i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .map(|pid| pidfd_open(pid, PidfdFlags::empty()))
            else {
                continue;
            };
            // Its parent is stopped, so the number still means that child, or a child that has ended.
            if let Ok(pidfd) = pidfd {
                self.processes.push((pid, pidfd));
            }
        }
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
