//! How long nothing of the application ran, and what that time consists of.

use lazy_pages::record::{Span, TakenRecord};
use serde::Serialize;

use super::Report;
use crate::records::{DESCRIBING, STORING};

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blackout {
    /// All of it.
    pub total_us: u64,
    /// What it consists of, in order of time; together they are all of it.
    pub parts: Vec<Part>,
}

/// A part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What was done.
    pub name: String,
    /// For how long.
    pub took_us: u64,
}

/// What lies between the end of one agent's work and the beginning of the other's.
const BETWEEN: &str = "from one agent to the other";
/// The source's tasks have been frozen, and no stage is known to be under way.
const FROZEN: &str = "frozen";

/// How long a checkpoint took in all.
pub fn taken_us(taken: &TakenRecord) -> u64 {
    taken.stages.last().map_or(0, |stage| stage.to_us)
}

impl Blackout {
    /// Of a checkpoint that ended its processes, and its restore, if both are known and their clocks make sense.
    pub(super) fn of(report: &Report) -> Option<Self> {
        let (taken, run) = (report.taken.as_ref()?, report.run.as_ref()?);
        if taken.left_running {
            return None;
        }
        let over = taken_us(taken);
        let from = taken.begun_unix_us.checked_add(over.saturating_sub(taken.frozen_us))?;
        let left = taken.begun_unix_us.checked_add(over)?;
        let running = run.begun_unix_us.checked_add(run.running_us)?;
        // A restore needs the checkpoint, so it cannot have been running before that was committed.
        let total_us = running.checked_sub(left).map(|rest| rest + (left - from))?;
        let mut spans = absolute(&taken.stages, taken.begun_unix_us);
        spans.extend(absolute(&run.stages, run.begun_unix_us));
        let mut parts: Vec<Part> = Vec::new();
        let mut at = from;
        let mut add = |name: &str, from: u64, to: u64| match to.saturating_sub(from) {
            0 => {}
            took_us => parts.push(Part { name: name.to_owned(), took_us }),
        };
        for span in spans {
            let (begin, end) = (span.from_us.clamp(at, running), span.to_us.clamp(at, running));
            if end > begin {
                add(if begin <= left { FROZEN } else { BETWEEN }, at, begin);
                add(&span.name, begin, end);
                at = end;
            }
        }
        add(if running <= left { FROZEN } else { BETWEEN }, at, running);
        Some(Self { total_us, parts })
    }
}

impl Blackout {
    /// Its longest part, what that is, and what makes it shorter.
    pub fn explained(&self) -> String {
        let Some(part) = self.parts.iter().max_by_key(|part| part.took_us) else { return String::new() };
        let share = part.took_us as f64 * 100.0 / self.total_us.max(1) as f64;
        format!("The longest part, {share:.0} %, was {}. {}", part.name, explanation(&part.name))
    }
}

fn explanation(name: &str) -> &'static str {
    match name {
        "reading memory" => {
            "CRIU reads all memory while the processes stand still. A checkpoint shortly before leaves less to be sent, and \
             lazy-direct leaves the memory where it is."
        }
        "committing" => {
            "What had been read was still on its way to the store. A checkpoint shortly before, a faster link, or lazy-direct \
             make it shorter."
        }
        DESCRIBING => "CRIU looks at every task and every area of memory while the processes stand still.",
        STORING => {
            "What describes the processes, all but their memory, went to the store: how fast it answers counts."
        }
        "preparing" => {
            "The restore looked at CRIU and at the machine, and read what the checkpoint is: how fast the store answers counts."
        }
        "fetching" => {
            "What describes the processes, and pages that cannot come on demand, come from the store before anything is \
             rebuilt: how fast the store answers counts, and how much memory is shared or locked. The strategy full fetches \
             everything here."
        }
        "restoring" => "CRIU rebuilds the processes: more of them, or more areas of memory, take longer.",
        BETWEEN => {
            "The checkpoint was safe, and nobody had begun to restore it: the target was not ready, or was told late."
        }
        _ => "",
    }
}

fn absolute(stages: &[Span], begun: u64) -> Vec<Span> {
    let at = |us: u64| begun.saturating_add(us);
    let stages = stages.iter();
    stages
        .map(|stage| Span { name: stage.name.clone(), from_us: at(stage.from_us), to_us: at(stage.to_us) })
        .collect()
}
