//! A store that fails, callers that give up, callers that make mistakes: no manifest, no hang, a clear error.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use lazy_pages::{
    catalog::{CatalogError, Lease},
    format::{ManifestError, ObjectId, keys},
    ids::CheckpointId,
    store::StoreError,
    units::VirtAddr,
    writer::{Compression, Parent, ParentError, WriteError},
};

use crate::support::{Model, Writing, app, send};

/// A little more than two packs.
fn large() -> Model {
    Model::simple((1..5000).map(|n| n * 2))
}

#[test]
fn whichever_put_fails_there_is_no_checkpoint() {
    let writing = Writing::new();
    let manifest = writing.write(&large(), None).unwrap();
    let puts = writing.store.keys("").len() as i64;
    assert!(puts >= 6, "packs, bundle, hashes, manifest");
    let checkpoints = || writing.runtime.block_on(writing.catalog().list(&app())).unwrap();
    assert_eq!(checkpoints(), [manifest.id]);
    for good in 0..puts {
        writing.store.puts_left.store(good, Ordering::SeqCst);
        let error = writing.write(&large(), None).unwrap_err();
        assert!(
            matches!(&error, WriteError::Store(e) if matches!(**e, StoreError::Unavailable { .. })),
            "{error}"
        );
        assert_eq!(checkpoints(), [manifest.id], "after {good} puts");
    }
    writing.store.puts_left.store(-1, Ordering::SeqCst);
    writing.expect(manifest.id, &large());
}

#[test]
fn a_failed_upload_ends_the_stream_early() {
    let writing = Writing::new();
    writing.store.puts_left.store(0, Ordering::SeqCst);
    let mut writer = writing.begin(CheckpointId::new(), None).unwrap();
    writer.open(ObjectId::Task(100), 1).unwrap();
    // Far more than the pipeline can hold, so that it has to notice.
    let mut failed = None;
    for number in 0..200_000 {
        match writer.buffer(true, VirtAddr::of_page(1000 + number), 1) {
            Ok(buffer) => buffer[..8].copy_from_slice(&(number + 1).to_le_bytes()),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
        let _ = writer.filled();
    }
    assert!(matches!(failed, Some(WriteError::Store(_))), "{failed:?}");
    assert!(matches!(writer.open(ObjectId::Task(101), 2), Err(WriteError::Store(_))));
    assert!(matches!(writer.finish_pages(), Err(WriteError::Store(_))));
}

#[test]
fn a_writer_that_is_dropped_stops_at_once_even_if_the_store_hangs() {
    let mut writing = Writing::new();
    writing.compression = Compression::None;
    writing.store.hang.store(true, Ordering::SeqCst);
    let mut writer = writing.begin(CheckpointId::new(), None).unwrap();
    send(&mut writer, &large()).unwrap();
    let begin = Instant::now();
    drop(writer);
    let sealed = writing.seal(&large(), CheckpointId::new(), None).unwrap();
    drop(sealed);
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(writing.store.keys("").len(), 0);
}

#[test]
fn a_hanging_store_stops_the_sink_and_not_the_memory() {
    let mut writing = Writing::new();
    writing.compression = Compression::None;
    writing.store.hang.store(true, Ordering::SeqCst);
    let mut writer = writing.begin(CheckpointId::new(), None).unwrap();
    writer.open(ObjectId::Task(100), 1).unwrap();
    let (progress, taken) = std::sync::mpsc::channel();
    // Blocks for ever, as it should; the test's end takes it along.
    std::thread::spawn(move || {
        for number in 0..100_000_u64 {
            let buffer = writer.buffer(true, VirtAddr::of_page(number), 1).unwrap();
            buffer[..8].copy_from_slice(&(number + 1).to_le_bytes());
            writer.filled().unwrap();
            progress.send(number).unwrap();
        }
    });
    let mut last = 0;
    while let Ok(number) = taken.recv_timeout(Duration::from_secs(2)) {
        last = number;
    }
    // Eight packs under way, the one being filled, the windows.
    assert!((16_000..40_000).contains(&last), "{last} pages were taken");
}

#[test]
fn a_commit_that_is_cancelled_leaves_no_checkpoint() {
    let writing = Writing::new();
    writing.store.hang.store(true, Ordering::SeqCst);
    let sealed = writing.seal(&large(), CheckpointId::new(), None).unwrap();
    let commit = sealed.commit(large().meta());
    let result =
        writing.runtime.block_on(async { tokio::time::timeout(Duration::from_millis(300), commit).await });
    assert!(result.is_err(), "it was waiting for a pack");
    assert_eq!(writing.store.keys("manifest").len(), 0);
}

#[test]
fn of_two_writers_of_one_id_only_one_commits() {
    let writing = Writing::new();
    let id = CheckpointId::new();
    let model = Model::simple(1..200);
    let other = Model::simple(500..700);
    let first = writing.seal(&model, id, None).unwrap();
    let second = writing.seal(&other, id, None).unwrap();
    writing.runtime.block_on(first.commit(model.meta())).unwrap();
    let error = writing.runtime.block_on(second.commit(other.meta())).unwrap_err();
    assert!(
        matches!(&error, WriteError::Store(e) if matches!(**e, StoreError::AlreadyExists { .. })),
        "{error}"
    );
    writing.expect(id, &model);
}

#[test]
fn a_page_sent_twice_is_refused() {
    let writing = Writing::new();
    let mut writer = writing.begin(CheckpointId::new(), None).unwrap();
    writer.open(ObjectId::Task(100), 1).unwrap();
    for page in [1000, 1001, 1001] {
        writer.buffer(true, VirtAddr::of_page(page), 1).unwrap().fill(page as u8);
        writer.filled().unwrap();
    }
    let sealed = writer.finish_pages().unwrap();
    let error = writing.runtime.block_on(sealed.commit(Model::simple([1]).meta())).unwrap_err();
    assert_eq!(error.to_string(), "the page of Task(100) at 0x3e9000 came twice");
}

#[test]
fn misuse_is_an_error() {
    let writing = Writing::new();
    let mut writer = writing.begin(CheckpointId::new(), None).unwrap();
    assert!(matches!(writer.buffer(true, VirtAddr::of_page(1), 1), Err(WriteError::NoObject)));
    writer.open(ObjectId::Shared(3), 1).unwrap();
    assert!(matches!(writer.open(ObjectId::Shared(3), 2), Err(WriteError::ObjectTwice(_))));
    for (page, pages) in [(1, 0), ((1 << 52) - 2, 2), (1, u64::MAX)] {
        let asked = writer.buffer(true, VirtAddr::of_page(page), pages);
        assert!(matches!(asked, Err(WriteError::AddressRange { .. })));
    }
    let sealed = writer.finish_pages().unwrap();
    let never_opened = writing.runtime.block_on(sealed.commit(Model::simple([1]).meta())).unwrap_err();
    assert!(matches!(never_opened, WriteError::NeverOpened(ObjectId::Task(100))), "{never_opened}");
    // A live task whose memory never came: nothing is put that could be taken for a checkpoint.
    let mut meta = Model::simple([1]).meta();
    meta.vmas.clear();
    let sealed = writing.begin(CheckpointId::new(), None).unwrap().finish_pages().unwrap();
    let error = writing.runtime.block_on(sealed.commit(meta)).unwrap_err();
    assert!(matches!(&error, WriteError::Manifest(e) if matches!(**e, ManifestError::Invalid(_))), "{error}");
    assert_eq!(writing.store.keys("manifest").len(), 0);
}

#[test]
fn a_parent_that_cannot_be_loaded_is_a_clear_error() {
    let writing = Writing::new();
    let manifest = writing.write(&Model::simple(1..100), None).unwrap();
    let load = |id| writing.runtime.block_on(Parent::load(writing.store.clone(), &app(), id));
    let key = keys::hashes(&app(), manifest.id);
    let good = writing.store.objects.lock().unwrap()[&key].clone();
    for at in [0, good.len() - 1] {
        let mut bad = good.to_vec();
        bad[at] ^= 128;
        writing.store.insert(&key, bad);
        assert!(matches!(load(manifest.id), Err(ParentError::HashesDamaged { .. })));
    }
    writing.store.insert(&key, good.slice(16..));
    assert!(matches!(load(manifest.id), Err(ParentError::HashesDamaged { .. })));
    writing.store.objects.lock().unwrap().remove(&key);
    assert!(matches!(load(manifest.id), Err(ParentError::Store(StoreError::NotFound { .. }))));
    let unknown = load(CheckpointId::new());
    assert!(matches!(unknown, Err(ParentError::Catalog(CatalogError::UnknownCheckpoint { .. }))));
    assert_eq!(writing.store.keys("/leases/").len(), 0);
}

#[test]
fn a_checkpoint_is_not_committed_when_what_it_builds_on_is_gone() {
    let writing = Writing::new();
    let model = Model::simple(1..500);
    let manifest = writing.write(&model, None).unwrap();
    let parent = writing.parent(manifest.id);
    let commit = |parent| {
        let sealed = writing.seal(&model, CheckpointId::new(), Some(parent)).unwrap();
        writing.runtime.block_on(sealed.commit(model.meta()))
    };
    let key = keys::pack(&app(), manifest.packs[0].id);
    let good = writing.store.objects.lock().unwrap().remove(&key).unwrap();
    assert!(matches!(commit(parent.clone()), Err(WriteError::InheritedPackMissing { .. })));
    writing.store.insert(&key, good.slice(1..));
    assert!(matches!(commit(parent.clone()), Err(WriteError::InheritedPackMissing { .. })));
    writing.store.insert(&key, good);
    writing.runtime.block_on(parent.lease().release()).unwrap();
    assert!(matches!(commit(parent), Err(WriteError::TooLate)));
    assert_eq!(writing.store.keys("manifest").len(), 1);
    assert!(commit(writing.parent(manifest.id)).is_ok());
}

#[test]
fn a_lease_that_is_dropped_is_removed_in_the_background() {
    let writing = Writing::new();
    writing.runtime.block_on(async {
        let lease = Lease::acquire(writing.store.clone(), &app(), CheckpointId::new()).await.unwrap();
        assert_eq!(writing.store.keys("/leases/").len(), 1);
        drop(lease);
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if writing.store.keys("/leases/").is_empty() {
                return;
            }
        }
        panic!("the lease is still there");
    });
}
