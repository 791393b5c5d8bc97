use super::*;
use crate::{
    format::{Blob, Codec, FrameEntry, Host, Statistics, Task, Vma},
    ids::{CheckpointId, PackId},
};

const LENGTH: u32 = 100_000;

/// One task with a frame of one page for each entry of `packs`, in packs of these numbers.
fn layout(packs: &[usize]) -> Layout {
    let ids: Vec<PackId> = (0..8).map(|_| PackId::new()).collect();
    let page = |number: usize| VirtAddr::of_page(number as u64);
    let area = Vma {
        start: page(0),
        end: page(packs.len()),
        wipe_on_fork: false,
        dont_fork: false,
        grows_down: false,
    };
    let run = |number: usize| Run {
        start: page(number),
        pages: 1,
        source: Source::Stored { frame: FrameIndex(number as u32), first: 0, eager: false },
    };
    let frame = |(number, pack): (usize, &usize)| FrameEntry {
        pack: ids[*pack],
        offset: number as u64 * u64::from(LENGTH),
        stored_length: LENGTH,
        pages: 1,
        codec: Codec::None,
        hash: [0; 16],
    };
    let map = MemoryMap {
        id: ObjectId::Task(7),
        pages_id: 1,
        vmas: vec![area],
        runs: (0..packs.len()).map(run).collect(),
    };
    let task = Task { pid: 7, parent_pid: 1, threads: 1, dead: false, command: "x".into() };
    Layout::new(Arc::new(Manifest {
        app: "app".parse().unwrap(),
        id: CheckpointId::new(),
        parent: None,
        depth: 0,
        created_unix_ms: 0,
        host: Host::default(),
        tasks: vec![task],
        objects: vec![map],
        packs: Vec::new(),
        frames: packs.iter().enumerate().map(frame).collect(),
        bundle: Blob::of(b""),
        page_hashes: Blob::of(b""),
        streams: Vec::new(),
        statistics: Statistics::default(),
        files: Vec::new(),
        large_images: Vec::new(),
    }))
}

fn numbers(unit: Option<Unit>) -> Vec<u32> {
    unit.map_or(Vec::new(), |unit| unit.frames.iter().map(|frame| frame.0).collect())
}

fn now() -> Instant {
    Instant::now()
}

#[test]
fn a_unit_takes_neighbours_of_one_pack_up_to_its_limit() {
    let layout = layout(&[0, 0, 0, 0, 0, 1]);
    let mut frames = Frames::new(&layout);
    let limit = 3 * u64::from(LENGTH);
    let first = frames.next_unit(&layout, limit, |_| true).unwrap();
    assert_eq!(first.bytes, 0..limit);
    assert_eq!(numbers(Some(first)), [0, 1, 2]);
    assert_eq!(numbers(frames.next_unit(&layout, limit, |_| true)), [3, 4]);
    assert_eq!(numbers(frames.next_unit(&layout, limit, |_| true)), [5]);
    assert_eq!(frames.next_unit(&layout, limit, |_| true), None);
    assert_eq!(frames.undelivered(), 6);
}

#[test]
fn a_unit_does_not_reach_over_a_wide_gap() {
    let layout = layout(&[0, 0, 0]);
    let mut frames = Frames::new(&layout);
    assert_eq!(frames.want(FrameIndex(1), now()), Want::Fetch);
    frames.start_work(FrameIndex(1));
    frames.recent.clear();
    assert_eq!(numbers(frames.next_unit(&layout, u64::MAX, |_| true)), [0]);
    assert_eq!(numbers(frames.next_unit(&layout, u64::MAX, |_| true)), [2]);
}

#[test]
fn what_lies_behind_a_fault_is_fetched_next() {
    let layout = layout(&[0; 20]);
    let mut frames = Frames::new(&layout);
    assert_eq!(frames.want(FrameIndex(10), now()), Want::Fetch);
    assert_eq!(numbers(frames.next_unit(&layout, 2 * u64::from(LENGTH), |_| true)), [11, 12]);
    assert_eq!(numbers(frames.next_unit(&layout, 2 * u64::from(LENGTH), |_| true)), [0, 1]);
}

#[test]
fn frames_nobody_needs_count_as_delivered() {
    let layout = layout(&[0; 4]);
    let mut frames = Frames::new(&layout);
    assert_eq!(numbers(frames.next_unit(&layout, u64::MAX, |frame| frame.0 == 2)), [2]);
    assert_eq!(frames.undelivered(), 1);
    frames.delivered(FrameIndex(2));
    assert_eq!(frames.undelivered(), 0);
}

#[test]
fn a_frame_coming_in_a_unit_is_asked_for_alone_once_and_the_first_to_come_counts() {
    let layout = layout(&[0; 2]);
    let mut frames = Frames::new(&layout);
    let frame = FrameIndex(0);
    assert_eq!(numbers(frames.next_unit(&layout, u64::MAX, |_| true)), [0, 1]);
    assert_eq!(frames.want(frame, now()), Want::Fetch);
    assert_eq!(frames.want(frame, now()), Want::Coming);
    // The unit wins, and the waiting thread's frame is given out before its turn.
    frames.arrived(frame, Bytes::from_static(b"unit"));
    assert_eq!(frames.take_wanted(frame), Some(Bytes::from_static(b"unit")));
    assert_eq!(frames.take_arrived(frame), None, "it is given out once");
    assert!(frames.start_work(frame));
    // What was asked for alone comes too late, before and after the end of the work.
    assert!(!frames.start_work(frame));
    assert!(frames.delivered(frame).is_some());
    assert!(!frames.start_work(frame));
    assert_eq!(frames.undelivered(), 1);
}

#[test]
fn a_frame_that_waits_for_a_worker_is_handed_to_whoever_wants_it() {
    let layout = layout(&[0; 2]);
    let mut frames = Frames::new(&layout);
    let frame = FrameIndex(1);
    frames.next_unit(&layout, u64::MAX, |_| true);
    frames.arrived(frame, Bytes::from_static(b"unit"));
    assert_eq!(frames.want(frame, now()), Want::Here(Bytes::from_static(b"unit")));
    assert_eq!(frames.want(frame, now()), Want::Coming);
    assert!(frames.start_work(frame));
}

#[test]
fn a_damaged_frame_is_fetched_again_but_not_for_ever() {
    let layout = layout(&[0]);
    let mut frames = Frames::new(&layout);
    let frame = FrameIndex(0);
    frames.want(frame, now());
    for _ in 0..REFETCHES {
        assert!(frames.start_work(frame));
        assert!(frames.damaged(frame));
        assert_eq!(frames.want(frame, now()), Want::Coming);
    }
    assert!(frames.start_work(frame));
    assert!(!frames.damaged(frame));
}

#[test]
fn a_task_that_registers_late_needs_what_was_delivered_before() {
    let layout = layout(&[0; 3]);
    let mut frames = Frames::new(&layout);
    frames.next_unit(&layout, u64::MAX, |_| true);
    for frame in 0..3 {
        frames.delivered(FrameIndex(frame));
    }
    assert_eq!(frames.undelivered(), 0);
    frames.expect_again(&layout, 0);
    assert_eq!(frames.undelivered(), 3);
    assert_eq!(numbers(frames.next_unit(&layout, u64::MAX, |_| true)), [0, 1, 2]);
}
