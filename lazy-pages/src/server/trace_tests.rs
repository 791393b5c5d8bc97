use std::{iter, thread};

use proptest::prelude::*;

use super::*;

fn words() -> Vec<AtomicU64> {
    iter::repeat_with(AtomicU64::default).take(TRACE_WORDS).collect()
}

fn sum(snapshot: &Snapshot, column: Column) -> u64 {
    snapshot.columns[column as usize].iter().sum()
}

proptest! {
    #[test]
    fn what_is_counted_is_found_at_its_time_whatever_the_widths(
        mut times in prop::collection::vec((0_u64..200_000_000, 1_u64..1000, 0_usize..HEAT_ROWS), 1..200),
    ) {
        times.sort();
        let words = words();
        let trace = Trace(&words);
        for &(at, more, row) in &times {
            trace.make_room(at);
            trace.count(Column::Faults, more, at);
            trace.count_touch(row, at);
            trace.count_wait(more, at, FrameIndex(7));
        }
        let seen = trace.snapshot();
        let mut expected = vec![0; BINS];
        let mut longest = vec![0; BINS];
        let mut heat = vec![vec![0; HEAT_BINS]; HEAT_ROWS];
        for &(at, more, row) in &times {
            let bin = (at / seen.width_us) as usize;
            expected[bin] += more;
            longest[bin] = longest[bin].max(more);
            heat[row][(at / seen.heat_width_us) as usize] += 1;
        }
        prop_assert_eq!(&seen.columns[Column::Faults as usize], &expected);
        prop_assert_eq!(&seen.columns[Column::LongestWait as usize], &longest);
        prop_assert_eq!(&seen.heat, &heat);
        prop_assert_eq!(sum(&seen, Column::Waits), times.len() as u64);
        let mut waits: Vec<u64> = times.iter().map(|(_, more, _)| *more).collect();
        waits.sort_by_key(|wait| std::cmp::Reverse(*wait));
        waits.truncate(SLOWEST);
        prop_assert_eq!(seen.slowest.iter().map(|slow| slow.waited_us).collect::<Vec<_>>(), waits);
    }

    #[test]
    fn every_page_is_in_the_row_that_says_so(sizes in prop::collection::vec(1_u64..300, 1..400)) {
        let mut rows = Vec::new();
        let mut address = VirtAddr::containing(0x1000);
        for (at, &pages) in sizes.iter().enumerate() {
            rows.push(Row { object: at / 3, start: address, end: address.add(pages), pages });
            address = address.add(pages + 5);
        }
        let merged = merged(rows.clone());
        prop_assert!(merged.len() <= HEAT_ROWS);
        let pages = |rows: &[Row]| rows.iter().map(|row| row.pages).sum::<u64>();
        prop_assert_eq!(pages(&rows), pages(&merged));
        let merged = Rows(merged);
        for row in &rows {
            let found = merged.row_of(row.object, row.start);
            let next = merged.all().get(found + 1);
            let first = merged.all()[found];
            prop_assert!((first.object, first.start) <= (row.object, row.start));
            prop_assert!(next.is_none_or(|next| (next.object, next.start) > (row.object, row.start)));
        }
    }
}

#[test]
fn nothing_is_lost_when_bins_are_added_up_while_others_count() {
    let words = words();
    let trace = Trace(&words);
    const EACH: u64 = 100_000;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..EACH).for_each(|at| trace.count(Column::Installed, 1, at * 10)));
        }
        for at in 0..20 {
            trace.make_room(1 << at << 10);
        }
    });
    assert_eq!(sum(&trace.snapshot(), Column::Installed), 2 * EACH);
}

#[test]
fn a_time_far_away_and_the_greatest_wait_are_counted_too() {
    let words = words();
    let trace = Trace(&words);
    trace.count(Column::Faults, 1, u64::MAX);
    trace.make_room(u64::MAX);
    trace.count(Column::Faults, 1, u64::MAX);
    trace.count_wait(u64::MAX, u64::MAX, FrameIndex(u32::MAX));
    let seen = trace.snapshot();
    assert_eq!(sum(&seen, Column::Faults), 2);
    assert_eq!(seen.slowest[0].waited_us, u64::from(u32::MAX));
}

#[test]
fn a_server_that_dies_while_bins_become_wider_is_told_of() {
    let words = words();
    let trace = Trace(&words);
    trace.taken_over(5);
    assert!(!trace.snapshot().torn);
    words[DOUBLING].store(1, Ordering::Relaxed);
    for at in 0..2 * TAKEOVERS as u64 {
        trace.taken_over(10 + at);
    }
    let seen = trace.snapshot();
    assert!(seen.torn);
    assert_eq!(
        seen.taken_over_us,
        (0..TAKEOVERS as u64).map(|at| if at == 0 { 5 } else { 9 + at }).collect::<Vec<_>>()
    );
}
