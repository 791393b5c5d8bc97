//! A stored frame. The input is how many pages are promised, the codec, and the stored bytes. What they really hold is
//! found out in another way, without the promised size as a limit.

use bytes::Bytes;
use lazy_pages::{
    format::{Codec, FRAME_PAGES, FrameEntry, VerifiedFrame, frame_hash, hash_pages},
    ids::PackId,
    units::PAGE_SIZE,
};

use crate::Target;

const FRAME: usize = FRAME_PAGES * PAGE_SIZE;

/// A frame, once for the reader and once for the oracle, and the input.
pub const TARGET: Target = Target { name: "frame", run, seeds, memory: (6 * FRAME, 4) };

fn run(input: &[u8]) -> bool {
    let [pages, codec, stored @ ..] = input else { return false };
    let codec = match codec % 4 {
        0 => Codec::None,
        1 => Codec::Lz4,
        2 => Codec::Zstd,
        _ => Codec::AtSource,
    };
    let held = held(codec, stored);
    // The hash a source sends with a frame.
    let sent = if codec == Codec::AtSource { hash(stored).to_vec() } else { Vec::new() };
    let stored = [stored, &sent].concat();
    let entry = FrameEntry {
        pack: PackId::from_bytes(&[7; 16]).expect("16 bytes"),
        offset: 0,
        stored_length: stored.len() as u32,
        pages: u32::from(*pages),
        codec,
        hash: held.as_deref().map_or([0; 16], hash),
    };
    let stored = Bytes::from(stored);
    let fits = held.as_ref().is_some_and(|held| {
        (1..=FRAME_PAGES).contains(&(entry.pages as usize)) && held.len() == entry.plain_length()
    });
    match VerifiedFrame::decode(&entry, stored.clone()) {
        Ok(frame) => {
            assert!(fits, "{} pages were accepted of a frame that does not hold them", entry.pages);
            assert_eq!(Some(frame.bytes()), held.as_deref());
            assert_eq!(frame.page_count(), entry.pages);
        }
        Err(error) => assert!(!fits, "a good frame was refused: {error}"),
    }
    let wrong = FrameEntry { hash: entry.hash.map(|byte| byte ^ 0x80), ..entry };
    let mut bytes = stored.to_vec();
    if let Some(last) = bytes.last_mut().filter(|_| codec == Codec::AtSource) {
        *last ^= 0x80;
    }
    VerifiedFrame::decode(&wrong, bytes.into()).expect_err("the hash is another");
    let longer = FrameEntry { stored_length: entry.stored_length + 1, ..entry };
    VerifiedFrame::decode(&longer, stored).expect_err("a byte is missing");
    fits
}

/// What `stored` unpacks to, if that is at most a page more than a whole frame.
fn held(codec: Codec, stored: &[u8]) -> Option<Vec<u8>> {
    let room = FRAME + PAGE_SIZE;
    match codec {
        Codec::None | Codec::AtSource => Some(stored.to_vec()),
        Codec::Lz4 => {
            let mut plain = vec![0; room];
            let length = lz4_flex::block::decompress_into(stored, &mut plain).ok()?;
            plain.truncate(length);
            Some(plain)
        }
        Codec::Zstd => {
            let mut plain = Vec::with_capacity(room);
            zstd::zstd_safe::decompress(&mut plain, stored).ok()?;
            Some(plain)
        }
    }
}

/// The hash a manifest would have for it; of the whole pages only.
fn hash(plain: &[u8]) -> [u8; 16] {
    let mut hashes = Vec::new();
    hash_pages(&plain[..plain.len() / PAGE_SIZE * PAGE_SIZE], &mut hashes);
    frame_hash(&hashes)
}

fn seeds() -> Vec<Vec<u8>> {
    let plain = |pages: usize| -> Vec<u8> { (0..pages * PAGE_SIZE).map(|at| (at / 100) as u8).collect() };
    let mut seeds = Vec::new();
    for pages in [1, 3, FRAME_PAGES] {
        let (lz4, zstd) = (lz4_flex::block::compress(&plain(pages)), zstd::bulk::compress(&plain(pages), 1));
        seeds.push([&[pages as u8, 1][..], &lz4].concat());
        seeds.push([&[pages as u8, 2][..], &zstd.expect("a compressed frame")].concat());
    }
    seeds.push([&[1, 0][..], &plain(1)].concat());
    seeds.push([&[3, 3][..], &plain(3)].concat());
    // Bombs: far more than the promised page comes out.
    let zeros = vec![0; 64 << 20];
    seeds.push([&[1, 1][..], &lz4_flex::block::compress(&zeros[..4 << 20])].concat());
    seeds.push([&[1, 2][..], &zstd::bulk::compress(&zeros, 19).expect("a compressed frame")].concat());
    seeds
}
