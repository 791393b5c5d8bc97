//! The fragmentation budget: however memory changes, a restore fetches at most 1.25 times the pages it needs.

use std::collections::BTreeMap;

use lazy_pages::{
    format::{Manifest, ObjectId},
    ids::CheckpointId,
    units::{PAGE_SIZE, VirtAddr},
    writer::{Compression, ParentPages},
};
use proptest::prelude::*;

use crate::support::{Content, Model, Object, Writing, assert_dense, needed_pages};

const TASK: ObjectId = ObjectId::Task(100);

fn plain() -> Writing {
    let mut writing = Writing::new();
    writing.compression = Compression::None;
    writing
}

/// Bytes of all frames, and of the pages needed of them.
fn fetched_and_needed(manifest: &Manifest) -> (u64, u64) {
    let fetched = manifest.frames.iter().map(|frame| u64::from(frame.stored_length)).sum();
    let needed: u64 = needed_pages(manifest).iter().map(|pages| u64::from(*pages)).sum();
    (fetched, needed * PAGE_SIZE as u64)
}

/// What happens to memory between two checkpoints.
#[derive(Clone, Debug)]
enum Change {
    /// Each page with this probability in per cent.
    Scattered(u64, u64),
    /// So many pages from here on.
    Stretch(prop::sample::Index, u64),
    /// So many pages from here on become zero.
    Cleared(prop::sample::Index, u64),
    /// So many pages from here on are gone, and all that follow come earlier in the stream.
    Unmapped(prop::sample::Index, u64),
    /// So many more at the end.
    Grown(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (1_u64..60, any::<u64>()).prop_map(|(percent, seed)| Change::Scattered(percent, seed)),
        2 => (index(), 1_u64..300).prop_map(|(at, pages)| Change::Stretch(at, pages)),
        1 => (index(), 1_u64..100).prop_map(|(at, pages)| Change::Cleared(at, pages)),
        1 => (index(), 1_u64..100).prop_map(|(at, pages)| Change::Unmapped(at, pages)),
        1 => (1_u64..200).prop_map(Change::Grown),
    ]
}

fn scatter(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Carries a change out; every new content is another one.
fn apply(object: &mut Object, change: &Change, next: &mut Content) {
    let mut fresh = || {
        *next += 2;
        *next
    };
    let pages = &mut object.pages;
    let keys: Vec<u64> = pages.keys().copied().collect();
    let stretch = |at: &prop::sample::Index, count: u64| {
        let from = at.index(keys.len().max(1));
        keys.iter().skip(from).take(count as usize).copied().collect::<Vec<u64>>()
    };
    match change {
        Change::Scattered(percent, seed) => {
            let mut seed = *seed;
            for (_, content) in pages.values_mut() {
                if scatter(&mut seed) % 100 < *percent {
                    *content = fresh();
                }
            }
        }
        Change::Stretch(at, count) => {
            for key in stretch(at, *count) {
                pages.entry(key).and_modify(|page| page.1 = fresh());
            }
        }
        Change::Cleared(at, count) => {
            for key in stretch(at, *count) {
                pages.entry(key).and_modify(|page| page.1 = 0);
            }
        }
        Change::Unmapped(at, count) => {
            for key in stretch(at, *count) {
                pages.remove(&key);
            }
        }
        Change::Grown(count) => {
            let end = keys.last().map_or(1000, |last| last + 1);
            pages.extend((end..end + count).map(|number| (number, (true, fresh()))));
            object.areas[0].1 = object.areas[0].1.max(end + count);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_restore_fetches_at_most_a_quarter_more_than_it_needs(
        pages in 1_u32..900, changes in proptest::collection::vec(proptest::collection::vec(change(), 0..3), 1..12),
    ) {
        let writing = plain();
        let mut model = Model::simple((1..=pages).map(|n| n * 2));
        // A second object, part of which cannot be lazy.
        let eager = |n: u64| (5000 + n, (!n.is_multiple_of(7), 300_000 + n as Content));
        let other = Object { areas: vec![(5000, 5200)], pages: (0..200).map(eager).collect() };
        model.objects.insert(ObjectId::Task(101), other);
        let mut last = writing.write(&model, None).unwrap().id;
        let mut next = 1_000_000;
        for generation in changes {
            for change in &generation {
                for object in model.objects.values_mut() {
                    apply(object, change, &mut next);
                }
            }
            let manifest = writing.write(&model, Some(last)).unwrap();
            assert_dense(&manifest);
            let (fetched, needed) = fetched_and_needed(&manifest);
            prop_assert!(fetched * 4 <= needed * 5, "{} {}", fetched, needed);
            last = manifest.id;
            writing.expect(last, &model);
        }
    }
}

/// Generations of a few per cent each: fetched per needed, pages stored again per page that changed.
fn aged(rewrite_sparse: bool, percent: u64) -> (f64, f64) {
    const PAGES: u64 = 3200;
    let mut writing = plain();
    writing.rewrite_sparse = rewrite_sparse;
    let mut model = Model::simple((1..=PAGES as Content).map(|n| n * 2));
    let mut last = writing.write(&model, None).unwrap();
    let (mut worst, mut rewritten, mut changed, mut seed, mut next) = (1.0_f64, 0, 0, 7, 1_000_000);
    for _ in 0..40 {
        let object = model.objects.get_mut(&TASK).unwrap();
        apply(object, &Change::Scattered(percent, scatter(&mut seed)), &mut next);
        last = writing.write(&model, Some(last.id)).unwrap();
        let (fetched, needed) = fetched_and_needed(&last);
        worst = worst.max(fetched as f64 / needed as f64);
        rewritten += last.statistics.pages_rewritten;
        changed += last.statistics.pages_stored - last.statistics.pages_rewritten;
    }
    writing.expect(last.id, &model);
    (worst, rewritten as f64 / changed as f64)
}

#[test]
fn what_the_budget_costs_and_saves() {
    for percent in [1, 5] {
        let (without, nothing) = aged(false, percent);
        let (with, again) = aged(true, percent);
        println!(
            "{percent} % a time: a restore fetches {with:.2} instead of {without:.2} times what it needs; {again:.2} pages are stored again for each that changed"
        );
        assert_eq!(nothing, 0.0);
        assert!(without > 1.25, "{without}: there is nothing to save");
        assert!(with <= 1.25, "{with}");
        assert!(again < 6.0, "{again}");
    }
}

#[test]
fn little_change_rewrites_nothing() {
    let writing = plain();
    let mut model = Model::simple((1..5000).map(|n| n * 2));
    let first = writing.write(&model, None).unwrap();
    for at in (0..4999).step_by(50) {
        *model.page_mut(at) += 100_000;
    }
    let second = writing.write(&model, Some(first.id)).unwrap();
    assert_eq!((second.statistics.pages_stored, second.statistics.pages_rewritten), (100, 0));
    // Also not because frames straddle windows, or their pages are far apart: a page more at the start moves them all.
    model.objects.get_mut(&TASK).unwrap().pages.insert(995, (true, 77_778));
    let third = writing.write(&model, Some(second.id)).unwrap();
    assert_eq!((third.statistics.pages_stored, third.statistics.pages_rewritten), (1, 0));
    writing.expect(third.id, &model);
}

#[test]
fn more_undecided_pages_than_may_wait_are_stored_again() {
    const FRAMES: u64 = 200;
    let writing = plain();
    let model = Model::simple((1..=64 * FRAMES as Content).map(|n| n * 2));
    let first = writing.write(&model, None).unwrap();
    assert_eq!(first.frames.len() as u64, FRAMES);
    // The pages of each frame, far from each other: none of them is complete before nearly all have come.
    let place = |frame: u64, at: u64| 100_000 + at * FRAMES + frame;
    let mut ranges = Vec::new();
    let mut apart = BTreeMap::new();
    for (number, (frame, at)) in (0..FRAMES).flat_map(|frame| (0..64).map(move |at| (frame, at))).enumerate()
    {
        let image = 1000 + number as u64;
        let start = VirtAddr::of_page(place(frame, at));
        ranges.push(ParentPages { start, object: TASK, image: VirtAddr::of_page(image), pages: 1 });
        apart.insert(place(frame, at), model.objects[&TASK].pages[&image]);
    }
    let areas = vec![(100_000, 100_000 + 64 * FRAMES)];
    let apart = Model { objects: [(TASK, Object { areas: areas.clone(), pages: apart })].into() };
    let nothing = Model { objects: [(TASK, Object { areas, pages: BTreeMap::new() })].into() };
    let parent = writing.parent(first.id);
    let mut sealed = writing.seal(&nothing, CheckpointId::new(), Some(parent.clone())).unwrap();
    sealed.inherit(TASK, &ranges).unwrap();
    let second = writing.runtime.block_on(sealed.commit(apart.meta())).unwrap();
    writing.runtime.block_on(parent.lease().release()).unwrap();
    assert_eq!(second.frames.len() as u64, FRAMES);

    let third = writing.write(&apart, Some(second.id)).unwrap();
    let statistics = third.statistics;
    println!("{statistics:?}");
    assert!(statistics.pages_rewritten > 0 && statistics.pages_unchanged > 0, "{statistics:?}");
    assert_eq!(statistics.pages_rewritten + statistics.pages_unchanged, 64 * FRAMES);
    assert_dense(&third);
    writing.expect(third.id, &apart);
    // Now they lie where they are needed.
    let fourth = writing.write(&apart, Some(third.id)).unwrap();
    assert_dense(&fourth);
    writing.expect(fourth.id, &apart);
}
