//! Where each page of a handover would be, if its packs existed: frames of up to 64 pages one after another, in the order of
//! objects and addresses.
//!
//! What always holds: a frame takes its plain bytes and a hash; the packs of a handover are named after it and numbered, so
//! that a pack's name tells whether it exists ([`pack_of`]).

use crate::{
    format::{
        Codec, FRAME_HASH, FRAME_PAGES, FrameEntry, FrameIndex, Manifest, MemoryMap, ObjectId, PackEntry,
        Run, Source, Vma,
    },
    ids::{CheckpointId, PackId},
    units::{PAGE_SIZE, VirtAddr},
};

/// Bytes of a pack at most. Its length means nothing; there is only a limit in the format.
const PACK: u64 = 1 << 30;

/// Bytes of a pack's name that tell the handover; the others count.
const NAME: usize = 14;

/// What an object's memory holds.
#[derive(Clone, Debug)]
pub struct ObjectPages {
    /// Whose memory.
    pub id: ObjectId,
    /// The number in the name of its `pages-<n>.img`.
    pub pages_id: u32,
    /// Areas whose pages may be restored on demand, ascending.
    pub vmas: Vec<Vma>,
    /// Pages that hold something: first page and how many, ascending, not overlapping. Within areas all others are zero.
    pub present: Vec<(VirtAddr, u64)>,
}

/// The tables of a handover's manifest.
#[derive(Debug, PartialEq)]
pub struct Laid {
    /// See [`Manifest::objects`].
    pub objects: Vec<MemoryMap>,
    /// See [`Manifest::packs`].
    pub packs: Vec<PackEntry>,
    /// See [`Manifest::frames`].
    pub frames: Vec<FrameEntry>,
}

/// Whether this manifest describes a stopped tree, whose pages nobody has read and hashed yet.
pub fn is_handover(manifest: &Manifest) -> bool {
    manifest.frames.iter().any(|frame| frame.codec == Codec::AtSource)
}

/// The number of the pack among those of handover `id`; `None` if it is another's, and exists.
pub fn pack_of(id: CheckpointId, pack: PackId) -> Option<u16> {
    let (name, number) =
        pack.to_bytes().split_last_chunk::<2>().map(|(name, number)| (name.to_vec(), *number))?;
    (name == id.to_bytes()[..NAME]).then_some(u16::from_be_bytes(number))
}

fn pack_id(id: CheckpointId, number: u16) -> PackId {
    let mut bytes = id.to_bytes();
    bytes[NAME..].copy_from_slice(&number.to_be_bytes());
    PackId::of_bytes(bytes)
}

/// Lays out the memory of a handover. Fails when there is more than packs can be numbered for: 64 TiB.
pub fn lay_out(id: CheckpointId, objects: Vec<ObjectPages>) -> Option<Laid> {
    let mut frames = Frames { id, entries: Vec::new(), packs: Vec::new(), eager: false };
    let objects = objects.into_iter().map(|object| frames.object(object)).collect::<Option<_>>()?;
    Some(Laid { objects, packs: frames.packs, frames: frames.entries })
}

struct Frames {
    id: CheckpointId,
    entries: Vec<FrameEntry>,
    packs: Vec<PackEntry>,
    /// Whether the pages of the last frame are needed before the process runs.
    eager: bool,
}

impl Frames {
    fn object(&mut self, object: ObjectPages) -> Option<MemoryMap> {
        let ObjectPages { id, pages_id, vmas, present } = object;
        let mut runs = Vec::new();
        // Frames are not shared by objects: one is read from one place.
        let mut fresh = true;
        let mut areas = vmas.iter().peekable();
        // Up to where the area that is being passed has been described.
        let mut covered = VirtAddr::default();
        for (start, pages) in present {
            let (mut at, end) = (start, start.add(pages));
            while at < end {
                while let Some(area) = areas.next_if(|area| area.end <= at) {
                    zero(&mut runs, covered.max(area.start), area.end);
                }
                let next = areas.peek();
                let inside = next.filter(|area| area.start <= at);
                let until = match (inside, next) {
                    (Some(area), _) => end.min(area.end),
                    (None, Some(next)) => end.min(next.start),
                    (None, None) => end,
                };
                if let Some(area) = inside {
                    zero(&mut runs, covered.max(area.start), at);
                }
                self.stored(&mut runs, at, until, inside.is_none(), &mut fresh)?;
                (at, covered) = (until, until);
            }
        }
        for area in areas {
            zero(&mut runs, covered.max(area.start), area.end);
        }
        Some(MemoryMap { id, pages_id, vmas, runs })
    }

    fn stored(
        &mut self,
        runs: &mut Vec<Run>,
        mut at: VirtAddr,
        end: VirtAddr,
        eager: bool,
        fresh: &mut bool,
    ) -> Option<()> {
        while at < end {
            let room = match self.entries.last() {
                Some(last) if !*fresh && self.eager == eager => FRAME_PAGES as u64 - u64::from(last.pages),
                _ => 0,
            };
            if room == 0 {
                (self.eager, *fresh) = (eager, false);
                self.begin_frame()?;
                continue;
            }
            let pages = room.min(end.pages_from(at));
            let index = FrameIndex(u32::try_from(self.entries.len() - 1).ok()?);
            let (entry, pack) = (self.entries.last_mut()?, self.packs.last_mut()?);
            let source = Source::Stored { frame: index, first: entry.pages, eager };
            entry.pages += pages as u32;
            entry.stored_length = stored_length(entry.pages);
            pack.length = entry.stored_end();
            runs.push(Run { start: at, pages, source });
            at = at.add(pages);
        }
        Some(())
    }

    fn begin_frame(&mut self) -> Option<()> {
        let whole = u64::from(stored_length(FRAME_PAGES as u32));
        if self.packs.last().is_none_or(|pack| pack.length + whole > PACK) {
            let number = u16::try_from(self.packs.len()).ok()?;
            self.packs.push(PackEntry { id: pack_id(self.id, number), length: 0 });
        }
        let pack = self.packs.last()?;
        self.entries.push(FrameEntry {
            pack: pack.id,
            offset: pack.length,
            stored_length: 0,
            pages: 0,
            codec: Codec::AtSource,
            hash: [0; FRAME_HASH],
        });
        Some(())
    }
}

fn stored_length(pages: u32) -> u32 {
    pages * PAGE_SIZE as u32 + FRAME_HASH as u32
}

fn zero(runs: &mut Vec<Run>, start: VirtAddr, end: VirtAddr) {
    if start < end {
        runs.push(Run { start, pages: end.pages_from(start), source: Source::Zero });
    }
}

/// Pages next to each other that lie next to each other in a frame, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Position of their object in the manifest.
    pub object: usize,
    /// Address of the first.
    pub start: VirtAddr,
    /// How many.
    pub pages: u64,
}

/// A handover's manifest by frame.
#[derive(Debug)]
pub struct FrameMap {
    /// Ascending by frame, and by position within it.
    pieces: Vec<(u32, Piece)>,
    frames: Vec<FrameEntry>,
}

impl FrameMap {
    /// Of this manifest.
    pub fn new(manifest: &Manifest) -> Self {
        let mut pieces = Vec::new();
        for (object, map) in manifest.objects.iter().enumerate() {
            for run in &map.runs {
                if let Source::Stored { frame, first, .. } = run.source {
                    pieces.push((frame.0, first, Piece { object, start: run.start, pages: run.pages }));
                }
            }
        }
        pieces.sort_unstable_by_key(|(frame, first, _)| (*frame, *first));
        let pieces = pieces.into_iter().map(|(frame, _, piece)| (frame, piece)).collect();
        Self { pieces, frames: manifest.frames.clone() }
    }

    /// The frames that make up these bytes of a pack; `None` if the bytes are not whole frames one after another.
    pub fn frames(&self, pack: PackId, offset: u64, length: u64) -> Option<std::ops::Range<u32>> {
        let first = self.frames.partition_point(|frame| (frame.pack, frame.offset) < (pack, offset));
        let end = offset.checked_add(length)?;
        let mut at = offset;
        let mut last = first;
        while at < end {
            let frame = self.frames.get(last).filter(|frame| (frame.pack, frame.offset) == (pack, at))?;
            at = frame.stored_end();
            last += 1;
        }
        (at == end && first < last).then_some(first as u32..last as u32)
    }

    /// The pages of a frame, in its order.
    pub fn pieces(&self, frame: u32) -> impl Iterator<Item = Piece> + '_ {
        let first = self.pieces.partition_point(|(number, _)| *number < frame);
        self.pieces[first..].iter().take_while(move |(number, _)| *number == frame).map(|(_, piece)| *piece)
    }

    /// How many frames there are.
    pub fn len(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Whether there is no page at all.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::{Blob, Host, PageHash, Statistics, Task};

    fn vma(start: u64, end: u64) -> Vma {
        Vma {
            start: VirtAddr::of_page(start),
            end: VirtAddr::of_page(end),
            wipe_on_fork: false,
            dont_fork: false,
            grows_down: false,
        }
    }

    fn manifest(id: CheckpointId, laid: Laid) -> Manifest {
        let stored: u64 = laid.objects.iter().map(MemoryMap::stored_pages).sum();
        let task = |map: &MemoryMap| match map.id {
            ObjectId::Task(pid) => {
                Some(Task { pid, parent_pid: 1, threads: 1, dead: false, command: "task".into() })
            }
            ObjectId::Shared(_) | ObjectId::File(_) => None,
        };
        Manifest {
            app: "app".parse().unwrap(),
            id,
            parent: None,
            depth: 0,
            created_unix_ms: 0,
            host: Host::default(),
            tasks: laid.objects.iter().filter_map(task).collect(),
            objects: laid.objects,
            packs: laid.packs,
            frames: laid.frames,
            bundle: Blob::of(b""),
            page_hashes: Blob { length: stored * PageHash::BYTES as u64, hash: [0; 32] },
            streams: Vec::new(),
            files: Vec::new(),
            large_images: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// Gaps and lengths that alternate, as ascending ranges of pages.
    fn ranges(most: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..most, 1..most), 0..12).prop_map(|steps| {
            let mut at = 0;
            let range = |(gap, length): (u64, u64)| {
                let start = at + gap;
                at = start + length;
                (start, at)
            };
            steps.into_iter().map(range).collect()
        })
    }

    proptest! {
        #[test]
        fn every_page_is_in_one_place_and_found_there(
            present in ranges(150), areas in ranges(200), shared in ranges(100),
        ) {
            let id = CheckpointId::new();
            let pages = |ranges: &[(u64, u64)]| -> Vec<(VirtAddr, u64)> {
                ranges.iter().map(|(start, end)| (VirtAddr::of_page(*start), end - start)).collect()
            };
            let vmas: Vec<Vma> = areas.iter().map(|(start, end)| vma(*start, *end)).collect();
            let objects = vec![
                ObjectPages { id: ObjectId::Task(7), pages_id: 1, vmas: vmas.clone(), present: pages(&present) },
                ObjectPages { id: ObjectId::Shared(9), pages_id: 2, vmas: vec![], present: pages(&shared) },
            ];
            let manifest = manifest(id, lay_out(id, objects).unwrap());
            // All rules of the format hold, and nothing is lost on the way through it.
            let manifest = Manifest::decode(&manifest.encode().unwrap()).unwrap();
            let map = FrameMap::new(&manifest);
            let mut found = Vec::new();
            for frame in 0..map.len() {
                let entry = manifest.frames[frame as usize];
                prop_assert!(pack_of(id, entry.pack).is_some());
                prop_assert_eq!(map.frames(entry.pack, entry.offset, u64::from(entry.stored_length)), Some(frame..frame + 1));
                prop_assert_eq!(map.pieces(frame).map(|piece| piece.pages).sum::<u64>(), u64::from(entry.pages));
                found.extend(map.pieces(frame));
            }
            let listed = |object: usize| -> Vec<u64> {
                let pieces = found.iter().filter(|piece| piece.object == object);
                pieces.flat_map(|piece| piece.start.page()..piece.start.page() + piece.pages).collect()
            };
            let expected = |ranges: &[(u64, u64)]| -> Vec<u64> { ranges.iter().flat_map(|(a, b)| *a..*b).collect() };
            prop_assert_eq!(listed(0), expected(&present));
            prop_assert_eq!(listed(1), expected(&shared));
            for run in &manifest.objects[0].runs {
                let lazy = vmas.iter().any(|vma| vma.start <= run.start && run.start < vma.end);
                if let Source::Stored { eager, .. } = run.source {
                    prop_assert_eq!(eager, !lazy);
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_not_whole_frames_are_refused() {
        let id = CheckpointId::new();
        let present = vec![(VirtAddr::of_page(10), 200)];
        let object = ObjectPages { id: ObjectId::Task(7), pages_id: 1, vmas: vec![vma(0, 300)], present };
        let manifest = manifest(id, lay_out(id, vec![object]).unwrap());
        let map = FrameMap::new(&manifest);
        let [first, second, ..] = manifest.frames[..] else { panic!("{:?}", manifest.frames) };
        let both = second.stored_end();
        assert_eq!(map.frames(first.pack, 0, both), Some(0..2));
        for (offset, length) in
            [(0, both - 1), (1, both - 1), (0, both + 1), (0, 0), (0, u64::MAX), (7, u64::MAX)]
        {
            assert_eq!(map.frames(first.pack, offset, length), None, "{offset} {length}");
        }
        assert_eq!(map.frames(PackId::new(), 0, both), None);
        assert_eq!(pack_of(CheckpointId::new(), first.pack), None);
    }
}
