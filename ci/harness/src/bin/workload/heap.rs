//! One task, one large private area.

use std::io;
use std::time::{Duration, Instant};

use migration_harness::control::MAIN_TASK;
use migration_harness::pattern::{Mix, scramble};
use migration_harness::region::{Expected, Region, Report};

use crate::Memory;
use crate::task::{Control, Duty, Outcome, unknown};

struct Heap {
    region: Region,
    fraction: f64,
}

pub fn run(control: &Control, memory: Memory, mix: Mix, fraction: f64) -> io::Result<()> {
    let region = Region::anonymous("heap", memory.pages(), mix, memory.seed)?.filled(0);
    control.all_ready(&[])?;
    control.serve(MAIN_TASK, &mut Heap { region, fraction })
}

impl Duty for Heap {
    fn request(&mut self, verb: &str) -> Outcome {
        let (verb, argument) = verb.split_once(' ').unwrap_or((verb, ""));
        let mut report = Report::default();
        match verb {
            "check" => self.region.check_all(&mut report),
            "mutate" if argument.is_empty() => report.pages = mutate(&mut self.region, self.fraction),
            "mutate" => {
                let fraction = argument.parse().map_err(|_| format!("{argument:?} is not a fraction"))?;
                report.pages = mutate(&mut self.region, fraction);
            }
            "corrupt" => {
                let middle = self.region.pages() / 2;
                self.region.corrupt(middle);
                report.pages = 1;
            }
            "watch" => {
                let time =
                    argument.parse().map_err(|_| format!("{argument:?} is not a number of milliseconds"))?;
                let end = Instant::now() + Duration::from_millis(time);
                while Instant::now() < end {
                    self.region.check_all(&mut report);
                }
            }
            _ => return unknown(verb),
        }
        Ok(report)
    }
}

/// Rewrites a fraction of a region's pages, spread over all of it, with their next generation; says how many.
pub fn mutate(region: &mut Region, fraction: f64) -> u64 {
    let mut rewritten = 0;
    for page in 0..region.pages() {
        let next = match region.expected(page) {
            Expected::Zero => 1,
            Expected::Pattern(generation) | Expected::PatternOrZero(generation) => generation + 1,
        };
        let lot = scramble(page as u64 ^ (u64::from(next) << 32)) as f64 / u64::MAX as f64;
        if lot < fraction {
            region.fill_page(page, next);
            rewritten += 1;
        }
    }
    rewritten
}
