//! What the cloud says now, all of its sources together.
//!
//! Sources report what they see at every answer; whoever acts looks at the [`View`], which changes only when something
//! does. So nothing is a message that could be lost: acting is bringing the world to what the view says, again and again.
//!
//! What always holds: a notice keeps the moment at which it was first seen for as long as it is announced. It is withdrawn
//! when its source has answered without it [`ABSENCES`] times in a row; a source that does not answer withdraws nothing.
//! That is so also for what was seen before this program was started: a source that announces nothing is in the view only
//! once it has said so as often.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    notice::{Cloud, Notice, NoticeKind},
};

/// How often a source that is asked again and again has to leave a notice out before it counts as withdrawn: one answer of
/// a service in trouble is not enough to call a migration off.
pub const ABSENCES: u32 = 3;

/// Google gives that much notice of a preemption, best effort.
const PREEMPTION: SignedDuration = SignedDuration::from_secs(30);
/// Google gives that much notice of maintenance.
const MAINTENANCE: SignedDuration = SignedDuration::from_secs(60);

/// A path of a metadata service that tells of interruptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// AWS: `spot/instance-action`.
    AwsSpot,
    /// AWS: `events/recommendations/rebalance`.
    AwsRebalance,
    /// AWS: `events/maintenance/scheduled`.
    AwsMaintenance,
    /// Google Cloud: `instance/preempted`.
    GcpPreempted,
    /// Google Cloud: `instance/maintenance-event`.
    GcpMaintenance,
    /// Azure: Scheduled Events.
    AzureScheduledEvents,
}

impl Source {
    /// All sources of a cloud.
    pub fn of(cloud: Cloud) -> &'static [Self] {
        match cloud {
            Cloud::Aws => &[Self::AwsSpot, Self::AwsRebalance, Self::AwsMaintenance],
            Cloud::Gcp => &[Self::GcpPreempted, Self::GcpMaintenance],
            Cloud::Azure => &[Self::AzureScheduledEvents],
        }
    }

    /// Its name, as in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::AwsSpot => "aws-spot",
            Self::AwsRebalance => "aws-rebalance",
            Self::AwsMaintenance => "aws-maintenance",
            Self::GcpPreempted => "gcp-preempted",
            Self::GcpMaintenance => "gcp-maintenance",
            Self::AzureScheduledEvents => "azure-scheduled-events",
        }
    }

    /// A source that tells only of changes says so once.
    fn absences(self) -> u32 {
        match self {
            Self::GcpPreempted | Self::GcpMaintenance => 1,
            Self::AwsSpot | Self::AwsRebalance | Self::AwsMaintenance | Self::AzureScheduledEvents => {
                ABSENCES
            }
        }
    }
}

/// A notice, and since when it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The notice, as it was read last.
    pub notice: Notice,
    /// When it was first seen.
    pub seen: Timestamp,
    /// The same on the clock that never jumps.
    pub seen_at: Instant,
}

impl Sighting {
    /// When it happens at the earliest: as the cloud says, or else as it promises.
    pub fn deadline(&self, source: Source) -> Option<Timestamp> {
        let promised = || match (source, &self.notice.kind) {
            (Source::GcpPreempted, _) => Some(self.seen + PREEMPTION),
            (Source::GcpMaintenance, NoticeKind::Terminate) => Some(self.seen + MAINTENANCE),
            // It has begun.
            (Source::AzureScheduledEvents, _) => Some(self.seen),
            _ => None,
        };
        self.notice.deadline.or_else(promised)
    }
}

/// What is announced now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// By source; one of which it is not known yet what it announces is not there.
    pub sources: BTreeMap<Source, Vec<Sighting>>,
}

/// Where sources report.
#[derive(Clone, Debug)]
pub struct Board {
    view: watch::Sender<View>,
    /// How often a source has left a notice out, by its key.
    absent: Arc<Mutex<BTreeMap<(Source, String), u32>>>,
    metrics: Arc<Metrics>,
}

impl Board {
    /// An empty one.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { view: watch::Sender::new(View::default()), absent: Arc::default(), metrics }
    }

    /// What is announced, now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Whatever sources report is counted there.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All that a source announces now. `blind` is how long nobody had looked before: if a notice is new, that is by how
    /// much at most it was seen too late.
    pub fn report(&self, source: Source, notices: Vec<Notice>, blind: Duration) {
        self.metrics.answered(source);
        self.view.send_if_modified(|view| {
            let first = !view.sources.contains_key(&source);
            if first && notices.is_empty() && !self.is_sure(source) {
                return false;
            }
            let known = view.sources.entry(source).or_default();
            let changed = self.merge(source, known, notices, blind);
            self.metrics.announced(source, known.len());
            first || changed
        });
    }

    /// Whether a source that has never announced anything has said so often enough.
    fn is_sure(&self, source: Source) -> bool {
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        let times = absent.entry((source, String::new())).or_default();
        *times = times.saturating_add(1);
        *times >= source.absences()
    }

    fn merge(
        &self,
        source: Source,
        known: &mut Vec<Sighting>,
        notices: Vec<Notice>,
        blind: Duration,
    ) -> bool {
        let mut changed = false;
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|sighting| {
            let key = sighting.notice.key();
            if notices.iter().any(|notice| notice.key() == key) {
                absent.remove(&(source, key));
                return true;
            }
            let times = absent.entry((source, key.clone())).or_default();
            *times += 1;
            if *times < source.absences() {
                return true;
            }
            absent.remove(&(source, key.clone()));
            tracing::info!(source = source.word(), notice = key, "withdrawn");
            self.metrics.withdrawn(source);
            changed = true;
            false
        });
        for notice in notices {
            let key = notice.key();
            if let Some(sighting) = known.iter_mut().find(|sighting| sighting.notice.key() == key) {
                changed |= sighting.notice != notice;
                sighting.notice = notice;
                continue;
            }
            let seen = Timestamp::now();
            let late = notice.announced.and_then(|time| (seen - time).total(jiff::Unit::Second).ok());
            let late = late.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(blind);
            let sighting = Sighting { notice, seen, seen_at: Instant::now() };
            tracing::warn!(
                source = source.word(),
                notice = key,
                kind = sighting.notice.kind.word(),
                deadline = sighting.deadline(source).map(|time| time.to_string()),
                blind_ms = blind.as_millis() as u64,
                "announced"
            );
            self.metrics.noticed(source, &sighting.notice.kind, late.min(blind));
            known.push(sighting);
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcp;

    fn spot(time: &str) -> Notice {
        crate::aws::spot_instance_action(format!(r#"{{"action":"stop","time":"{time}"}}"#).as_bytes())
            .unwrap()
    }

    const SOON: &str = "2026-09-18T08:22:00Z";

    fn sightings(board: &Board, source: Source) -> Vec<Sighting> {
        board.view.borrow().sources.get(&source).cloned().unwrap_or_default()
    }

    #[test]
    fn a_notice_keeps_the_moment_it_was_seen_first_and_changes_nothing_when_it_is_read_again() {
        let board = Board::new(Arc::default());
        let mut watch = board.watch();
        board.report(Source::AwsSpot, vec![spot(SOON)], Duration::ZERO);
        let first = sightings(&board, Source::AwsSpot);
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        board.report(Source::AwsSpot, vec![spot(SOON)], Duration::ZERO);
        assert_eq!(sightings(&board, Source::AwsSpot), first);
        assert!(!watch.has_changed().unwrap());
    }

    #[test]
    fn a_notice_is_withdrawn_by_several_answers_in_a_row_and_not_by_fewer() {
        let board = Board::new(Arc::default());
        let report = |notices| board.report(Source::AwsSpot, notices, Duration::ZERO);
        report(vec![spot(SOON)]);
        for _ in 0..5 {
            (1..ABSENCES).for_each(|_| report(vec![]));
            assert_eq!(sightings(&board, Source::AwsSpot).len(), 1);
            report(vec![spot(SOON)]);
        }
        (0..ABSENCES).for_each(|_| report(vec![]));
        assert_eq!(sightings(&board, Source::AwsSpot), []);
    }

    #[test]
    fn one_source_says_nothing_about_the_notices_of_another() {
        let board = Board::new(Arc::default());
        board.report(Source::AwsSpot, vec![spot(SOON)], Duration::ZERO);
        for _ in 0..2 * ABSENCES {
            board.report(Source::AwsRebalance, vec![], Duration::ZERO);
        }
        assert_eq!(sightings(&board, Source::AwsSpot).len(), 1);
    }

    #[test]
    fn a_preemption_has_the_deadline_google_promises() {
        let board = Board::new(Arc::default());
        let notice = gcp::preempted(b"TRUE").unwrap();
        board.report(Source::GcpPreempted, notice.into_iter().collect(), Duration::ZERO);
        let sighting = &sightings(&board, Source::GcpPreempted)[0];
        assert_eq!(sighting.deadline(Source::GcpPreempted), Some(sighting.seen + PREEMPTION));
        board.report(Source::GcpPreempted, vec![], Duration::ZERO);
        assert_eq!(
            sightings(&board, Source::GcpPreempted),
            [],
            "a source that tells of changes says it once"
        );
    }

    #[test]
    fn a_source_that_announces_nothing_has_to_say_so_several_times_before_that_is_known() {
        let board = Board::new(Arc::default());
        let watch = board.watch();
        for _ in 1..ABSENCES {
            board.report(Source::AwsSpot, vec![], Duration::ZERO);
            assert!(!watch.has_changed().unwrap());
        }
        board.report(Source::AwsSpot, vec![], Duration::ZERO);
        assert!(watch.has_changed().unwrap());
        assert_eq!(watch.borrow().sources.len(), 1);
        board.report(Source::AwsRebalance, vec![spot(SOON)], Duration::ZERO);
        assert_eq!(watch.borrow().sources.len(), 2, "a notice is known at once");
        board.report(Source::GcpPreempted, vec![], Duration::ZERO);
        assert_eq!(watch.borrow().sources.len(), 3, "and so is what a source of changes says");
    }
}
