//! What a restore did, moment by moment and address by address: counts in bins, kept beside the journal.
//!
//! The bins are as many as they are, in memory that is there from the beginning and outlives the server that writes it; a
//! successor goes on counting. To count is one addition to one word: no allocation, no lock, no system call, so that a page
//! fault can afford it. When time runs past the last bin, neighbours are added up and every bin becomes twice as wide
//! ([`Trace::make_room`]).
//!
//! What always holds: nothing that was counted is lost by a doubling. What another thread counts in the very moment of one
//! may appear in a later bin. A server that is killed in such a moment (microseconds, once for each doubling) leaves bins of
//! two widths; its successor finds that out and says so ([`Snapshot::torn`]).
//!
//! Times are in microseconds since the first task registered.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    format::{FrameIndex, Manifest, MemoryMap, Run, Source},
    server::frames::is_on_demand,
    units::VirtAddr,
};

/// Moments that are told apart.
pub const BINS: usize = 256;
/// Moments that are told apart for each part of the memory.
pub const HEAT_BINS: usize = 64;
/// Parts of the memory that are told apart.
pub const HEAT_ROWS: usize = 64;
/// The longest waits that are kept one by one.
pub const SLOWEST: usize = 16;
/// Changes of the server of which the time is kept.
pub const TAKEOVERS: usize = 8;

/// Bins of a restore of a few hundred milliseconds are this wide.
const FIRST_WIDTH: u64 = 2_000;
/// There is room for this much more time than has passed: longer than the event thread stays away.
const AHEAD: u64 = 250_000;

const WIDTH: usize = 0;
const DOUBLING: usize = 1;
const TORN: usize = 2;
const TAKEN_OVER: usize = 8;
const WAITS: usize = 16;
const COLUMNS: usize = 64;
const HEAT: usize = COLUMNS + Column::ALL.len() * BINS;

/// Words of a trace: whole pages.
pub const TRACE_WORDS: usize = (HEAT + HEAT_ROWS * HEAT_BINS).next_multiple_of(512);

const _: () = assert!(TAKEN_OVER + TAKEOVERS <= WAITS && WAITS + 2 * SLOWEST <= COLUMNS);
const _: () = assert!(BINS.is_multiple_of(HEAT_BINS));

/// What is counted in each moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Column {
    /// Page faults read.
    Faults,
    /// Pages copied into processes.
    Installed,
    /// Bytes that came from the store, or from where the pages are.
    Fetched,
    /// Waits that ended.
    Waits,
    /// The longest of them, in microseconds.
    LongestWait,
}

impl Column {
    const ALL: [Self; 5] = [Self::Faults, Self::Installed, Self::Fetched, Self::Waits, Self::LongestWait];

    fn first(self) -> usize {
        COLUMNS + self as usize * BINS
    }
}

/// The words of a trace; see the module's description.
#[derive(Clone, Copy, Debug)]
pub struct Trace<'j>(pub &'j [AtomicU64]);

/// A wait that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// How long it was.
    pub waited_us: u64,
    /// When it ended. Of two that ended in the same instant, one may have got the other's time.
    pub at_us: u64,
    /// What was waited for.
    pub frame: FrameIndex,
}

/// A trace as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Width of a bin.
    pub width_us: u64,
    /// One for each [`Column`].
    pub columns: [Vec<u64>; Column::ALL.len()],
    /// Width of a bin of the heat map.
    pub heat_width_us: u64,
    /// Faults in each row of [`Rows`], by time.
    pub heat: Vec<Vec<u64>>,
    /// The longest waits, the longest first.
    pub slowest: Vec<Slow>,
    /// When servers were replaced, as far as there was room.
    pub taken_over_us: Vec<u64>,
    /// A server was killed while bins became wider: what came before has no certain time.
    pub torn: bool,
}

impl Trace<'_> {
    fn get(self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    fn width(self) -> u64 {
        self.get(WIDTH).max(FIRST_WIDTH)
    }

    fn bin(self, at_us: u64, bins: usize) -> usize {
        let width = self.width() * (BINS / bins) as u64;
        ((at_us / width) as usize).min(bins - 1)
    }

    /// Counts `more` of something now.
    pub fn count(self, column: Column, more: u64, at_us: u64) {
        self.0[column.first() + self.bin(at_us, BINS)].fetch_add(more, Ordering::Relaxed);
    }

    /// A page of this row of [`Rows`] was touched and has to be fetched.
    pub fn count_touch(self, row: usize, at_us: u64) {
        let at = HEAT + row.min(HEAT_ROWS - 1) * HEAT_BINS + self.bin(at_us, HEAT_BINS);
        self.0[at].fetch_add(1, Ordering::Relaxed);
    }

    /// A frame was waited for.
    pub fn count_wait(self, waited_us: u64, at_us: u64, frame: FrameIndex) {
        self.count(Column::Waits, 1, at_us);
        let bin = Column::LongestWait.first() + self.bin(at_us, BINS);
        self.0[bin].fetch_max(waited_us, Ordering::Relaxed);
        let wait = waited_us.min(u64::from(u32::MAX)) << 32 | u64::from(frame.0);
        let slots = (0..SLOWEST).map(|slot| WAITS + 2 * slot);
        let Some(least) = slots.min_by_key(|&slot| self.get(slot)) else { return };
        let before = self.get(least);
        // Whoever else takes the slot in this instant has waited about as long.
        if before < wait
            && self.0[least].compare_exchange(before, wait, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.0[least + 1].store(at_us, Ordering::Relaxed);
        }
    }

    /// Sees to it that there are bins for the next moments. For one thread only.
    pub fn make_room(self, at_us: u64) {
        while at_us.saturating_add(AHEAD) >= self.width().saturating_mul(BINS as u64)
            && self.width() < u64::MAX / 2 / BINS as u64
        {
            self.0[DOUBLING].store(1, Ordering::Release);
            for column in Column::ALL {
                let join = match column {
                    Column::LongestWait => u64::max,
                    _ => u64::wrapping_add,
                };
                self.halve(column.first(), BINS, join);
            }
            for row in 0..HEAT_ROWS {
                self.halve(HEAT + row * HEAT_BINS, HEAT_BINS, u64::wrapping_add);
            }
            self.0[WIDTH].store(self.width() * 2, Ordering::Relaxed);
            self.0[DOUBLING].store(0, Ordering::Release);
        }
    }

    fn halve(self, first: usize, bins: usize, join: fn(u64, u64) -> u64) {
        for pair in 0..bins / 2 {
            let [left, right] = [0, 1].map(|side| self.0[first + 2 * pair + side].swap(0, Ordering::Relaxed));
            // Somebody may have counted there since.
            let both = join(left, right);
            let _ = self.0[first + pair]
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |since| Some(join(since, both)));
        }
    }

    /// Another server goes on.
    pub fn taken_over(self, at_us: u64) {
        if self.0[DOUBLING].swap(0, Ordering::AcqRel) != 0 {
            self.0[TORN].store(1, Ordering::Relaxed);
        }
        if let Some(slot) = (TAKEN_OVER..TAKEN_OVER + TAKEOVERS).find(|&slot| self.get(slot) == 0) {
            self.0[slot].store(at_us.max(1), Ordering::Relaxed);
        }
    }

    /// All of it, as it is now.
    pub fn snapshot(self) -> Snapshot {
        let bins = |first: usize, bins: usize| (first..first + bins).map(|at| self.get(at)).collect();
        let slots = (0..SLOWEST).map(|slot| WAITS + 2 * slot);
        let mut slowest: Vec<_> = slots
            .map(|slot| (self.get(slot), self.get(slot + 1)))
            .filter(|(wait, _)| *wait != 0)
            .map(|(wait, at_us)| Slow { waited_us: wait >> 32, at_us, frame: FrameIndex(wait as u32) })
            .collect();
        slowest.sort_by_key(|slow| std::cmp::Reverse(slow.waited_us));
        Snapshot {
            width_us: self.width(),
            columns: Column::ALL.map(|column| bins(column.first(), BINS)),
            heat_width_us: self.width() * (BINS / HEAT_BINS) as u64,
            heat: (0..HEAT_ROWS).map(|row| bins(HEAT + row * HEAT_BINS, HEAT_BINS)).collect(),
            slowest,
            taken_over_us: bins(TAKEN_OVER, TAKEOVERS).into_iter().filter(|at| *at != 0).collect(),
            torn: self.get(TORN) != 0,
        }
    }
}

/// A part of the memory of a checkpoint: about as many stored pages as every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Position of its memory in the manifest.
    pub object: usize,
    /// Address of its first page.
    pub start: VirtAddr,
    /// First address after its last page.
    pub end: VirtAddr,
    /// Pages that are restored on demand.
    pub pages: u64,
}

/// The memory of a checkpoint in at most [`HEAT_ROWS`] parts, ascending: address spaces one after the other, and in each the
/// pages that are restored on demand. What lies between them counts for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// Those of a manifest; always the same.
    pub fn of(manifest: &Manifest) -> Self {
        let total: u64 = manifest.objects.iter().flat_map(on_demand).map(|run| run.pages).sum();
        let most = total.div_ceil(HEAT_ROWS as u64).max(1);
        // A row of its own for each address space, as long as there are fewer of these than rows.
        let mut rows: Vec<Row> = Vec::new();
        for (object, map) in manifest.objects.iter().enumerate() {
            for run in on_demand(map) {
                let end = run.end();
                match rows.last_mut() {
                    Some(row) if row.object == object && row.pages + run.pages <= most => {
                        row.pages += run.pages;
                        row.end = end;
                    }
                    _ => rows.push(Row { object, start: run.start, end, pages: run.pages }),
                }
            }
        }
        Self(merged(rows))
    }

    /// All of them.
    pub fn all(&self) -> &[Row] {
        &self.0
    }

    /// Which one a page is in that is restored on demand.
    pub fn row_of(&self, object: usize, image: VirtAddr) -> usize {
        self.0.partition_point(|row| (row.object, row.start) <= (object, image)).saturating_sub(1)
    }
}

/// Adds neighbours up until there are few enough: the two smallest ones each time would be fairer, pairs are enough.
fn merged(mut rows: Vec<Row>) -> Vec<Row> {
    while rows.len() > HEAT_ROWS {
        let surplus = rows.len() - HEAT_ROWS;
        let mut fewer: Vec<Row> = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            match fewer.last_mut() {
                Some(last) if at % 2 == 1 && at / 2 < surplus => {
                    last.pages += row.pages;
                    if last.object == row.object {
                        last.end = row.end;
                    }
                }
                _ => fewer.push(*row),
            }
        }
        rows = fewer;
    }
    rows
}

fn on_demand(map: &MemoryMap) -> impl Iterator<Item = &Run> {
    let lazy = |run: &&Run| matches!(run.source, Source::Stored { eager: false, .. });
    map.runs.iter().filter(lazy).filter(|run| is_on_demand(map, run))
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
