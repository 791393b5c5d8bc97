//! Contents of files are pages like any others: read back byte for byte, stored once, taken over unread. A manifest that
//! contradicts itself about files is not written.

use std::{
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    sync::{Arc, atomic::Ordering},
};

use lazy_pages::{
    format::{
        Attributes, FileEntry, FileIdentity, FileKind, FilePolicy, LargeImage, Manifest, ObjectId, Timestamp,
        pages_of,
    },
    ids::CheckpointId,
    materialize::{large_images, materialize_lazy, write_contents},
    units::{PAGE_SIZE, VirtAddr},
    verify::verify,
    writer::{Parent, ParentPages, WriteError},
};
use proptest::prelude::*;

use crate::support::{Model, Writing, send};

/// A file, and which of its pages are given to the writer; the others are zero.
#[derive(Clone, Debug)]
struct Content {
    bytes: Vec<u8>,
    given: Vec<bool>,
}

impl Content {
    /// Pages of these values, 0 for a hole, and `tail` bytes more.
    fn new(pages: &[u8], tail: usize) -> Self {
        let mut bytes: Vec<u8> = pages.iter().flat_map(|value| [*value; PAGE_SIZE]).collect();
        bytes.extend(std::iter::repeat_n(200, tail));
        let mut given: Vec<bool> = pages.iter().map(|value| *value != 0).collect();
        given.resize(pages_of(bytes.len() as u64) as usize, true);
        Self { bytes, given }
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

fn carried(path: &str, content: u32, size: u64) -> FileEntry {
    FileEntry {
        path: path.into(),
        kind: FileKind::Regular { content: Some(content) },
        policy: FilePolicy::Carry,
        size,
        attributes: Attributes { permissions: 0o640, uid: 1, gid: 2, ..Attributes::default() },
        identity: Some(FileIdentity { device: 3, inode: 4, changed: Timestamp::default() }),
    }
}

/// Writes a checkpoint of one task and these files; of those in `taken` all is taken over from the parent.
fn write(
    writing: &Writing,
    contents: &[(u32, Content)],
    taken: &[u32],
    files: Vec<FileEntry>,
    images: Vec<LargeImage>,
    parent: Option<Arc<Parent>>,
) -> Result<Manifest, WriteError> {
    let model = Model::simple([1, 2, 3]);
    let mut writer = writing.begin(CheckpointId::new(), parent)?;
    send(&mut writer, &model)?;
    for (number, content) in contents {
        writer.open(ObjectId::File(*number), 0)?;
        for (page, bytes) in content.bytes.chunks(PAGE_SIZE).enumerate() {
            if content.given[page] && !taken.contains(number) {
                let buffer = writer.buffer(false, VirtAddr::of_page(page as u64), 1)?;
                buffer[..bytes.len()].copy_from_slice(bytes);
                buffer[bytes.len()..].fill(0);
                writer.filled()?;
            }
        }
    }
    let mut sealed = writer.finish_pages()?;
    for (number, content) in contents.iter().filter(|(number, _)| taken.contains(number)) {
        let (object, start) = (ObjectId::File(*number), VirtAddr::default());
        let all = ParentPages { start, object, image: start, pages: pages_of(content.size()) };
        sealed.inherit(object, &[all])?;
    }
    let mut meta = model.meta();
    meta.files = files;
    meta.large_images = images;
    writing.runtime.block_on(sealed.commit(meta))
}

fn read(writing: &Writing, id: CheckpointId, content: u32, size: u64) -> fs::File {
    let checkpoint = writing.open(id);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    writing.runtime.block_on(write_contents(&checkpoint, &[(content, size, path.clone())])).unwrap();
    let file = fs::File::open(path).unwrap();
    writing.runtime.block_on(checkpoint.lease().release()).unwrap();
    file
}

fn bytes_of(mut file: fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_are_read_back_byte_for_byte_and_stored_once(
        first in proptest::collection::vec((proptest::collection::vec(0_u8..5, 0..150), 0..PAGE_SIZE), 1..4),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..9), 0..6),
    ) {
        let writing = Writing::new();
        let contents: Vec<(u32, Content)> =
            (1..).zip(first.iter().map(|(pages, tail)| Content::new(pages, *tail))).collect();
        let entries = |contents: &[(u32, Content)]| {
            contents.iter().map(|(n, content)| carried(&format!("/f{n}"), *n, content.size())).collect()
        };
        let parent = write(&writing, &contents, &[], entries(&contents), Vec::new(), None).unwrap();
        for (number, content) in &contents {
            prop_assert!(bytes_of(read(&writing, parent.id, *number, content.size())) == content.bytes);
        }

        // The first file changes in places, the others are taken over.
        let mut second = contents.clone();
        let mut changed = std::collections::BTreeSet::new();
        for (place, value) in edits {
            let content = &mut second[0].1;
            if !content.bytes.is_empty() {
                let page = place.index(content.given.len());
                let end = content.bytes.len().min((page + 1) * PAGE_SIZE);
                content.bytes[page * PAGE_SIZE..end].fill(value);
                content.given[page] = true;
                changed.insert(page);
            }
        }
        let taken: Vec<u32> = contents[1..].iter().map(|(number, _)| *number).collect();
        let lease = writing.parent(parent.id);
        let child = write(&writing, &second, &taken, entries(&second), Vec::new(), Some(lease.clone())).unwrap();
        writing.runtime.block_on(lease.lease().release()).unwrap();
        // Pages beside the changed ones are stored again where too little of their frame is needed.
        let statistics = child.statistics;
        prop_assert!(statistics.pages_stored - statistics.pages_rewritten <= changed.len() as u64);
        writing.runtime.block_on(writing.catalog().delete(&child.app, parent.id)).unwrap();
        for (number, content) in &second {
            prop_assert!(bytes_of(read(&writing, child.id, *number, content.size())) == content.bytes);
        }
        let checkpoint = writing.open(child.id);
        writing.runtime.block_on(verify(&checkpoint, true, &mut |_| ())).unwrap();
    }
}

#[test]
fn holes_cost_nothing_however_large_and_stay_holes() {
    let writing = Writing::new();
    const SIZE: u64 = 1 << 40;
    let start = Content::new(&[7], 0);
    let file = carried("/sparse", 1, SIZE);
    let manifest = write(&writing, &[(1, start)], &[], vec![file], Vec::new(), None).unwrap();
    let runs = &manifest.object(ObjectId::File(1)).unwrap().runs;
    assert_eq!((runs.len(), runs[1].end().get()), (2, SIZE));

    let file = read(&writing, manifest.id, 1, SIZE);
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
}

#[test]
fn many_small_files_come_with_few_requests() {
    let writing = Writing::new();
    let contents: Vec<(u32, Content)> =
        (1..=500).map(|n| (n, Content::new(&[(n % 250) as u8 + 1], n as usize % 7))).collect();
    let files = contents.iter().map(|(n, content)| carried(&format!("/f{n}"), *n, content.size())).collect();
    let manifest = write(&writing, &contents, &[], files, Vec::new(), None).unwrap();
    let checkpoint = writing.open(manifest.id);
    let directory = tempfile::tempdir().unwrap();
    let path = |n: u32| directory.path().join(n.to_string());
    // In any order, and not all of them.
    let wanted: Vec<_> =
        contents[1..].iter().rev().map(|(n, content)| (*n, content.size(), path(*n))).collect();
    // How many packs there are depends on how fast they are sent.
    writing.store.calls_left.store(20, Ordering::SeqCst);
    writing.runtime.block_on(write_contents(&checkpoint, &wanted)).unwrap();
    for (number, content) in &contents[1..] {
        assert!(fs::read(path(*number)).unwrap() == content.bytes, "{number}");
    }
    assert!(!path(1).exists());
}

#[test]
fn large_images_are_among_those_that_criu_reads_and_files_are_not() {
    let writing = Writing::new();
    let (file, ghost) = (Content::new(&[1, 0, 2], 5), Content::new(&[3; 300], 77));
    let image = LargeImage { name: "ghost-file-1.img".into(), size: ghost.size(), content: 9 };
    let contents = [(1, file.clone()), (9, ghost.clone())];
    let files = vec![carried("/a", 1, file.size())];
    let manifest = write(&writing, &contents, &[], files, vec![image], None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = writing.open(manifest.id);
    writing.runtime.block_on(materialize_lazy(&checkpoint, directory.path())).unwrap();
    assert!(fs::read(directory.path().join("ghost-file-1.img")).unwrap() == ghost.bytes);
    assert!(!directory.path().join("pages-0.img").exists());
    // What is there already is not overwritten.
    assert!(writing.runtime.block_on(large_images(&checkpoint, directory.path())).is_err());
}

#[test]
fn a_manifest_that_contradicts_itself_about_files_is_not_written() {
    let writing = Writing::new();
    let content = Content::new(&[1, 2], 10);
    let size = content.size();
    let files = vec![carried("/data/a", 1, size), carried("/data/b", 1, size)];
    let good = write(&writing, &[(1, content)], &[], files, Vec::new(), None).unwrap();
    assert_eq!(Manifest::decode(&good.encode().unwrap()).unwrap(), good);

    type Change = fn(&mut Manifest);
    let changes: &[(&str, Change)] = &[
        ("there twice", |m| m.files[1].path = m.files[0].path.clone()),
        ("absolute", |m| m.files[0].path = "data/a".into()),
        ("absolute", |m| m.files[0].path = "/data/../a".into()),
        ("absolute", |m| m.files[0].path = "/data//a".into()),
        ("absolute", |m| m.files[0].path = "/".into()),
        ("absolute", |m| m.files[0].path = "/a\0b".into()),
        ("absolute", |m| m.files[0].path = format!("/{}", "x".repeat(5000)).into()),
        ("contradict", |m| m.files[0].policy = FilePolicy::Expect),
        ("contradict", |m| m.files[0].kind = FileKind::Regular { content: None }),
        ("contradict", |m| m.files[0].kind = FileKind::Directory),
        ("contradict", |m| m.files[0].kind = FileKind::Symlink { target: "x".into() }),
        ("different sizes", |m| m.files[0].size -= 1),
        ("is not that of a file", |m| m.files.iter_mut().for_each(|file| file.size += 4096)),
        ("is not that of a file", |m| m.files.iter_mut().for_each(|file| file.size = 8192)),
        ("missing", |m| m.files[0].kind = FileKind::Regular { content: Some(2) }),
        ("of no file", |m| m.files.clear()),
        ("such attributes", |m| m.files[0].attributes.permissions = 0o10_000),
        ("such attributes", |m| m.files[0].attributes.modified.nanoseconds = 1_000_000_000),
        ("such attributes", |m| m.files[0].attributes.xattrs.push((Vec::new(), Vec::new()))),
        ("plain", |m| m.large_images.push(LargeImage { name: "../x".into(), size: 0, content: 1 })),
        ("shares", |m| {
            let size = m.files[0].size;
            m.large_images.push(LargeImage { name: "x.img".into(), size, content: 1 });
        }),
        ("is not that of a file", |m| _ = m.objects.last_mut().unwrap().runs.remove(0)),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let said = bad.encode().map(drop).map_err(|error| error.to_string());
        assert!(said.as_ref().is_err_and(|said| said.contains(what)), "{what}: {said:?}");
    }
}
