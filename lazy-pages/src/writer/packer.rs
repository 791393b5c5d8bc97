//! The last stage: puts windows back into the order of the stream, lets sparse ones share frames, and appends frames to
//! packs.
//!
//! It also decides which frames of the parent are referred to, see [`super::sparse`]: windows are held back until a few
//! more have come, by then most of their frames are decided; the pages of the others wait in [`super::waiting`].
//!
//! One thread, so that order needs no locks. It blocks only while too many packs are being sent; then the windows of
//! the pool end up here or in front of here, and the sink waits. That is the back-pressure of the whole pipeline.

use std::{collections::VecDeque, sync::Arc};

use crossbeam_channel::{Receiver, Sender};

use super::{
    WriteError,
    sparse::{ParentFrames, Verdict},
    upload::Uploads,
    waiting::{Held, Waiting},
    window::{Fate, Window},
    worker::{Done, Job, OWN_FRAME_PAGES},
};
use crate::{
    format::{FRAME_PAGES, FrameEntry, PackEntry, PageHash, keys},
    ids::{AppId, PackId},
    units::PAGE_SIZE,
};

/// Bytes of a pack at most: one upload, large enough to be worth its round trip.
pub(super) const PACK_BYTES: usize = 8 << 20;

/// Windows held back. A frame whose pages lie together touches two or three.
const HELD_BACK: usize = 4;

/// Everything known when the last page has been packed.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// For each object in order of opening, what its pages hold, in the order received.
    pub objects: Vec<Pages>,
    /// Frames written, by number.
    pub frames: Vec<FrameEntry>,
    /// Packs written.
    pub packs: Vec<PackEntry>,
    pub counts: Counts,
}

/// Pages received or taken over from the parent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub total: u64,
    pub zero: u64,
    pub unchanged: u64,
    pub stored: u64,
    /// Of those stored, the ones that had not changed.
    pub rewritten: u64,
}

/// Pages of one object.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pub pieces: Vec<Piece>,
    /// Of all pages that are not zero, in the order of `pieces`.
    pub hashes: Vec<PageHash>,
}

impl Pages {
    /// Notes a page, in the piece noted last if it continues that. `hash` is the position of its hash, or of the next
    /// one if it is zero.
    pub fn note(&mut self, page: u64, lazy: bool, place: Place, hash: usize) {
        match self.pieces.last_mut() {
            Some(last)
                if last.page + last.pages == page
                    && last.lazy == lazy
                    && last.place.skip(last.pages) == place =>
            {
                last.pages += 1;
            }
            _ => self.pieces.push(Piece { page, pages: 1, lazy, place, hash }),
        }
    }
}

/// Pages next to each other that come from the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of the first page.
    pub page: u64,
    pub pages: u64,
    pub lazy: bool,
    pub place: Place,
    /// Position of the first page's hash.
    pub hash: usize,
}

/// Where a piece's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Zero,
    /// In a frame of the parent, from this page on.
    Parent {
        frame: u32,
        first: u32,
    },
    /// In a frame of this checkpoint, from this page on.
    New {
        frame: u32,
        first: u32,
    },
}

impl Place {
    /// Where the content `pages` further on is.
    pub fn skip(self, pages: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Parent { frame, first } => Self::Parent { frame, first: first + pages as u32 },
            Self::New { frame, first } => Self::New { frame, first: first + pages as u32 },
        }
    }
}

pub(super) struct Packer {
    app: AppId,
    uploads: Arc<Uploads>,
    done: Receiver<Done>,
    jobs: Sender<Job>,
    free: Sender<Window>,
    /// Windows that overtook their predecessors; the first is the next one due.
    early: VecDeque<Option<Window>>,
    /// Sequence number of the next window due.
    due: u64,
    /// Of the parent; `None` if all of them may be referred to.
    parent: Option<ParentFrames>,
    /// Windows whose unchanged pages were counted.
    held_back: VecDeque<Window>,
    /// The last page number that was counted: lazy, eager.
    come: [u64; 2],
    /// Unchanged pages whose frame is not decided: lazy, eager.
    waiting: [Waiting; 2],
    /// Pages of sparse windows gathered so far: lazy, eager.
    gathering: [Option<(Window, u32)>; 2],
    /// Frames of gathered pages being packed by a worker.
    being_packed: usize,
    /// The packs being filled: lazy, eager. Eager ones are read as a whole at every restore, so they are kept apart.
    open: [Option<OpenPack>; 2],
    frames: Vec<Option<FrameEntry>>,
    result: Packed,
}

struct OpenPack {
    id: PackId,
    bytes: Vec<u8>,
}

impl Packer {
    pub fn new(
        app: AppId,
        uploads: Arc<Uploads>,
        done: Receiver<Done>,
        jobs: Sender<Job>,
        free: Sender<Window>,
        parent: Option<ParentFrames>,
    ) -> Self {
        Self {
            app,
            uploads,
            done,
            jobs,
            free,
            early: VecDeque::new(),
            due: 0,
            parent,
            held_back: VecDeque::new(),
            come: [0; 2],
            waiting: Default::default(),
            gathering: [None, None],
            being_packed: 0,
            open: [None, None],
            frames: Vec::new(),
            result: Packed::default(),
        }
    }

    /// Works until the stream has ended and every pack was handed over.
    ///
    /// # Errors
    /// When the writer has failed or was dropped.
    pub fn run(mut self) -> Result<Packed, WriteError> {
        let mut end = None;
        while end != Some(self.due) {
            match self.uploads.wait_for(&self.done)? {
                Done::Sorted(window) => self.arrived(window)?,
                Done::Packed { window, frame } => self.gathered(window, frame)?,
                Done::End { windows } => end = Some(windows),
            }
        }
        self.end_object()?;
        while self.being_packed > 0 {
            if let Done::Packed { window, frame } = self.uploads.wait_for(&self.done)? {
                self.gathered(window, frame)?;
            }
        }
        for at in 0..self.open.len() {
            self.close(at)?;
        }
        self.result.frames = self.frames.into_iter().collect::<Option<_>>().ok_or(WriteError::Stopped)?;
        Ok(self.result)
    }

    fn arrived(&mut self, window: Window) -> Result<(), WriteError> {
        let place = (window.sequence - self.due) as usize;
        if self.early.len() <= place {
            self.early.resize_with(place + 1, || None);
        }
        self.early[place] = Some(window);
        while let Some(window) = self.early.front_mut().and_then(Option::take) {
            self.early.pop_front();
            self.due += 1;
            self.take(window)?;
        }
        Ok(())
    }

    /// The next window of the stream.
    fn take(&mut self, window: Window) -> Result<(), WriteError> {
        if window.object >= self.result.objects.len() {
            // A frame holds pages of one object.
            self.end_object()?;
            self.result.objects.resize_with(window.object + 1, Pages::default);
        }
        let Some(parent) = &mut self.parent else { return self.place(window) };
        let slot = slot(window.lazy);
        let mut kept = Vec::new();
        for fate in &window.fates {
            if let Fate::Unchanged { frame, page } = *fate
                && parent.unchanged(frame, page)
            {
                kept.push(frame);
            }
        }
        self.come[slot] = window.pages.last().copied().unwrap_or_default();
        self.held_back.push_back(window);
        for frame in kept {
            self.refer_to(frame);
        }
        self.decide_due(slot)?;
        match self.held_back.len() > HELD_BACK {
            true => self.place_next(),
            false => Ok(()),
        }
    }

    /// No more pages of the open object will come.
    fn end_object(&mut self) -> Result<(), WriteError> {
        self.come = [u64::MAX; 2];
        while !self.held_back.is_empty() {
            self.place_next()?;
        }
        for slot in 0..self.waiting.len() {
            self.decide_due(slot)?;
        }
        self.come = [0; 2];
        self.flush_gathering()
    }

    /// Decides about the window held back longest.
    fn place_next(&mut self) -> Result<(), WriteError> {
        let Some(mut window) = self.held_back.pop_front() else { return Ok(()) };
        if let Some(parent) = &mut self.parent
            && window.stored_hashes.is_empty()
        {
            let slot = slot(window.lazy);
            let present = window.pages.iter().zip(&mut window.fates).filter(|(_, fate)| **fate != Fate::Zero);
            for (at, (number, fate)) in present.enumerate() {
                let Fate::Unchanged { frame, page } = *fate else { continue };
                match parent.verdict(frame, self.come[slot]) {
                    Verdict::Kept => {}
                    Verdict::Rewritten => {
                        self.result.counts.rewritten += 1;
                        *fate = Fate::Stored;
                    }
                    Verdict::Open => {
                        let bytes = window.bytes[at * PAGE_SIZE..(at + 1) * PAGE_SIZE].into();
                        let held = Held { number: *number, at: page, hash: window.hashes[at], bytes };
                        self.waiting[slot].hold(parent.last(frame), frame, held);
                        *fate = Fate::Waiting;
                    }
                }
            }
            window.gather_stored();
        }
        self.place(window)?;
        for slot in 0..self.waiting.len() {
            while let Some(frame) = self.waiting[slot].too_many() {
                if let Some(parent) = &mut self.parent {
                    parent.give_up(frame);
                }
                self.decide(frame, u64::MAX)?;
            }
        }
        Ok(())
    }

    /// Decides about the frames that wait for no more pages.
    fn decide_due(&mut self, slot: usize) -> Result<(), WriteError> {
        while let Some(frame) = self.waiting[slot].due(self.come[slot]) {
            self.decide(frame, self.come[slot])?;
        }
        Ok(())
    }

    /// Places the pages that waited for a frame of which all pages up to number `come` have come.
    fn decide(&mut self, frame: u32, come: u64) -> Result<(), WriteError> {
        match self.parent.as_mut().map(|parent| parent.verdict(frame, come)) {
            Some(Verdict::Kept) => self.refer_to(frame),
            _ => self.rewrite(frame)?,
        }
        Ok(())
    }

    /// Notes the pages that waited for a frame, which is kept.
    fn refer_to(&mut self, frame: u32) {
        let (Some(parent), Some(pages)) = (&self.parent, self.result.objects.last_mut()) else { return };
        for (slot, waiting) in self.waiting.iter_mut().enumerate() {
            let held = waiting.take(parent.last(frame), frame);
            self.result.counts.total += held.len() as u64;
            self.result.counts.unchanged += held.len() as u64;
            for page in held {
                let place = Place::Parent { frame, first: page.at };
                pages.note(page.number, slot == 0, place, pages.hashes.len());
                pages.hashes.push(page.hash);
            }
        }
    }

    /// Stores again what waited for a frame, which is not kept.
    fn rewrite(&mut self, frame: u32) -> Result<(), WriteError> {
        let Some(last) = self.parent.as_ref().map(|parent| parent.last(frame)) else { return Ok(()) };
        for slot in 0..self.waiting.len() {
            let held = self.waiting[slot].take(last, frame);
            self.result.counts.rewritten += held.len() as u64;
            for held in held.chunks(FRAME_PAGES) {
                let mut window = Window::new();
                window.extra = true;
                window.object = self.result.objects.len() - 1;
                window.lazy = slot == 0;
                for (at, page) in held.iter().enumerate() {
                    window.pages.push(page.number);
                    window.fates.push(Fate::Stored);
                    window.hashes.push(page.hash);
                    window.bytes[at * PAGE_SIZE..(at + 1) * PAGE_SIZE].copy_from_slice(&page.bytes);
                }
                window.gather_stored();
                self.place(window)?;
            }
        }
        Ok(())
    }

    /// A window in which the fate of every page is known.
    fn place(&mut self, window: Window) -> Result<(), WriteError> {
        if window.stored_hashes.is_empty() {
            self.record(&window, |_| Place::Zero);
            self.recycle(window);
        } else if window.packed.is_some() {
            let frame = self.number_frame()?;
            self.record(&window, |position| Place::New { frame, first: position });
            self.append(&window, frame)?;
            self.recycle(window);
        } else if window.stored_hashes.len() >= OWN_FRAME_PAGES {
            let frame = self.number_frame()?;
            self.record(&window, |position| Place::New { frame, first: position });
            self.pack_later(window, frame)?;
        } else {
            self.gather(window)?;
        }
        Ok(())
    }

    /// Notes what became of each page; `stored_at` tells where the n-th stored page of the window is.
    fn record(&mut self, window: &Window, stored_at: impl Fn(u32) -> Place) {
        let pages = &mut self.result.objects[window.object];
        let counts = &mut self.result.counts;
        let mut hashes = window.hashes.iter();
        let mut stored = 0;
        for (page, fate) in window.pages.iter().zip(&window.fates) {
            let hash = if *fate == Fate::Zero { None } else { hashes.next() };
            let place = match *fate {
                Fate::Waiting => continue,
                Fate::Zero => {
                    counts.zero += 1;
                    Place::Zero
                }
                Fate::Unchanged { frame, page } => {
                    counts.unchanged += 1;
                    Place::Parent { frame, first: page }
                }
                Fate::Stored => {
                    if let Some(parent) = &mut self.parent {
                        parent.stored();
                    }
                    counts.stored += 1;
                    stored += 1;
                    stored_at(stored - 1)
                }
            };
            counts.total += 1;
            pages.note(*page, window.lazy, place, pages.hashes.len());
            pages.hashes.extend(hash);
        }
    }

    /// Lets the few pages of a sparse window share a frame with those before and after it.
    fn gather(&mut self, mut window: Window) -> Result<(), WriteError> {
        let slot = slot(window.lazy);
        let new = window.stored_hashes.len();
        let Some((mut gathering, frame)) = self.gathering[slot].take() else {
            let frame = self.number_frame()?;
            self.record(&window, |position| Place::New { frame, first: position });
            self.gathering[slot] = Some((window, frame));
            return Ok(());
        };
        let before = gathering.stored_hashes.len();
        let fits = new.min(FRAME_PAGES - before);
        gathering.bytes[before * PAGE_SIZE..(before + fits) * PAGE_SIZE].copy_from_slice(window.plain(fits));
        gathering.stored_hashes.extend_from_slice(&window.stored_hashes[..fits]);
        let (next, left) = (self.frames.len() as u32, fits as u32);
        if fits < new {
            self.number_frame()?;
        }
        self.record(&window, |position| match position.checked_sub(left) {
            None => Place::New { frame, first: before as u32 + position },
            Some(first) => Place::New { frame: next, first },
        });
        if before + fits < FRAME_PAGES {
            self.gathering[slot] = Some((gathering, frame));
            self.recycle(window);
            return Ok(());
        }
        self.pack_later(gathering, frame)?;
        if fits < new {
            window.bytes.copy_within(fits * PAGE_SIZE..new * PAGE_SIZE, 0);
            window.stored_hashes.drain(..fits);
            self.gathering[slot] = Some((window, next));
        } else {
            self.recycle(window);
        }
        Ok(())
    }

    fn flush_gathering(&mut self) -> Result<(), WriteError> {
        for slot in 0..self.gathering.len() {
            if let Some((window, frame)) = self.gathering[slot].take() {
                self.pack_later(window, frame)?;
            }
        }
        Ok(())
    }

    fn pack_later(&mut self, window: Window, frame: u32) -> Result<(), WriteError> {
        self.being_packed += 1;
        self.jobs.send(Job::Pack { window, frame }).map_err(|_| self.uploads.error())
    }

    fn gathered(&mut self, window: Window, frame: u32) -> Result<(), WriteError> {
        self.being_packed -= 1;
        self.append(&window, frame)?;
        self.recycle(window);
        Ok(())
    }

    fn number_frame(&mut self) -> Result<u32, WriteError> {
        let number = u32::try_from(self.frames.len()).map_err(|_| WriteError::TooManyFrames)?;
        self.frames.push(None);
        Ok(number)
    }

    /// Appends the packed pages of `window` to the open pack.
    fn append(&mut self, window: &Window, frame: u32) -> Result<(), WriteError> {
        let Some(packed) = window.packed else { return Err(WriteError::Stopped) };
        let slot = slot(window.lazy);
        if self.open[slot].as_ref().is_some_and(|pack| pack.bytes.len() + packed.length > PACK_BYTES) {
            self.close(slot)?;
        }
        let pack = self.open[slot]
            .get_or_insert_with(|| OpenPack { id: PackId::new(), bytes: self.uploads.buffer(PACK_BYTES) });
        self.frames[frame as usize] = Some(FrameEntry {
            pack: pack.id,
            offset: pack.bytes.len() as u64,
            stored_length: packed.length as u32,
            pages: window.stored_hashes.len() as u32,
            codec: packed.codec,
            hash: packed.hash,
        });
        pack.bytes.extend_from_slice(&window.bytes[..packed.length]);
        Ok(())
    }

    fn close(&mut self, slot: usize) -> Result<(), WriteError> {
        let Some(pack) = self.open[slot].take() else { return Ok(()) };
        self.result.packs.push(PackEntry { id: pack.id, length: pack.bytes.len() as u64 });
        self.uploads.send(keys::pack(&self.app, pack.id), pack.bytes)
    }

    fn recycle(&self, mut window: Window) {
        if window.extra {
            return;
        }
        window.clear();
        // The sink may be gone already; then nobody needs it.
        let _ = self.free.send(window);
    }
}

/// Lazy and eager pages never share a frame or a pack.
fn slot(lazy: bool) -> usize {
    usize::from(!lazy)
}
