//! What was written is what is read.

use std::{collections::BTreeMap, sync::Arc};

use lazy_pages::{
    format::{Codec, FRAME_PAGES, Manifest, ObjectId},
    store::LocalStore,
    units::PAGE_SIZE,
    verify::verify,
    writer::Compression,
};
use proptest::prelude::*;

use crate::support::{Content, Model, Object, Writing, app, assert_dense};

/// A stretch of pages: gap before it, its contents, lazy, in an area that extends this far to both sides (or, negative,
/// leaves so many out on both sides).
type Stretch = (u64, Vec<Content>, bool, Option<i64>);

fn contents() -> impl Strategy<Value = Vec<Content>> {
    let some = prop_oneof![3 => Just(0_u32), 4 => 1_u32..9, 4 => 1_u32..100_000];
    prop_oneof![
        proptest::collection::vec(some, 1..100),
        (1_usize..300, 1_u32..1000).prop_map(|(count, seed)| (0..count as u32).map(|n| seed + n).collect()),
        (1_usize..200).prop_map(|count| vec![0; count]),
    ]
}

fn stretch() -> impl Strategy<Value = Stretch> {
    (20_u64..500, contents(), any::<bool>(), proptest::option::weighted(0.7, -9_i64..9))
}

fn object(stretches: Vec<Stretch>, shared: bool) -> Object {
    let mut object = Object::default();
    let mut next = 16;
    for (gap, contents, lazy, area) in stretches {
        let start = next + gap;
        let end = start + contents.len() as u64;
        object
            .pages
            .extend((start..end).zip(contents).map(|(page, content)| (page, (lazy && !shared, content))));
        if let Some(margin) = area.filter(|_| !shared) {
            let (low, high) = (start.saturating_add_signed(-margin), end.saturating_add_signed(margin));
            // Two areas next to each other, or one.
            let middle = if margin % 2 == 0 { (low + high) / 2 } else { low };
            object.areas.extend([(low, middle), (middle, high)].into_iter().filter(|(from, to)| from < to));
        }
        next = end;
    }
    object
}

fn model() -> impl Strategy<Value = Model> {
    let tasks = proptest::collection::vec(proptest::collection::vec(stretch(), 0..8), 1..4);
    let shared = proptest::collection::vec(proptest::collection::vec(stretch(), 0..4), 0..3);
    (tasks, shared).prop_map(|(tasks, shared)| {
        let tasks = (100..).map(ObjectId::Task).zip(tasks.into_iter().map(|s| object(s, false)));
        let shared = (7..).map(ObjectId::Shared).zip(shared.into_iter().map(|s| object(s, true)));
        Model { objects: tasks.chain(shared).collect() }
    })
}

/// Changes some pages of `model`: `choices` says which, and what they hold then.
fn changed(model: &Model, choices: &[(prop::sample::Index, Content, usize)]) -> Model {
    let mut model = model.clone();
    for object in model.objects.values_mut() {
        let numbers: Vec<u64> = object.pages.keys().copied().collect();
        for (index, content, stretch) in choices.iter().filter(|_| !numbers.is_empty()) {
            let from = index.index(numbers.len());
            for number in numbers.iter().skip(from).take(*stretch) {
                match content % 7 {
                    6 => _ = object.pages.remove(number),
                    _ => object.pages.get_mut(number).into_iter().for_each(|page| page.1 = *content),
                }
            }
        }
    }
    model
}

fn choices() -> impl Strategy<Value = Vec<(prop::sample::Index, Content, usize)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), 0_u32..50_000, 1_usize..40), 0..12)
}

fn codec() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::Auto),
        Just(Compression::None),
        Just(Compression::Lz4),
        (1..4).prop_map(Compression::Zstd)
    ]
}

fn check_statistics(manifest: &Manifest, model: &Model, parent: Option<&Model>) {
    let before = |id: &ObjectId, number: &u64| {
        let object: Option<&Object> = parent.and_then(|parent| parent.objects.get(id));
        object.and_then(|object| object.pages.get(number)).map(|page| page.1)
    };
    let (mut zero, mut unchanged, mut stored) = (0, 0, 0);
    for (id, object) in &model.objects {
        for (number, (_, content)) in &object.pages {
            match content {
                0 => zero += 1,
                content if before(id, number) == Some(*content) => unchanged += 1,
                _ => stored += 1,
            }
        }
    }
    let found = manifest.statistics;
    let again = found.pages_rewritten;
    assert_eq!((found.pages_zero, found.pages_unchanged + again), (zero, unchanged));
    assert_eq!(found.pages_stored, stored + again);
    assert_dense(manifest);
    assert_eq!(found.pages_total, zero + unchanged + stored);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_page_map_survives_writer_and_reader(
        first in model(), edits in proptest::collection::vec((choices(), codec()), 0..4), codec in codec(), remote: bool,
    ) {
        let mut writing = Writing::new();
        writing.store.remote.store(remote, std::sync::atomic::Ordering::SeqCst);
        writing.compression = codec;
        let manifest = writing.write(&first, None).unwrap();
        check_statistics(&manifest, &first, None);
        prop_assert_eq!(&Manifest::decode(&manifest.encode().unwrap()).unwrap(), &manifest);
        let mut all = vec![(manifest.id, first)];
        for (choices, codec) in edits {
            let (parent, before) = all.last().unwrap();
            let model = changed(before, &choices);
            writing.compression = codec;
            let manifest = writing.write(&model, Some(*parent)).unwrap();
            prop_assert_eq!(manifest.parent, Some(*parent));
            check_statistics(&manifest, &model, Some(before));
            all.push((manifest.id, model));
        }
        for (id, model) in &all {
            writing.expect(*id, model);
            let checkpoint = writing.open(*id);
            writing.runtime.block_on(verify(&checkpoint, true, &mut |_| {})).unwrap();
        }
    }
}

#[test]
fn an_unchanged_process_costs_no_page() {
    let writing = Writing::new();
    let model = Model::simple(1..5000);
    let first = writing.write(&model, None).unwrap();
    let before = writing.store.bytes("/packs/");
    let second = writing.write(&model, Some(first.id)).unwrap();
    assert_eq!(writing.store.bytes("/packs/"), before);
    assert_eq!(second.frames, first.frames);
    assert_eq!(second.objects, first.objects, "runs are merged again");
    writing.expect(second.id, &model);
}

#[test]
fn an_incremental_checkpoint_stores_exactly_the_changed_pages() {
    let mut writing = Writing::new();
    writing.compression = Compression::None;
    let mut model = Model::simple(1..5000);
    let first = writing.write(&model, None).unwrap();
    assert_eq!(writing.store.bytes("/packs/"), 4999 * PAGE_SIZE);
    // Every 13th page, so that no window has enough for a frame of its own, and one dense stretch, of whole frames.
    let scattered: Vec<u64> = (0..4000).step_by(13).chain(4096..4288).collect();
    for number in &scattered {
        *model.page_mut(*number) += 100_000;
    }
    // One more page that becomes zero: it is known, not stored.
    *model.page_mut(4999 - 1) = 0;
    let second = writing.write(&model, Some(first.id)).unwrap();
    assert_eq!(writing.store.bytes("/packs/"), (4999 + scattered.len()) * PAGE_SIZE);
    assert_eq!(second.statistics.pages_stored, scattered.len() as u64);
    let new: Vec<_> = second.frames.iter().filter(|f| first.packs.iter().all(|p| p.id != f.pack)).collect();
    let full = scattered.len().div_ceil(FRAME_PAGES);
    assert!(new.len() <= full + 4, "scattered pages share frames: {} frames, {full} would do", new.len());
    writing.expect(first.id, &Model::simple(1..5000));
    writing.expect(second.id, &model);
}

#[test]
fn bytes_uploaded_are_the_bytes_that_are_new_in_the_store() {
    let writing = Writing::new();
    let mut model = Model::simple((1..3000).map(|n| n * 2 + 1));
    let first = writing.write(&model, None).unwrap();
    let without_manifests = || writing.store.bytes("") - writing.store.bytes("/manifest");
    let before = without_manifests();
    assert_eq!(first.statistics.bytes_uploaded, before as u64);
    *model.page_mut(5) = 4;
    let second = writing.write(&model, Some(first.id)).unwrap();
    assert_eq!(second.statistics.bytes_uploaded, (without_manifests() - before) as u64);
}

#[test]
fn each_codec_is_used_where_it_helps_and_only_there() {
    for (codec, packed) in [
        (Compression::Lz4, Codec::Lz4),
        (Compression::Zstd(1), Codec::Zstd),
        (Compression::Zstd(9), Codec::Zstd),
        (Compression::None, Codec::None),
    ] {
        let mut writing = Writing::new();
        writing.compression = codec;
        let odd_compresses = writing.write(&Model::simple((0..128).map(|n| n * 2 + 1)), None).unwrap();
        assert!(odd_compresses.frames.iter().all(|frame| frame.codec == packed), "{codec:?}");
        let even_does_not = writing.write(&Model::simple((1..129).map(|n| n * 2)), None).unwrap();
        assert!(even_does_not.frames.iter().all(|frame| frame.codec == Codec::None), "{codec:?}");
    }
}

#[test]
fn eager_and_lazy_pages_share_neither_frame_nor_pack() {
    let writing = Writing::new();
    let mut model = Model::simple(1..400);
    let object = model.objects.get_mut(&ObjectId::Task(100)).unwrap();
    object.areas = vec![(1000, 1050), (1060, 1300)];
    for (number, page) in &mut object.pages {
        page.0 = object.areas.iter().any(|(start, end)| (start..end).contains(&number));
    }
    let manifest = writing.write(&model, None).unwrap();
    writing.expect(manifest.id, &model);
    let mut kinds: BTreeMap<_, Vec<bool>> = BTreeMap::new();
    for run in &manifest.objects[0].runs {
        if let lazy_pages::format::Source::Stored { frame, eager, .. } = run.source {
            kinds.entry(manifest.frames[frame.0 as usize].pack).or_default().push(eager);
        }
    }
    assert_eq!(kinds.len(), 2);
    assert!(kinds.values().all(|eager| eager.iter().all(|e| *e == eager[0])));
}

#[test]
fn memory_never_touched_is_known_to_be_zero() {
    let writing = Writing::new();
    let mut model = Model::simple([5]);
    let object = model.objects.get_mut(&ObjectId::Task(100)).unwrap();
    // As address sanitizers reserve it: far more than could be listed page by page.
    object.areas = vec![(990, 1010), (1 << 30, (1 << 30) + (1 << 32))];
    let manifest = writing.write(&model, None).unwrap();
    let runs = &manifest.objects[0].runs;
    assert_eq!(runs.last().unwrap().pages, 1 << 32);
    assert_eq!(runs.len(), 4);
    assert_eq!(manifest.statistics.pages_total, 1);
}

#[test]
fn a_directory_holds_checkpoints_as_well_as_memory_does() {
    let directory = tempfile::tempdir().unwrap();
    let writing = Writing::on(Arc::new(LocalStore::new(directory.path().to_owned())));
    let mut model = Model::simple((0..5000).map(|n| n * 3));
    let first = writing.write(&model, None).unwrap();
    let before = model.clone();
    for number in (0..5000).step_by(7) {
        *model.page_mut(number) = 1_000_000 + number as Content;
    }
    let second = writing.write(&model, Some(first.id)).unwrap();
    writing.expect(first.id, &before);
    writing.expect(second.id, &model);
    let checkpoint = writing.open(second.id);
    writing.runtime.block_on(verify(&checkpoint, true, &mut |_| {})).unwrap();
    writing.runtime.block_on(checkpoint.lease().release()).unwrap();
    writing.runtime.block_on(writing.catalog().delete(&app(), first.id)).unwrap();
    writing.expect(second.id, &model);
}
