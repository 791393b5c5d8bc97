//! Deleting takes what nobody needs, and never a page of a checkpoint that still exists.

use std::{
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lazy_pages::{
    catalog::{CatalogError, Deleted, Lease, LeftBecause, Retention},
    format::keys,
    ids::{AppId, CheckpointId, LeaseId, PackId},
    record::{RECORD_VERSION, Records, RestoreName, RestoreRecord, TakenRecord},
    verify::verify,
};
use proptest::prelude::*;

use crate::support::{Content, Model, Writing, app};

/// Bytes of an identifier made so long ago.
pub fn made_ago(hours: u64) -> [u8; 16] {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    let millis = then.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let mut bytes = [0xAB; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    bytes
}

fn delete(writing: &Writing, id: CheckpointId) -> Result<Deleted, CatalogError> {
    writing.runtime.block_on(writing.catalog().delete(&app(), id))
}

fn sweep(writing: &Writing) -> Deleted {
    writing.runtime.block_on(writing.catalog().sweep(&app())).unwrap()
}

/// Three checkpoints, each with a few pages of its own.
fn three(writing: &Writing) -> Vec<(CheckpointId, Model)> {
    let mut model = Model::simple((1..1500).map(|n| n * 2));
    let mut all = Vec::new();
    for generation in 0..3 {
        *model.page_mut(generation * 100) = 90_000 + generation as Content;
        let parent = all.last().map(|(id, _)| *id);
        all.push((writing.write(&model, parent).unwrap().id, model.clone()));
    }
    all
}

#[test]
fn the_catalog_lists_what_is_committed_newest_first() {
    let writing = Writing::new();
    let catalog = writing.catalog();
    let none = writing.runtime.block_on(catalog.newest(&app()));
    assert!(matches!(none, Err(CatalogError::NoCheckpoint { .. })));
    let all = three(&writing);
    // Not committed: there is no manifest.
    writing.store.insert(&keys::bundle(&app(), CheckpointId::new()), "x");
    let other: AppId = "test/default/app2".parse().unwrap();
    writing.store.insert(&keys::manifest(&other, CheckpointId::new()), "x");
    let listed = writing.runtime.block_on(catalog.list(&app())).unwrap();
    assert_eq!(listed, [all[2].0, all[1].0, all[0].0]);
    assert_eq!(writing.runtime.block_on(catalog.newest(&app())).unwrap(), all[2].0);
    assert_eq!(writing.runtime.block_on(catalog.apps()).unwrap(), [app(), other]);
}

#[test]
fn what_is_told_of_a_checkpoint_goes_with_it() {
    let writing = Writing::new();
    let all = three(&writing);
    let records = Records::new(writing.store.clone(), app());
    let version = RECORD_VERSION;
    writing.runtime.block_on(async {
        for (id, _) in &all {
            let taken = TakenRecord { version, ..TakenRecord::default() };
            records.keep_taken(*id, &taken).await.unwrap();
            let name = RestoreName { lease: LeaseId::new(), checkpoint: *id, handover: false };
            let run = RestoreRecord { version, ..RestoreRecord::default() };
            records.keep_restore(name, &run).await.unwrap();
            // Said again after a crash.
            records.keep_restore(name, &RestoreRecord { pid: 1, ..run.clone() }).await.unwrap();
            assert_eq!(records.restore(name).await.unwrap().agent, Some(run));
        }
    });
    let told = |id: CheckpointId| {
        let prefix = format!("{}{id}/", keys::checkpoints(&app()));
        writing.store.keys(&prefix).into_iter().filter(|key| key.ends_with(".json")).count()
    };
    let mut left: Vec<_> = all.iter().map(|(id, _)| *id).collect();
    let restored = || {
        let restores = writing.runtime.block_on(records.restores()).unwrap();
        let mut ids: Vec<_> = restores.iter().map(|one| one.checkpoint).collect();
        ids.sort();
        ids
    };
    assert_eq!(restored(), left);
    assert_eq!(writing.runtime.block_on(writing.catalog().list(&app())).unwrap().len(), 3);
    delete(&writing, all[1].0).unwrap();
    assert_eq!(all.iter().map(|(id, _)| told(*id)).collect::<Vec<_>>(), [2, 0, 2]);
    left.remove(1);
    assert_eq!(restored(), left);
    let kept = Retention { keep: Some(1), keep_for: None };
    writing.runtime.block_on(writing.catalog().collect(&app(), kept)).unwrap();
    assert_eq!(all.iter().map(|(id, _)| told(*id)).collect::<Vec<_>>(), [0, 0, 2]);
}

#[test]
fn deleting_keeps_what_others_need() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let writing = Writing::new();
        let all = three(&writing);
        for (done, which) in order.iter().enumerate() {
            let deleted = delete(&writing, all[*which].0).unwrap();
            assert_eq!(deleted.left, None);
            assert!(deleted.bytes > 0);
            for left in &order[done + 1..] {
                writing.expect(all[*left].0, &all[*left].1);
            }
        }
        assert_eq!(writing.store.keys(""), [""; 0], "nothing is left");
    }
}

#[test]
fn deleting_what_is_not_there_is_an_error() {
    let writing = Writing::new();
    let all = three(&writing);
    delete(&writing, all[1].0).unwrap();
    assert!(matches!(delete(&writing, all[1].0), Err(CatalogError::UnknownCheckpoint { .. })));
    assert_eq!(writing.store.keys("/leases/").len(), 0);
}

#[test]
fn a_checkpoint_in_use_is_not_deleted() {
    let writing = Writing::new();
    let all = three(&writing);
    let reader = writing.open(all[0].0);
    let error = delete(&writing, all[0].0).unwrap_err();
    assert!(matches!(error, CatalogError::Leased { .. }), "{error}");
    writing.expect(all[0].0, &all[0].1);
    // Others can be deleted meanwhile, and garbage is found: the lease names a checkpoint that is there.
    assert_eq!(delete(&writing, all[2].0).unwrap().left, None);
    writing.runtime.block_on(reader.lease().release()).unwrap();
    delete(&writing, all[0].0).unwrap();
    writing.expect(all[1].0, &all[1].1);
}

#[test]
fn a_lease_that_appears_during_a_delete_undoes_it() {
    let writing = Writing::new();
    let all = three(&writing);
    let (last, model) = all[2].clone();
    let packs = writing.store.keys("/packs/");
    let hook_manifest = keys::manifest(&app(), last);
    let lease = keys::lease(&app(), LeaseId::new());
    // The last moment at which a reader can still find the manifest.
    let (key, content) = (lease.clone(), last.to_string());
    *writing.store.on_delete.lock().unwrap() = Some(Box::new(move |store, deleted| {
        if deleted == hook_manifest {
            store.insert(&key, content.clone());
        }
    }));
    let refused = delete(&writing, last);
    assert!(matches!(&refused, Err(CatalogError::Leased { lease: by, .. }) if *by == lease), "{refused:?}");
    assert_eq!(writing.store.keys("/packs/"), packs);
    // That reader has the manifest, and finds everything else; so does everybody.
    writing.expect(last, &model);
}

#[test]
fn a_checkpoint_made_while_its_parent_is_deleted_is_whole_or_not_at_all() {
    let writing = Writing::new();
    let all = three(&writing);
    let (id, model) = all[2].clone();
    let parent = writing.parent(id);
    assert!(matches!(delete(&writing, id), Err(CatalogError::Leased { .. })));
    let sealed = writing.seal(&model, CheckpointId::new(), Some(parent.clone())).unwrap();
    delete(&writing, all[0].0).unwrap();
    delete(&writing, all[1].0).unwrap();
    let manifest = writing.runtime.block_on(sealed.commit(model.meta())).unwrap();
    writing.runtime.block_on(parent.lease().release()).unwrap();
    delete(&writing, id).unwrap();
    writing.expect(manifest.id, &model);
}

#[test]
fn one_delete_at_a_time() {
    let writing = Writing::new();
    let all = three(&writing);
    let other = keys::lease(&app(), LeaseId::new());
    writing.store.insert(&other, "deleting");
    let error = delete(&writing, all[0].0).unwrap_err();
    assert!(matches!(error, CatalogError::DeleteUnderWay { .. }), "{error}");
    assert_eq!(writing.store.keys("/leases/"), [other.as_str()]);
    // One that crashed two hours ago is in nobody's way.
    writing.store.objects.lock().unwrap().remove(&other);
    let dead = keys::lease(&app(), LeaseId::from_bytes(&made_ago(2)).unwrap());
    writing.store.insert(&dead, "deleting");
    delete(&writing, all[0].0).unwrap();
    assert_eq!(writing.store.keys("/leases/").len(), 0);
}

#[test]
fn a_lease_dies_after_a_day() {
    let writing = Writing::new();
    let all = three(&writing);
    let young = keys::lease(&app(), LeaseId::from_bytes(&made_ago(23)).unwrap());
    writing.store.insert(&young, all[0].0.to_string());
    assert!(matches!(delete(&writing, all[0].0), Err(CatalogError::Leased { minutes: 1380, .. })));
    writing.store.objects.lock().unwrap().remove(&young);
    let dead = keys::lease(&app(), LeaseId::from_bytes(&made_ago(25)).unwrap());
    writing.store.insert(&dead, all[0].0.to_string());
    delete(&writing, all[0].0).unwrap();
    assert_eq!(writing.store.keys("/leases/").len(), 0, "dead leases are cleared away");
}

#[test]
fn a_lease_that_is_not_understood_protects_everything() {
    let writing = Writing::new();
    let all = three(&writing);
    writing.store.insert(&keys::lease(&app(), LeaseId::new()), "something newer");
    assert!(matches!(delete(&writing, all[0].0), Err(CatalogError::Leased { .. })));
}

#[test]
fn an_unreadable_manifest_protects_all_packs_but_can_itself_be_deleted() {
    let writing = Writing::new();
    let all = three(&writing);
    let packs = writing.store.keys("/packs/");
    writing.store.insert(&keys::manifest(&app(), all[1].0), "damaged");
    let deleted = delete(&writing, all[0].0).unwrap();
    assert_eq!(deleted.left, Some(LeftBecause::Unreadable(all[1].0)));
    assert_eq!(writing.store.keys("/packs/"), packs);
    assert_eq!(delete(&writing, all[1].0).unwrap().left, None);
    writing.expect(all[2].0, &all[2].1);
}

#[test]
fn a_sweep_removes_old_garbage_and_nothing_else() {
    let writing = Writing::new();
    let all = three(&writing);
    let before = writing.store.keys("");
    let old_pack = keys::pack(&app(), PackId::from_bytes(&made_ago(25)).unwrap());
    let old_bundle = keys::bundle(&app(), CheckpointId::from_bytes(&made_ago(25)).unwrap());
    let old_handover = keys::handover(&app(), CheckpointId::from_bytes(&made_ago(25)).unwrap());
    let young = [
        keys::pack(&app(), PackId::from_bytes(&made_ago(23)).unwrap()),
        keys::hashes(&app(), CheckpointId::from_bytes(&made_ago(23)).unwrap()),
        keys::handover(&app(), CheckpointId::from_bytes(&made_ago(23)).unwrap()),
        // Of another application, whose name starts the same.
        keys::pack(&"test/default/app2".parse().unwrap(), PackId::from_bytes(&made_ago(99)).unwrap()),
    ];
    for key in young.iter().chain([&old_pack, &old_bundle, &old_handover]) {
        writing.store.insert(key, vec![1; 10]);
    }
    // A live lease on a checkpoint that is not there: somebody may be about to refer to anything.
    let unknown =
        writing.runtime.block_on(Lease::acquire(writing.store.clone(), &app(), CheckpointId::new())).unwrap();
    assert!(matches!(sweep(&writing).left, Some(LeftBecause::Leased { .. })));
    writing.runtime.block_on(unknown.release()).unwrap();
    assert_eq!(sweep(&writing), Deleted { packs: 1, bytes: 30, left: None });
    let mut expected = before;
    expected.extend(young);
    expected.sort();
    assert_eq!(writing.store.keys(""), expected);
    for (id, model) in &all {
        writing.expect(*id, model);
    }
}

#[test]
fn a_delete_that_crashes_anywhere_takes_nothing_from_others() {
    let writing = Writing::new();
    let all = three(&writing);
    let whole = writing.store.objects.lock().unwrap().clone();
    for calls in 0.. {
        *writing.store.objects.lock().unwrap() = whole.clone();
        writing.store.calls_left.store(calls, Ordering::SeqCst);
        let result = delete(&writing, all[1].0);
        let finished = writing.store.calls_left.load(Ordering::SeqCst) > 0;
        writing.store.calls_left.store(-1, Ordering::SeqCst);
        for at in [0, 2] {
            let checkpoint = writing.open(all[at].0);
            writing.runtime.block_on(verify(&checkpoint, true, &mut |_| {})).unwrap();
            writing.runtime.block_on(checkpoint.lease().release()).unwrap();
        }
        // Either it is still there, whole, or it does not exist.
        match writing.runtime.block_on(writing.catalog().load_manifest(&app(), all[1].0)) {
            Ok(_) => writing.expect(all[1].0, &all[1].1),
            Err(CatalogError::UnknownCheckpoint { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        if finished {
            result.unwrap();
            assert!(calls > 10);
            break;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_writing_and_deleting_harms_what_is_left(
        steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 0_u64..300, 1_u32..999), 1..14),
    ) {
        let writing = Writing::new();
        let mut model = Model::simple((1..301).map(|n| n * 2));
        let mut alive: Vec<(CheckpointId, Model)> = Vec::new();
        for (remove, which, page, content) in steps {
            if remove && !alive.is_empty() {
                let (id, _) = alive.remove(which.index(alive.len()));
                prop_assert_eq!(delete(&writing, id).unwrap().left, None);
            } else {
                *model.page_mut(page) = content;
                let parent = which.get(&[vec![None], alive.iter().map(|(id, _)| Some(*id)).collect()].concat()).to_owned();
                alive.push((writing.write(&model, parent).unwrap().id, model.clone()));
            }
            for (id, model) in &alive {
                writing.expect(*id, model);
            }
        }
        for (id, _) in alive {
            delete(&writing, id).unwrap();
        }
        prop_assert_eq!(writing.store.keys(""), Vec::<String>::new());
    }
}
