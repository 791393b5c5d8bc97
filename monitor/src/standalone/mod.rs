//! Without Kubernetes: an announced interruption makes the local agent take a checkpoint of every registered application.
//!
//! All of them at once, over the agent's Unix socket. The ids of the operations follow from the notice and the application,
//! and the agent writes down what it is asked before it begins: a monitor that is started again asks for the same and joins
//! what is under way, or hears how it ended. Applications that are registered after the notice are taken too. A final
//! dump that is still under way when its notice is withdrawn is cancelled, and its process runs on.
//!
//! Nothing is given up because a deadline has passed: the machine often lives a little longer, and a process that is not in
//! the store is lost with it.

mod ask;
mod registration;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use self::ask::{Asked, Dump, Outcome};
pub use self::registration::{Application, InvalidApplication, Target};
use crate::{
    board::View,
    health::Heartbeat,
    http::Endpoint,
    metrics::{Action, Metrics},
    plan::{Order, Plan, Record, plan},
    policy::{Advice, Policy},
    sources,
};

/// How often registrations are looked at while something is announced.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the world is looked at when nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// What to do with a process whose machine is going to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNotice {
    /// End it once its checkpoint is durable: nothing it did is lost.
    FinalDump,
    /// Take a checkpoint and let it run until the machine is gone: what it does after that is lost.
    PreCheckpoint,
}

/// What to take checkpoints of, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The agent's Unix socket.
    pub agent: PathBuf,
    /// Applications.
    pub applications: Vec<Application>,
    /// A directory in which others are registered, a JSON file each.
    pub registrations: Option<PathBuf>,
    /// What to do when everything has to leave.
    pub on_notice: OnNotice,
    /// What calls for what.
    pub policy: Policy,
    /// What this machine is until it is started again.
    pub origin: String,
    /// Azure: where to say that an event need not wait any longer.
    pub acknowledge: Option<Endpoint>,
}

/// One application, because of one notice.
type Key = (String, Application);

#[derive(Debug)]
struct Work {
    operation: String,
    task: AbortHandle,
    accepted: bool,
    /// Whether there is a checkpoint, once that is known.
    outcome: Option<bool>,
    dump: Dump,
}

struct Standalone<'a> {
    settings: &'a Settings,
    metrics: &'a Metrics,
    records: Vec<Record>,
    works: BTreeMap<Key, Work>,
    told: mpsc::UnboundedSender<(Key, Asked)>,
    /// What was wrong with the registrations last, so that it is said once.
    complaint: Option<String>,
}

/// Acts on what is announced until it is dropped.
pub async fn run(
    settings: Settings,
    mut view: watch::Receiver<View>,
    heartbeat: Heartbeat,
    metrics: std::sync::Arc<Metrics>,
) -> Infallible {
    let (told, mut tell) = mpsc::unbounded_channel();
    let mut standalone = Standalone {
        settings: &settings,
        metrics: &metrics,
        records: Vec::new(),
        works: BTreeMap::new(),
        told,
        complaint: None,
    };
    loop {
        heartbeat.beat();
        let now = view.borrow_and_update().clone();
        let plan = standalone.act(&now).await;
        let pause = if plan.order.is_some() { AGAIN } else { IDLE };
        let until_then = plan.look_again.map(|then| Timestamp::now().duration_until(then));
        let until_then = until_then.and_then(|time| Duration::try_from(time).ok()).unwrap_or(IDLE);
        tokio::select! {
            // The board lives as long as the sources do.
            _ = view.changed() => {}
            Some((key, asked)) = tell.recv() => standalone.hear(key, asked),
            () = tokio::time::sleep(pause.min(until_then)) => {}
        }
    }
}

impl Standalone<'_> {
    /// Does what is to be done now.
    async fn act(&mut self, view: &View) -> Plan {
        let Settings { policy, origin, .. } = self.settings;
        let plan = plan(view, &self.records, origin, policy, Timestamp::now());
        self.records.clone_from(&plan.records);
        self.give_up();
        if let Some(order) = &plan.order {
            self.begin(order);
            self.conclude(order, view).await;
        }
        plan
    }

    /// Asks for what has not been asked for yet.
    fn begin(&mut self, order: &Order) {
        let dump = match (order.advice, self.settings.on_notice) {
            (Some(Advice::Checkpoint), _) | (None, OnNotice::PreCheckpoint) => Dump::PreCheckpoint,
            (Some(Advice::Migrate), _) | (None, OnNotice::FinalDump) => Dump::Final,
        };
        for application in self.applications() {
            let key = (order.id.clone(), application);
            if self.works.contains_key(&key) || self.is_covered(&key.1, dump) {
                continue;
            }
            let operation = ask::operation(&key.0, &key.1, 0);
            tracing::warn!(app = key.1.app, operation, reason = order.reason, "asking for a checkpoint");
            let asking = ask::ask(self.settings.agent.clone(), dump, key.clone(), self.told.clone());
            let task = tokio::spawn(asking).abort_handle();
            self.works.insert(key, Work { operation, task, accepted: false, outcome: None, dump });
        }
    }

    /// Whether what is to be done is done already, or under way, because of another notice that stands: there is no second final
    /// dump, and no checkpoint next to another one or after the end.
    fn is_covered(&self, application: &Application, dump: Dump) -> bool {
        let mut works = self.works.iter().filter(|((_, other), _)| other == application);
        works.any(|(_, work)| match work.dump {
            Dump::Final => work.outcome != Some(false),
            Dump::PreCheckpoint => dump == Dump::PreCheckpoint && work.outcome.is_none(),
        })
    }

    fn applications(&mut self) -> Vec<Application> {
        let mut all = self.settings.applications.clone();
        let found = self.settings.registrations.as_deref().map(registration::read);
        let (registered, complaints) = found.unwrap_or_default();
        all.extend(registered);
        let complaint = Some(complaints.join("; ")).filter(|text| !text.is_empty());
        if complaint != self.complaint {
            if let Some(complaint) = &complaint {
                self.metrics.failed("registrations", "unreadable");
                tracing::error!(complaint, "not every registered application gets a checkpoint");
            }
            self.complaint = complaint;
        }
        all.sort();
        all.dedup();
        all
    }

    fn hear(&mut self, key: Key, asked: Asked) {
        let Some(work) = self.works.get_mut(&key) else { return };
        let app = &key.1.app;
        match asked {
            Asked::Accepted(operation) => {
                work.operation = operation;
                work.accepted = true;
            }
            Asked::Failed(reason, message) => {
                self.metrics.failed("agent", reason);
                tracing::error!(app, reason, message, "no checkpoint yet; it is tried again");
            }
            Asked::Ended(Outcome::Checkpoint(checkpoint)) => {
                work.outcome = Some(true);
                self.metrics.did(Action::Checkpoint);
                let deadline = self.records.iter().find(|one| one.id == key.0).and_then(|one| one.deadline);
                let late = deadline.is_some_and(|deadline| deadline < Timestamp::now());
                tracing::warn!(app, checkpoint, late, "the checkpoint is durable");
            }
            Asked::Ended(Outcome::GivenUp(message)) => {
                work.outcome = Some(false);
                self.metrics.failed("agent", "given-up");
                let hint =
                    "`migration-agent status` tells more; take a checkpoint by hand while there is time";
                tracing::error!(app, message, hint, "there is no checkpoint of this application");
            }
        }
    }

    /// Notes that everything was begun, and tells the cloud when everything is done.
    async fn conclude(&mut self, order: &Order, view: &View) {
        let mut works = self.works.iter().filter(|((id, _), _)| *id == order.id).map(|(_, work)| work);
        let accepted = works.all(|work| work.accepted);
        // Whatever it was begun for.
        let done = self.works.values().all(|work| work.outcome == Some(true));
        let Some(record) = self.records.iter_mut().find(|record| record.id == order.id) else { return };
        if accepted && record.triggered.is_none() {
            record.triggered = Some(Timestamp::now());
            let mut sightings = view.sources.get(&order.source).into_iter().flatten();
            let seen = sightings.find(|one| one.notice.key() == record.key).map(|one| one.seen_at);
            self.metrics.triggered(order.source, seen.map_or(Duration::ZERO, |seen: Instant| seen.elapsed()));
        }
        if let (Some(endpoint), Some(event), None, true) =
            (&self.settings.acknowledge, &record.event, record.acknowledged, done && order.leave())
        {
            match sources::acknowledge(endpoint, event).await {
                Ok(()) => {
                    record.acknowledged = Some(Timestamp::now());
                    self.metrics.did(Action::Acknowledge);
                }
                Err(error) => {
                    self.metrics.failed("metadata", error.word());
                    tracing::warn!(%error, event, "the event cannot be acknowledged; it is tried again");
                }
            }
        }
    }

    /// What was begun because of a notice that does not stand any more need not be.
    fn give_up(&mut self) {
        let over = self.records.iter_mut().filter(|one| one.withdrawn.is_some() && one.cleared.is_none());
        let over: Vec<String> = over
            .map(|record| {
                record.cleared = record.withdrawn;
                record.id.clone()
            })
            .collect();
        let works = std::mem::take(&mut self.works).into_iter();
        let (gone, stays): (BTreeMap<_, _>, _) = works.partition(|((id, _), _)| over.contains(id));
        self.works = stays;
        for ((_, application), work) in gone {
            let app = application.app;
            match work.outcome {
                None => {
                    work.task.abort();
                    tracing::warn!(app, operation = work.operation, "withdrawn: cancelling");
                    tokio::spawn(ask::cancel(self.settings.agent.clone(), work.operation));
                }
                Some(true) if work.dump == Dump::Final => {
                    let hint = "`migration-agent restore` brings it back";
                    tracing::warn!(app, hint, "withdrawn after this application had been ended");
                }
                Some(_) => {}
            }
        }
    }
}
