//! Image files: what is written is read back, and no bytes whatever make a reader panic, hang or take memory.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use common::{Workload, criu, directory};
use criu_rpc::{
    DumpOptions, ImageDir, ImageError, PageObject,
    images::{PagemapEntry, VmaEntry},
};
use proptest::prelude::*;
use tempfile::TempDir;

const PID: u32 = 77;
/// Magic numbers as CRIU documents them, to put well-formed frames around bad content.
const COMMON: u32 = 0x5456_4319;
const MM: u32 = 0x5749_2820;
const PSTREE: u32 = 0x5027_3030;
const PAGEMAP: u32 = 0x5608_4025;

/// Every file a reader opens, of a real dump, under names for [`PID`].
fn real_images() -> &'static BTreeMap<String, Vec<u8>> {
    static IMAGES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let images = directory(scratch.path(), "images");
        let file = scratch.path().join("file");
        fs::write(&file, "content").unwrap();
        let workload = Workload::start(10, scratch.path(), Some(&file));
        // Without a page server, so that pagemaps are CRIU's own.
        criu().dump(DumpOptions::new(workload.pid, &images).leave_running(true), &mut |_| Ok(())).unwrap();
        let mut found = BTreeMap::new();
        let (pid, renamed) = (format!("-{}.img", workload.pid), format!("-{PID}.img"));
        for entry in fs::read_dir(&images).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap().replace(&pid, &renamed);
            found.insert(name, fs::read(entry.path()).unwrap());
        }
        found
    })
}

fn write_all(images: &BTreeMap<String, Vec<u8>>) -> (TempDir, ImageDir) {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in images {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    let opened = ImageDir::open(directory.path()).unwrap();
    (directory, opened)
}

type Reader = (&'static str, fn(&ImageDir) -> Result<(), ImageError>);

/// Every reader that opens exactly one file, with that file.
const READERS: [Reader; 7] = [
    ("inventory.img", |images| images.inventory().map(drop)),
    ("mm-77.img", |images| images.mm(PID).map(drop)),
    ("pagemap-77.img", |images| images.read_pagemap(PageObject::Task(PID)).map(drop)),
    ("files.img", |images| images.regular_files().map(drop)),
    ("files.img", |images| images.pipes().map(drop)),
    ("ids-77.img", |images| images.descriptors(PID).map(drop)),
    ("stats-dump", |images| images.dump_statistics().map(drop)),
];

#[test]
fn images_of_criu_itself_are_read() {
    let (_directory, images) = write_all(real_images());
    for (name, read) in READERS {
        read(&images).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    images.check_pages().unwrap();
    let (_, runs) = images.read_pagemap(PageObject::Task(PID)).unwrap();
    let vmas = images.mm(PID).unwrap().vmas;
    for run in runs {
        assert!(run.present);
        let vma = vmas.iter().find(|vma| vma.range().contains(&run.vaddr)).unwrap();
        assert_eq!(vma.is_lazy(), run.lazy, "CRIU and we agree on {vma:?}");
    }
}

#[test]
fn every_cut_is_an_error_or_a_shorter_list_of_whole_entries() {
    let (directory, images) = write_all(real_images());
    for (name, read) in READERS {
        let path = directory.path().join(name);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).filter(|length| *length < 300 || length % 13 == 0) {
            fs::write(&path, &whole[..length]).unwrap();
            let listed = matches!(name, "files.img" | "pagemap-77.img");
            match read(&images) {
                Err(ImageError::Corrupt { path: named, .. }) => assert_eq!(named, path),
                Ok(()) if listed && ends_after_an_entry(&whole[..length]) => {}
                other => panic!("{name} cut to {length} bytes: {other:?}"),
            }
        }
        fs::write(&path, whole).unwrap();
    }
}

fn ends_after_an_entry(mut image: &[u8]) -> bool {
    image = image.get(8..).unwrap_or(&[1]);
    while image.len() >= 4 {
        let length = u32::from_ne_bytes(image[..4].try_into().unwrap()) as usize;
        image = image.get(4 + length..).unwrap_or(&[1]);
    }
    image.is_empty()
}

#[test]
fn a_length_beyond_the_file_is_refused_without_taking_memory_for_it() {
    let (directory, images) = write_all(real_images());
    for (name, read) in READERS {
        let path = directory.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        let first_length = if name == "inventory.img" { 4 } else { 8 };
        bytes[first_length..first_length + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        fs::write(&path, bytes).unwrap();
        assert!(matches!(read(&images), Err(ImageError::Corrupt { .. })), "{name}");
    }
}

#[test]
fn an_image_of_another_kind_is_refused() {
    let (directory, images) = write_all(real_images());
    fs::copy(directory.path().join("pstree.img"), directory.path().join("files.img")).unwrap();
    let error = images.regular_files().unwrap_err();
    assert!(error.to_string().contains("magic"), "{error}");
}

fn image(magic: u32, entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [COMMON.to_ne_bytes(), magic.to_ne_bytes()].concat();
    for entry in entries {
        bytes.extend((entry.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(entry);
    }
    bytes
}

fn with_image(name: &str, bytes: &[u8]) -> (TempDir, ImageDir) {
    write_all(&BTreeMap::from([(name.to_owned(), bytes.to_vec())]))
}

#[test]
fn areas_without_content_are_refused_at_the_first() {
    // A million empty areas, two bytes each.
    let message = [0x72, 0].repeat(1 << 20);
    let (_directory, images) = with_image("mm-77.img", &image(MM, &[&message]));
    assert!(matches!(images.mm(PID), Err(ImageError::Corrupt { .. })));
}

#[test]
fn a_pagemap_entry_without_an_address_is_refused() {
    for entry in [&[0x10, 1][..], &[0x08, 0], &[]] {
        let (_directory, images) = with_image("pagemap-77.img", &image(PAGEMAP, &[&[0x08, 1], entry]));
        let error = images.read_pagemap(PageObject::Task(PID)).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}

#[test]
fn pages_of_a_parent_are_refused() {
    for entry in [&[0x08, 0x80, 0x20, 0x10, 1, 0x20, 1][..], &[0x08, 0x80, 0x20, 0x10, 1, 0x18, 1]] {
        let (_directory, images) = with_image("pagemap-77.img", &image(PAGEMAP, &[&[0x08, 1], entry]));
        let error = images.read_pagemap(PageObject::Task(PID)).unwrap_err();
        assert!(matches!(error, ImageError::Unsupported { .. }), "{error:?}");
    }
}

#[test]
fn pagemaps_of_older_versions_are_read() {
    // vaddr 0x1000, two pages in the old field, no flags.
    let (_directory, images) =
        with_image("pagemap-77.img", &image(PAGEMAP, &[&[0x08, 9], &[0x08, 0x80, 0x20, 0x10, 2]]));
    let run = PagemapEntry { vaddr: 0x1000, pages: 2, lazy: false, present: true };
    assert_eq!(images.read_pagemap(PageObject::Task(PID)).unwrap(), (9, vec![run]));
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let images = ImageDir::open(directory.path()).unwrap();
    images.create_pages(1).unwrap();
    assert!(matches!(images.create_pages(1), Err(ImageError::Write { .. })));
    images.write_pagemap(PageObject::Task(1), 1, &[]).unwrap();
    assert!(matches!(images.write_pagemap(PageObject::Task(1), 1, &[]), Err(ImageError::Write { .. })));
}

#[test]
fn the_lazy_predicate_is_crius() {
    let lazy = VmaEntry {
        start: 0x1000,
        end: 0x2000,
        offset: 0,
        shmid: 0,
        prot: libc::PROT_NONE as u32,
        flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
        status: 1 | 1 << 9,
        madv: 0,
    };
    assert!(lazy.is_lazy());
    assert!(VmaEntry { flags: lazy.flags | libc::MAP_GROWSDOWN as u32, ..lazy }.is_lazy());
    for flag in [libc::MAP_LOCKED, libc::MAP_HUGETLB] {
        assert!(!VmaEntry { flags: lazy.flags | flag as u32, ..lazy }.is_lazy());
    }
    for status in [1 << 2, 1 << 3, 1 << 12] {
        assert!(!VmaEntry { status, ..lazy }.is_lazy());
    }
    assert!(!VmaEntry { flags: libc::MAP_PRIVATE as u32, ..lazy }.is_lazy());
    assert!(!VmaEntry { flags: (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32, ..lazy }.is_lazy());
    assert!(!lazy.wipe_on_fork() && !lazy.dont_fork());
    assert!(VmaEntry { madv: 1 << 18, ..lazy }.wipe_on_fork());
    assert!(VmaEntry { madv: 1 << 10, ..lazy }.dont_fork());
}

fn pagemap_path(directory: &Path) -> PathBuf {
    directory.join(format!("pagemap-{PID}.img"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_pagemap_survives_writing_and_reading(
        runs in proptest::collection::vec((0u64..1000, 1u64..5000, 0u8..3), 0..200),
        pages_id in 1u32..,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let images = ImageDir::open(directory.path()).unwrap();
        let mut end = 0;
        let mut entries = Vec::new();
        for (gap, pages, kind) in runs {
            let vaddr = end + gap * 4096;
            entries.push(PagemapEntry { vaddr, pages, lazy: kind != 0, present: kind != 1 });
            end = vaddr + pages * 4096;
        }
        for object in [PageObject::Task(PID), PageObject::Shared(u64::MAX)] {
            images.write_pagemap(object, pages_id, &entries).unwrap();
            prop_assert_eq!(images.read_pagemap(object).unwrap(), (pages_id, entries.clone()));
        }
    }

    #[test]
    fn random_bytes_in_any_file_never_panic(
        which in 0usize..READERS.len(),
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        framed in any::<bool>(),
    ) {
        let (name, read) = READERS[which];
        let mut content = bytes;
        if framed {
            let start = real_images()[name][..if name == "inventory.img" { 4 } else { 8 }].to_vec();
            content = [start, (content.len() as u32).to_ne_bytes().to_vec(), content].concat();
        }
        let (_directory, images) = with_image(name, &content);
        let _ = read(&images);
    }

    #[test]
    fn damaged_images_never_panic(
        which in 0usize..READERS.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (name, read) = READERS[which];
        let images = real_images().iter().filter(|(name, _)| !name.starts_with("pages-"));
        let mut files: BTreeMap<_, _> = images.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
        let bytes = files.get_mut(name).unwrap();
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let (_directory, images) = write_all(&files);
        let _ = read(&images);
        let _ = images.check_pages();
    }

    #[test]
    fn random_task_trees_never_panic_and_never_lack_a_root(
        tasks in proptest::collection::vec((0u8..6, 0u8..6), 0..6),
    ) {
        let core = &real_images()["core-77.img"];
        let entries: Vec<Vec<u8>> = tasks
            .iter()
            .map(|&(pid, parent)| vec![0x08, pid, 0x10, parent, 0x18, pid, 0x20, pid, 0x28, pid])
            .collect();
        let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
        let mut files = BTreeMap::from([("pstree.img".to_owned(), image(PSTREE, &entries))]);
        files.extend((0..6).map(|pid| (format!("core-{pid}.img"), core.clone())));
        let (_directory, images) = write_all(&files);
        if let Ok(tasks) = images.tasks() {
            prop_assert_eq!(tasks[0].parent, None);
            for (index, task) in tasks.iter().enumerate().skip(1) {
                prop_assert!(tasks[..index].iter().any(|before| Some(before.pid) == task.parent));
            }
        }
    }

    #[test]
    fn damaged_pagemaps_never_give_overlapping_or_empty_runs(
        bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..10),
    ) {
        let mut entries: Vec<&[u8]> = vec![&[0x08, 1]];
        entries.extend(bytes.iter().map(Vec::as_slice));
        let directory = tempfile::tempdir().unwrap();
        fs::write(pagemap_path(directory.path()), image(PAGEMAP, &entries)).unwrap();
        let images = ImageDir::open(directory.path()).unwrap();
        if let Ok((_, runs)) = images.read_pagemap(PageObject::Task(PID)) {
            let mut end = 0;
            for run in runs {
                prop_assert!(run.pages > 0 && run.vaddr >= end && (run.lazy || run.present));
                end = run.vaddr + run.pages * 4096;
            }
        }
    }
}
