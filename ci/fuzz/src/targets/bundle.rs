//! The bundle. The input is tried as the whole object, as its entries, and as a zstd frame that is promised to hold as
//! much as the first bytes of the input say.

use bytes::Bytes;
use lazy_pages::format::bundle::{self, File};

use crate::Target;

/// What is promised and held may be unpacked, and a vector doubles as it grows. Nothing is taken for what does not come.
pub const TARGET: Target = Target { name: "bundle", run, seeds, memory: (1 << 20, 16) };

/// Largest promise that is tried: everything up to it may be taken.
const PROMISE: u64 = 200_000;

fn run(input: &[u8]) -> bool {
    let promise = input.get(12..20).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let whole = (promise <= PROMISE || promise > bundle::MAX_PLAIN) && bundle::unpack(input).is_ok();
    let frame = input.split_first_chunk::<4>().is_some_and(|(promise, frame)| {
        let promise = u64::from(u32::from_le_bytes(*promise)) % PROMISE;
        bundle::unpack(&around(promise, frame)).is_ok()
    });
    let packed = zstd::bulk::compress(input, 1).expect("a compressed input");
    let entries = bundle::unpack(&around(input.len() as u64, &packed));
    if let Ok(files) = &entries {
        for (at, File { name, .. }) in files.iter().enumerate() {
            let path = std::path::Path::new(name);
            assert_eq!(path.file_name(), Some(name.as_ref()), "a plain file name");
            assert!(files[..at].iter().all(|before| before.name != *name), "a new file name");
        }
        let again = bundle::pack(files.clone()).expect("what was unpacked can be packed");
        assert_eq!(bundle::unpack(&again).expect("what was packed can be unpacked"), *files);
    }
    whole || frame || entries.is_ok()
}

fn around(promise: u64, frame: &[u8]) -> Vec<u8> {
    let mut bytes = b"LPBUNDLE".to_vec();
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(promise.to_le_bytes());
    bytes.extend(frame);
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let file =
        |name: &str, content: &[u8]| File { name: name.into(), content: Bytes::copy_from_slice(content) };
    let files = [file("inventory.img", b"inventory"), file("core-1.img", &[7; 500]), file("empty", b"")];
    let packed = bundle::pack(files).expect("a bundle");
    let mut plain = Vec::new();
    for (name, content) in [("a", &b"content"[..]), ("b.img", &[1; 40])] {
        plain.extend((name.len() as u16).to_le_bytes());
        plain.extend(name.as_bytes());
        plain.extend((content.len() as u64).to_le_bytes());
        plain.extend(content);
    }
    let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 19).expect("a compressed bomb");
    let bomb = [&1000_u32.to_le_bytes()[..], &bomb].concat();
    let frame = [&(plain.len() as u32).to_le_bytes()[..], &packed[20..]].concat();
    vec![packed.to_vec(), plain, bomb, frame]
}
