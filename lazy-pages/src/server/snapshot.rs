//! Which pages of a restored tree may not have come yet, for whoever takes a checkpoint of it.
//!
//! CRIU dumps the pages that are there and knows nothing of the others. Where those are is known: the journal of the page
//! server says what belongs at which address, and the served checkpoint has it. Nothing is asked of the page server,
//! which goes on meanwhile.
//!
//! What always holds of [`LazyTree::pending`], if every task is frozen when it is called: a page of the served checkpoint
//! which the process has not given up is in it, under its present address. Pages that have come already may be in it too;
//! whoever finds such a page in memory takes it from there. A frozen task has no event unread (it would still wait for
//! its being read, which nothing but death interrupts), so the journal is complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, RawFd},
};

use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::{
    format::{Manifest, ManifestError, ObjectId},
    ids::{AppId, CheckpointId},
    server::{
        journal::{Journal, Number, Phase, Record},
        page_state::Content,
        presence::Presence,
        replay::{Replayed, ReplayedSpace},
        status::{self, Daemon, read_of},
        sys::uffd::{Filled, Uffd},
        tree,
    },
    units::VirtAddr,
};

/// A restored tree whose pages still arrive.
#[derive(Debug)]
pub struct LazyTree {
    daemon: Daemon,
    restore: usize,
    manifest: Manifest,
}

/// Pages of the served checkpoint that a process has not given up; some may be in its memory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The process.
    pub pid: u32,
    /// Where they belong now.
    pub start: VirtAddr,
    /// Whose memory they are in the served checkpoint.
    pub object: ObjectId,
    /// Where they are in it.
    pub image: VirtAddr,
    /// How many.
    pub pages: u64,
}

/// Why it cannot be said which pages are pending.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// `/proc` or a descriptor of the page server could not be read.
    #[error("the page server of this tree cannot be looked at: {0}")]
    System(#[from] io::Error),
    /// The served checkpoint's manifest is of no use.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The page server gave the tree up.
    #[error("the page server of this tree has ended before all pages had come")]
    Ended,
    /// It is not known which process has this memory.
    #[error("it is not known which memory of the page server's belongs to one of the processes")]
    Unidentified,
    /// A process has memory that is waited for, and none of the page server's.
    #[error("processes of this tree are served by several page servers")]
    SeveralServers,
}

impl LazyTree {
    /// The page server that serves any of these processes, if there is one.
    ///
    /// # Errors
    /// When that cannot be found out, or there are several.
    pub fn find(pids: &BTreeSet<u32>) -> Result<Option<Self>, SnapshotError> {
        let mut found: Option<Self> = None;
        for daemon in status::find()? {
            let serving = |phase| {
                let mut journals = daemon.state.journals().iter();
                journals.position(|journal| journal.phase() == phase && serves(journal, pids))
            };
            // One that is over may have served earlier processes of these numbers; or it has just brought the last page.
            let (restore, is_over) = match (serving(Phase::Running), serving(Phase::Over)) {
                (Some(restore), _) => (restore, false),
                (None, Some(restore)) => (restore, true),
                (None, None) => continue,
            };
            match &found {
                Some(_) if is_over => continue,
                Some(other) if !other.is_over() => return Err(SnapshotError::SeveralServers),
                _ => {}
            }
            let number = daemon.state.journals()[restore].manifest().ok_or(SnapshotError::Ended)?;
            let member = daemon.member().ok_or(SnapshotError::Ended)?;
            let manifest = Manifest::decode(&read_of(member, number)?)?;
            found = Some(Self { daemon, restore, manifest });
        }
        Ok(found)
    }

    fn journal(&self) -> &Journal {
        &self.daemon.state.journals()[self.restore]
    }

    fn is_over(&self) -> bool {
        self.journal().phase() == Phase::Over
    }

    /// Whose checkpoint it is being restored from.
    pub fn app(&self) -> &AppId {
        &self.manifest.app
    }

    /// The checkpoint it is being restored from.
    pub fn checkpoint(&self) -> CheckpointId {
        self.manifest.id
    }

    /// Where pages of the served checkpoint belong now. Only while every one of `pids` is frozen; they are those that have
    /// memory which waits for a page server.
    ///
    /// # Errors
    /// When it cannot be told for one of them.
    pub fn pending(&self, pids: &BTreeSet<u32>) -> Result<Vec<Pending>, SnapshotError> {
        let journal = self.journal();
        if self.is_over() {
            // All that could be missing has come, or the processes have ended.
            return match journal.value(Number::Resident) {
                0 => Err(SnapshotError::Ended),
                _ => Ok(Vec::new()),
            };
        }
        let snapshot = journal.snapshot()?;
        let mut replayed = Replayed::new(&snapshot, &self.manifest)?;
        for &(space, event) in &snapshot.staged {
            replayed.apply(space, event);
        }
        let mut owners = Owners::of(self.daemon.member().ok_or(SnapshotError::Ended)?, pids)?;
        let (registered, forked): (Vec<_>, Vec<_>) =
            replayed.spaces.values().partition(|space| space.pid.is_some());
        let mut pending = Vec::new();
        for space in registered.into_iter().chain(forked) {
            let Some(pid) = owners.of_space(space)? else { continue };
            let object = self.manifest.objects[space.object].id;
            pending.extend(space.state.missing().map(|missing| Pending {
                pid,
                start: missing.start,
                object,
                image: missing.image,
                pages: missing.pages,
            }));
        }
        match owners.unknown.is_empty() {
            true => Ok(pending),
            // Served by somebody else, or in a way that is not understood.
            false => Err(SnapshotError::Unidentified),
        }
    }
}

fn serves(journal: &Journal, pids: &BTreeSet<u32>) -> bool {
    journal.records_so_far().any(|record| match record {
        Record::Task { pid, .. } | Record::Process { pid, .. } => pids.contains(&pid),
        _ => false,
    })
}

/// Who has which address space.
struct Owners {
    server: rustix::fd::OwnedFd,
    /// Processes whose address space is not known yet.
    unknown: BTreeMap<u32, Presence>,
}

impl Owners {
    fn of(server: u32, pids: &BTreeSet<u32>) -> io::Result<Self> {
        let mut unknown = BTreeMap::new();
        for &pid in pids {
            // One that has ended has no memory.
            if let Ok(presence) = Presence::open(pid) {
                unknown.insert(pid, presence);
            }
        }
        Ok(Self { server: tree::open(server)?, unknown })
    }

    /// The process that has this address space; `None` if none of them has, or it has ended.
    fn of_space(&mut self, space: &ReplayedSpace) -> Result<Option<u32>, SnapshotError> {
        let uffd = self.uffd(space.uffd)?;
        if !uffd.is_alive() {
            return Ok(None);
        }
        if let Some(pid) = space.pid {
            return Ok(self.unknown.remove(&pid).map(|_| pid));
        }
        if self.unknown.is_empty() {
            return Ok(None);
        }
        // The kernel does not tell whose memory a userfaultfd serves. So a page that is zero anyway, and not there in any
        // of the processes, is filled: it appears in one of them.
        let zero = space.state.extents().filter(|extent| extent.content == Content::Zero);
        let pages = zero.flat_map(|extent| (0..extent.pages).map(move |page| extent.start.add(page)));
        for page in pages.take(MAX_PROBES) {
            if !self.present(page)?.is_empty() || uffd.zero(page, 1) != Filled::Pages(1) {
                continue;
            }
            return match self.present(page)?[..] {
                [] => Ok(None),
                [pid] => Ok(self.unknown.remove(&pid).map(|_| pid)),
                _ => Err(SnapshotError::Unidentified),
            };
        }
        Err(SnapshotError::Unidentified)
    }

    fn uffd(&self, number: RawFd) -> io::Result<Uffd> {
        let fd = pidfd_getfd(self.server.as_fd(), number, PidfdGetfdFlags::empty())?;
        Uffd::adopt(fd).map_err(|(_, reason)| io::Error::other(reason))
    }

    fn present(&self, page: VirtAddr) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for (pid, presence) in &self.unknown {
            if !presence.present(page, 1)?.is_empty() {
                found.push(*pid);
            }
        }
        Ok(found)
    }
}

/// Pages looked at before it is given up; the first one usually tells.
const MAX_PROBES: usize = 4096;
