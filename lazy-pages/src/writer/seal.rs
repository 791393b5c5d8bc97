//! From pieces in the order of the stream to the runs and tables of a manifest.
//!
//! CRIU lists neither zero nor untouched pages, so every page of a VMA that nothing was said about is a zero page;
//! pages outside of all VMAs that nothing was said about stay unmentioned. Pages inside a VMA are restored on demand,
//! pages outside before the process runs, whatever was expected when they were received. A file is given as one area, so
//! that its holes become zeros too, and none of it is restored on demand.

use super::{
    Parent, WriteError,
    packer::{Packed, Pages, Piece, Place},
};
use crate::{
    format::{FrameEntry, FrameIndex, MemoryMap, ObjectId, PackEntry, PageHash, Run, Source, Vma},
    units::VirtAddr,
};

/// The tables of a manifest.
pub(super) struct Tables {
    pub objects: Vec<MemoryMap>,
    pub frames: Vec<FrameEntry>,
    pub packs: Vec<PackEntry>,
    /// Content of the hashes object.
    pub hashes: Vec<u8>,
    /// Packs written earlier that some page is still in.
    pub inherited: Vec<PackEntry>,
}

/// Builds the tables. `objects` are those opened, in order, each with its VMAs, ascending.
///
/// # Errors
/// [`WriteError::PageTwice`].
pub(super) fn seal(
    packed: Packed,
    objects: Vec<(ObjectId, u32, Vec<Vma>)>,
    parent: Option<&Parent>,
) -> Result<Tables, WriteError> {
    let Packed { objects: mut pages, frames: written, packs: mut new_packs, .. } = packed;
    pages.resize_with(objects.len(), Pages::default);
    let (old_frames, old_packs) = match parent {
        Some(parent) => (&parent.manifest().frames[..], &parent.manifest().packs[..]),
        None => (&[][..], &[][..]),
    };

    // Which frame of whom gets which number: by pack and offset, so that neighbours in a pack are neighbours here.
    let mut used = vec![false; old_frames.len()];
    for piece in pages.iter().flat_map(|pages| &pages.pieces) {
        if let Place::Parent { frame, .. } = piece.place {
            used[frame as usize] = true;
        }
    }
    let inherited = old_frames.iter().enumerate().filter(|(at, _)| used[*at]);
    let mut order: Vec<(&FrameEntry, Place)> = inherited
        .map(|(at, entry)| (entry, Place::Parent { frame: at as u32, first: 0 }))
        .chain(
            written.iter().enumerate().map(|(at, entry)| (entry, Place::New { frame: at as u32, first: 0 })),
        )
        .collect();
    if order.len() > u32::MAX as usize {
        return Err(WriteError::TooManyFrames);
    }
    order.sort_unstable_by_key(|(entry, _)| (entry.pack, entry.offset));
    let mut numbers = Numbers { old: vec![0; old_frames.len()], new: vec![0; written.len()] };
    for (number, (_, from)) in order.iter().enumerate() {
        match from {
            Place::Parent { frame, .. } => numbers.old[*frame as usize] = number as u32,
            Place::New { frame, .. } => numbers.new[*frame as usize] = number as u32,
            Place::Zero => {}
        }
    }
    let frames: Vec<FrameEntry> = order.iter().map(|(entry, _)| **entry).collect();
    let mut inherited = Vec::new();
    for pack in old_packs {
        let first = frames.partition_point(|frame| frame.pack < pack.id);
        if frames.get(first).is_some_and(|frame| frame.pack == pack.id) {
            inherited.push(*pack);
        }
    }
    new_packs.extend(&inherited);
    new_packs.sort_unstable_by_key(|pack| pack.id);

    let mut hashes = Vec::new();
    let mut maps = Vec::with_capacity(objects.len());
    for ((id, pages_id, vmas), pages) in objects.into_iter().zip(pages) {
        let is_file = matches!(id, ObjectId::File(_));
        let runs = Sealing { numbers: &numbers, hashes: &mut hashes, runs: Vec::new(), fence: 0, is_file };
        let runs = runs.object(pages, &vmas).map_err(|page| WriteError::PageTwice { object: id, page })?;
        let vmas = if is_file { Vec::new() } else { vmas };
        maps.push(MemoryMap { id, pages_id, vmas, runs });
    }
    Ok(Tables { objects: maps, frames, packs: new_packs, hashes, inherited })
}

/// Position in the manifest of each frame of the parent and of this checkpoint.
struct Numbers {
    old: Vec<u32>,
    new: Vec<u32>,
}

struct Sealing<'a> {
    numbers: &'a Numbers,
    hashes: &'a mut Vec<u8>,
    runs: Vec<Run>,
    /// Runs before this one are not extended: they belong to another area.
    fence: usize,
    /// Its area is not for page faults.
    is_file: bool,
}

impl Sealing<'_> {
    /// The runs of one object, or the page that was received twice.
    fn object(mut self, pages: Pages, vmas: &[Vma]) -> Result<Vec<Run>, VirtAddr> {
        let Pages { mut pieces, hashes } = pages;
        pieces.sort_unstable_by_key(|piece| piece.page);
        if let Some(two) = pieces.windows(2).find(|two| two[0].page + two[0].pages > two[1].page) {
            return Err(VirtAddr::of_page(two[1].page));
        }
        let mut pieces = Pieces { iter: pieces.into_iter(), rest: None };
        for vma in vmas {
            let (start, end) = (vma.start.page(), vma.end.page());
            while let Some(piece) = pieces.before(start) {
                self.piece(piece, &hashes, true);
            }
            self.fence = self.runs.len();
            let mut covered = start;
            while let Some(piece) = pieces.before(end) {
                self.zero(covered, piece.page);
                covered = piece.page + piece.pages;
                self.piece(piece, &hashes, self.is_file);
            }
            self.zero(covered, end);
            self.fence = self.runs.len();
        }
        while let Some(piece) = pieces.before(u64::MAX) {
            self.piece(piece, &hashes, true);
        }
        Ok(self.runs)
    }

    fn zero(&mut self, start: u64, end: u64) {
        if start < end {
            self.push(start, end - start, Source::Zero);
        }
    }

    fn piece(&mut self, piece: Piece, hashes: &[PageHash], eager: bool) {
        let source = match piece.place {
            Place::Zero => return self.zero(piece.page, piece.page + piece.pages),
            Place::Parent { frame, first } => {
                Source::Stored { frame: FrameIndex(self.numbers.old[frame as usize]), first, eager }
            }
            Place::New { frame, first } => {
                Source::Stored { frame: FrameIndex(self.numbers.new[frame as usize]), first, eager }
            }
        };
        for hash in &hashes[piece.hash..piece.hash + piece.pages as usize] {
            self.hashes.extend_from_slice(&hash.0);
        }
        self.push(piece.page, piece.pages, source);
    }

    /// Adds a run, or extends the last one where that says the same.
    fn push(&mut self, page: u64, pages: u64, source: Source) {
        let continues = |last: &Run| match (last.source, source) {
            (Source::Zero, Source::Zero) => true,
            (
                Source::Stored { frame: a, first, eager: x },
                Source::Stored { frame: b, first: next, eager: y },
            ) => (a, x) == (b, y) && u64::from(first) + last.pages == u64::from(next),
            _ => false,
        };
        let start = VirtAddr::of_page(page);
        if let [.., last] = &mut self.runs[self.fence..]
            && last.end() == start
            && continues(last)
        {
            last.pages += pages;
        } else {
            self.runs.push(Run { start, pages, source });
        }
    }
}

/// Pieces in ascending order, which can be taken in part.
struct Pieces {
    iter: std::vec::IntoIter<Piece>,
    rest: Option<Piece>,
}

impl Pieces {
    /// The next piece as far as it lies before page `end`.
    fn before(&mut self, end: u64) -> Option<Piece> {
        let mut piece = self.rest.take().or_else(|| self.iter.next())?;
        if piece.page >= end {
            self.rest = Some(piece);
            return None;
        }
        let inside = end - piece.page;
        if piece.pages > inside {
            let hash = if piece.place == Place::Zero { piece.hash } else { piece.hash + inside as usize };
            self.rest = Some(Piece {
                page: end,
                pages: piece.pages - inside,
                place: piece.place.skip(inside),
                hash,
                ..piece
            });
            piece.pages = inside;
        }
        Some(piece)
    }
}
