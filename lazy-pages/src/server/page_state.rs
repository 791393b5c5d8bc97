//! What is known about the pages of one address space: which still have to come from the checkpoint, and from where.
//!
//! A map from current addresses to what belongs there:
//! - [`Content::Stored`]: not in memory yet; its bytes are those of an address of the image.
//! - [`Content::Zero`]: not in memory yet; the checkpoint says it is zero.
//! - [`Content::Installed`]: in memory, or was; never filled again.
//! - not in the map: never had data in the checkpoint, or has lost it for good (unmapped, `MADV_DONTNEED`, grown after
//!   the restore, fresh memory of a forked child). Such a page is zero by the kernel's own rules.
//!
//! What always holds:
//! - A stored page is at one address only, and leaves the map only by being installed or by an act of the process
//!   itself. So when no stored page is left, none can be lost by letting go of the address space.
//! - A piece never crosses a border between areas (VMAs) of the image, and keeps its area's behaviour at a fork when the
//!   process moves it.
//!
//! Pure data: no system call, no lock.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    format::{MemoryMap, Source},
    units::VirtAddr,
};

/// What belongs at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes of this address of the image, and of those after it.
    Stored(VirtAddr),
    /// Zeros.
    Zero,
    /// What the process has there already.
    Installed,
}

impl Content {
    /// What belongs `pages` pages further up.
    fn add(self, pages: u64) -> Self {
        match self {
            Self::Stored(image) => Self::Stored(image.add(pages)),
            other => other,
        }
    }
}

/// Pages next to each other with one kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Current address of the first page.
    pub start: VirtAddr,
    /// How many.
    pub pages: u64,
    /// What belongs there.
    pub content: Content,
}

/// Missing stored pages that are next to each other both in the image and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Current address of the first page.
    pub start: VirtAddr,
    /// Address of the first page in the image.
    pub image: VirtAddr,
    /// How many.
    pub pages: u64,
}

/// What a forked child gets of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtFork {
    Copied,
    /// `MADV_WIPEONFORK` gives the child fresh zeros, `MADV_DONTFORK` nothing at all: either way no image data.
    NotCopied,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    pages: u64,
    content: Content,
    /// Position of its area in [`PageState::areas`].
    area: u32,
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct PageState {
    areas: Arc<[AtFork]>,
    pieces: BTreeMap<VirtAddr, Piece>,
    /// Image address of the first page of each stored piece, to the piece's current address.
    by_image: BTreeMap<VirtAddr, VirtAddr>,
    missing: u64,
}

impl PageState {
    /// A just restored address space: everything in the image's on-demand areas is missing, except pages that CRIU has
    /// read before the process runs.
    pub fn new(map: &MemoryMap) -> Self {
        let at_fork = |wiped| if wiped { AtFork::NotCopied } else { AtFork::Copied };
        let mut state = Self {
            areas: map.vmas.iter().map(|vma| at_fork(vma.wipe_on_fork || vma.dont_fork)).collect(),
            pieces: BTreeMap::new(),
            by_image: BTreeMap::new(),
            missing: 0,
        };
        for (area, vma) in map.vmas.iter().enumerate() {
            let first = map.runs.partition_point(|run| run.end() <= vma.start);
            for run in map.runs[first..].iter().take_while(|run| run.start < vma.end) {
                let start = run.start.max(vma.start);
                let content = match run.source {
                    Source::Zero => Content::Zero,
                    Source::Stored { eager: false, .. } => Content::Stored(start),
                    Source::Stored { eager: true, .. } => Content::Installed,
                };
                let pages = run.end().min(vma.end).pages_from(start);
                state.insert(start, Piece { pages, content, area: area as u32 });
            }
        }
        state
    }

    /// The pages around `address` that have the same content.
    pub fn lookup(&self, address: VirtAddr) -> Option<Extent> {
        let (&start, piece) = self.pieces.range(..=address).next_back()?;
        let extent = Extent { start, pages: piece.pages, content: piece.content };
        (address < start.add(piece.pages)).then_some(extent)
    }

    /// The first missing pages whose image addresses are in `image .. image + pages`.
    pub fn missing_in_image(&self, image: VirtAddr, pages: u64) -> Option<Missing> {
        let end = image.add(pages);
        let piece = |(&piece_image, &start): (&VirtAddr, &VirtAddr)| {
            let pages = self.pieces.get(&start)?.pages;
            let first = image.max(piece_image);
            let last = end.min(piece_image.add(pages));
            (first < last).then(|| Missing {
                start: start.add(first.pages_from(piece_image)),
                image: first,
                pages: last.pages_from(first),
            })
        };
        let before = self.by_image.range(..=image).next_back().and_then(piece);
        before.or_else(|| self.by_image.range(image..end).next().and_then(piece))
    }

    /// How many stored pages are missing.
    pub fn missing_pages(&self) -> u64 {
        self.missing
    }

    /// Everything known, by current address.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.pieces.iter().map(|(&start, piece)| Extent { start, pages: piece.pages, content: piece.content })
    }

    /// All missing stored pages, in the image's order.
    pub fn missing(&self) -> impl Iterator<Item = Missing> + '_ {
        self.by_image.iter().filter_map(|(&image, &start)| {
            let pages = self.pieces.get(&start)?.pages;
            Some(Missing { start, image, pages })
        })
    }

    /// Pages known to the map from `start` on are in memory now.
    pub fn install(&mut self, start: VirtAddr, pages: u64) {
        for (start, mut piece) in self.take(start, start.add(pages)) {
            piece.content = Content::Installed;
            self.insert(start, piece);
        }
    }

    /// The process has given up what was in `start .. end`; what is there from now on is not the image's. Returns
    /// whether anything was known there.
    pub fn remove(&mut self, start: VirtAddr, end: VirtAddr) -> bool {
        !self.take(start, end).is_empty()
    }

    /// The process has moved `pages` pages from `from` to `to`.
    ///
    /// Whatever was at the target has been unmapped before, and was reported so. Yet kernels before 6.15 report the
    /// length before a shrink that is part of the same call; the surplus may reach into memory behind the target that
    /// the move did not touch. So pages which are known at the target stay, and what would land on them is dropped: it
    /// was cut off.
    ///
    /// Returns whether anything was known at the source.
    pub fn remap(&mut self, from: VirtAddr, to: VirtAddr, pages: u64) -> bool {
        let moved = self.take(from, from.add(pages));
        let occupied = self.pieces.range(to..to.add(pages)).next().map(|(&start, _)| start);
        let limit = if self.lookup(to).is_some() { to } else { occupied.unwrap_or(to.add(pages)) };
        let known = !moved.is_empty();
        for (start, mut piece) in moved {
            let target = to.add(start.pages_from(from));
            if target < limit {
                piece.pages = piece.pages.min(limit.pages_from(target));
                self.insert(target, piece);
            }
        }
        known
    }

    /// The state of a child forked at this moment.
    pub fn forked(&self) -> Self {
        let mut child = Self {
            areas: Arc::clone(&self.areas),
            pieces: BTreeMap::new(),
            by_image: BTreeMap::new(),
            missing: 0,
        };
        for (&start, &piece) in &self.pieces {
            if self.areas[piece.area as usize] == AtFork::Copied {
                child.insert(start, piece);
            }
        }
        child
    }

    /// Forgets everything: the address space no longer exists.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.by_image.clear();
        self.missing = 0;
    }

    /// Takes what is in `start .. end` out of the map, cutting pieces at both ends.
    fn take(&mut self, start: VirtAddr, end: VirtAddr) -> Vec<(VirtAddr, Piece)> {
        self.cut(start);
        self.cut(end);
        let mut taken = Vec::new();
        while let Some((&at, _)) = self.pieces.range(start..end).next() {
            taken.extend(self.detach(at).map(|piece| (at, piece)));
        }
        taken
    }

    /// Makes `address` a border between pieces.
    fn cut(&mut self, address: VirtAddr) {
        let Some((&start, &piece)) = self.pieces.range(..address).next_back() else { return };
        if address < start.add(piece.pages) {
            self.detach(start);
            let head = address.pages_from(start);
            self.attach(start, Piece { pages: head, ..piece });
            let content = piece.content.add(head);
            self.attach(address, Piece { pages: piece.pages - head, content, ..piece });
        }
    }

    /// Adds a piece where none is, joined with its neighbours where they continue each other.
    fn insert(&mut self, mut start: VirtAddr, mut piece: Piece) {
        if let Some((&before, &left)) = self.pieces.range(..start).next_back()
            && before.add(left.pages) == start
            && left.area == piece.area
            && left.content.add(left.pages) == piece.content
        {
            self.detach(before);
            start = before;
            piece = Piece { pages: left.pages + piece.pages, ..left };
        }
        let after = start.add(piece.pages);
        if let Some(&right) = self.pieces.get(&after)
            && right.area == piece.area
            && piece.content.add(piece.pages) == right.content
        {
            self.detach(after);
            piece.pages += right.pages;
        }
        self.attach(start, piece);
    }

    fn attach(&mut self, start: VirtAddr, piece: Piece) {
        if let Content::Stored(image) = piece.content {
            self.by_image.insert(image, start);
            self.missing += piece.pages;
        }
        self.pieces.insert(start, piece);
    }

    fn detach(&mut self, start: VirtAddr) -> Option<Piece> {
        let piece = self.pieces.remove(&start)?;
        if let Content::Stored(image) = piece.content {
            self.by_image.remove(&image);
            self.missing -= piece.pages;
        }
        Some(piece)
    }
}

#[cfg(test)]
#[path = "page_state_tests.rs"]
mod tests;
