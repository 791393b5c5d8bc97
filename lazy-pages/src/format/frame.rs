//! Frames: up to 64 pages of one object, compressed and hashed together, and the unit of a page fault's fetch.

use crate::{ids::PackId, units::PAGE_SIZE};

/// Pages in a full frame (256 KiB): large enough to compress well, small enough for one fault.
pub const FRAME_PAGES: usize = 64;

/// How a frame's bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As they are.
    None,
    /// lz4 block.
    Lz4,
    /// zstd frame.
    Zstd,
}

/// Where a frame is and what must come out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// The object it is in.
    pub pack: PackId,
    /// Bytes from the start of the object.
    pub offset: u64,
    /// Bytes it takes there.
    pub stored_length: u32,
    /// Pages it holds, 1 to [`FRAME_PAGES`].
    pub pages: u32,
    /// How it is packed.
    pub codec: Codec,
    /// The first 16 bytes of BLAKE3 over the 16-byte hashes of its pages.
    pub hash: [u8; 16],
}

/// Plain bytes of a frame whose hash has been checked. There is no other way to get page data out of a store, so bytes
/// that were not verified cannot reach a process.
#[derive(Clone, Debug)]
pub struct VerifiedFrame {
    bytes: Vec<u8>,
}

impl VerifiedFrame {
    /// All pages, one after another.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of `count` pages from page `first`.
    pub fn pages(&self, first: u32, count: u64) -> &[u8] {
        let start = first as usize * PAGE_SIZE;
        &self.bytes[start..start + count as usize * PAGE_SIZE]
    }
}

/// Why a frame was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Its bytes do not unpack to the promised number of pages.
    #[error("a frame of pack {pack} at {offset} does not unpack: {reason}")]
    Unpack {
        /// The pack.
        pack: PackId,
        /// Where in it.
        offset: u64,
        /// What went wrong.
        reason: String,
    },
    /// Its content is not what was stored.
    #[error("a frame of pack {pack} at {offset} does not match its hash")]
    Mismatch {
        /// The pack.
        pack: PackId,
        /// Where in it.
        offset: u64,
    },
}
