//! The parallel stage: finds zero pages, hashes, compares with the parent, and packs what is left of a window when that
//! is known and enough for a frame of its own.
//!
//! A worker never blocks on anything but its own queue, so whatever waits for it makes progress.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::{
    Parent,
    parent::KnownPage,
    upload::Uploads,
    window::{Fate, Packed, Window, move_page},
};
use crate::{
    format::{Codec, FRAME_PAGES, frame_hash, hash_pages},
    units::PAGE_SIZE,
};

/// Windows with fewer pages to store share a frame with their neighbours.
pub(super) const OWN_FRAME_PAGES: usize = FRAME_PAGES / 2;

static ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Work for a worker.
#[derive(Debug)]
pub(super) enum Job {
    /// Pages as received.
    Sort(Window),
    /// Pages of several windows, moved together, to be packed as frame number `frame`.
    Pack { window: Window, frame: u32 },
}

/// Work done.
#[derive(Debug)]
pub(super) enum Done {
    /// From [`Job::Sort`].
    Sorted(Window),
    /// From [`Job::Pack`].
    Packed { window: Window, frame: u32 },
    /// Not from a worker: the stream has ended after this many windows.
    End { windows: u64 },
}

/// Serves `jobs` until nobody can send any more.
/// `undecided`: the packer decides about pages that are unchanged.
pub(super) fn run(
    jobs: &Receiver<Job>,
    done: &Sender<Done>,
    parent: Option<Arc<Parent>>,
    undecided: bool,
    uploads: &Uploads,
) {
    let mut compressor = Compressor::new(uploads.zstd_level());
    for job in jobs {
        let result = match job {
            Job::Sort(mut window) => {
                sort(&mut window, parent.as_deref(), undecided);
                if window.stored_hashes.len() >= OWN_FRAME_PAGES {
                    compressor.pack(&mut window, uploads.codec());
                }
                Done::Sorted(window)
            }
            Job::Pack { mut window, frame } => {
                compressor.pack(&mut window, uploads.codec());
                Done::Packed { window, frame }
            }
        };
        // Nobody listens once the writer was dropped or has failed.
        if done.send(result).is_err() {
            return;
        }
    }
}

/// Decides the fate of each page and moves those to be stored to the start of the buffer. If pages are unchanged, but it is
/// left `undecided` whether they are stored again, all that are not zero are moved there.
fn sort(window: &mut Window, parent: Option<&Parent>, undecided: bool) {
    let Window { pages, fates, hashes, stored_hashes, bytes, .. } = window;
    let mut kept = 0;
    for at in 0..pages.len() {
        if bytes[at * PAGE_SIZE..(at + 1) * PAGE_SIZE] == ZERO_PAGE {
            fates.push(Fate::Zero);
        } else {
            fates.push(Fate::Stored);
            move_page(bytes, at, kept);
            kept += 1;
        }
    }
    hash_pages(&bytes[..kept * PAGE_SIZE], hashes);

    let Some(mut known) = parent.and_then(|parent| parent.pages_of(window.id)) else {
        stored_hashes.extend_from_slice(hashes);
        return;
    };
    let present = pages.iter().zip(fates.iter_mut()).filter(|(_, fate)| **fate == Fate::Stored);
    let mut changed = true;
    for ((page, fate), hash) in present.zip(&*hashes) {
        if let Some(KnownPage::Stored(known)) = known.find(*page)
            && known.hash == *hash
        {
            *fate = Fate::Unchanged { frame: known.frame, page: known.page };
            changed = false;
        }
    }
    if changed {
        stored_hashes.extend_from_slice(hashes);
    } else if !undecided {
        window.gather_stored();
    }
}

/// Contexts and scratch space that outlive a frame.
struct Compressor {
    scratch: Vec<u8>,
    lz4: lz4_flex::block::CompressTable,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    zstd_level: i32,
}

impl Compressor {
    fn new(zstd_level: i32) -> Self {
        let plain = FRAME_PAGES * PAGE_SIZE;
        let room =
            lz4_flex::block::get_maximum_output_size(plain).max(zstd::zstd_safe::compress_bound(plain));
        Self { scratch: vec![0; room], lz4: lz4_flex::block::CompressTable::large(), zstd: None, zstd_level }
    }

    /// Packs the pages to be stored in place. What does not save a tenth is left plain.
    fn pack(&mut self, window: &mut Window, codec: Codec) {
        let plain = window.plain(window.stored_hashes.len());
        let worth = plain.len() - plain.len() / 10;
        let packed = self.compress(plain, codec).filter(|length| *length <= worth);
        let (codec, length) = match packed {
            Some(length) => (codec, length),
            None => (Codec::None, plain.len()),
        };
        if codec != Codec::None {
            window.bytes[..length].copy_from_slice(&self.scratch[..length]);
        }
        window.packed = Some(Packed { codec, length, hash: frame_hash(&window.stored_hashes) });
    }

    /// Compresses into the scratch space; `None` when that is not wanted or fails, which only costs space.
    fn compress(&mut self, plain: &[u8], codec: Codec) -> Option<usize> {
        match codec {
            Codec::None | Codec::AtSource => None,
            Codec::Lz4 => {
                lz4_flex::block::compress_into_with_table(plain, &mut self.scratch, &mut self.lz4).ok()
            }
            Codec::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Compressor::new(self.zstd_level).ok();
                }
                self.zstd.as_mut()?.compress_to_buffer(plain, &mut self.scratch[..]).ok()
            }
        }
    }
}
