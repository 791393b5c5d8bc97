//! What is true in a test, whatever anybody believes: which processes run where, what is stopped, what is in the store.
//!
//! Agents, kubelet and tests change it; it notes down whatever must never happen.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use migration_proto::agent::{OperationKind, Reason};

/// An application's processes and checkpoints.
#[derive(Clone, Debug, Default)]
pub struct App {
    /// Addresses of the pods in which it runs. More than one is never right.
    pub runs: Vec<String>,
    /// The pod in which it is stopped, the handover and its generation.
    pub stopped: Option<(String, String, u64)>,
    /// Committed, oldest first.
    pub checkpoints: Vec<String>,
    /// How many runs there have been.
    pub generation: u64,
    /// Final dumps that were committed.
    pub dumps: u32,
    /// Restores that ran.
    pub restores: u32,
    /// Times its command was started.
    pub launches: u32,
    /// What was deleted by `Collect` of all.
    pub collected: bool,
}

/// How an operation goes.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It fails with this.
    Fails(Reason),
    /// It takes this long.
    Takes(Duration),
    /// It is never done.
    Hangs,
}

#[derive(Debug, Default)]
pub struct State {
    pub apps: BTreeMap<String, App>,
    /// What the next operations of a kind do; what comes after them works.
    pub fates: HashMap<OperationKind, VecDeque<Fate>>,
    /// How long operations take.
    pub pace: Duration,
    /// How long a restored tree needs others.
    pub resident_after: Duration,
    /// The CPU feature that only machines have on which something runs already.
    pub only_there: Option<String>,
    /// How many requests the last restore was to fetch pages with.
    pub prefetch: Option<u32>,
    /// Capabilities that are missing.
    pub missing: Vec<String>,
    /// Pods' addresses whose agents do not answer.
    pub silent: Vec<String>,
    /// What must never happen.
    pub violations: Vec<String>,
    next: u64,
}

/// Shared by everybody.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<Mutex<State>>);

impl World {
    pub fn new() -> Self {
        let world = Self::default();
        world.lock().pace = Duration::from_millis(50);
        world
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn app(&self, name: &str) -> App {
        self.lock().apps.get(name).cloned().unwrap_or_default()
    }

    /// The next operation of this kind goes like this.
    pub fn fate(&self, kind: OperationKind, fate: Fate) {
        self.lock().fates.entry(kind).or_default().push_back(fate);
    }
}

impl State {
    pub fn new_id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{:06}", self.next)
    }

    pub fn entry(&mut self, app: &str) -> &mut App {
        self.apps.entry(app.to_owned()).or_default()
    }

    /// Its processes begin to run in a pod.
    pub fn run(&mut self, app: &str, pod: &str) {
        let entry = self.entry(app);
        entry.runs.push(pod.to_owned());
        if entry.runs.len() > 1 {
            let violation = format!("{app} runs more than once: {:?}", entry.runs);
            self.violations.push(violation);
        }
    }

    /// A pod ends with everything in it.
    pub fn end_pod(&mut self, pod: &str) {
        for app in self.apps.values_mut() {
            app.runs.retain(|place| place != pod);
            if app.stopped.as_ref().is_some_and(|(place, ..)| place == pod) {
                app.stopped = None;
            }
        }
    }
}
