//! What processes see of their memory, whatever they do to it while pages are missing.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use lazy_pages::{format::Vma, server::Limits};

use crate::support::{Answer, BASE, PID, Served, Target, TestStore, area, stored_pages};

const B: u64 = BASE;

/// Reads take a moment, so that pages are still missing when something is done to them.
fn slowly(areas: &[Vma]) -> Served {
    let slow = |_: &str, _: u64, bytes| Answer::Later(Duration::from_millis(20), bytes);
    Served::with(&[(PID, areas.to_vec())], &[], |store| store.behave(slow), |_| {})
}

#[test]
fn every_page_is_what_the_checkpoint_says() {
    let areas = [area(B, 4096), area(B + 5000, 300)];
    let served = Served::new(&areas);
    let mut target = served.restored(&areas);
    target.ok(&format!("check {B} 4096 {B}; check {0} 300 {0}", B + 5000));
    let stats = served.assert_resident();
    let stored = stored_pages(B, 4096) + stored_pages(B + 5000, 300);
    assert_eq!(stats.installed_pages, stored);
    assert!(stats.fetched_bytes >= stored * 4096 / 2, "{stats:?}");
    // Nobody serves any more.
    target.ok(&format!("check {B} 4096 {B}; check {0} 300 {0}", B + 5000));
}

#[test]
fn pages_nobody_touches_come_by_themselves() {
    let areas = [area(B, 2048)];
    let served = Served::new(&areas);
    let mut target = served.restored(&areas);
    let stats = served.assert_resident();
    assert_eq!(stats.faults, 0);
    assert_eq!(stats.installed_pages, stored_pages(B, 2048));
    target.ok(&format!("check {B} 2048 {B}"));
}

#[test]
fn threads_that_fault_at_once_all_get_their_pages() {
    let areas = [area(B, 2048)];
    let served = slowly(&areas);
    let mut target = served.restored(&areas);
    target.ok(&format!("threads 24 {B} 2048 {B}"));
    served.assert_resident();
}

#[test]
fn faults_are_answered_before_the_restore_is_finished() {
    let areas = [area(B, 256)];
    let served = Served::new(&areas);
    let mut target = Target::start(&served.socket());
    target.map(&areas);
    target.ok(&format!("arm; pid {PID}; send; check {B} 200 {B}"));
    assert!(!served.server.is_restored());
    target.ok("finish");
    served.assert_resident();
    target.ok(&format!("check {B} 256 {B}"));
}

#[test]
fn several_tasks_register_over_one_connection_and_each_gets_its_pages() {
    let (first, second) = ([area(B, 500)], [area(B + 600, 500)]);
    let served =
        Served::with(&[(PID, first.to_vec()), (PID + 1, second.to_vec())], &[PID + 2], |_| {}, |_| {});
    let mut target = Target::start(&served.socket());
    // A task of its own, which has only the second area.
    target.ok(&format!(
        "spawn; map {0} 500; arm; pid {1}; send; hangup; sleep 300; check {0} 500 {0}; fork; check {0} 500 {0}",
        B + 600,
        PID + 1
    ));
    target.ok(&format!("sleep 100; map {B} 500; arm; pid -{}; pid {PID}; send; finish", PID + 2));
    target.ok(&format!("check {B} 500 {B}; join"));
    served.assert_resident();
}

#[test]
fn times_are_counted_from_the_first_task_also_if_that_is_a_zombie() {
    let begun = Instant::now();
    let served = Served::with(&[(PID, vec![area(B, 500)])], &[PID + 1], |_| {}, |_| {});
    let mut target = Target::start(&served.socket());
    target.ok(&format!("map {B} 500; arm; pid -{}; pid {PID}; send; finish; check {B} 500 {B}", PID + 1));
    let stats = served.assert_resident();
    let most = begun.elapsed().as_millis() as u64 + 1;
    assert!(stats.restored_ms.unwrap() <= stats.resident_ms.unwrap(), "{stats:?}");
    assert!(stats.resident_ms.unwrap() <= most, "{stats:?} after {most} ms");
}

#[test]
fn children_and_grandchildren_have_what_their_parents_had() {
    let areas = [area(B, 1024)];
    let served = slowly(&areas);
    let mut target = served.restored(&areas);
    target
        .ok(&format!("check {B} 100 {B}; fork; check {0} 200 {0}; fork; fork; check {B} 1024 {B}", B + 300));
    target.ok(&format!("fork; fill {B} 1024 7"));
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

#[test]
fn a_child_sees_zeros_where_it_shall_not_have_its_parents_data() {
    let wiped = Vma { wipe_on_fork: true, ..area(B + 1000, 200) };
    let absent = Vma { dont_fork: true, ..area(B + 2000, 200) };
    let areas = [area(B, 200), wiped, absent];
    let served = slowly(&areas);
    let mut target = served.restored(&areas);
    // Some of it is there when the child is made, some is not.
    target.ok(&format!("check {0} 50 {0}; check {1} 50 {1}", B + 1000, B + 2000));
    target.ok(&format!(
        "fork; zero {0} 200; remap-fresh {1} 200; zero {1} 200; check {B} 200 {B}; sleep 200; zero {0} 200; zero {1} 200",
        B + 1000,
        B + 2000
    ));
    target.ok(&format!("check {B} 200 {B}; check {0} 200 {0}; check {1} 200 {1}", B + 1000, B + 2000));
    served.assert_resident();
}

#[test]
fn a_wiped_area_that_was_moved_is_still_wiped() {
    let areas = [Vma { wipe_on_fork: true, ..area(B, 200) }];
    let served = slowly(&areas);
    let mut target = served.restored(&areas);
    target.ok(&format!(
        "check {B} 20 {B}; move {B} 200 {0} 200; fork; zero {0} 200; sleep 100; zero {0} 200",
        B + 5000
    ));
    target.ok(&format!("check {} 200 {B}", B + 5000));
    served.assert_resident();
}

#[test]
fn memory_that_moves_and_grows_keeps_its_content() {
    let areas = [area(B, 600)];
    let served = slowly(&areas);
    let mut target = served.restored(&areas);
    let to = B + 10_000;
    target.ok(&format!("check {B} 30 {B}; move {} 200 {to} 300", B + 100));
    target.ok(&format!(
        "check {to} 200 {0}; zero {1} 100; check {B} 100 {B}; check {2} 300 {2}",
        B + 100,
        to + 200,
        B + 300
    ));
    // Moved again while parts are missing, shrinking, over something else that is armed.
    target.ok(&format!("move {0} 200 {to} 100; check {to} 100 {0}; check {1} 100 {1}", B + 300, B + 500));
    target.ok(&format!("fork; check {to} 100 {}", B + 300));
    served.assert_resident();
}

#[test]
fn what_a_process_has_given_up_reads_as_zeros() {
    let areas = [area(B, 1024)];
    let served = slowly(&areas);
    let mut target = served.restored(&areas);
    target.ok(&format!("dontneed {} 256; check {B} 100 {B}; zero {} 256", B + 100, B + 100));
    target.ok(&format!("unmap {0} 100; remap-fresh {0} 100; zero {0} 100", B + 400));
    target.ok(&format!("check {0} 44 {0}; check {1} 524 {1}", B + 356, B + 500));
    served.assert_resident();
    target.ok(&format!("zero {} 256; zero {} 100", B + 100, B + 400));
}

#[test]
fn areas_the_process_has_split_are_filled_page_by_page() {
    let areas = [area(B, 512)];
    let served = slowly(&areas);
    let mut target = served.restored(&areas);
    for page in (0..512).step_by(3) {
        target.tell(&format!("protect {} 1 1", B + page));
        assert_eq!(target.answer(), "ok");
    }
    target.ok(&format!("protect {} 20 0", B + 40));
    target.ok(&format!("check {B} 40 {B}; check {0} 452 {0}", B + 60));
    served.assert_resident();
    target.ok(&format!("protect {} 20 1; check {B} 512 {B}", B + 40));
}

#[test]
fn a_process_that_forks_and_gives_up_memory_all_the_time_sees_no_wrong_byte() {
    let areas = [area(B, 4096), area(B + 5000, 2048)];
    // Small units, so that copies and events meet often.
    let slow = |_: &str, _: u64, bytes| Answer::Later(Duration::from_millis(1), bytes);
    let served = Served::with(
        &[(PID, areas.to_vec())],
        &[],
        |store| store.behave(slow),
        |limits| (limits.unit_bytes, limits.ahead_bytes, limits.workers) = (256 << 10, 1 << 20, 4),
    );
    let mut target = served.restored(&areas);
    target.ok(&format!("spawn; storm 60 {B} 4096 {B}; check {B} 4096 {B}; check {0} 2048 {0}", B + 5000));
    target
        .ok(&format!("drop-each {0} 2048 {0} 8; storm 20 {B} 4096 {B}; check {B} 4096 {B}; join", B + 5000));
    target.ok(&format!("zero {} 2048", B + 5000));
    let stats = served.assert_resident();
    assert!(stats.faults > 0, "{stats:?}");
}

#[test]
fn a_process_that_executes_another_program_needs_nothing_more() {
    let areas = [area(B, 4096)];
    let delayed = AtomicU64::new(0);
    let slow = move |_: &str, _: u64, bytes| {
        // The first reads answer; the rest comes when the process is another one.
        let wait = if delayed.fetch_add(1, Ordering::Relaxed) < 2 { 0 } else { 500 };
        Answer::Later(Duration::from_millis(wait), bytes)
    };
    let served = Served::with(
        &[(PID, areas.to_vec())],
        &[],
        |store| store.behave(slow),
        |limits| {
            (limits.unit_bytes, limits.ahead_bytes) = (256 << 10, 512 << 10);
        },
    );
    let mut target = served.restored(&areas);
    target.tell("exec");
    assert_eq!(target.signal(), None);
    assert!(matches!(served.outcome(), lazy_pages::server::Outcome::TreeGone(_)), "{:?}", served.outcome());
}

#[test]
fn without_a_background_fill_only_what_is_touched_is_fetched() {
    let areas = [area(B, 4096)];
    let on_demand = |limits: &mut Limits| *limits = limits.clone().with_prefetch(0);
    let served = Served::with(&[(PID, areas.to_vec())], &[], |_| {}, on_demand);
    let mut target = served.restored(&areas);
    target.ok(&format!("check {B} 8 {B}"));
    assert_eq!(served.server.wait_timeout(Duration::from_millis(500)), None);
    let missing = served.server.stats().missing_pages;
    assert!(missing > stored_pages(B, 4096) / 2, "{missing} pages are missing");
    target.ok(&format!("check {B} 4096 {B}"));
    served.assert_resident();
}

#[test]
fn many_requests_at_a_time_take_no_more_memory_than_they_may() {
    let usual = Limits { unit_bytes: 4 << 20, ..Limits::for_store(&*TestStore::new()) };
    let four = usual.clone().with_prefetch(4);
    assert_eq!((four.unit_bytes, four.ahead_bytes), (4 << 20, 16 << 20));
    for requests in [256, u32::MAX] {
        let many = usual.clone().with_prefetch(requests);
        assert_eq!((many.unit_bytes, many.ahead_bytes), (1 << 20, 256 << 20));
    }
}
