//! What the monitor has seen and done, in numbers, for Prometheus and its like.
//!
//! | | |
//! |---|---|
//! | `migration_monitor_notices_total{source,kind}` | notices that were seen |
//! | `migration_monitor_withdrawn_total{source}` | notices that were withdrawn |
//! | `migration_monitor_announced{source}` | notices that are announced now |
//! | `migration_monitor_detection_seconds{source}` | how late a notice was seen at most: how long nobody had looked before, or, where the cloud says when it announced it, since then |
//! | `migration_monitor_trigger_seconds{source}` | from when a notice was seen until everything that was there was triggered |
//! | `migration_monitor_actions_total{action}` | what was done: `trigger`, `untrigger`, `taint`, `untaint`, `cordon`, `uncordon`, `checkpoint`, `acknowledge` |
//! | `migration_monitor_failures_total{part,reason}` | what did not work: `metadata`, `kubernetes`, `agent` |
//! | `migration_monitor_answers_total{source}` | answers of the metadata service that could be understood |

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{board::Source, notice::NoticeKind};

/// Upper ends for durations: from a hanging request that is answered to a deadline of minutes.
const SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 20.0, 60.0];

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Something that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A pod was told to move.
    Trigger,
    /// A pod was told to stay.
    Untrigger,
    /// The node was marked as about to vanish.
    Taint,
    /// It is not any more.
    Untaint,
    /// The node takes no pods.
    Cordon,
    /// It does again.
    Uncordon,
    /// An application has its checkpoint.
    Checkpoint,
    /// The cloud was told that it need not wait.
    Acknowledge,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Untrigger => "untrigger",
            Self::Taint => "taint",
            Self::Untaint => "untaint",
            Self::Cordon => "cordon",
            Self::Uncordon => "uncordon",
            Self::Checkpoint => "checkpoint",
            Self::Acknowledge => "acknowledge",
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    notices: Family<Labels, Counter>,
    withdrawn: Family<Labels, Counter>,
    announced: Family<Labels, Gauge>,
    detection: Histograms,
    trigger: Histograms,
    actions: Family<Labels, Counter>,
    failures: Family<Labels, Counter>,
    answers: Family<Labels, Counter>,
    /// When each source answered last.
    last: Mutex<BTreeMap<Source, Instant>>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut new = Self {
            registry: Registry::with_prefix("migration_monitor"),
            notices: Family::default(),
            withdrawn: Family::default(),
            announced: Family::default(),
            detection: Family::new_with_constructor(seconds),
            trigger: Family::new_with_constructor(seconds),
            actions: Family::default(),
            failures: Family::default(),
            answers: Family::default(),
            last: Mutex::default(),
        };
        let all = &mut new.registry;
        all.register("notices", "Notices that were seen", new.notices.clone());
        all.register("withdrawn", "Notices that were withdrawn", new.withdrawn.clone());
        all.register("announced", "Notices that are announced now", new.announced.clone());
        let help = "How late a notice was seen at most";
        all.register_with_unit("detection", help, Unit::Seconds, new.detection.clone());
        let help = "From when a notice was seen until everything that was there was triggered";
        all.register_with_unit("trigger", help, Unit::Seconds, new.trigger.clone());
        all.register("actions", "What was done", new.actions.clone());
        all.register("failures", "What did not work", new.failures.clone());
        all.register("answers", "Answers of the metadata service that were understood", new.answers.clone());
        new
    }
}

impl Metrics {
    pub(crate) fn answered(&self, source: Source) {
        self.answers.get_or_create(&of(source)).inc();
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(source, Instant::now());
    }

    pub(crate) fn announced(&self, source: Source, how_many: usize) {
        self.announced.get_or_create(&of(source)).set(how_many as i64);
    }

    pub(crate) fn noticed(&self, source: Source, kind: &NoticeKind, late: Duration) {
        let mut labels = of(source);
        labels.push(("kind", kind.word().to_owned()));
        self.notices.get_or_create(&labels).inc();
        self.detection.get_or_create(&of(source)).observe(late.as_secs_f64());
    }

    pub(crate) fn withdrawn(&self, source: Source) {
        self.withdrawn.get_or_create(&of(source)).inc();
    }

    pub(crate) fn triggered(&self, source: Source, after: Duration) {
        self.trigger.get_or_create(&of(source)).observe(after.as_secs_f64());
    }

    pub(crate) fn did(&self, action: Action) {
        self.actions.get_or_create(&vec![("action", action.word().to_owned())]).inc();
    }

    pub(crate) fn failed(&self, part: &'static str, reason: &'static str) {
        let labels = vec![("part", part.to_owned()), ("reason", reason.to_owned())];
        self.failures.get_or_create(&labels).inc();
    }

    /// Whether each of these sources has answered within the last `patience`, and there is one.
    pub fn hears(&self, sources: &[Source], patience: Duration) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = |source| last.get(source).is_some_and(|at: &Instant| at.elapsed() <= patience);
        !sources.is_empty() && sources.iter().all(heard)
    }

    /// All of it as text.
    ///
    /// # Errors
    /// None that is known; the encoder's signature has one.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn of(source: Source) -> Labels {
    vec![("source", source.word().to_owned())]
}
