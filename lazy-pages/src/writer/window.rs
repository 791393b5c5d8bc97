//! A window: up to a frame's worth of pages on their way from CRIU's stream into a pack.
//!
//! Windows come from a pool of fixed size and go back to it, buffers and all, so nothing is allocated while pages flow,
//! and the pool is what bounds the memory between the sink and the packs.

use crate::{
    format::{Codec, FRAME_PAGES, ObjectId, PageHash},
    units::PAGE_SIZE,
};

/// Pages of one object, all lazy or all eager, and what became of them.
#[derive(Debug)]
pub(super) struct Window {
    /// Position in the stream of windows.
    pub sequence: u64,
    /// Position of the object in the order of opening.
    pub object: usize,
    /// The object.
    pub id: ObjectId,
    /// Restored on demand.
    pub lazy: bool,
    /// Page numbers, as received.
    pub pages: Vec<u64>,
    /// For each of `pages`, what became of it.
    pub fates: Vec<Fate>,
    /// Hashes of all pages that are not zero, in order.
    pub hashes: Vec<PageHash>,
    /// Hashes of the pages to be stored, in order.
    pub stored_hashes: Vec<PageHash>,
    /// The pages received; then those that are not zero, moved together; then those to be stored; at last these packed.
    pub bytes: Box<[u8]>,
    /// Set once `bytes` is packed.
    pub packed: Option<Packed>,
    /// Not of the pool, and not to go there.
    pub extra: bool,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// All zero.
    Zero,
    /// The parent stores the same content for this address.
    Unchanged {
        /// Position in the parent's frames.
        frame: u32,
        /// Position in that frame.
        page: u32,
    },
    /// The same, but whether that is referred to is not known yet; kept elsewhere.
    Waiting,
    /// To be stored.
    Stored,
}

/// How a window's pages lie at the start of its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    pub codec: Codec,
    pub length: usize,
    pub hash: [u8; 16],
}

impl Window {
    pub fn new() -> Self {
        Self {
            sequence: 0,
            object: 0,
            id: ObjectId::Task(0),
            lazy: false,
            pages: Vec::with_capacity(FRAME_PAGES),
            fates: Vec::with_capacity(FRAME_PAGES),
            hashes: Vec::with_capacity(FRAME_PAGES),
            stored_hashes: Vec::with_capacity(FRAME_PAGES),
            bytes: vec![0; FRAME_PAGES * PAGE_SIZE].into_boxed_slice(),
            packed: None,
            extra: false,
        }
    }

    /// Ready for other pages.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.fates.clear();
        self.hashes.clear();
        self.stored_hashes.clear();
        self.packed = None;
    }

    /// Moves the pages to be stored to the start of the buffer, which holds all that are not zero, and lists their hashes.
    pub fn gather_stored(&mut self) {
        let present = self.fates.iter().filter(|fate| **fate != Fate::Zero);
        for (at, (fate, hash)) in present.zip(&self.hashes).enumerate() {
            if *fate == Fate::Stored {
                move_page(&mut self.bytes, at, self.stored_hashes.len());
                self.stored_hashes.push(*hash);
            }
        }
    }

    /// The first `pages` pages of the buffer.
    pub fn plain(&self, pages: usize) -> &[u8] {
        &self.bytes[..pages * PAGE_SIZE]
    }
}

/// Copies a page to another place of a buffer.
pub(super) fn move_page(bytes: &mut [u8], from: usize, to: usize) {
    if from != to {
        bytes.copy_within(from * PAGE_SIZE..(from + 1) * PAGE_SIZE, to * PAGE_SIZE);
    }
}
