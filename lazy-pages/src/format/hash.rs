//! Hashes of pages. One pass over the bytes serves both ends: a page whose hash is that of the same page in the
//! previous checkpoint need not be stored, and a frame is intact when the hash over its pages' hashes is the one in the
//! manifest.
//!
//! A page hash is plain BLAKE3 of the page, cut to 16 bytes, so anyone can recompute it with any implementation. A
//! 4 KiB input fills only four SIMD lanes when hashed alone; the pages of a frame are therefore hashed side by side,
//! which doubles the rate. Hashing a page alone must give the same result (a test says so).

use blake3::{IncrementCounter, platform::Platform};

use crate::{format::FRAME_PAGES, units::PAGE_SIZE};

/// The first 16 bytes of BLAKE3 of a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PageHash(pub [u8; PageHash::BYTES]);

impl PageHash {
    /// Bytes of a stored hash.
    pub const BYTES: usize = 16;
}

/// The first 16 bytes of BLAKE3 over the concatenated hashes of a frame's pages.
pub fn frame_hash(pages: &[PageHash]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for page in pages {
        hasher.update(&page.0);
    }
    truncated(hasher.finalize().as_bytes())
}

/// Appends the hash of every page in `bytes`, whose length is a multiple of the page size.
pub fn hash_pages(bytes: &[u8], hashes: &mut Vec<PageHash>) {
    for group in bytes.chunks(FRAME_PAGES * PAGE_SIZE) {
        hash_group(group, hashes);
    }
}

// BLAKE3's tree over 4 KiB: four chunks of 1 KiB, two parents over them, the root over those.
const CHUNK: usize = 1024;
const CHUNKS: usize = PAGE_SIZE / CHUNK;
const NODE: usize = 32;
const BLOCK: usize = 2 * NODE;
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEY: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

/// Hashes up to [`FRAME_PAGES`] pages, level by level of their trees: at each level the nodes of all pages are
/// independent and of one length, which is what the SIMD code wants.
fn hash_group(bytes: &[u8], hashes: &mut Vec<PageHash>) {
    let pages = bytes.len() / PAGE_SIZE;
    let platform = Platform::detect();
    let (chunks, rest) = bytes.as_chunks::<CHUNK>();
    debug_assert!(rest.is_empty() && chunks.len().is_multiple_of(CHUNKS));

    let mut leaves = [0; FRAME_PAGES * CHUNKS * NODE];
    let mut out = [0; FRAME_PAGES * 2 * NODE];
    let mut inputs = [&[0; CHUNK]; FRAME_PAGES];
    for position in 0..CHUNKS {
        for (input, page) in inputs.iter_mut().zip(chunks.chunks_exact(CHUNKS)) {
            *input = &page[position];
        }
        let nodes = &mut out[..pages * NODE];
        let counter = position as u64;
        let none = IncrementCounter::No;
        platform.hash_many(&inputs[..pages], &KEY, counter, none, 0, CHUNK_START, CHUNK_END, nodes);
        for (page, node) in nodes.chunks_exact(NODE).enumerate() {
            let at = (page * CHUNKS + position) * NODE;
            leaves[at..at + NODE].copy_from_slice(node);
        }
    }

    let mut inputs = [&[0; BLOCK]; FRAME_PAGES * 2];
    let parents = &mut out[..pages * 2 * NODE];
    hash_blocks(platform, &leaves[..pages * CHUNKS * NODE], &mut inputs, PARENT, parents);
    let mut inputs = [&[0; BLOCK]; FRAME_PAGES];
    let mut roots = [0; FRAME_PAGES * NODE];
    hash_blocks(platform, parents, &mut inputs, PARENT | ROOT, &mut roots[..pages * NODE]);
    hashes.extend(roots[..pages * NODE].chunks_exact(NODE).map(|root| PageHash(truncated(root))));
}

fn hash_blocks<'a>(
    platform: Platform,
    nodes: &'a [u8],
    inputs: &mut [&'a [u8; BLOCK]],
    flags: u8,
    out: &mut [u8],
) {
    let (blocks, _) = nodes.as_chunks::<BLOCK>();
    for (input, block) in inputs.iter_mut().zip(blocks) {
        *input = block;
    }
    platform.hash_many(&inputs[..blocks.len()], &KEY, 0, IncrementCounter::No, flags, 0, 0, out);
}

fn truncated(hash: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_pages_side_by_side_is_plain_blake3_of_each() {
        let bytes: Vec<u8> = (0..130 * PAGE_SIZE).map(|i| (i * 31 + i / 4096 * 7) as u8).collect();
        for pages in [0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 130] {
            let mut hashes = Vec::new();
            hash_pages(&bytes[..pages * PAGE_SIZE], &mut hashes);
            assert_eq!(hashes.len(), pages);
            for (page, hash) in bytes.chunks(PAGE_SIZE).zip(&hashes) {
                assert_eq!(hash.0, blake3::hash(page).as_bytes()[..16]);
            }
        }
    }

    #[test]
    fn a_frame_hash_is_blake3_of_its_page_hashes() {
        let pages = [PageHash([1; 16]), PageHash([2; 16])];
        let mut both = vec![1; 16];
        both.extend([2; 16]);
        assert_eq!(frame_hash(&pages), blake3::hash(&both).as_bytes()[..16]);
    }
}
