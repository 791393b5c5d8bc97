use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    format::{FrameIndex, ObjectId, Run, Vma},
    units::PAGE_SIZE,
};

/// Addresses of the tests are pages 0..SPAN.
const SPAN: u64 = 160;

fn page(number: u64) -> VirtAddr {
    VirtAddr::of_page(number)
}

/// The same thing, one entry a page.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model(BTreeMap<u64, (Content, u32)>);

impl Model {
    fn new(map: &MemoryMap) -> Self {
        let mut model = Self::default();
        for (area, vma) in map.vmas.iter().enumerate() {
            for run in &map.runs {
                for number in run.start.page()..run.end().page() {
                    if !(vma.start.page()..vma.end.page()).contains(&number) {
                        continue;
                    }
                    let content = match run.source {
                        Source::Zero => Content::Zero,
                        Source::Stored { eager: true, .. } => Content::Installed,
                        Source::Stored { eager: false, .. } => Content::Stored(page(number)),
                    };
                    model.0.insert(number, (content, area as u32));
                }
            }
        }
        model
    }

    fn install(&mut self, start: u64, pages: u64) {
        self.0.range_mut(start..start + pages).for_each(|(_, (content, _))| *content = Content::Installed);
    }

    fn remove(&mut self, start: u64, pages: u64) {
        self.0.retain(|number, _| !(start..start + pages).contains(number));
    }

    /// The kernel unmaps the target first; so does the test.
    fn remap(&mut self, from: u64, to: u64, pages: u64) {
        let moved: Vec<_> =
            (from..from + pages).map(|number| (number - from + to, self.0.remove(&number))).collect();
        self.0.extend(moved.into_iter().filter_map(|(number, entry)| Some((number, entry?))));
    }

    fn forked(&self, map: &MemoryMap) -> Self {
        let copied = |area: u32| {
            let vma = &map.vmas[area as usize];
            !vma.wipe_on_fork && !vma.dont_fork
        };
        Self(
            self.0
                .iter()
                .filter(|(_, (_, area))| copied(*area))
                .map(|(number, entry)| (*number, *entry))
                .collect(),
        )
    }

    fn missing(&self) -> BTreeMap<u64, u64> {
        let stored = |(&number, &(content, _)): (&u64, &(Content, u32))| match content {
            Content::Stored(image) => Some((image.page(), number)),
            _ => None,
        };
        self.0.iter().filter_map(stored).collect()
    }
}

fn agree(state: &PageState, model: &Model) {
    for number in 0..SPAN * 2 {
        let found = state.lookup(page(number)).map(|extent| {
            assert!(extent.start <= page(number) && page(number) < extent.start.add(extent.pages));
            extent.content.add(page(number).pages_from(extent.start))
        });
        assert_eq!(found, model.0.get(&number).map(|(content, _)| *content), "page {number}");
    }
    let missing = model.missing();
    assert_eq!(state.missing_pages(), missing.len() as u64);
    let listed: BTreeMap<u64, u64> = state
        .missing()
        .flat_map(|piece| {
            (0..piece.pages).map(move |n| (piece.image.add(n).page(), piece.start.add(n).page()))
        })
        .collect();
    assert_eq!(listed, missing);
    for number in 0..SPAN {
        let found = state.missing_in_image(page(number), 5);
        let first = missing.range(number..number + 5).next();
        assert_eq!(found.map(|piece| (piece.image.page(), piece.start.page())), first.map(|(i, n)| (*i, *n)));
        if let Some(piece) = found {
            assert!(piece.image.add(piece.pages) <= page(number + 5));
            let areas: BTreeSet<u32> =
                (0..piece.pages).map(|n| model.0[&piece.start.add(n).page()].1).collect();
            assert_eq!(areas.len(), 1, "{piece:?} spans two areas");
        }
    }
}

fn map_strategy() -> impl Strategy<Value = MemoryMap> {
    let vma = (0..3_u64, 1..30_u64, any::<bool>(), any::<bool>());
    let runs = prop::collection::vec((1..8_u64, 0..3_u8), 1..40);
    (prop::collection::vec(vma, 1..6), runs).prop_map(|(areas, mut kinds)| {
        let mut map = MemoryMap { id: ObjectId::Task(1), pages_id: 1, vmas: Vec::new(), runs: Vec::new() };
        let mut at = 0;
        for (gap, pages, wipe_on_fork, dont_fork) in areas {
            let (start, end) = (at + gap, at + gap + pages);
            map.vmas.push(Vma {
                start: page(start),
                end: page(end),
                wipe_on_fork,
                dont_fork,
                grows_down: false,
            });
            at = start;
            while at < end {
                kinds.rotate_left(1);
                let (pages, kind) = kinds[0];
                let source = match kind {
                    0 => Source::Zero,
                    kind => Source::Stored { frame: FrameIndex(0), first: 0, eager: kind == 1 },
                };
                let pages = pages.min(end - at);
                map.runs.push(Run { start: page(at), pages, source });
                at += pages;
            }
        }
        map
    })
}

#[derive(Clone, Debug)]
enum Act {
    Install(u64, u64),
    Remove(u64, u64),
    Remap(u64, u64, u64),
    Fork,
}

fn act_strategy() -> impl Strategy<Value = Act> {
    let at = 0..SPAN;
    prop_oneof![
        4 => (at.clone(), 1..20_u64).prop_map(|(start, pages)| Act::Install(start, pages)),
        2 => (at.clone(), 1..20_u64).prop_map(|(start, pages)| Act::Remove(start, pages)),
        2 => (at.clone(), at, 1..30_u64).prop_map(|(from, to, pages)| Act::Remap(from, to, pages)),
        1 => Just(Act::Fork),
    ]
}

proptest! {
    #[test]
    fn the_map_of_pieces_says_what_a_map_of_pages_says(
        map in map_strategy(),
        acts in prop::collection::vec(act_strategy(), 0..30),
    ) {
        let mut state = PageState::new(&map);
        let mut model = Model::new(&map);
        agree(&state, &model);
        for act in acts {
            match act {
                Act::Install(start, pages) => {
                    state.install(page(start), pages);
                    model.install(start, pages);
                }
                Act::Remove(start, pages) => {
                    state.remove(page(start), page(start + pages));
                    model.remove(start, pages);
                }
                Act::Remap(from, to, pages) => {
                    // The kernel refuses to move memory onto itself.
                    if from < to + pages && to < from + pages {
                        continue;
                    }
                    state.remove(page(to), page(to + pages));
                    model.remove(to, pages);
                    state.remap(page(from), page(to), pages);
                    model.remap(from, to, pages);
                }
                Act::Fork => {
                    state = state.forked();
                    model = model.forked(&map);
                }
            }
            agree(&state, &model);
        }
    }
}

fn map(vmas: &[(u64, u64, bool)]) -> MemoryMap {
    let area = |&(start, end, wipe_on_fork): &(u64, u64, bool)| Vma {
        start: page(start),
        end: page(end),
        wipe_on_fork,
        dont_fork: false,
        grows_down: false,
    };
    let run = |&(start, end, _): &(u64, u64, bool)| Run {
        start: page(start),
        pages: end - start,
        source: Source::Stored { frame: FrameIndex(0), first: 0, eager: false },
    };
    MemoryMap {
        id: ObjectId::Task(1),
        pages_id: 1,
        vmas: vmas.iter().map(area).collect(),
        runs: vmas.iter().map(run).collect(),
    }
}

#[test]
fn a_page_keeps_its_areas_behaviour_at_a_fork_when_it_moves() {
    let mut state = PageState::new(&map(&[(0, 4, true), (10, 14, false)]));
    state.remap(page(0), page(20), 4);
    state.remap(page(10), page(0), 4);
    let child = state.forked();
    assert_eq!(child.lookup(page(20)), None);
    assert_eq!(child.lookup(page(0)).map(|found| found.content), Some(Content::Stored(page(10))));
}

#[test]
fn what_grew_behind_moved_pages_is_not_known() {
    let mut state = PageState::new(&map(&[(0, 4, false)]));
    state.remap(page(0), page(20), 4);
    assert_eq!(state.lookup(page(23)).map(|found| found.pages), Some(4));
    assert_eq!(state.lookup(page(24)), None);
}

#[test]
fn a_move_reported_too_long_leaves_what_lies_behind_its_target() {
    let mut state = PageState::new(&map(&[(0, 8, false), (24, 28, false)]));
    // mremap of 8 pages that shrinks them to 4 at page 20.
    state.remap(page(0), page(20), 8);
    assert_eq!(state.lookup(page(23)).map(|found| found.content), Some(Content::Stored(page(0))));
    assert_eq!(state.lookup(page(24)).map(|found| found.content), Some(Content::Stored(page(24))));
    assert_eq!(state.missing_pages(), 8);
}

#[test]
fn neighbouring_areas_stay_apart() {
    let mut state = PageState::new(&map(&[(0, 4, false), (4, 8, false)]));
    assert_eq!(state.lookup(page(3)).map(|found| found.pages), Some(4));
    assert_eq!(state.missing_in_image(page(2), 4).map(|found| found.pages), Some(2));
    state.install(page(0), 8);
    assert_eq!(state.missing_pages(), 0);
    assert_eq!(PAGE_SIZE as u64, page(1).get());
}
