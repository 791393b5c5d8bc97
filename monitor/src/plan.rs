//! What is to be done, as a function of what is announced and what has been done.
//!
//! [`plan`] reads no clock and asks nobody. Its memory are [`Record`]s, which whoever acts keeps where a restart does not lose
//! them. What always holds:
//!
//! - a notice has one [`Record`] and one id from when it is seen until it is withdrawn, whoever looks and however often;
//! - the id depends on the machine and the notice alone, so that it is the same if the record was lost before it was kept;
//! - a record is withdrawn only by an answer of its own source, and never comes back: what is announced again is another notice;
//! - a deadline never moves away once it was told, unless the cloud itself says so.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    board::{Sighting, Source, View},
    notice::NoticeKind,
    policy::{Advice, Policy, Reaction},
};

/// How many records of the past are kept.
const KEPT: usize = 8;

/// A notice that was seen, and how far it has been acted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// What it is called in annotations, events and operations.
    pub id: String,
    /// Where it was seen.
    pub source: Source,
    /// What tells it from the source's other notices.
    pub key: String,
    /// What is going to happen, in a word.
    pub kind: String,
    /// The cloud's own id, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// When it was seen first.
    pub seen: Timestamp,
    /// When it happens at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// When everything that was there had been triggered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggered: Option<Timestamp>,
    /// When the cloud was told that it need not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Timestamp>,
    /// When it was not announced any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<Timestamp>,
    /// When nothing was left of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<Timestamp>,
}

/// The notice that is acted on now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its id.
    pub id: String,
    /// Where it was seen.
    pub source: Source,
    /// For people.
    pub reason: String,
    /// When it happens at the earliest.
    pub deadline: Option<Timestamp>,
    /// What to do, if it is no more than advice.
    pub advice: Option<Advice>,
}

impl Order {
    /// Whether everything has to leave the machine.
    pub fn leave(&self) -> bool {
        self.advice != Some(Advice::Checkpoint)
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// All that is known, oldest first.
    pub records: Vec<Record>,
    /// The most urgent notice that calls for something.
    pub order: Option<Order>,
    /// When a notice that calls for nothing yet is to be looked at again.
    pub look_again: Option<Timestamp>,
}

/// What is to be done about `view`, after what is in `records`. `origin` is this machine and no other, not even the same one
/// after it was replaced under the same name.
pub fn plan(view: &View, records: &[Record], origin: &str, policy: &Policy, now: Timestamp) -> Plan {
    let mut records = records.to_vec();
    for (source, sightings) in &view.sources {
        let announced = |key: &str| sightings.iter().any(|one| one.notice.key() == key);
        for record in records.iter_mut().filter(|record| record.source == *source) {
            if record.withdrawn.is_none() && !announced(&record.key) {
                record.withdrawn = Some(now);
            }
        }
        sightings.iter().for_each(|sighting| note(&mut records, *source, sighting, origin, now));
    }
    forget(&mut records);
    let mut plan = Plan { records, ..Plan::default() };
    let mut candidates = Vec::new();
    for record in plan.records.iter().filter(|record| record.withdrawn.is_none()) {
        match policy.reaction(&kind_of(&record.kind), record.deadline, now) {
            Reaction::Leave => candidates.push((None, record)),
            Reaction::Follow(advice) => candidates.push((Some(advice), record)),
            Reaction::Wait(until) => {
                plan.look_again = Some(plan.look_again.map_or(until, |earlier| earlier.min(until)));
            }
            Reaction::Ignore => {}
        }
    }
    // No advice before advice; then what happens first, where an unknown moment is now; then what was seen first.
    let most_urgent =
        candidates.into_iter().min_by_key(|(advice, record)| (*advice, record.deadline, record.seen));
    plan.order = most_urgent.map(|(advice, record)| Order {
        id: record.id.clone(),
        source: record.source,
        reason: reason(record),
        deadline: record.deadline,
        advice,
    });
    plan
}

/// Enters what is seen.
fn note(records: &mut Vec<Record>, source: Source, sighting: &Sighting, origin: &str, now: Timestamp) {
    let key = sighting.notice.key();
    let deadline = sighting.deadline(source);
    let mut same = records.iter_mut().filter(|record| record.source == source && record.key == key);
    if let Some(record) = same.find(|record| record.withdrawn.is_none()) {
        record.deadline = match sighting.notice.deadline {
            // The cloud may move it.
            Some(said) => Some(said),
            // It has begun; from then on that does not change.
            None if source == Source::AzureScheduledEvents => record.deadline.into_iter().chain([now]).min(),
            // A promise of the documentation counts from when the notice was seen first.
            None => record.deadline.into_iter().chain(deadline).min(),
        };
        return;
    }
    let before = records.iter().filter(|record| record.source == source && record.key == key).count();
    records.push(Record {
        id: id(origin, source, &sighting.notice.kind, &key, before),
        source,
        key,
        kind: kind_word(&sighting.notice.kind),
        event: sighting.notice.event_id.clone(),
        seen: sighting.seen,
        deadline,
        triggered: None,
        acknowledged: None,
        withdrawn: None,
        cleared: None,
    });
}

/// Drops the oldest of those that nothing is left of.
fn forget(records: &mut Vec<Record>) {
    records.sort_by_key(|record| record.seen);
    let mut too_many = records.len().saturating_sub(KEPT);
    records.retain(|record| {
        let drop = too_many > 0 && record.cleared.is_some();
        too_many -= usize::from(drop);
        !drop
    });
}

/// Such as `aws-spot-terminate-3f9c2a1b77d0`.
fn id(origin: &str, source: Source, kind: &NoticeKind, key: &str, before: usize) -> String {
    let hash = blake3::hash(format!("{origin}\n{}\n{key}\n{before}", source.word()).as_bytes()).to_hex();
    let short = hash.as_str().get(..12).unwrap_or_default();
    format!("{}-{}-{short}", source.word(), kind.word())
}

fn reason(record: &Record) -> String {
    let what = match kind_of(&record.kind) {
        NoticeKind::Terminate => "the machine is taken away".to_owned(),
        NoticeKind::Stop => "the machine is stopped".to_owned(),
        NoticeKind::Hibernate => "the machine is hibernated".to_owned(),
        NoticeKind::RebalanceRecommended => "the machine is likely to be interrupted".to_owned(),
        NoticeKind::Reboot => "the machine is rebooted".to_owned(),
        NoticeKind::Redeploy => "the machine is moved to other hardware".to_owned(),
        NoticeKind::Pause => "the machine is paused".to_owned(),
        NoticeKind::Unrecognised(word) => format!("the cloud announces `{word}`"),
    };
    match record.deadline {
        Some(deadline) => format!("{what}, not before {deadline} ({})", record.source.word()),
        None => format!("{what} ({})", record.source.word()),
    }
}

const KINDS: [NoticeKind; 7] = [
    NoticeKind::Terminate,
    NoticeKind::Stop,
    NoticeKind::Hibernate,
    NoticeKind::RebalanceRecommended,
    NoticeKind::Reboot,
    NoticeKind::Redeploy,
    NoticeKind::Pause,
];

fn kind_word(kind: &NoticeKind) -> String {
    match kind {
        NoticeKind::Unrecognised(word) => format!("unrecognised:{word}"),
        other => other.word().to_owned(),
    }
}

fn kind_of(word: &str) -> NoticeKind {
    let known = KINDS.into_iter().find(|kind| kind.word() == word);
    known.unwrap_or_else(|| {
        NoticeKind::Unrecognised(word.strip_prefix("unrecognised:").unwrap_or(word).to_owned())
    })
}
