//! Ten threads that work on the same pages without pause: four write, five read, one answers requests.
//!
//! Every page is guarded by its first word, a sequence number that is odd while the page is being written (a seqlock);
//! the other words follow from the page's number and the sequence number. Every page has one writer, which remembers on
//! its own stack which sequence number it left there, so that a page set back to zeros or to an older state is found too.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_harness::control::MAIN_TASK;
use migration_harness::pattern::scramble;
use migration_harness::process::wait_until;
use migration_harness::region::Report;
use migration_harness::sys::{Access, Mapping, Sharing};

use crate::Memory;
use crate::task::{Control, Duty, Outcome, unknown};

const WRITERS: usize = 4;
const READERS: usize = 5;
/// Pages a thread works on before it rests: two cores have to do for ten threads and for what is being tested.
const BATCH: usize = 64;
const REST: Duration = Duration::from_micros(500);
/// Sequence number of a page that was filled and not written since; even and not 0, so that zeros are never right.
const FIRST: u64 = 2;

struct Shared {
    mapping: Mapping,
    /// Threads stop between two pages while this is set.
    pause: AtomicBool,
    paused: AtomicUsize,
    looked_at: AtomicU64,
    found: Mutex<Report>,
}

pub fn run(control: &Control, memory: Memory) -> io::Result<()> {
    let mapping = Mapping::anonymous(memory.pages(), Access::Write, Sharing::Private)?;
    for page in 0..mapping.pages() {
        write(&mapping, page, FIRST);
    }
    let shared = Arc::new(Shared {
        mapping,
        pause: AtomicBool::new(false),
        paused: AtomicUsize::new(0),
        looked_at: AtomicU64::new(0),
        found: Mutex::new(Report::default()),
    });
    for thread in 0..WRITERS + READERS {
        let shared = Arc::clone(&shared);
        std::thread::Builder::new().name(format!("worker-{thread}")).spawn(move || {
            if thread < WRITERS { shared.keep_writing(thread) } else { shared.keep_reading(thread as u64) }
        })?;
    }
    control.all_ready(&[])?;
    control.serve(MAIN_TASK, &mut Front { shared })
}

/// The value of a word of a page.
fn value(page: usize, word: usize, sequence: u64) -> u64 {
    ((page as u64) << 40 | (word as u64) << 30) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn write(mapping: &Mapping, page: usize, sequence: u64) {
    let words = mapping.words(page);
    words[0].store(sequence - 1, Relaxed);
    fence(Release);
    for (word, cell) in words.iter().enumerate().skip(1) {
        cell.store(value(page, word, sequence), Relaxed);
    }
    words[0].store(sequence, Release);
}

/// Whether a page is whole; `None` when it is being written.
fn is_whole(mapping: &Mapping, page: usize) -> Option<bool> {
    let words = mapping.words(page);
    let before = words[0].load(Acquire);
    let right =
        words.iter().enumerate().skip(1).all(|(word, cell)| cell.load(Relaxed) == value(page, word, before));
    fence(Acquire);
    let after = words[0].load(Relaxed);
    if before % 2 == 1 || before != after { None } else { Some(right && before >= FIRST) }
}

impl Shared {
    fn keep_writing(&self, writer: usize) -> ! {
        let own: Vec<usize> = (writer..self.mapping.pages()).step_by(WRITERS).collect();
        let mut left = vec![FIRST; own.len()];
        let mut lot = writer as u64 + 1;
        loop {
            for _ in 0..BATCH {
                lot = scramble(lot);
                let pick = (lot % own.len() as u64) as usize;
                let found = self.mapping.words(own[pick])[0].load(Relaxed);
                let wanted = left[pick];
                self.note(found == wanted, || {
                    format!("page {}: sequence {found} instead of {wanted}", own[pick])
                });
                left[pick] = found.max(wanted).next_multiple_of(2) + 2;
                write(&self.mapping, own[pick], left[pick]);
            }
            self.rest();
        }
    }

    fn keep_reading(&self, reader: u64) -> ! {
        let mut lot = reader;
        loop {
            for _ in 0..BATCH {
                lot = scramble(lot);
                let page = (lot % self.mapping.pages() as u64) as usize;
                if let Some(right) = is_whole(&self.mapping, page) {
                    self.note(right, || format!("page {page} is torn"));
                }
            }
            self.rest();
        }
    }

    fn note(&self, right: bool, what: impl FnOnce() -> String) {
        self.looked_at.fetch_add(1, Relaxed);
        if !right {
            self.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).bad(what);
        }
    }

    fn rest(&self) {
        if self.pause.load(SeqCst) {
            self.paused.fetch_add(1, SeqCst);
            while self.pause.load(SeqCst) {
                std::thread::sleep(REST);
            }
            self.paused.fetch_sub(1, SeqCst);
        }
        std::thread::sleep(REST);
    }
}

struct Front {
    shared: Arc<Shared>,
}

impl Duty for Front {
    fn request(&mut self, verb: &str) -> Outcome {
        if verb != "check" {
            return unknown(verb);
        }
        let shared = &self.shared;
        // Threads that still leave the last pause count as paused until they have left it.
        shared.pause.store(true, SeqCst);
        let all = WRITERS + READERS;
        let still = wait_until(Duration::from_secs(30), || shared.paused.load(SeqCst) == all);
        let mut report = shared.found.lock().map_err(|_| "a thread panicked")?.clone();
        report.expect(still, || format!("only {} of {all} threads go on", shared.paused.load(SeqCst)));
        let before = shared.looked_at.load(Relaxed);
        report.expect(before > 0, || "no thread has done anything".into());
        for page in 0..shared.mapping.pages() {
            report.expect(is_whole(&shared.mapping, page) == Some(true), || {
                format!("page {page} is not whole")
            });
        }
        shared.pause.store(false, SeqCst);
        let gone_on = wait_until(Duration::from_secs(30), || {
            shared.paused.load(SeqCst) == 0 && shared.looked_at.load(Relaxed) > before
        });
        report.expect(gone_on, || "the threads do not go on".into());
        Ok(report)
    }
}
