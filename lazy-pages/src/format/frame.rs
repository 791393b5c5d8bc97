//! Frames: up to 64 pages of one object, in ascending address order, compressed and hashed together. The unit of a page
//! fault's fetch.
//!
//! The pages of a frame need not be next to each other in the address space: what a run of the manifest says about its
//! pages is the only place where an address meets a position in a frame.
//!
//! [`VerifiedFrame`] is the only way page data leaves a store. Unpacking never makes more than the promised number of
//! pages, whatever the stored bytes say.

use std::cell::RefCell;

use bytes::Bytes;

use crate::{
    format::hash::{PageHash, frame_hash, hash_pages},
    ids::PackId,
    units::PAGE_SIZE,
};

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
    /// Not in a store: as they are in the memory of a process that is being handed over, followed by their hash. See
    /// [`handover`](crate::handover).
    AtSource,
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
    /// The first 16 bytes of BLAKE3 over the 16-byte hashes of its pages. Zeros if it is [`Codec::AtSource`]: nobody has read
    /// it when this is written, so the hash comes with its bytes.
    pub hash: [u8; FRAME_HASH],
}

/// Bytes of a frame's hash.
pub const FRAME_HASH: usize = 16;

impl FrameEntry {
    /// Bytes it has unpacked.
    pub fn plain_length(&self) -> usize {
        self.pages as usize * PAGE_SIZE
    }

    /// First byte after it in its pack.
    pub fn stored_end(&self) -> u64 {
        self.offset + u64::from(self.stored_length)
    }
}

/// Plain bytes of a frame whose hash has been checked. There is no other way to get page data out of a store, so bytes
/// that were not verified cannot reach a process. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct VerifiedFrame {
    bytes: Bytes,
}

impl VerifiedFrame {
    /// Unpacks and checks what is stored at `entry`. An uncompressed frame keeps `stored` itself, hence also the larger
    /// response it may be a slice of; [`Self::detached`] ends that.
    ///
    /// # Errors
    /// When `stored` does not unpack to exactly the promised pages, or their hash is not the promised one.
    pub fn decode(entry: &FrameEntry, stored: Bytes) -> Result<Self, FrameError> {
        let mut hashes = Vec::with_capacity(FRAME_PAGES);
        Self::decode_with_hashes(entry, stored, &mut hashes)
    }

    /// [`Self::decode`], leaving the hash of each page in `hashes`, whose former content is dropped.
    pub(crate) fn decode_with_hashes(
        entry: &FrameEntry,
        stored: Bytes,
        hashes: &mut Vec<PageHash>,
    ) -> Result<Self, FrameError> {
        let (bytes, promised) = unpack(entry, stored).map_err(|reason| FrameError::Unpack {
            pack: entry.pack,
            offset: entry.offset,
            reason,
        })?;
        hashes.clear();
        hash_pages(&bytes, hashes);
        if frame_hash(hashes) != promised {
            return Err(FrameError::Mismatch { pack: entry.pack, offset: entry.offset });
        }
        Ok(Self { bytes })
    }

    /// All pages, one after another.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many pages it holds.
    pub fn page_count(&self) -> u32 {
        (self.bytes.len() / PAGE_SIZE) as u32
    }

    /// The bytes of `count` pages from page `first`. Both come from a run of the manifest the frame was found by, which
    /// lies inside the frame.
    ///
    /// # Panics
    /// When the pages are not all in the frame.
    pub fn pages(&self, first: u32, count: u64) -> &[u8] {
        let start = first as usize * PAGE_SIZE;
        &self.bytes[start..start + count as usize * PAGE_SIZE]
    }

    /// The same frame in memory of its own, for keeping it longer than the response it came in.
    pub fn detached(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes) }
    }
}

/// The plain bytes, not yet verified, and what their hash has to be.
fn unpack(entry: &FrameEntry, mut stored: Bytes) -> Result<(Bytes, [u8; FRAME_HASH]), String> {
    thread_local! {
        // Setting one up costs more than unpacking a frame.
        static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let length = entry.plain_length();
    if entry.pages == 0 || entry.pages as usize > FRAME_PAGES {
        return Err(format!("{} pages promised", entry.pages));
    }
    if stored.len() != entry.stored_length as usize {
        return Err(format!("{} of {} bytes", stored.len(), entry.stored_length));
    }
    let mut promised = entry.hash;
    let plain = match entry.codec {
        Codec::AtSource => {
            let hash = stored.split_off(stored.len().saturating_sub(FRAME_HASH));
            promised = hash[..].try_into().map_err(|_| "it has no hash".to_owned())?;
            stored
        }
        Codec::None => stored,
        Codec::Lz4 => {
            let plain = lz4_flex::block::decompress(&stored, length).map_err(|e| e.to_string())?;
            Bytes::from(plain)
        }
        Codec::Zstd => ZSTD.with_borrow_mut(|slot| {
            let decompressor = match slot {
                Some(decompressor) => decompressor,
                None => slot.insert(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?),
            };
            decompressor.decompress(&stored, length).map(Bytes::from).map_err(|e| e.to_string())
        })?,
    };
    if plain.len() != length {
        return Err(format!("it holds {} bytes, {length} promised", plain.len()));
    }
    Ok((plain, promised))
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
