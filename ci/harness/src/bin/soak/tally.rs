//! What happened, counted.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::world::World;

/// What must never happen.
#[derive(Debug)]
pub enum Failure {
    /// Memory that is not what it should be.
    Corrupt(String),
    /// Neither running nor restorable.
    Lost(String),
    /// Ended because CRIU was killed while its code ran in the tree; see [`crate::faults::kill_criu`].
    DiedWithCriu,
    /// The soak itself could not go on; counts as a failure too.
    Broken(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, text) = match self {
            Failure::Corrupt(text) => ("CORRUPT", text),
            Failure::Lost(text) => ("LOST", text),
            Failure::DiedWithCriu => return f.write_str("the tree died with the CRIU that was killed"),
            Failure::Broken(text) => ("broken", text),
        };
        write!(f, "{what}: {text}")
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Broken(error.to_string())
    }
}

/// See the module's description.
#[derive(Debug, Default, Serialize)]
pub struct Tally {
    /// Migrations begun.
    pub runs: u64,
    /// How long all of it took.
    pub seconds: f64,
    /// Runs in which memory was wrong.
    pub corrupt: u64,
    /// Runs in which a process was lost.
    pub lost: u64,
    /// Runs in which the tree died because CRIU itself was killed.
    pub died_with_criu: u64,
    /// Runs that could not be carried out.
    pub broken: u64,
    /// Pages compared.
    pub pages: u64,
    /// Workloads and stores.
    pub worlds: BTreeMap<String, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What came of operations.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// What happened in this run so far.
    #[serde(skip)]
    pub trail: Vec<String>,
}

impl Tally {
    /// Counts a fault.
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
        self.note(kind);
    }

    /// Counts what came of an operation.
    pub fn outcome(&mut self, what: &'static str) {
        *self.outcomes.entry(what).or_default() += 1;
        self.note(what);
    }

    /// Remembers what happened, should the run fail.
    pub fn note(&mut self, what: &str) {
        self.trail.push(what.to_owned());
    }

    /// Counts a new workload.
    pub fn world(&mut self, world: &World) {
        *self.worlds.entry(world.describe()).or_default() += 1;
    }

    /// Counts a failure.
    pub fn failed(&mut self, failure: &Failure) {
        match failure {
            Failure::Corrupt(_) => self.corrupt += 1,
            Failure::Lost(_) => self.lost += 1,
            Failure::DiedWithCriu => self.died_with_criu += 1,
            Failure::Broken(_) => self.broken += 1,
        }
    }

    /// Whether nothing failed that this project could have prevented.
    pub fn is_clean(&self) -> bool {
        self.corrupt + self.lost + self.broken == 0
    }

    /// In one line.
    pub fn verdict(&self) -> String {
        let text = format!("{} corrupt, {} lost, {} broken", self.corrupt, self.lost, self.broken);
        match self.died_with_criu {
            0 => text,
            died => format!("{text}, {died} died with the criu that was killed"),
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} migrations in {:.0} s, {} pages compared: {}\n",
            self.runs,
            self.seconds,
            self.pages,
            self.verdict()
        );
        let mut section = |title: &str, lines: Vec<(String, u64)>| {
            text += &format!("\n{title}\n");
            for (name, count) in lines {
                text += &format!("  {name:<44} {count:>6}\n");
            }
        };
        let named = |counts: &BTreeMap<&'static str, u64>| -> Vec<(String, u64)> {
            counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        section(
            "workloads and stores",
            self.worlds.iter().map(|(name, count)| (name.clone(), *count)).collect(),
        );
        section("faults", named(&self.faults));
        section("outcomes", named(&self.outcomes));
        text
    }
}
