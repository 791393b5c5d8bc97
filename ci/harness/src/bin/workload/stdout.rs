//! A counter line on standard output and standard error every 10 ms: finds out whether they survive.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use migration_harness::control::MAIN_TASK;
use migration_harness::region::Report;

use crate::task::{Control, Duty, Outcome, unknown};

const PERIOD: Duration = Duration::from_millis(10);

struct Ticker {
    next: Instant,
    count: u64,
    /// Lines written, and those that could not be: what `check` reports as pages.
    report: Report,
}

pub fn run(control: &Control) -> io::Result<()> {
    control.all_ready(&[])?;
    control.serve(MAIN_TASK, &mut Ticker { next: Instant::now(), count: 0, report: Report::default() })
}

impl Ticker {
    fn tick(&mut self) {
        self.count += 1;
        let line = format!("tick {}\n", self.count);
        let (out, err) = (io::stdout().write_all(line.as_bytes()), io::stderr().write_all(line.as_bytes()));
        for (name, outcome) in [("stdout", out.and_then(|()| io::stdout().flush())), ("stderr", err)] {
            self.report.expect(outcome.is_ok(), || format!("{name}, tick {}: {outcome:?}", self.count));
        }
    }
}

impl Duty for Ticker {
    fn request(&mut self, verb: &str) -> Outcome {
        match verb {
            "check" => Ok(self.report.clone()),
            _ => unknown(verb),
        }
    }

    fn idle(&mut self) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + PERIOD;
            self.tick();
        }
    }
}
