//! The last stage: puts windows back into the order of the stream, lets sparse ones share frames, and appends frames to
//! packs.
//!
//! One thread, so that order needs no locks. It blocks only while too many packs are being sent; then the windows of
//! the pool end up here or in front of here, and the sink waits. That is the back-pressure of the whole pipeline.

use std::{collections::VecDeque, sync::Arc};

use crossbeam_channel::{Receiver, Sender};

use super::{
    WriteError,
    upload::Uploads,
    window::{Fate, Window},
    worker::{Done, Job},
};
use crate::{
    format::{FRAME_PAGES, FrameEntry, PackEntry, PageHash, keys},
    ids::{AppId, PackId},
    units::PAGE_SIZE,
};

/// Bytes of a pack at most: one upload, large enough to be worth its round trip.
pub(super) const PACK_BYTES: usize = 8 << 20;

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
    ) -> Self {
        Self {
            app,
            uploads,
            done,
            jobs,
            free,
            early: VecDeque::new(),
            due: 0,
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
        self.flush_gathering()?;
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
            self.flush_gathering()?;
            self.result.objects.resize_with(window.object + 1, Pages::default);
        }
        if window.packed.is_some() {
            let frame = self.number_frame()?;
            self.record(&window, |position| Place::New { frame, first: position });
            self.append(&window, frame)?;
        } else if !window.stored_hashes.is_empty() {
            return self.gather(window);
        } else {
            self.record(&window, |_| Place::Zero);
        }
        self.recycle(window);
        Ok(())
    }

    /// Notes what became of each page; `stored_at` tells where the n-th stored page of the window is.
    fn record(&mut self, window: &Window, stored_at: impl Fn(u32) -> Place) {
        let pages = &mut self.result.objects[window.object];
        let counts = &mut self.result.counts;
        let mut stored = 0;
        let mut hash = pages.hashes.len();
        for (page, fate) in window.pages.iter().zip(&window.fates) {
            counts.total += 1;
            let place = match *fate {
                Fate::Zero => Place::Zero,
                Fate::Unchanged { frame, page } => Place::Parent { frame, first: page },
                Fate::Stored => stored_at(stored),
            };
            match fate {
                Fate::Zero => counts.zero += 1,
                Fate::Unchanged { .. } => counts.unchanged += 1,
                Fate::Stored => {
                    counts.stored += 1;
                    stored += 1;
                }
            }
            pages.note(*page, window.lazy, place, hash);
            hash += usize::from(*fate != Fate::Zero);
        }
        pages.hashes.extend_from_slice(&window.hashes);
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
        window.clear();
        // The sink may be gone already; then nobody needs it.
        let _ = self.free.send(window);
    }
}

/// Lazy and eager pages never share a frame or a pack.
fn slot(lazy: bool) -> usize {
    usize::from(!lazy)
}
