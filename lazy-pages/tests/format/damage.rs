//! Damaged, truncated, foreign and made-up objects: refused, never a panic, never other bytes than were stored.

use bytes::Bytes;
use lazy_pages::{
    catalog::CatalogError,
    format::{Codec, Manifest, ManifestError, VerifiedFrame, bundle, keys},
    ids::{AppId, CheckpointId},
    reader::{Checkpoint, ReadError},
    units::PAGE_SIZE,
    verify::{VerifyError, verify},
    writer::Compression,
};
use proptest::prelude::*;

use crate::support::{Model, Writing, app, files};

const HEADER: usize = 52;

fn small_manifest() -> (Writing, Manifest) {
    let writing = Writing::new();
    let mut model = Model::simple(1..100);
    let first = writing.write(&model, None).unwrap();
    *model.page_mut(3) = 0;
    *model.page_mut(50) = 77_777;
    let manifest = writing.write(&model, Some(first.id)).unwrap();
    (writing, manifest)
}

/// A manifest object around any body.
fn manifest_around(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"LPMANIFT".to_vec();
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(blake3::hash(body).as_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_truncated_manifest_is_refused() {
    let (_, manifest) = small_manifest();
    let bytes = manifest.encode().unwrap();
    for length in 0..bytes.len() {
        assert!(
            matches!(Manifest::decode(&bytes[..length]), Err(ManifestError::Damaged(_))),
            "{length} bytes"
        );
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(matches!(Manifest::decode(&longer), Err(ManifestError::Damaged(_))));
}

#[test]
fn a_flipped_bit_anywhere_in_a_manifest_is_refused() {
    let (_, manifest) = small_manifest();
    let mut bytes = manifest.encode().unwrap().to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(Manifest::decode(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let (writing, manifest) = small_manifest();
    let mut bytes = manifest.encode().unwrap().to_vec();
    bytes[8] = 2;
    assert!(matches!(Manifest::decode(&bytes), Err(ManifestError::UnknownVersion { found: 2, known: 1 })));
    writing.store.insert(&keys::manifest(&app(), manifest.id), bytes);
    let opened = writing.runtime.block_on(Checkpoint::open(writing.store.clone(), &app(), manifest.id));
    let Err(ReadError::Catalog(error @ CatalogError::Manifest { .. })) = opened else { panic!("{opened:?}") };
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "the manifest has format version 2; this program reads version 1");
    assert_eq!(writing.store.keys("/leases/").len(), 0, "nobody holds what cannot be opened");
}

#[test]
fn a_foreign_manifest_is_refused() {
    let (writing, manifest) = small_manifest();
    let other_app: AppId = "test/default/other".parse().unwrap();
    let other_id = CheckpointId::new();
    let bytes = manifest.encode().unwrap();
    writing.store.insert(&keys::manifest(&other_app, manifest.id), bytes.clone());
    writing.store.insert(&keys::manifest(&app(), other_id), bytes);
    for (app, id) in [(other_app, manifest.id), (app(), other_id)] {
        let loaded = writing.runtime.block_on(writing.catalog().load_manifest(&app, id));
        let foreign =
            matches!(loaded, Err(CatalogError::Manifest { source: ManifestError::Foreign { .. }, .. }));
        assert!(foreign, "{loaded:?}");
    }
}

#[test]
fn rules_are_checked_before_writing_and_after_reading() {
    use lazy_pages::format::{Blob, FrameIndex, ObjectId, Source};
    let (_, good) = small_manifest();
    type Breaks<'a> = &'a [(&'a str, &'a dyn Fn(&mut Manifest))];
    let breaks: Breaks = &[
        ("nothing is said about", &|m| _ = m.objects[0].runs.remove(1)),
        ("overlaps another", &|m| m.objects[0].runs.swap(0, 1)),
        ("overlaps another", &|m| m.objects[0].runs[0].pages = 0),
        ("overlaps another", &|m| m.objects[0].runs[0].pages = u64::MAX),
        ("does not exist", &|m| {
            m.objects[0].runs[1].source = Source::Stored { frame: FrameIndex(9999), first: 0, eager: false };
        }),
        ("is not inside frame", &|m| {
            let Source::Stored { first, .. } = &mut m.objects[0].runs[1].source else { panic!() };
            *first = u32::MAX;
        }),
        ("no run refers to frame", &|m| {
            let last = m.frames.last().copied().unwrap();
            m.packs.last_mut().unwrap().length += PAGE_SIZE as u64;
            m.frames.push(lazy_pages::format::FrameEntry {
                offset: last.stored_end(),
                pages: 1,
                stored_length: PAGE_SIZE as u32,
                codec: Codec::None,
                ..last
            });
        }),
        ("ends after its pack", &|m| m.packs.last_mut().unwrap().length -= 1),
        ("holds no frame", &|m| m.packs[0].id = lazy_pages::ids::PackId::from_bytes(&[0; 16]).unwrap()),
        ("not in ascending order", &|m| m.packs.reverse()),
        ("takes 0 bytes", &|m| m.frames[0].stored_length = 0),
        ("of 65 pages", &|m| m.frames[0].pages = 65),
        ("overlaps the one before it", &|m| m.frames[1].offset = 0),
        ("hashes take", &|m| m.page_hashes = Blob::of(b"")),
        ("has no memory", &|m| m.objects.clear()),
        ("is no live task", &|m| m.objects[0].id = ObjectId::Task(999_999)),
        ("is there twice", &|m| m.objects.push(m.objects[0].clone())),
        ("comes before its parent", &|m| m.tasks.reverse()),
        ("there is no task", &|m| m.tasks.clear()),
        ("it has no parent", &|m| m.parent = None),
        ("it builds on no checkpoint", &|m| m.depth = 0),
        ("is empty or overlaps", &|m| m.objects[0].vmas[0].end = m.objects[0].vmas[0].start),
        ("crosses the start", &|m| m.objects[0].vmas[0].start = m.objects[0].runs[1].start.add(1)),
        ("leaves its area", &|m| m.objects[0].vmas[0].end = m.objects[0].runs[1].start.add(1)),
        ("nothing would restore", &|m| m.objects[0].vmas.clear()),
        ("more than 4096 bytes", &|m| m.host.kernel = "x".repeat(5000)),
        ("65536 are allowed", &|m| m.tasks = vec![m.tasks[0].clone(); 65_537]),
        ("262144 are allowed", &|m| m.objects = vec![m.objects[0].clone(); 262_145]),
        ("4097 CPU features", &|m| m.host.cpu_features = vec!["fpu".into(); 4097]),
        ("4097 streams", &|m| {
            let stream = lazy_pages::format::ExternalStream { key: "pipe[1]".into(), stdio: 1 };
            m.streams = vec![stream; 4097];
        }),
        ("a bundle of", &|m| m.bundle.length = bundle::MAX_PACKED + 1),
        ("stands for descriptor 3", &|m| {
            m.streams.push(lazy_pages::format::ExternalStream { key: "pipe[1]".into(), stdio: 3 });
        }),
    ];
    for (message, break_it) in breaks {
        let mut bad = good.clone();
        break_it(&mut bad);
        let error = bad.encode().expect_err(message);
        assert!(error.to_string().contains(message), "`{error}` should say `{message}`");
        assert!(matches!(error, ManifestError::Invalid(_)));
    }
}

#[test]
fn a_manifest_from_before_there_was_a_depth_can_be_read() {
    let (writing, second) = small_manifest();
    let first = writing.write(&Model::simple(1..100), None).unwrap();
    assert_eq!((first.depth, second.depth), (0, 1));
    let third = writing.write(&Model::simple(1..100), Some(second.id)).unwrap();
    assert_eq!(third.depth, 2);

    let bytes = third.encode().unwrap();
    let body = bytes[HEADER..].strip_suffix(&[14 << 3, 2]).expect("the depth is the last field");
    let old = Manifest::decode(&manifest_around(body)).unwrap();
    assert_eq!(old, Manifest { depth: 1, ..third });
    // A full one never had one.
    let bytes = first.encode().unwrap();
    assert_eq!(Manifest::decode(&manifest_around(&bytes[HEADER..])).unwrap(), first);
}

/// With a right hash, so that only the reader's own caution stands against it.
#[test]
fn a_short_manifest_cannot_ask_for_much_memory() {
    let refusal = |body: &[u8]| match Manifest::decode(&manifest_around(body)) {
        Err(ManifestError::Damaged(why)) => why,
        other => panic!("{other:?}"),
    };
    // Fields 7, 8, 9 and 12 with messages as short as can be; the third of field 5.
    let many = |entry: &[u8], count: usize| entry.repeat(count);
    assert!(refusal(&many(&[7 << 3 | 2, 0], 65_537)).contains("more than 65536 tasks"));
    assert!(refusal(&many(&[8 << 3 | 2, 2, 8, 1], 262_145)).contains("more than 262144 objects"));
    assert!(refusal(&many(&[8 << 3 | 2, 0], 1)).contains("an object of no kind"));
    assert!(refusal(&many(&[9 << 3 | 2, 0], 1)).contains("a pack without a frame"));
    assert!(refusal(&many(&[12 << 3 | 2, 0], 4097)).contains("more than 4096 streams"));
    // Fields 20 and 21: a file with path, mode and policy, then its attributes.
    let file = [10, 2, b'/', b'a', 16, 0x80, 0x80, 2, 24, 1];
    let entry = |field: [u8; 2], content: &[u8]| [&field[..], &[content.len() as u8], content].concat();
    assert!(refusal(&many(&entry([0xa2, 1], &file), 131_073)).contains("more than 131072 files"));
    assert!(refusal(&entry([0xa2, 1], &file[..9])).contains("a file without a name or a type"));
    let attributes = [&file[..], &many(&[10 << 3 | 2, 0], 50)].concat();
    let crowded = many(&entry([0xa2, 1], &attributes), 262_144 / 50 + 1);
    assert!(refusal(&crowded).contains("more than 262144 extended attributes"));
    assert!(refusal(&many(&[0xaa, 1, 0], 4097)).contains("more than 4096 large images"));
    // A message in parts is decoded as one.
    assert!(refusal(&many(&[5 << 3 | 2, 2, 3 << 3 | 2, 0], 4097)).contains("more than 4096 CPU features"));
    // The decoder would skip a group and go on behind it.
    assert!(refusal(&[100 << 3 & 0x7f | 0x83, 6, 100 << 3 & 0x7f | 0x84, 6]).contains("which nobody writes"));
}

#[test]
fn a_bundle_cannot_ask_for_a_large_window() {
    let packed = |window: u32| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window).unwrap();
        std::io::Write::write_all(&mut encoder, b"\x01\0a\x01\0\0\0\0\0\0\0x").unwrap();
        [&b"LPBUNDLE\x01\0\0\0"[..], &12_u64.to_le_bytes(), &encoder.finish().unwrap()].concat()
    };
    assert_eq!(bundle::unpack(&packed(23)).unwrap()[0].content, Bytes::from_static(b"x"));
    let refused = bundle::unpack(&packed(24));
    assert!(
        matches!(&refused, Err(bundle::BundleError::Damaged(why)) if why.contains("memory")),
        "{refused:?}"
    );
}

#[test]
fn a_flipped_bit_in_a_plain_frame_is_refused_wherever_it_is() {
    let mut writing = Writing::new();
    writing.compression = Compression::None;
    let manifest = writing.write(&Model::simple(1..3), None).unwrap();
    let entry = manifest.frames[0];
    let pack = writing.store.objects.lock().unwrap()[&keys::pack(&app(), entry.pack)].clone();
    assert!(VerifiedFrame::decode(&entry, pack.clone()).is_ok());
    for at in 0..pack.len() {
        let mut bad = pack.to_vec();
        bad[at] ^= 1 << (at % 8);
        assert!(VerifiedFrame::decode(&entry, bad.into()).is_err(), "byte {at}");
    }
    for length in [0, 1, pack.len() - 1] {
        assert!(VerifiedFrame::decode(&entry, pack.slice(..length)).is_err());
    }
}

#[test]
fn a_damaged_packed_frame_is_refused_or_still_right() {
    for (compression, codec) in [(Compression::Lz4, Codec::Lz4), (Compression::Zstd(1), Codec::Zstd)] {
        let mut writing = Writing::new();
        writing.compression = compression;
        // Enough structure for matches of all kinds, little enough data to try every bit.
        let manifest = writing.write(&Model::simple([1, 3, 1, 5, 2, 2, 1, 7].repeat(8)), None).unwrap();
        let entry = manifest.frames[0];
        assert_eq!(entry.codec, codec);
        let pack = writing.store.objects.lock().unwrap()[&keys::pack(&app(), entry.pack)].clone();
        let stored = pack.slice(..entry.stored_length as usize);
        let plain = VerifiedFrame::decode(&entry, stored.clone()).unwrap();
        let mut refused = 0;
        for at in (0..stored.len()).step_by(1 + stored.len() / 1000) {
            let mut bad = stored.to_vec();
            bad[at] ^= 1 << (at % 8);
            match VerifiedFrame::decode(&entry, bad.into()) {
                Ok(frame) => assert!(frame.bytes() == plain.bytes(), "byte {at}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 400, "{codec:?}: {refused}");
        for length in 0..stored.len().min(600) {
            let mut entry = entry;
            entry.stored_length = length as u32;
            assert!(VerifiedFrame::decode(&entry, stored.slice(..length)).is_err(), "{length} bytes");
        }
        for pages in [0, 1, 63, 65, 1000, u32::MAX] {
            let mut entry = entry;
            entry.pages = pages;
            assert!(VerifiedFrame::decode(&entry, stored.clone()).is_err(), "{pages} pages promised");
        }
    }
}

#[test]
fn verify_finds_a_flipped_bit_anywhere_in_a_pack() {
    let mut writing = Writing::new();
    writing.compression = Compression::None;
    let manifest = writing.write(&Model::simple(1..300), None).unwrap();
    let checkpoint = writing.open(manifest.id);
    let key = keys::pack(&app(), manifest.packs[0].id);
    let good = writing.store.objects.lock().unwrap()[&key].clone();
    for at in (0..good.len()).step_by(10_007) {
        let mut bad = good.to_vec();
        bad[at] ^= 1 << (at % 8);
        writing.store.insert(&key, bad);
        let found = writing.runtime.block_on(verify(&checkpoint, true, &mut |_| {}));
        let Err(VerifyError::Damaged { problems }) = found else { panic!("byte {at}: {found:?}") };
        assert_eq!(problems.len(), 1, "the other frames are good");
        assert!(problems[0].contains("does not match its hash"), "{problems:?}");
    }
    writing.store.insert(&key, good);
    let report = writing.runtime.block_on(verify(&checkpoint, true, &mut |_| {})).unwrap();
    assert_eq!(report.frames_read, manifest.frames.len() as u64);
}

#[test]
fn verify_finds_what_is_missing_short_or_replaced_without_reading_data() {
    let (writing, manifest) = small_manifest();
    let checkpoint = writing.open(manifest.id);
    let keys = [
        (keys::pack(&app(), manifest.packs[0].id), "is missing", "bytes, not"),
        (keys::bundle(&app(), manifest.id), "has no object", "bundle is not what was stored"),
        (keys::hashes(&app(), manifest.id), "has no object", "page hashes are not what was stored"),
    ];
    for (key, missing, short) in keys {
        let good = writing.store.objects.lock().unwrap().remove(&key).unwrap();
        let check = || match writing.runtime.block_on(verify(&checkpoint, false, &mut |_| {})) {
            Err(VerifyError::Damaged { problems }) => problems.join(";"),
            other => panic!("{other:?}"),
        };
        assert!(check().contains(missing), "{}", check());
        writing.store.insert(&key, good.slice(..good.len() - 1));
        assert!(check().contains(short), "{}", check());
        writing.store.insert(&key, good);
    }
    writing.runtime.block_on(verify(&checkpoint, false, &mut |_| {})).unwrap();
}

#[test]
fn verify_finds_hashes_that_belong_to_other_pages() {
    use lazy_pages::format::Blob;
    let (writing, mut manifest) = small_manifest();
    let hashes_key = keys::hashes(&app(), manifest.id);
    let mut hashes = writing.store.objects.lock().unwrap()[&hashes_key].to_vec();
    hashes[40] ^= 1;
    manifest.page_hashes = Blob::of(&hashes);
    writing.store.insert(&hashes_key, hashes);
    writing.store.insert(&keys::manifest(&app(), manifest.id), manifest.encode().unwrap());
    let checkpoint = writing.open(manifest.id);
    let found = writing.runtime.block_on(verify(&checkpoint, true, &mut |_| {}));
    let Err(VerifyError::Damaged { problems }) = found else { panic!("{found:?}") };
    assert!(problems[0].contains("hashes object disagrees with page"), "{problems:?}");
}

#[test]
fn a_damaged_bundle_is_refused() {
    let packed = bundle::pack(files()).unwrap();
    assert_eq!(bundle::unpack(&packed).unwrap(), files());
    for length in 0..packed.len() {
        assert!(bundle::unpack(&packed[..length]).is_err(), "{length} bytes");
    }
    let mut newer = packed.to_vec();
    newer[8] = 9;
    assert!(matches!(bundle::unpack(&newer), Err(bundle::BundleError::UnknownVersion { found: 9 })));
    let mut promises_more = packed.to_vec();
    promises_more[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(bundle::unpack(&promises_more), Err(bundle::BundleError::TooLarge)));
}

#[test]
fn names_that_leave_the_directory_are_refused_on_both_sides() {
    for name in ["", ".", "..", "../up", "a/b", "/abs", "nul\0", &"x".repeat(256)] {
        let file = |name: &str| bundle::File { name: name.to_owned(), content: Bytes::from_static(b"x") };
        assert!(matches!(bundle::pack([file(name)]), Err(bundle::BundleError::Name(_))), "{name}");
        // A bundle made by somebody who does not care.
        let mut plain = (name.len() as u16).to_le_bytes().to_vec();
        plain.extend(name.as_bytes());
        plain.extend(1_u64.to_le_bytes());
        plain.push(b'x');
        let unpacked = bundle::unpack(&bundle_around(&plain));
        assert!(matches!(unpacked, Err(bundle::BundleError::Name(_))), "{name}");
    }
    let twice = ["a", "a"].map(|name| bundle::File { name: name.to_owned(), content: Bytes::new() });
    assert!(matches!(bundle::pack(twice), Err(bundle::BundleError::Name(_))));
}

fn bundle_around(plain: &[u8]) -> Vec<u8> {
    let mut packed = b"LPBUNDLE".to_vec();
    packed.extend(1_u32.to_le_bytes());
    packed.extend((plain.len() as u64).to_le_bytes());
    packed.extend(zstd::bulk::compress(plain, 1).unwrap());
    packed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_no_manifest_bundle_or_frame(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Manifest::decode(&bytes).is_err());
        prop_assert!(bundle::unpack(&bytes).is_err());
        prop_assert!(bundle::unpack(&bundle_around(&bytes)).is_err() || bytes.is_empty());
        if let Ok(manifest) = Manifest::decode(&manifest_around(&bytes)) {
            prop_assert!(manifest.encode().is_ok());
        }
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let entry = lazy_pages::format::FrameEntry {
                pack: lazy_pages::ids::PackId::new(), offset: 0, stored_length: bytes.len() as u32, pages: 1, codec,
                hash: [0; 16],
            };
            prop_assert!(VerifiedFrame::decode(&entry, bytes.clone().into()).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The hash is right, so this reaches the message decoder and the rules.
    #[test]
    fn a_manifest_forged_with_a_right_hash_is_refused_or_keeps_all_rules(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        thread_local! {
            static BODY: Vec<u8> = small_manifest().1.encode().unwrap()[HEADER..].to_vec();
        }
        let mut body = BODY.with(Clone::clone);
        for (at, value) in &edits {
            let at = at.index(body.len());
            body[at] = *value;
        }
        if let Some(cut) = cut {
            body.truncate(cut.index(body.len()));
        }
        if let Ok(manifest) = Manifest::decode(&manifest_around(&body)) {
            let again = Manifest::decode(&manifest.encode().unwrap()).unwrap();
            prop_assert_eq!(again, manifest);
        }
    }
}
