//! In a cluster: an announced interruption triggers every migratable pod of this node, and then marks the node.
//!
//! [`run`] brings the cluster to what is announced, again and again, and has no other state than what it can read back:
//!
//! 1. pods with the label `migration.io/app` get the trigger's annotations, all of them at once; at the same time the notice is
//!    written down in an annotation of the node ([`RECORDS`]);
//! 2. the node gets the taint and the condition, and is cordoned if that was asked for;
//! 3. while a notice stands, this is looked at every second: pods that appear later are triggered too.
//!
//! A monitor that is killed at any moment and started again goes on where it was: ids of notices follow from the node's uid and
//! the notice, and what carries one already is left alone. An API server that does not answer is asked again after at most
//! [`LONGEST_PAUSE`]. When a notice is withdrawn, what was put is removed again, except from pods that move already; the node
//! stays marked until they have.
//!
//! A person's trigger is never changed into one of the monitor, which `autoMigrate: false` would refuse.

mod error;
mod events;
mod moving;
mod node;
mod pods;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::Client;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

pub use self::error::ClusterError;
use self::{
    node::{Known, Mark},
    pods::{Pods, Told},
};
use crate::{
    board::View,
    health::Heartbeat,
    http::Endpoint,
    metrics::{Action, Metrics},
    plan::{Order, Plan, Record, plan},
    policy::Policy,
    sources,
};

/// The label of a migratable pod; its value is the name of its application.
pub const APP: &str = "migration.io/app";
/// Annotation of the node: the notices that were seen, and how far they were acted on.
pub const RECORDS: &str = "migration.io/notices";
/// Taint of a node that is about to vanish.
pub const TAINT: &str = "migration.io/interruption";
/// Condition of a node that is about to vanish.
pub const CONDITION: &str = "InterruptionNotice";

/// The longest time between two attempts.
pub const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often pods are looked for while something is announced.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the world is looked at when nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// How long a source is waited for that has told of a notice before.
const HEARING: Duration = Duration::from_secs(5);

/// What to do in the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node this runs on.
    pub node: String,
    /// Whether to cordon it too; the taint keeps pods away already, except those that tolerate everything.
    pub cordon: bool,
    /// What calls for what.
    pub policy: Policy,
    /// Azure: where to say that an event need not wait any longer, once no migratable pod is left.
    pub acknowledge: Option<Endpoint>,
}

struct Cluster<'a> {
    client: Client,
    settings: &'a Settings,
    metrics: Arc<Metrics>,
    /// The node's uid.
    origin: String,
    records: Vec<Record>,
    /// What the node's annotation holds.
    written: Vec<Record>,
    /// Which pods need not be told again, whatever has become of their trigger since.
    told: Told,
}

/// Acts on what is announced until it is dropped.
pub async fn run(
    client: Client,
    settings: Settings,
    mut view: watch::Receiver<View>,
    heartbeat: Heartbeat,
    metrics: Arc<Metrics>,
) -> Infallible {
    let mut cluster: Option<Cluster> = None;
    let mut trouble = Trouble::default();
    loop {
        heartbeat.beat();
        let now = view.borrow_and_update().clone();
        let passed = match &mut cluster {
            Some(cluster) => cluster.pass(&now).await,
            None => match node::read(&client, &settings.node).await {
                Ok(Known { origin, records }) => {
                    hear(&mut view, &records).await;
                    let (client, settings, metrics) = (client.clone(), &settings, Arc::clone(&metrics));
                    let written = records.clone();
                    cluster = Some(Cluster {
                        client,
                        settings,
                        metrics,
                        origin,
                        records,
                        written,
                        told: Told::new(),
                    });
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        let pause = match passed {
            Ok(pause) => {
                trouble.over();
                pause
            }
            Err(ClusterError::Replaced) => {
                cluster = None;
                FIRST_PAUSE
            }
            Err(error) => trouble.pause_after(&error, &metrics),
        };
        tokio::select! {
            // The board lives as long as the sources do. In trouble, news changes nothing.
            _ = view.changed(), if trouble.failures == 0 => {}
            () = sleep(pause) => {}
        }
    }
}

/// Gives the sources of notices that were seen before this program was started time to say whether they still stand: the
/// machine may have been started again since.
async fn hear(view: &mut watch::Receiver<View>, records: &[Record]) {
    let standing = records.iter().filter(|record| record.withdrawn.is_none());
    let heard = |view: &View| standing.clone().all(|record| view.sources.contains_key(&record.source));
    // Who has not said so until then has not withdrawn it.
    let _ = timeout(HEARING, view.wait_for(heard)).await;
}

/// Failures in a row.
#[derive(Default)]
struct Trouble {
    failures: u32,
    told: Option<&'static str>,
}

impl Trouble {
    fn over(&mut self) {
        if let Some(reason) = self.told.take() {
            tracing::info!(after = reason, "the API server answers again");
        }
        self.failures = 0;
    }

    fn pause_after(&mut self, error: &ClusterError, metrics: &Metrics) -> Duration {
        metrics.failed("kubernetes", error.word());
        if self.told != Some(error.word()) {
            self.told = Some(error.word());
            tracing::error!(%error, hint = error.hint(), "not done yet; it is tried again");
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.75 + 0.25 * fastrand::f64())
    }
}

impl Cluster<'_> {
    /// Brings the cluster to what is announced. Says when to look again.
    async fn pass(&mut self, view: &View) -> Result<Duration, ClusterError> {
        let now = Timestamp::now();
        let Plan { records, order, look_again } =
            plan(view, &self.records, &self.origin, &self.settings.policy, now);
        self.records = records;
        let (mut left, mut refused) = (None, None);
        if let Some(order) = &order {
            match self.trigger(order, view).await {
                Ok(pods) => left = Some(pods),
                // One pod that may not be changed keeps neither the others from moving nor new ones from being kept away.
                Err(error) if error.is_an_answer() => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        let cleared = match &order {
            Some(order) if order.leave() => {
                node::mark(self, &Mark::of(order)).await?;
                true
            }
            _ => self.clear(order.as_ref()).await?,
        };
        if let (Some(order), Some(0)) = (&order, left) {
            self.acknowledge(order).await;
        }
        self.write_down().await?;
        if let Some(error) = refused {
            return Err(error);
        }
        let until_then = look_again.and_then(|then| Duration::try_from(now.duration_until(then)).ok());
        let pause = if order.is_some() || !cleared { AGAIN } else { IDLE };
        Ok(pause.min(until_then.unwrap_or(IDLE).max(FIRST_PAUSE)))
    }

    /// Pods first, and what they are triggered for next to it: neither waits for the other, and neither's failure hinders the
    /// other. Says how many migratable pods there are.
    async fn trigger(&mut self, order: &Order, view: &View) -> Result<usize, ClusterError> {
        let pods = Pods::new(&self.client, &self.settings.node);
        let mut told = std::mem::take(&mut self.told);
        let (triggered, written) =
            tokio::join!(pods.trigger(order, &mut told, &self.metrics), self.write(&self.records));
        self.told = told;
        let left = triggered?;
        written?;
        self.written.clone_from(&self.records);
        let Some(record) = self.records.iter_mut().find(|record| record.id == order.id) else {
            return Ok(left);
        };
        if record.triggered.is_none() {
            record.triggered = Some(Timestamp::now());
            let mut sightings = view.sources.get(&order.source).into_iter().flatten();
            let seen = sightings.find(|one| one.notice.key() == record.key).map(|one| one.seen_at);
            let after = seen.map_or(Duration::ZERO, |seen: Instant| seen.elapsed());
            self.metrics.triggered(order.source, after);
            tracing::warn!(notice = order.id, pods = left, after_ms = after.as_millis() as u64, "triggered");
        }
        Ok(left)
    }

    /// Tells the cloud that it need not wait, if it is to be told and waits.
    async fn acknowledge(&mut self, order: &Order) {
        let record = self.records.iter_mut().find(|record| record.id == order.id && order.leave());
        let Some(record) = record.filter(|record| record.acknowledged.is_none()) else { return };
        let (Some(endpoint), Some(event)) = (&self.settings.acknowledge, &record.event) else { return };
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

    /// Removes what is left of notices that were withdrawn. Whether nothing is.
    async fn clear(&mut self, order: Option<&Order>) -> Result<bool, ClusterError> {
        let over = |record: &&Record| record.withdrawn.is_some() && record.cleared.is_none();
        let ids: Vec<String> = self.records.iter().filter(over).map(|record| record.id.clone()).collect();
        if ids.is_empty() {
            return Ok(true);
        }
        let pods = Pods::new(&self.client, &self.settings.node);
        if pods.release(&ids, order, &self.metrics).await? > 0 {
            return Ok(false);
        }
        node::unmark(self).await?;
        for record in self.records.iter_mut().filter(|record| ids.contains(&record.id)) {
            tracing::info!(notice = record.id, "nothing is left of the withdrawn notice");
            record.cleared = Some(Timestamp::now());
        }
        Ok(true)
    }

    async fn write_down(&mut self) -> Result<(), ClusterError> {
        self.write(&self.records).await?;
        self.written.clone_from(&self.records);
        Ok(())
    }

    async fn write(&self, records: &[Record]) -> Result<(), ClusterError> {
        if records == self.written { Ok(()) } else { node::write(self, records).await }
    }
}
