//! From a journal to what its writer knew.
//!
//! The state that comes out differs from the one the writer had in one way only: pages it had filled count as missing.
//! That is safe, because to fill them again is refused by the kernel (`EEXIST`), and because whatever the process did to
//! them since was reported: removed or moved, they are removed or moved here too. [`presence`](super::presence) asks the
//! kernel instead of trying, where it can.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::fd::RawFd,
};

use crate::{
    format::Manifest,
    server::{
        journal::{Record, Snapshot},
        page_state::PageState,
        space::SpaceId,
        sys::uffd::Event,
    },
};

/// An address space that had not ended.
#[derive(Clone, Debug)]
pub struct ReplayedSpace {
    /// Position of its memory in the manifest.
    pub object: usize,
    /// Its userfaultfd, in the writer's table.
    pub uffd: RawFd,
    /// Its process, if it registered itself and was not forked.
    pub pid: Option<u32>,
    /// What is known of its pages.
    pub state: PageState,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Replayed {
    /// By number.
    pub spaces: BTreeMap<SpaceId, ReplayedSpace>,
    /// Processes by pidfd, in the writer's table. Those that have ended may be among them.
    pub processes: HashMap<RawFd, u32>,
    /// Descriptors of tasks that do not belong here.
    pub foreign: Vec<RawFd>,
    /// Pids in the image of the tasks that registered.
    pub registered: HashSet<u32>,
    /// Sockets that were connected; some may mean something else by now.
    pub connections: HashSet<RawFd>,
    /// The number the next address space gets.
    pub next: u64,
}

impl Replayed {
    /// Replays what was recorded. What was staged is left to the caller: [`Self::apply`].
    ///
    /// # Errors
    /// When the journal is not one of this manifest.
    pub fn new(snapshot: &Snapshot, manifest: &Manifest) -> io::Result<Self> {
        let mut replayed = Self::default();
        for &record in &snapshot.records {
            replayed.record(record, manifest)?;
        }
        Ok(replayed)
    }

    fn record(&mut self, record: Record, manifest: &Manifest) -> io::Result<()> {
        match record {
            Record::Task { space, object, uffd, image_pid, pid } => {
                let map = manifest.objects.get(object);
                let map = map.ok_or_else(|| io::Error::other("the journal is of another checkpoint"))?;
                self.registered.insert(image_pid);
                let state = PageState::new(map);
                self.add(space, ReplayedSpace { object, uffd, pid: Some(pid), state });
            }
            Record::Fork { parent, space, uffd } => self.fork(parent, space, uffd),
            Record::Remap { space, from, to, pages } => self.apply(space, Event::Remap { from, to, pages }),
            Record::Remove { space, start, end } => self.apply(space, Event::Remove { start, end }),
            Record::Closed { space } => drop(self.spaces.remove(&space)),
            Record::Process { pid, pidfd } => drop(self.processes.insert(pidfd, pid)),
            Record::Foreign { uffd } => self.foreign.push(uffd),
            Record::Connection { socket } => drop(self.connections.insert(socket)),
        }
        Ok(())
    }

    /// Applies an event of the address space `space`; one that has ended needs none.
    pub fn apply(&mut self, space: SpaceId, event: Event) {
        if let Event::Fork(uffd) = event {
            return self.fork(space, SpaceId(self.next), uffd);
        }
        let Some(known) = self.spaces.get_mut(&space) else { return };
        match event {
            Event::Remap { from, to, pages } => drop(known.state.remap(from, to, pages)),
            Event::Remove { start, end } => drop(known.state.remove(start, end)),
            Event::Fork(_) | Event::Fault(_) => {}
        }
    }

    fn fork(&mut self, parent: SpaceId, space: SpaceId, uffd: RawFd) {
        if let Some(parent) = self.spaces.get(&parent) {
            let child =
                ReplayedSpace { object: parent.object, uffd, pid: None, state: parent.state.forked() };
            self.add(space, child);
        }
    }

    fn add(&mut self, id: SpaceId, space: ReplayedSpace) {
        self.next = self.next.max(id.0 + 1);
        self.spaces.insert(id, space);
    }
}
