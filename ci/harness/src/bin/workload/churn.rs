//! Everything that changes an address space, done to pages that may not be there yet.
//!
//! Every kind of change has an area of its own, cut into slots. Each round takes the next slot of every area, so that for
//! many rounds after a lazy restore the pages it meets are still missing; when the slots are used up, all are filled
//! again. What nobody has touched is checked between the changes.

use std::io;
use std::ops::Range;

use migration_harness::control::MAIN_TASK;
use migration_harness::pattern::Mix;
use migration_harness::region::{Expected, Region, Report};
use migration_harness::sys::{Access, Advice, Mapping, fork};
use nix::sys::wait::{WaitStatus, waitpid};

use crate::Memory;
use crate::task::{Control, Duty, Outcome, failed, unknown};

/// Pages of a slot: more than a frame of 64, and not a multiple, so that changes cut through frames.
const SLOT: usize = 72;
/// Areas the memory is shared out to.
const AREAS: usize = 6;
/// Most mappings that are moved, each of them a mapping of its own.
const MAX_MOVED: usize = 256;
/// Pages a moved mapping gains.
const GROWTH: usize = 24;

struct Churn {
    seed: u64,
    untouched: Region,
    moved: Vec<Region>,
    renewed: Region,
    dropped: Region,
    freed: Region,
    split: Region,
    heap: Region,
    generation: u32,
    next: usize,
    slots: usize,
    continuous: bool,
    /// What rounds between two requests have found.
    found: Report,
}

pub fn run(control: &Control, memory: Memory, continuous: bool) -> io::Result<()> {
    let slots = (memory.pages() / AREAS / SLOT).clamp(1, MAX_MOVED);
    let pages = slots * SLOT;
    let area = |name, kind| -> io::Result<Region> {
        Ok(Region::anonymous(name, pages, Mix::Mixed, memory.seed + kind)?.filled(0))
    };
    let mut churn = Churn {
        seed: memory.seed,
        untouched: area("untouched", 1)?,
        moved: Vec::new(),
        renewed: area("unmapped and mapped", 2)?,
        dropped: area("MADV_DONTNEED", 3)?,
        freed: area("MADV_FREE", 4)?,
        split: area("mprotect", 5)?,
        heap: Region::over(Mapping::of_break(SLOT)?, "brk", Mix::Mixed, memory.seed).filled(0),
        generation: 0,
        next: 0,
        slots,
        continuous,
        found: Report::default(),
    };
    churn.refill()?;
    control.all_ready(&[])?;
    control.serve(MAIN_TASK, &mut churn)
}

impl Churn {
    /// Fills every slot again, with the next generation.
    fn refill(&mut self) -> io::Result<()> {
        self.generation += 1;
        self.next = 0;
        let pages = self.slots * SLOT;
        self.split.mapping.protect(0..pages, Access::Write)?;
        for region in [&mut self.renewed, &mut self.dropped, &mut self.freed, &mut self.split] {
            region.fill(0..pages, self.generation);
        }
        self.moved.clear();
        for slot in 0..self.slots {
            let region = Region::anonymous("mremap", SLOT, Mix::Mixed, self.seed + 100 + slot as u64)?;
            self.moved.push(region.filled(self.generation));
        }
        Ok(())
    }

    /// One change of every kind, each followed by a look at what it must have done, and one fork.
    fn round(&mut self, report: &mut Report) -> io::Result<()> {
        if self.next == self.slots {
            self.refill()?;
        }
        let slot = self.next;
        self.next += 1;
        let range = slot * SLOT..(slot + 1) * SLOT;

        self.fork_and_check(range.clone(), report)?;
        self.move_and_grow(slot, report)?;
        self.renew(range.clone(), report)?;
        self.drop_contents(range.clone(), report)?;
        self.free_contents(range.clone(), report)?;
        self.split(range.clone(), report)?;
        if slot.is_multiple_of(16) {
            self.grow_heap(report)?;
        }
        self.untouched.check(range, report);
        Ok(())
    }

    /// A child sees what its parent has, also of pages that are still missing, and keeps it to itself.
    fn fork_and_check(&mut self, range: Range<usize>, report: &mut Report) -> io::Result<()> {
        let Some(child) = fork()? else {
            let mut seen = Report::default();
            for region in [&self.untouched, &self.renewed, &self.dropped, &self.freed] {
                region.check(range.clone(), &mut seen);
            }
            self.untouched.fill(range.clone(), u32::MAX);
            self.untouched.check(range, &mut seen);
            std::process::exit(seen.bad.min(100) as i32);
        };
        // The parent goes on meanwhile, so that both meet missing pages at the same time.
        self.untouched.check(range, report);
        let status = waitpid(child, None);
        report.expect(status == Ok(WaitStatus::Exited(child, 0)), || format!("forked child: {status:?}"));
        Ok(())
    }

    fn move_and_grow(&mut self, slot: usize, report: &mut Report) -> io::Result<()> {
        let region = self.moved.swap_remove(slot).move_and_grow(SLOT + GROWTH)?;
        region.check_all(report);
        self.moved.push(region);
        let last = self.moved.len() - 1;
        self.moved.swap(slot, last);
        Ok(())
    }

    fn renew(&mut self, range: Range<usize>, report: &mut Report) -> io::Result<()> {
        let middle = range.start + SLOT / 3..range.end - SLOT / 3;
        self.renewed.mapping.renew(middle.clone())?;
        self.renewed.expect(middle, Expected::Zero);
        self.renewed.check(range.clone(), report);
        self.renewed.fill(range.start..range.start + SLOT / 2, self.generation + 1);
        self.renewed.check(range, report);
        Ok(())
    }

    fn drop_contents(&mut self, range: Range<usize>, report: &mut Report) -> io::Result<()> {
        let middle = range.start + SLOT / 4..range.end - SLOT / 4;
        self.dropped.mapping.advise(middle.clone(), Advice::DontNeed)?;
        self.dropped.expect(middle.clone(), Expected::Zero);
        // Half is looked at, half is written without a look first.
        self.dropped.check(range.start..range.start + SLOT / 2, report);
        self.dropped.fill(range.start + SLOT / 2..range.end, self.generation + 1);
        self.dropped.check(range, report);
        Ok(())
    }

    fn free_contents(&mut self, range: Range<usize>, report: &mut Report) -> io::Result<()> {
        let first_half = range.start..range.start + SLOT / 2;
        self.freed.mapping.advise(first_half.clone(), Advice::Free)?;
        for page in first_half.clone() {
            if let Expected::Pattern(generation) = self.freed.expected(page) {
                self.freed.expect(page..page + 1, Expected::PatternOrZero(generation));
            }
        }
        self.freed.check(range.clone(), report);
        self.freed.fill(range.start..range.start + SLOT / 4, self.generation + 1);
        self.freed.check(range, report);
        Ok(())
    }

    fn split(&mut self, range: Range<usize>, report: &mut Report) -> io::Result<()> {
        for page in range.clone().step_by(3) {
            self.split.mapping.protect(page..page + 1, Access::Read)?;
        }
        self.split.check(range.clone(), report);
        for page in range.clone().step_by(3) {
            if page + 1 < range.end {
                self.split.fill_page(page + 1, self.generation + 1);
            }
        }
        self.split.mapping.protect(range.clone(), Access::Write)?;
        self.split.check(range, report);
        Ok(())
    }

    fn grow_heap(&mut self, report: &mut Report) -> io::Result<()> {
        let more = Region::over(Mapping::of_break(SLOT)?, "brk", Mix::Mixed, self.seed + 7);
        more.check_all(report);
        let more = more.filled(self.generation);
        more.check_all(report);
        self.heap.check_all(report);
        Ok(())
    }

    fn check_all(&self, report: &mut Report) {
        for region in [&self.untouched, &self.renewed, &self.dropped, &self.freed, &self.split, &self.heap] {
            region.check_all(report);
        }
        for region in &self.moved {
            region.check_all(report);
        }
    }
}

impl Duty for Churn {
    fn request(&mut self, verb: &str) -> Outcome {
        let (verb, argument) = verb.split_once(' ').unwrap_or((verb, "8"));
        let mut report = std::mem::take(&mut self.found);
        match verb {
            "check" => self.check_all(&mut report),
            "churn" => {
                let rounds: u32 =
                    argument.parse().map_err(|_| format!("{argument:?} is not a number of rounds"))?;
                for _ in 0..rounds {
                    self.round(&mut report).map_err(failed("churn"))?;
                }
            }
            _ => return unknown(verb),
        }
        Ok(report)
    }

    fn idle(&mut self) {
        if self.continuous {
            let mut found = std::mem::take(&mut self.found);
            if let Err(error) = self.round(&mut found) {
                found.bad(|| format!("churn: {error}"));
            }
            self.found = found;
        }
    }
}
