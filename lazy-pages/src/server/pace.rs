//! How much of the background fill may be under way at a time.
//!
//! Too little leaves the link idle. Too much fills the queues on the way, and a page that a thread waits for stands at their
//! end. What single pages take tells which it is: while they take longer than they could, there is less fill, and while they
//! do not, or nobody waits for any, there is more. So fill uses what is left of the link, as transports for background traffic
//! do (LEDBAT, RFC 6817), and needs to know neither bandwidth nor round trip.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What is under way first, and at least in the first second: what a process wants when it has just begun to run matters most.
/// Twice as much in every later second, for the last page has to come too, and pages can be late for other reasons than fill.
const FIRST_BYTES: u64 = 512 << 10;
/// A page that comes that much later than it could does not stand in a queue: threads and processors take turns.
const SLACK: Duration = Duration::from_millis(5);
/// For how long nobody must have waited for fill to get all it can.
const QUIET: Duration = Duration::from_millis(200);
/// How long the best time of a single page is believed: the pages may come from somewhere else by then.
const BELIEVED: Duration = Duration::from_secs(2);
/// A unit is at most this part of what may be under way.
const UNITS: u64 = 4;

/// See the module's description.
#[derive(Debug)]
pub struct Pace {
    /// Bytes that may be under way.
    window: AtomicU64,
    most: u64,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    began: Instant,
    /// The shortest time of a single page now, and in the time before.
    quickest: [Duration; 2],
    since: Instant,
    last: Option<Instant>,
    cut: Option<Instant>,
}

impl Pace {
    /// At most `most` bytes.
    pub fn new(most: u64, now: Instant) -> Self {
        let seen = Seen { began: now, quickest: [Duration::MAX; 2], since: now, last: None, cut: None };
        Self { window: AtomicU64::new(FIRST_BYTES.min(most)), most, seen: Mutex::new(seen) }
    }

    /// Fill begins.
    pub fn begin(&self, now: Instant) {
        self.seen().began = now;
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> u64 {
        self.window.load(Ordering::Relaxed)
    }

    /// Bytes of one request at most, of `limit` that it could have.
    pub fn unit(&self, limit: u64) -> u64 {
        limit.min(self.window() / UNITS)
    }

    /// A page that a thread waits for took that long to come.
    pub fn page_came(&self, after: Duration, now: Instant) {
        let mut seen = self.seen();
        if now.saturating_duration_since(seen.since) > BELIEVED {
            seen.quickest = [Duration::MAX, seen.quickest[0]];
            seen.since = now;
        }
        seen.quickest[0] = seen.quickest[0].min(after);
        seen.last = Some(now);
        let quickest = seen.quickest[0].min(seen.quickest[1]);
        if after <= quickest + quickest / 2 + SLACK {
            return;
        }
        // What was under way before the last cut tells nothing of its effect.
        if seen.cut.is_none_or(|cut| now.saturating_duration_since(cut) >= after) {
            seen.cut = Some(now);
            self.window.store((self.window() / 2).max(self.least(&seen, now)), Ordering::Relaxed);
        }
    }

    /// So many bytes of fill are done.
    pub fn filled(&self, bytes: u64, now: Instant) {
        let seen = self.seen();
        let waits = seen.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET);
        // Twice as much with every round trip while nobody waits, and until that was too much.
        let more = if waits && seen.cut.is_some() { bytes / 8 } else { bytes };
        let window = (self.window() + more).max(self.least(&seen, now));
        self.window.store(window.min(self.most), Ordering::Relaxed);
    }

    fn least(&self, seen: &Seen, now: Instant) -> u64 {
        let seconds = now.saturating_duration_since(seen.began).as_secs();
        (FIRST_BYTES << seconds.min(16)).min(self.most)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 64 << 20;
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn fill_gets_all_it_can_while_nobody_waits() {
        let now = Instant::now();
        let pace = Pace::new(MOST, now);
        assert_eq!(pace.window(), FIRST_BYTES);
        let mut done = 0;
        while pace.window() < MOST {
            done += pace.window();
            pace.filled(pace.window(), now);
        }
        assert!(done <= MOST, "{done}");
        pace.filled(MOST, now);
        assert_eq!(pace.window(), MOST);
        assert_eq!(pace.unit(4 << 20), 4 << 20);
    }

    #[test]
    fn fill_gives_way_to_pages_that_come_late_and_gets_its_part_back() {
        let now = Instant::now();
        let pace = Pace::new(MOST, now);
        pace.page_came(3 * MS, now);
        pace.filled(MOST, now);
        assert_eq!(pace.window(), MOST);
        for late in 1..10 {
            pace.page_came(100 * MS, now + 100 * late * MS);
        }
        assert_eq!((pace.window(), pace.unit(4 << 20)), (FIRST_BYTES, FIRST_BYTES / UNITS));
        pace.page_came(5 * MS, now + 910 * MS);
        pace.filled(8 << 20, now + 911 * MS);
        assert_eq!(pace.window(), FIRST_BYTES + (1 << 20));
    }

    #[test]
    fn fill_that_has_to_give_way_all_the_time_ends_all_the_same() {
        let begun = Instant::now();
        let pace = Pace::new(MOST, begun);
        pace.begin(begun + 60_000 * MS);
        pace.page_came(MS, begun + 60_000 * MS);
        let mut windows = Vec::new();
        for second in [60, 61, 62, 64, 70] {
            for tenth in 1..10 {
                let now = begun + (second * 1000 + tenth * 100) * MS;
                pace.page_came(MS, now);
                pace.page_came(100 * MS, now + MS);
            }
            windows.push(pace.window() / FIRST_BYTES);
        }
        assert_eq!(windows, [1, 2, 4, 16, 128]);
    }

    #[test]
    fn pages_that_come_late_together_count_once() {
        let now = Instant::now();
        let pace = Pace::new(MOST, now);
        pace.filled(MOST, now);
        pace.page_came(MS, now);
        for late in 1..50 {
            pace.page_came(100 * MS, now + late * MS);
        }
        assert_eq!(pace.window(), MOST / 2);
    }

    #[test]
    fn another_place_where_everything_takes_longer_is_believed_in_time() {
        let mut now = Instant::now();
        let pace = Pace::new(MOST, now);
        pace.page_came(MS, now);
        for _ in 0..100 {
            now += 60 * MS;
            pace.page_came(30 * MS, now);
            pace.filled(1 << 20, now);
        }
        assert!(pace.window() > FIRST_BYTES, "{}", pace.window());
    }

    #[test]
    fn what_is_bounded_to_little_stays_below_that() {
        let now = Instant::now();
        let pace = Pace::new(300_000, now);
        pace.page_came(MS, now);
        pace.page_came(900 * MS, now + 900 * MS);
        pace.filled(1 << 30, now + 901 * MS);
        assert!(pace.window() <= 300_000 && pace.unit(1 << 20) >= 300_000 / UNITS);
    }
}
