//! The directory CRIU restores from.

use std::{fs, sync::Arc};

use bytes::Bytes;
use lazy_pages::{
    format::{Host, ObjectId, Task, bundle},
    ids::CheckpointId,
    materialize::{MaterializeError, materialize_lazy},
    reader::Checkpoint,
    store::ObjectStore,
    units::{PAGE_SIZE, VirtAddr},
    writer::{CheckpointMeta, CheckpointWriter, WriterOptions},
};

use crate::support::{BASE, TestStore, app, area, page_content, runtime};

#[test]
fn images_hold_the_bundle_and_only_the_pages_that_must_be_there() {
    let (runtime, id) = (runtime(), CheckpointId::new());
    let store: Arc<dyn ObjectStore> = TestStore::new();
    let options = WriterOptions::default();
    let handle = runtime.handle().clone();
    let mut writer = CheckpointWriter::begin(store.clone(), handle, app(), id, None, options).unwrap();
    // The area is served on demand; pages before and behind it, a zero page among them, are not.
    let eager = |page: u64| !(BASE..BASE + 100).contains(&page);
    writer.open(ObjectId::Task(7), 3).unwrap();
    for page in BASE - 20..BASE + 120 {
        writer.buffer(!eager(page), VirtAddr::of_page(page), 1).unwrap().copy_from_slice(&page_content(page));
        writer.filled().unwrap();
    }
    writer.open(ObjectId::Shared(9), 4).unwrap();
    for page in 0..8 {
        writer.buffer(false, VirtAddr::of_page(page), 1).unwrap().copy_from_slice(&page_content(page));
        writer.filled().unwrap();
    }
    let sealed = writer.finish_pages().unwrap();
    let file =
        |name: &str| bundle::File { name: name.into(), content: Bytes::from(name.as_bytes().to_vec()) };
    let meta = CheckpointMeta {
        vmas: [(ObjectId::Task(7), vec![area(BASE, 100)])].into(),
        tasks: vec![Task { pid: 7, parent_pid: 1, threads: 1, dead: false, command: "x".into() }],
        host: Host::default(),
        streams: Vec::new(),
        bundle: bundle::pack([file("inventory.img"), file("pagemap-7.img")]).unwrap(),
        files: Vec::new(),
        large_images: Vec::new(),
    };
    runtime.block_on(sealed.commit(meta)).unwrap();

    let place = tempfile::tempdir().unwrap();
    let images = place.path().join("new/images");
    let checkpoint = runtime.block_on(Checkpoint::open(store, &app(), id)).unwrap();
    let written = runtime.block_on(materialize_lazy(&checkpoint, &images)).unwrap();
    let pages: Vec<u8> = (BASE - 20..BASE + 120).filter(|page| eager(*page)).flat_map(page_content).collect();
    assert_eq!(fs::read(images.join("pages-3.img")).unwrap(), pages);
    let shared: Vec<u8> = (0..8).flat_map(page_content).collect();
    assert_eq!(fs::read(images.join("pages-4.img")).unwrap(), shared);
    assert_eq!(fs::read(images.join("pagemap-7.img")).unwrap(), b"pagemap-7.img");
    assert_eq!(written.files, 4);
    assert_eq!(written.bytes, 26 + 48 * PAGE_SIZE as u64);

    let again = runtime.block_on(materialize_lazy(&checkpoint, &images));
    assert!(matches!(again, Err(MaterializeError::NotEmpty(path)) if path == images));
}
