//! What retention keeps is whole, what it does not keep is gone, and pins stand against both; whatever fails meanwhile.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use lazy_pages::{
    catalog::{CatalogError, Collected, Kept, LeftBecause, Retention},
    format::{ObjectId, keys},
    ids::{CheckpointId, LeaseId, PinName},
    reader::{Checkpoint, Pages},
    store::ObjectStore,
    units::PAGE_SIZE,
    writer::Compression,
};

use crate::{
    deletion::made_ago,
    support::{Content, MemoryStore, Model, Writing, app, page},
};

fn keep(count: usize) -> Retention {
    Retention { keep: Some(count), keep_for: None }
}

fn collect(writing: &Writing, retention: Retention) -> Result<Collected, CatalogError> {
    writing.runtime.block_on(writing.catalog().collect(&app(), retention))
}

fn name(text: &str) -> PinName {
    text.parse().unwrap()
}

fn pin(writing: &Writing, id: CheckpointId, text: &str) -> Result<(), CatalogError> {
    writing.runtime.block_on(writing.catalog().pin(&app(), id, &name(text)))
}

fn unpin(writing: &Writing, text: &str) -> Result<Option<CheckpointId>, CatalogError> {
    writing.runtime.block_on(writing.catalog().unpin(&app(), &name(text)))
}

/// Checkpoints that share pages, oldest first.
fn several(writing: &Writing, count: u64) -> Vec<(CheckpointId, Model)> {
    let mut model = Model::simple((1..400).map(|n| n * 2));
    let mut all: Vec<(CheckpointId, Model)> = Vec::new();
    for generation in 0..count {
        *model.page_mut(generation * 7) = 90_000 + generation as Content;
        let parent = all.last().map(|(id, _)| *id);
        all.push((writing.write(&model, parent).unwrap().id, model.clone()));
    }
    all
}

fn ids(all: &[(CheckpointId, Model)]) -> Vec<CheckpointId> {
    all.iter().rev().map(|(id, _)| *id).collect()
}

/// These, and nothing else, are there, whole.
fn exactly(writing: &Writing, all: &[(CheckpointId, Model)]) {
    assert_eq!(writing.runtime.block_on(writing.catalog().list(&app())).unwrap(), ids(all));
    for (id, model) in all {
        writing.expect(*id, model);
    }
}

/// Every object belongs to one of these checkpoints, or is a pin.
fn no_garbage(writing: &Writing, all: &[(CheckpointId, Model)]) {
    let mut expected = writing.store.keys("/pins/");
    for (id, _) in all {
        let manifest = writing.runtime.block_on(writing.catalog().load_manifest(&app(), *id)).unwrap();
        expected.extend(manifest.packs.iter().map(|pack| keys::pack(&app(), pack.id)));
        expected.extend([keys::manifest, keys::bundle, keys::hashes].map(|key| key(&app(), *id)));
    }
    expected.sort();
    expected.dedup();
    assert_eq!(writing.store.keys(""), expected);
}

/// Leases whose holders have crashed die at once.
fn a_day_later(writing: &Writing) {
    writing.store.objects.lock().unwrap().retain(|key, _| !key.contains("/leases/"));
}

#[test]
fn the_newest_are_kept_and_what_they_need_of_the_others() {
    for count in [1, 2, 5, 9] {
        let writing = Writing::new();
        let all = several(&writing, 6);
        let (gone, left) = all.split_at(6_usize.saturating_sub(count));
        let planned = writing.runtime.block_on(writing.catalog().plan(&app(), keep(count))).unwrap();
        exactly(&writing, &all);
        let collected = collect(&writing, keep(count)).unwrap();
        assert_eq!(collected.deleted, ids(gone));
        assert_eq!((planned.deleted, planned.kept), (collected.deleted, collected.kept.clone()));
        assert_eq!(collected.kept[0], (all[5].0, Kept::Newest));
        assert!(collected.kept[1..].iter().all(|(_, why)| *why == Kept::Count));
        exactly(&writing, left);
        no_garbage(&writing, left);
        assert_eq!(collect(&writing, keep(count)).unwrap().deleted, []);
    }
}

#[test]
fn without_a_rule_all_are_kept_and_the_newest_whatever_the_rule() {
    let writing = Writing::new();
    let all = several(&writing, 3);
    assert_eq!(collect(&writing, Retention::default()).unwrap().deleted, []);
    let young = Retention { keep: Some(0), keep_for: Some(Duration::from_secs(3600)) };
    let collected = collect(&writing, young).unwrap();
    assert_eq!(collected.kept, [(all[2].0, Kept::Newest), (all[1].0, Kept::Age), (all[0].0, Kept::Age)]);
    let none = Retention { keep: Some(0), keep_for: Some(Duration::ZERO) };
    assert_eq!(collect(&writing, none).unwrap().deleted, ids(&all[..2]));
    exactly(&writing, &all[2..]);
}

#[test]
fn what_is_pinned_is_neither_collected_nor_deleted() {
    let writing = Writing::new();
    let all = several(&writing, 5);
    pin(&writing, all[1].0, "before-upgrade").unwrap();
    pin(&writing, all[1].0, "before-upgrade").unwrap();
    let taken = pin(&writing, all[2].0, "before-upgrade");
    assert!(matches!(taken, Err(CatalogError::PinTaken { .. })), "{taken:?}");
    let unknown = pin(&writing, CheckpointId::new(), "nothing");
    assert!(matches!(unknown, Err(CatalogError::UnknownCheckpoint { .. })), "{unknown:?}");
    let pins = writing.runtime.block_on(writing.catalog().pins(&app())).unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!((pins[0].name.to_string().as_str(), pins[0].checkpoint), ("before-upgrade", Some(all[1].0)));

    let refused = writing.runtime.block_on(writing.catalog().delete(&app(), all[1].0));
    assert!(
        matches!(&refused, Err(CatalogError::Pinned { name, .. }) if name.to_string() == "before-upgrade")
    );
    let collected = collect(&writing, keep(1)).unwrap();
    assert_eq!(collected.kept[1], (all[1].0, Kept::Pinned(name("before-upgrade"))));
    let left = [all[1].clone(), all[4].clone()];
    exactly(&writing, &left);
    no_garbage(&writing, &left);

    assert_eq!(unpin(&writing, "before-upgrade").unwrap(), Some(all[1].0));
    assert!(matches!(unpin(&writing, "before-upgrade"), Err(CatalogError::UnknownPin { .. })));
    collect(&writing, keep(1)).unwrap();
    exactly(&writing, &all[4..]);
    no_garbage(&writing, &all[4..]);
}

#[test]
fn a_pin_that_is_not_understood_keeps_everything() {
    // The second names a checkpoint that does not exist, as one does that has a wrong bit.
    for content in ["something newer".to_owned(), CheckpointId::new().to_string()] {
        let writing = Writing::new();
        let all = several(&writing, 3);
        writing.store.insert(&keys::pin(&app(), &name("newer")), content);
        assert_eq!(collect(&writing, keep(1)).unwrap().deleted, []);
        let refused = writing.runtime.block_on(writing.catalog().delete(&app(), all[0].0));
        assert!(matches!(refused, Err(CatalogError::Pinned { .. })), "{refused:?}");
        exactly(&writing, &all);
    }
}

#[test]
fn nothing_is_pinned_while_checkpoints_are_being_deleted() {
    let writing = Writing::new();
    let all = several(&writing, 2);
    writing.store.insert(&keys::lease(&app(), LeaseId::new()), "deleting");
    assert!(matches!(pin(&writing, all[0].0, "x"), Err(CatalogError::DeleteUnderWay { .. })));
    assert_eq!(writing.store.keys("/pins/").len(), 0);
}

#[test]
fn what_is_read_or_built_on_is_kept() {
    let writing = Writing::new();
    let all = several(&writing, 4);
    let (reader, parent) = (writing.open(all[0].0), writing.parent(all[1].0));
    let collected = collect(&writing, keep(1)).unwrap();
    assert_eq!(collected.deleted, [all[2].0]);
    assert!(matches!(&collected.kept[1..], [(_, Kept::Leased(_)), (_, Kept::Leased(_))]), "{collected:?}");
    exactly(&writing, &[all[0].clone(), all[1].clone(), all[3].clone()]);
    writing.runtime.block_on(reader.lease().release()).unwrap();
    writing.runtime.block_on(parent.lease().release()).unwrap();
    collect(&writing, keep(1)).unwrap();
    exactly(&writing, &all[3..]);
    no_garbage(&writing, &all[3..]);
}

#[test]
fn a_checkpoint_that_is_opened_in_the_last_moment_comes_back() {
    let writing = Writing::new();
    let all = several(&writing, 4);
    let manifest = keys::manifest(&app(), all[1].0);
    let lease = keys::lease(&app(), LeaseId::new());
    let (key, content) = (lease.clone(), all[1].0.to_string());
    *writing.store.on_delete.lock().unwrap() = Some(Box::new(move |store, deleted| {
        if deleted == manifest {
            store.insert(&key, content.clone());
        }
    }));
    let collected = collect(&writing, keep(1)).unwrap();
    assert_eq!(collected.deleted, [all[2].0, all[0].0]);
    assert_eq!(collected.kept[1], (all[1].0, Kept::Leased(lease.clone())));
    let left = [all[1].clone(), all[3].clone()];
    exactly(&writing, &left);
    a_day_later(&writing);
    no_garbage(&writing, &left);
}

#[test]
fn nothing_is_deleted_beside_a_manifest_that_cannot_be_read() {
    let writing = Writing::new();
    let all = several(&writing, 4);
    let before = writing.store.keys("");
    for damaged in [3, 0] {
        let key = keys::manifest(&app(), all[damaged].0);
        let good = writing.store.objects.lock().unwrap()[&key].clone();
        writing.store.insert(&key, "damaged");
        let planned = writing.runtime.block_on(writing.catalog().plan(&app(), keep(1))).unwrap();
        let collected = collect(&writing, keep(1)).unwrap();
        assert_eq!(planned, collected);
        assert_eq!(collected.left, Some(LeftBecause::Unreadable(all[damaged].0)));
        assert_eq!(collected.deleted, []);
        // The newest that can be read is the newest.
        let newest = if damaged == 3 { 2 } else { 3 };
        assert!(collected.kept.contains(&(all[newest].0, Kept::Newest)));
        writing.store.insert(&key, good);
    }
    assert_eq!(writing.store.keys(""), before);
    exactly(&writing, &all);
}

#[test]
fn a_collection_that_ends_anywhere_harms_nothing_and_is_finished_by_the_next() {
    let writing = Writing::new();
    let all = several(&writing, 5);
    pin(&writing, all[1].0, "kept").unwrap();
    let left = [all[1].clone(), all[3].clone(), all[4].clone()];
    let whole = writing.store.objects.lock().unwrap().clone();
    // The call at which it ends is carried out, or is not.
    for carried_out in [false, true] {
        let (mut interrupted, mut gone_early) = (0, 0);
        for calls in 0.. {
            *writing.store.objects.lock().unwrap() = whole.clone();
            writing.store.last_call_is_carried_out.store(carried_out, Ordering::SeqCst);
            writing.store.calls_left.store(calls, Ordering::SeqCst);
            let result = collect(&writing, keep(2));
            let finished = writing.store.calls_left.load(Ordering::SeqCst) > 0;
            writing.store.calls_left.store(-1, Ordering::SeqCst);
            for (id, model) in &left {
                writing.expect(*id, model);
            }
            // Those that were to be deleted are there, whole, or they do not exist.
            for (id, model) in [&all[0], &all[2]] {
                match writing.runtime.block_on(writing.catalog().load_manifest(&app(), *id)) {
                    Ok(_) => writing.expect(*id, model),
                    Err(CatalogError::UnknownCheckpoint { .. }) => gone_early += u64::from(result.is_err()),
                    Err(other) => panic!("{other}"),
                }
            }
            a_day_later(&writing);
            collect(&writing, keep(2)).unwrap();
            exactly(&writing, &left);
            no_garbage(&writing, &left);
            if finished {
                assert_eq!(result.unwrap().deleted, [all[2].0, all[0].0]);
                break;
            }
            interrupted += 1;
        }
        assert!(interrupted > 20 && gone_early > 5, "{interrupted} {gone_early}");
    }
}

#[test]
fn the_crash_of_a_collection_keeps_the_next_one_out_for_an_hour() {
    let writing = Writing::new();
    let all = several(&writing, 3);
    let crashed = keys::lease(&app(), LeaseId::new());
    writing.store.insert(&crashed, "deleting");
    assert!(matches!(collect(&writing, keep(1)), Err(CatalogError::DeleteUnderWay { .. })));
    exactly(&writing, &all);
    writing.store.objects.lock().unwrap().remove(&crashed);
    let dead = keys::lease(&app(), LeaseId::from_bytes(&made_ago(2)).unwrap());
    writing.store.insert(&dead, "deleting");
    collect(&writing, keep(1)).unwrap();
    no_garbage(&writing, &all[2..]);
}

/// A store in which every operation begins a little later, by a different time.
struct Slow {
    writing: Writing,
    models: Mutex<HashMap<CheckpointId, Model>>,
    done: AtomicBool,
}

#[test]
fn a_restore_of_the_newest_never_fails_however_fast_checkpoints_go() {
    const CHECKPOINTS: u64 = 60;
    let store = MemoryStore::new();
    store.delay_up_to(Duration::from_micros(700));
    let shared =
        Arc::new(Slow { writing: Writing::on(store.clone()), models: Mutex::default(), done: false.into() });
    let (deleted, read) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut model = Model::simple((1..200).map(|n| n * 2));
    let write = |model: &Model, parent: Option<CheckpointId>| {
        let id = CheckpointId::new();
        shared.models.lock().unwrap().insert(id, model.clone());
        let parent = parent.map(|id| shared.writing.parent(id));
        let sealed = shared.writing.seal(model, id, parent.clone()).unwrap();
        shared.writing.runtime.block_on(sealed.commit(model.meta())).unwrap();
        if let Some(parent) = parent {
            shared.writing.runtime.block_on(parent.lease().release()).unwrap();
        }
        id
    };
    let mut last = write(&model, None);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let app = app();
                while !shared.done.load(Ordering::SeqCst) {
                    let open = Checkpoint::open_newest(store.clone() as Arc<dyn ObjectStore>, &app);
                    let checkpoint = shared.writing.runtime.block_on(open).unwrap();
                    let model = shared.models.lock().unwrap()[&checkpoint.manifest().id].clone();
                    assert_whole(&shared.writing, &checkpoint, &model);
                    shared.writing.runtime.block_on(checkpoint.lease().release()).unwrap();
                    read.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            while !shared.done.load(Ordering::SeqCst) {
                let gone = collect(&shared.writing, keep(1)).unwrap().deleted.len();
                deleted.fetch_add(gone as u64, Ordering::SeqCst);
            }
        });
        for generation in 0..CHECKPOINTS {
            *model.page_mut(generation * 3) = 50_000 + generation as Content;
            last = write(&model, Some(last));
        }
        shared.done.store(true, Ordering::SeqCst);
    });
    store.delay_up_to(Duration::ZERO);
    let (deleted, read) = (deleted.into_inner(), read.into_inner());
    println!("{deleted} deleted while {read} were read");
    assert!(deleted > CHECKPOINTS / 4 && read > CHECKPOINTS / 4, "{deleted} {read}");
    collect(&shared.writing, keep(1)).unwrap();
    shared.writing.expect(last, &model);
    assert_eq!(shared.writing.runtime.block_on(shared.writing.catalog().list(&app())).unwrap(), [last]);
}

/// Every page of the checkpoint is what the model says; nothing is opened anew.
fn assert_whole(writing: &Writing, checkpoint: &Checkpoint, model: &Model) {
    let task = ObjectId::Task(100);
    let expected = &model.objects[&task].pages;
    let mut pages = 0;
    let read = checkpoint.read_object(task, Pages::All, |run, bytes| {
        for (at, found) in bytes.chunks(PAGE_SIZE).enumerate() {
            let (_, content) = expected[&(run.start.page() + at as u64)];
            assert!(found == page(content), "page {:#x} differs", run.start.page() + at as u64);
            pages += 1;
        }
        Ok(())
    });
    writing.runtime.block_on(read).unwrap();
    assert_eq!(pages, expected.len());
    assert!(!writing.runtime.block_on(checkpoint.bundle()).unwrap().is_empty());
}

/// Fifty checkpoints of memory that changes a few per cent a time, the newest three kept, chains of at most ten.
#[test]
fn fifty_checkpoints_take_no_more_than_two() {
    const PAGES: u64 = 4000;
    let mut writing = Writing::new();
    writing.compression = Compression::None;
    let mut model = Model::simple((1..=PAGES as Content).map(|n| n * 2));
    let mut last = writing.write(&model, None).unwrap();
    let full = writing.store.bytes("");
    let mut most = full;
    let mut random = 1_u64;
    for generation in 1..50 {
        for _ in 0..PAGES / 50 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *model.page_mut((random >> 33) % PAGES) = (random >> 20) as Content & !1 | 2;
        }
        let parent = (last.depth < 10).then_some(last.id);
        last = writing.write(&model, parent).unwrap();
        assert_eq!(last.depth, generation % 11);
        collect(&writing, keep(3)).unwrap();
        most = most.max(writing.store.bytes(""));
    }
    let at_end = writing.store.bytes("");
    let times = |bytes: usize| bytes as f64 / full as f64;
    println!("one takes {full} bytes; 50 take {:.2} times that, {:.2} at most", times(at_end), times(most));
    assert!(at_end <= 2 * full, "{at_end} {full}");
    // When a chain ends, its last checkpoints are kept beside the first of the next.
    assert!(most <= 5 * full / 2, "{most} {full}");
    let kept = writing.runtime.block_on(writing.catalog().list(&app())).unwrap();
    assert_eq!(kept.len(), 3);
    writing.expect(last.id, &model);
    for id in kept {
        let checkpoint = writing.open(id);
        writing.runtime.block_on(lazy_pages::verify::verify(&checkpoint, true, &mut |_| {})).unwrap();
        writing.runtime.block_on(checkpoint.lease().release()).unwrap();
    }
}
