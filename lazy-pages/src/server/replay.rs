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

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        format::{Blob, Host, MemoryMap, ObjectId, Run, Source, Statistics, Task, Vma},
        ids::CheckpointId,
        server::page_state::Content,
        units::VirtAddr,
    };

    const PAGES: u64 = 48;
    const TASK: SpaceId = SpaceId(0);

    /// One task with two areas, zero pages among stored ones.
    pub fn manifest() -> Manifest {
        let page = VirtAddr::of_page;
        let area = |start, end| Vma {
            start: page(start),
            end: page(end),
            wipe_on_fork: false,
            dont_fork: false,
            grows_down: false,
        };
        let stored = |start, pages| {
            let source = Source::Stored { frame: crate::format::FrameIndex(0), first: 0, eager: false };
            Run { start: page(start), pages, source }
        };
        let zero = |start, pages| Run { start: page(start), pages, source: Source::Zero };
        let map = MemoryMap {
            id: ObjectId::Task(1),
            pages_id: 1,
            vmas: vec![area(0, 20), area(24, PAGES)],
            runs: vec![stored(0, 8), zero(8, 4), stored(12, 8), stored(24, 10), zero(34, 2), stored(36, 12)],
        };
        Manifest {
            app: "replay".parse().unwrap(),
            id: CheckpointId::new(),
            parent: None,
            depth: 0,
            created_unix_ms: 0,
            host: Host::default(),
            tasks: vec![Task { pid: 1, parent_pid: 0, threads: 1, dead: false, command: "task".into() }],
            objects: vec![map],
            packs: Vec::new(),
            frames: Vec::new(),
            bundle: Blob::of(&[]),
            page_hashes: Blob::of(&[]),
            streams: Vec::new(),
            statistics: Statistics::default(),
            files: Vec::new(),
            large_images: Vec::new(),
        }
    }

    /// What happens to an address space while it is served.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Install { start: u64, pages: u64 },
        Remove { start: u64, pages: u64 },
        Remap { from: u64, to: u64, pages: u64 },
        Fork,
    }

    fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
        let range = || (0..PAGES, 1..12_u64);
        let act = prop_oneof![
            4 => range().prop_map(|(start, pages)| Act::Install { start, pages }),
            2 => range().prop_map(|(start, pages)| Act::Remove { start, pages }),
            2 => (range(), 0..2 * PAGES).prop_map(|((from, pages), to)| Act::Remap { from, to, pages }),
            1 => Just(Act::Fork),
        ];
        prop::collection::vec((0..3_usize, act), 0..30)
    }

    proptest! {
        /// What a server records suffices: its successor knows the same of every page, but that pages which were filled
        /// count as missing, from where they came.
        #[test]
        fn a_successor_knows_what_the_server_knew(acts in acts()) {
            let page = VirtAddr::of_page;
            let manifest = manifest();
            let task = Record::Task { space: TASK, object: 0, uffd: 3, image_pid: 1, pid: 1 };
            let mut records = vec![task];
            let mut live = vec![PageState::new(&manifest.objects[0])];
            for (which, act) in acts {
                let at = which % live.len();
                let space = SpaceId(at as u64);
                match act {
                    // A server fills only what it knows to be missing; more than that changes nothing.
                    Act::Install { start, pages } => live[at].install(page(start), pages),
                    Act::Remove { start, pages } => {
                        let (start, end) = (page(start), page(start + pages));
                        if live[at].remove(start, end) {
                            records.push(Record::Remove { space, start, end });
                        }
                    }
                    Act::Remap { from, to, pages } => {
                        // The kernel unmaps the target first, and reports it.
                        let (from, to) = (page(from), page(to));
                        if to < from.add(pages) && from < to.add(pages) {
                            continue;
                        }
                        if live[at].remove(to, to.add(pages)) {
                            records.push(Record::Remove { space, start: to, end: to.add(pages) });
                        }
                        if live[at].remap(from, to, pages) {
                            records.push(Record::Remap { space, from, to, pages });
                        }
                    }
                    Act::Fork => {
                        let child = SpaceId(live.len() as u64);
                        records.push(Record::Fork { parent: space, space: child, uffd: 4 });
                        live.push(live[at].forked());
                    }
                }
            }
            let snapshot = Snapshot { records, staged: Vec::new() };
            let replayed = Replayed::new(&snapshot, &manifest).unwrap();
            prop_assert_eq!(replayed.spaces.len(), live.len());
            for (live, (_, replayed)) in live.iter().zip(&replayed.spaces) {
                for number in 0..4 * PAGES {
                    let content = |state: &PageState| {
                        state.lookup(page(number)).map(|extent| match extent.content {
                            Content::Stored(image) => {
                                Content::Stored(image.add(page(number).pages_from(extent.start)))
                            }
                            other => other,
                        })
                    };
                    match (content(live), content(&replayed.state)) {
                        (Some(Content::Installed), Some(_)) => {}
                        (live, replayed) => prop_assert_eq!(live, replayed, "page {}", number),
                    }
                }
            }
        }
    }
}
