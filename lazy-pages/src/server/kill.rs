//! Ending a tree whose pages can never come, when the server that knew it is dead; and what else a dead server leaves.
//!
//! What always holds: [`end_tree`] returns when no address space of the tree is left; until then its descriptors are held, and
//! its missing pages make it wait instead of turning into zeros.

use std::{
    collections::HashMap,
    os::fd::RawFd,
    thread,
    time::{Duration, Instant},
};

use crate::server::{
    journal::{Journal, Record},
    state::State,
    sys::{
        process::{duplicate, open_descriptors, pid_of},
        uffd::{USERFAULTFD, Uffd},
    },
    tree::Tree,
};

/// Closes what a dead server had accepted, so that a CRIU at the other end learns that nobody listens.
pub fn cut_connections(journal: &Journal) {
    for number in journal.connections() {
        if let Ok(socket) = duplicate(number) {
            // Whatever has that number now was the dead server's too.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
    }
}

/// Ends the tree of the restore with this position in `state`.
pub fn end_tree(state: &State, restore: usize) {
    let journal = &state.journals()[restore];
    let mut tree = Tree::default();
    for record in journal.records_so_far() {
        if let Record::Process { pid, pidfd } = record
            && let Ok(pidfd) = duplicate(pidfd)
            && pid_of(&pidfd) == Some(pid)
        {
            tree.add(pid, pidfd);
        }
    }
    let others = state.journals().iter().enumerate().filter(|(at, _)| *at != restore);
    let others: Vec<RawFd> = others.flat_map(|(_, journal)| uffds(journal)).collect();
    // Also those that the journal does not know: handed over, or forked, in the server's last moment.
    let known = open_descriptors().unwrap_or_default().into_iter();
    let known = known.filter(|(number, target)| target == USERFAULTFD && !others.contains(number));
    let mut held: Vec<Uffd> = known.filter_map(|(number, _)| Uffd::duplicate(number).ok()).collect();
    until_gone(|| {
        tree.kill();
        held.retain(Uffd::is_alive);
        held.len()
    });
}

/// Closes what a server that died had still open of a restore that had ended: nothing is missing, or nobody is there to
/// miss it. Pages that are zero and were never touched are the kernel's from then on.
pub fn let_go(state: &State, restore: usize) {
    let others = state.journals().iter().enumerate().filter(|(at, _)| *at != restore);
    let others: Vec<RawFd> = others.flat_map(|(_, journal)| uffds(journal)).collect();
    for number in uffds(&state.journals()[restore]) {
        if !others.contains(&number) {
            drop(Uffd::take_over(number));
        }
    }
}

/// The userfaultfds a journal knows, those of ended address spaces excepted.
fn uffds(journal: &Journal) -> Vec<RawFd> {
    let mut spaces = HashMap::new();
    let mut others = Vec::new();
    for record in journal.records_so_far() {
        match record {
            Record::Task { space, uffd, .. } | Record::Fork { space, uffd, .. } => {
                let _ = spaces.insert(space, uffd);
            }

            Record::Closed { space } => {
                let _ = spaces.remove(&space);
            }
            Record::Foreign { uffd } => others.push(uffd),
            Record::Remap { .. } | Record::Remove { .. } | Record::Process { .. } => {}
        }
    }
    others.extend(spaces.into_values());
    others.extend(journal.staged_forks());
    others
}

/// The userfaultfds of living address spaces in this table that no journal knows.
pub fn unknown_spaces(state: &State) -> Vec<RawFd> {
    let known: Vec<RawFd> = state.journals().iter().flat_map(|journal| uffds(journal)).collect();
    let open = open_descriptors().unwrap_or_default().into_iter();
    let unknown = open.filter(|(number, target)| target == USERFAULTFD && !known.contains(number));
    let living = unknown.filter_map(|(number, _)| Uffd::duplicate(number).ok().map(|uffd| (number, uffd)));
    living.filter(|(_, uffd)| uffd.is_alive()).map(|(number, _)| number).collect()
}

/// Repeats `kill`, which kills whatever it can find and returns how many address spaces are left, until none is. Takes
/// as long as that takes: a process that cannot be found waits for its missing pages meanwhile, which is better than
/// zeros.
pub fn until_gone(mut kill: impl FnMut() -> usize) {
    const FIRST: Duration = Duration::from_millis(1);
    const LAST: Duration = Duration::from_secs(1);
    const REPORT: Duration = Duration::from_secs(10);
    let mut pause = FIRST;
    let mut reported = Instant::now();
    loop {
        let left = kill();
        if left == 0 {
            return;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LAST);
        if reported.elapsed() > REPORT {
            reported = Instant::now();
            tracing::error!(left, "address spaces whose processes cannot be killed are held; they wait");
        }
    }
}
