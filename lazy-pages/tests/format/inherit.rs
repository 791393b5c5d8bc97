//! Pages taken over from the parent are read back as the parent has them, cost nothing, and outlive the parent.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use lazy_pages::{
    catalog::CatalogError,
    format::{Manifest, ObjectId, Source},
    ids::CheckpointId,
    units::VirtAddr,
    verify::verify,
    writer::{Parent, ParentPages, SealedPages, WriteError},
};
use proptest::prelude::*;

use crate::support::{Content, Model, Object, Writing, app};

const ROOT: ObjectId = ObjectId::Task(100);
const CHILD: ObjectId = ObjectId::Task(101);

/// What is to be taken over, by object of the new checkpoint.
type Plan = BTreeMap<ObjectId, Vec<ParentPages>>;

/// Pages of `object` in the parent from `image` on, which now belong at `start`.
fn pages(start: u64, object: ObjectId, image: u64, pages: u64) -> ParentPages {
    ParentPages { start: VirtAddr::of_page(start), object, image: VirtAddr::of_page(image), pages }
}

/// A task with areas and lazy pages.
fn task(areas: &[(u64, u64)], contents: impl IntoIterator<Item = (u64, Content)>) -> Object {
    let pages = contents.into_iter().map(|(number, content)| (number, (true, content))).collect();
    Object { areas: areas.to_vec(), pages }
}

/// Everything up to the commit: `received` arrives, `plan` is taken over. Gives how many pages each object took over.
fn seal(
    writing: &Writing,
    parent: &Arc<Parent>,
    received: &Model,
    plan: &Plan,
) -> Result<(SealedPages, u64), WriteError> {
    let mut sealed = writing.seal(received, CheckpointId::new(), Some(parent.clone()))?;
    let mut taken = 0;
    for (object, ranges) in plan {
        let stretches = sealed.inherit(*object, ranges)?;
        assert!(stretches.is_sorted_by(|a, b| a.start.add(a.pages) < b.start), "{stretches:?}");
        taken += stretches.iter().map(|stretch| stretch.pages).sum::<u64>();
    }
    Ok((sealed, taken))
}

/// Writes a checkpoint that takes over what `plan` says; gives how many pages that were as well.
fn write(writing: &Writing, parent: CheckpointId, received: &Model, plan: &Plan) -> (Manifest, u64) {
    let parent = writing.parent(parent);
    let (sealed, taken) = seal(writing, &parent, received, plan).unwrap();
    let manifest = writing.runtime.block_on(sealed.commit(received.meta())).unwrap();
    writing.runtime.block_on(parent.lease().release()).unwrap();
    (manifest, taken)
}

/// What the new checkpoint must hold: all that was received, and of `plan` what was not, as the parent has it.
fn expected(before: &Model, received: &Model, plan: &Plan) -> Model {
    let mut model = received.clone();
    for (object, range) in plan.iter().flat_map(|(object, ranges)| ranges.iter().map(move |r| (object, r))) {
        let object = model.objects.get_mut(object).unwrap();
        for number in 0..range.pages {
            let source = &before.objects[&range.object].pages;
            let (_, content) = source.get(&(range.image.page() + number)).copied().unwrap_or((true, 0));
            if content != 0 {
                object.pages.entry(range.start.page() + number).or_insert((true, content));
            }
        }
    }
    model
}

fn delete(writing: &Writing, id: CheckpointId) {
    let deleted = writing.runtime.block_on(writing.catalog().delete(&app(), id)).unwrap();
    assert_eq!(deleted.left, None);
    let gone = writing.runtime.block_on(writing.catalog().load_manifest(&app(), id));
    assert!(matches!(gone, Err(CatalogError::UnknownCheckpoint { .. })));
}

/// The new checkpoint is what it must be, also without its parent.
fn check(writing: &Writing, parent: CheckpointId, id: CheckpointId, model: &Model) {
    writing.expect(id, model);
    delete(writing, parent);
    writing.expect(id, model);
    let checkpoint = writing.open(id);
    writing.runtime.block_on(verify(&checkpoint, true, &mut |_| {})).unwrap();
    writing.runtime.block_on(checkpoint.lease().release()).unwrap();
}

/// A task of 400 pages, of which every tenth is zero or was never there.
fn before() -> Model {
    let contents = (1000..1400).filter(|number| number % 20 != 7);
    let contents = contents.map(|number| (number, if number % 20 == 3 { 0 } else { number as Content * 2 }));
    Model { objects: [(ROOT, task(&[(990, 1410)], contents))].into() }
}

#[test]
fn a_tree_nothing_of_which_has_arrived_costs_no_page() {
    let writing = Writing::new();
    let before = before();
    let first = writing.write(&before, None).unwrap();
    let packs = writing.store.keys("/packs/");
    let received = Model { objects: [(ROOT, task(&[(990, 1410)], []))].into() };
    let plan = Plan::from([(ROOT, vec![pages(990, ROOT, 990, 420)])]);

    let (second, taken) = write(&writing, first.id, &received, &plan);

    assert_eq!(second.parent, Some(first.id));
    assert_eq!((second.objects, second.frames), (first.objects, first.frames), "it is the same memory");
    assert_eq!(taken, 360);
    let found = second.statistics;
    let counts = (found.pages_total, found.pages_zero, found.pages_unchanged, found.pages_stored);
    assert_eq!(counts, (360, 0, 360, 0));
    assert_eq!(writing.store.keys("/packs/"), packs, "nothing was uploaded again");
    check(&writing, first.id, second.id, &expected(&before, &received, &plan));
}

#[test]
fn pages_follow_where_they_were_moved_and_to_whom_they_were_forked() {
    let writing = Writing::new();
    let before = before();
    let first = writing.write(&before, None).unwrap();
    let packs = writing.store.bytes("/packs/");
    let received = Model {
        objects: [
            (ROOT, task(&[(990, 1100), (5000, 5100)], [(1001, 7777)])),
            (CHILD, task(&[(990, 1410)], [(1003, 8888), (1399, 0)])),
        ]
        .into(),
    };
    let plan = Plan::from([
        // Not in order of address, with pages in between that belong to nobody any more.
        (ROOT, vec![pages(5010, ROOT, 1170, 65), pages(990, ROOT, 990, 33), pages(1024, ROOT, 1035, 1)]),
        (CHILD, vec![pages(990, ROOT, 990, 420)]),
    ]);

    let (second, taken) = write(&writing, first.id, &received, &plan);

    let model = expected(&before, &received, &plan);
    let sent = received.objects.values().map(|object| object.pages.len() as u64).sum::<u64>();
    let all = model.objects.values().map(|object| object.pages.len() as u64).sum::<u64>();
    assert_eq!(taken, all - sent);
    assert_eq!(second.statistics.pages_total, all);
    assert_eq!(second.statistics.pages_unchanged, taken);
    assert_eq!(second.statistics.pages_stored, 2);
    assert!(writing.store.bytes("/packs/") - packs <= 2 * 4096, "only what was received was uploaded");
    check(&writing, first.id, second.id, &model);
}

#[test]
fn what_was_received_wins() {
    let mut writing = Writing::new();
    writing.rewrite_sparse = false;
    let before = before();
    let first = writing.write(&before, None).unwrap();
    // Alone, in a row, as it was, and zero; at both ends and in the middle.
    let received =
        [(1000, 5), (1100, 1100 * 2), (1101, 7), (1102, 0), (1103, 9), (1165, 0), (1398, 11), (1399, 13)];
    let received = Model { objects: [(ROOT, task(&[(990, 1410)], received))].into() };
    let plan = Plan::from([(ROOT, vec![pages(1000, ROOT, 1000, 101), pages(1101, ROOT, 1101, 299)])]);
    let (second, taken) = write(&writing, first.id, &received, &plan);
    assert_eq!(taken, 360 - 7, "one of those received is zero in the parent");
    assert_eq!(second.statistics.pages_unchanged, taken + 1);
    check(&writing, first.id, second.id, &expected(&before, &received, &plan));
}

#[test]
fn pages_outside_every_lazy_area_become_eager() {
    let writing = Writing::new();
    let before = before();
    let first = writing.write(&before, None).unwrap();
    let received = Model { objects: [(ROOT, task(&[(1100, 1150)], []))].into() };
    let plan = Plan::from([(ROOT, vec![pages(1000, ROOT, 1000, 400)])]);
    let (second, _) = write(&writing, first.id, &received, &plan);
    let object = second.object(ROOT).unwrap();
    let eager = |page| match object.run_at(VirtAddr::of_page(page)).unwrap().source {
        Source::Stored { eager, .. } => eager,
        Source::Zero => panic!("page {page} is not zero"),
    };
    assert!(eager(1099) && eager(1150));
    assert!(!eager(1100) && !eager(1149));
    assert_eq!(object.run_at(VirtAddr::of_page(1003)), None, "nothing has to be said about zeros there");
    check(&writing, first.id, second.id, &expected(&before, &received, &plan));
}

#[test]
fn what_was_taken_over_can_be_taken_over_again() {
    let writing = Writing::new();
    let mut model = before();
    let mut id = writing.write(&model, None).unwrap().id;
    for generation in 0..6 {
        // Each time the memory moves on, and a few pages are there by then.
        let to = 1000 + (generation + 1) * 1000;
        let areas = [(to - 10, to + 410)];
        let received = (0..5).map(|n| (to + 17 * n + generation, (generation * 100 + n) as Content));
        let received = Model { objects: [(ROOT, task(&areas, received))].into() };
        let plan = Plan::from([(ROOT, vec![pages(to - 10, ROOT, to - 1010, 420)])]);
        let (next, taken) = write(&writing, id, &received, &plan);
        assert!(taken > 300);
        model = expected(&model, &received, &plan);
        check(&writing, id, next.id, &model);
        id = next.id;
    }
}

#[test]
fn pages_that_cannot_be_taken_over_are_refused_and_nothing_is_committed() {
    let writing = Writing::new();
    let first = writing.write(&before(), None).unwrap();
    let before = writing.store.keys("");
    let received = Model { objects: [(ROOT, task(&[(990, 1410)], []))].into() };
    let parent = writing.parent(first.id);
    let refused = |object, ranges: &[ParentPages]| {
        let plan = Plan::from([(object, ranges.to_vec())]);
        seal(&writing, &parent, &received, &plan).map(drop).unwrap_err()
    };
    let unknown = |error| matches!(error, WriteError::NotInParent { .. });
    assert!(unknown(refused(ROOT, &[pages(1000, ROOT, 1000, 411)])), "past the end of the area");
    assert!(unknown(refused(ROOT, &[pages(1000, ROOT, 989, 2)])), "before its start");
    assert!(unknown(refused(ROOT, &[pages(1000, CHILD, 1000, 1)])), "an object the parent does not have");
    let twice = refused(ROOT, &[pages(1010, ROOT, 1000, 10), pages(1000, ROOT, 1000, 11)]);
    let page = VirtAddr::of_page(1010);
    assert!(matches!(twice, WriteError::PageTwice { object: ROOT, page: p } if p == page), "{twice}");
    assert!(matches!(refused(CHILD, &[pages(1000, ROOT, 1000, 1)]), WriteError::NeverOpened(CHILD)));
    for (start, image, count) in [(1 << 51, 1000, 1 << 51), (1000, 1 << 51, 1 << 51), (1000, 1000, u64::MAX)]
    {
        let error = refused(ROOT, &[pages(start, ROOT, image, count)]);
        assert!(matches!(error, WriteError::AddressRange { .. }), "{error}");
    }
    writing.runtime.block_on(parent.lease().release()).unwrap();

    let mut full = writing.seal(&received, CheckpointId::new(), None).unwrap();
    let error = full.inherit(ROOT, &[pages(1000, ROOT, 1000, 1)]).unwrap_err();
    assert!(matches!(error, WriteError::NoParent(ROOT)), "{error}");
    drop(full);
    assert_eq!(writing.store.keys(""), before);
}

/// A stretch of a new object's memory: gap before it, which object and which of its pages it comes from, its length, and
/// an area that extends this far to both sides (or, negative, leaves so many out on both sides).
type Stretch = (u64, prop::sample::Index, prop::sample::Index, u64, Option<i64>);

/// Pages that were received: which of those around the stretches, how many, their content, lazy.
type Arrived = (prop::sample::Index, usize, Content, bool);

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![1 => Just(0_u32), 2 => 1_u32..9, 3 => 1_u32..100_000]
}

/// Tasks with a few areas, in which some pages hold something.
fn parent_model() -> impl Strategy<Value = Model> {
    let stretch = (1_u64..80, proptest::collection::vec(content(), 1..200), 0_u64..9);
    let object = proptest::collection::vec(stretch, 1..5).prop_map(|stretches| {
        let mut object = Object::default();
        let mut next = 1000;
        for (gap, contents, margin) in stretches {
            let start = next + gap + margin;
            let end = start + contents.len() as u64;
            object.areas.push((start - margin, end + margin));
            object.pages.extend((start..end).zip(contents.into_iter().map(|content| (true, content))));
            next = end + margin;
        }
        object
    });
    proptest::collection::vec(object, 1..4)
        .prop_map(|objects| Model { objects: (100..).map(ObjectId::Task).zip(objects).collect() })
}

/// Memory that is made of pieces of `before`, some pages of which were received.
fn child_model(before: &Model, stretches: Vec<Stretch>, arrived: Vec<Arrived>) -> (Object, Vec<ParentPages>) {
    let mut object = Object::default();
    let mut ranges = Vec::new();
    let mut next = 500;
    for (gap, source, from, length, area) in stretches {
        let sources: Vec<(ObjectId, Range<u64>)> = before
            .objects
            .iter()
            .flat_map(|(id, object)| object.areas.iter().map(|(start, end)| (*id, *start..*end)))
            .collect();
        let (id, known) = source.get(&sources);
        let image = known.start + from.index((known.end - known.start) as usize) as u64;
        let count = length.min(known.end - image);
        let start = next + gap;
        ranges.push(pages(start, *id, image, count));
        next = start + count;
        if let Some(margin) = area {
            let (low, high) = (start.saturating_add_signed(-margin), next.saturating_add_signed(margin));
            object.areas.extend((low < high).then_some((low, high)));
            next = next.max(high);
        }
    }
    for (at, count, content, lazy) in arrived {
        let first = 490 + at.index((next - 480) as usize) as u64;
        object.pages.extend((first..first + count as u64).map(|number| (number, (lazy, content))));
    }
    (object, ranges)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layout_of_pages_taken_over_and_received_is_read_back(
        before in parent_model(),
        objects in proptest::collection::vec(
            (
                proptest::collection::vec(
                    (10_u64..40, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_u64..300, proptest::option::weighted(0.8, -9_i64..9)),
                    0..8,
                ),
                proptest::collection::vec((any::<prop::sample::Index>(), 1_usize..90, content(), any::<bool>()), 0..8),
            ),
            1..4,
        ),
    ) {
        let writing = Writing::new();
        let first = writing.write(&before, None).unwrap();
        let mut received = Model::default();
        let mut plan = Plan::new();
        // The first object has a pid the parent knows; others may not.
        for (pid, (stretches, arrived)) in (100..).step_by(2).zip(objects) {
            let (object, ranges) = child_model(&before, stretches, arrived);
            received.objects.insert(ObjectId::Task(pid), object);
            plan.insert(ObjectId::Task(pid), ranges);
        }
        let model = expected(&before, &received, &plan);
        let (second, taken) = write(&writing, first.id, &received, &plan);
        let count = |model: &Model| model.objects.values().map(|object| object.pages.len() as u64).sum::<u64>();
        prop_assert_eq!(taken, count(&model) - count(&received));
        prop_assert_eq!(second.statistics.pages_total, count(&model));
        prop_assert!(second.statistics.pages_stored <= count(&received));
        prop_assert_eq!(&Manifest::decode(&second.encode().unwrap()).unwrap(), &second);
        check(&writing, first.id, second.id, &model);
    }
}
