//! What is written into an application's status: functions of what was there and what is known.

use std::time::Duration as StdDuration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::Timestamp,
};

use crate::{
    api::{
        MIGRATION_HISTORY_LIMIT, MigratableApp, MigratableAppStatus, MigrationPolicy, MigrationRecord, Phase,
        migration::{Migration, MigrationStage, MigrationStrategy, Place, TargetMadeBy, TriggeredBy},
    },
    migration::since,
    trigger::Trigger,
};

/// The types of conditions.
pub mod condition {
    /// It runs, and its pod is ready.
    pub const READY: &str = "Ready";
    /// Its last checkpoint is not older than it should be.
    pub const CHECKPOINTED: &str = "Checkpointed";
    /// It is being moved.
    pub const MIGRATING: &str = "Migrating";
    /// What runs is what the template says.
    pub const UP_TO_DATE: &str = "UpToDate";
    /// It could be moved now.
    pub const MIGRATABLE: &str = "Migratable";
}

/// Sets a condition. The time of its last transition changes only with its status.
pub fn set(
    status: &mut MigratableAppStatus,
    type_: &str,
    holds: Option<bool>,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let word = match holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    // The API server refuses longer ones.
    let message = message[..message.floor_char_boundary(2000)].to_owned();
    let observed_generation = status.observed_generation;
    match status.conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(known) => {
            if known.status != word {
                known.last_transition_time = Time(whole_seconds(now));
                known.status = word.to_owned();
            }
            known.reason = reason.to_owned();
            known.message = message;
            known.observed_generation = observed_generation;
        }
        None => status.conditions.push(Condition {
            type_: type_.to_owned(),
            status: word.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: Time(whole_seconds(now)),
            observed_generation,
        }),
    }
}

/// Kubernetes keeps no parts of seconds there.
fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The status with the next state of a migration. One that ends is added to the history.
pub fn with_migration(status: &MigratableAppStatus, next: &Migration, now: Timestamp) -> MigratableAppStatus {
    let mut new = status.clone();
    let before = status.migration.as_ref().filter(|before| before.id == next.id).map(|before| before.stage);
    let ended_before = before.is_some_and(MigrationStage::is_over);
    let place = next.may_run_in();
    new.current_pod_name = place.map(|place| place.pod.clone());
    new.current_pod_mark = place.and_then(|place| place.mark.clone());
    new.current_node = place.map(|place| place.node.clone()).filter(|node| !node.is_empty());
    new.phase = Some(match next.stage {
        MigrationStage::Succeeded | MigrationStage::Cancelled => Phase::Running,
        MigrationStage::Failed if place.is_some() => Phase::Running,
        MigrationStage::Failed => Phase::Failed,
        _ => Phase::Migrating,
    });
    let stage = format!("{:?}", next.stage);
    let message = next.message.clone().unwrap_or_default();
    set(&mut new, condition::MIGRATING, Some(!next.stage.is_over()), &stage, &message, now);
    if place.is_none() {
        let message = format!("its processes are a checkpoint now; {message}");
        set(&mut new, condition::READY, Some(false), "NotRunning", message.trim_end_matches("; "), now);
    }
    if next.stage.is_over() && before != Some(next.stage) {
        // It was told to have ended in another way.
        if ended_before {
            new.migration_history.pop();
        }
        if next.stage == MigrationStage::Succeeded {
            new.generation = Some(new.generation.unwrap_or(0) + 1);
        }
        new.migration_history.push(history(next, now));
        let excess = new.migration_history.len().saturating_sub(MIGRATION_HISTORY_LIMIT);
        new.migration_history.drain(..excess);
    }
    new.migration = Some(next.clone());
    new
}

fn history(ended: &Migration, now: Timestamp) -> MigrationRecord {
    let success = ended.stage == MigrationStage::Succeeded;
    let to = ended.target.as_ref().map_or("", |target| &target.node);
    let blackout = ended.blackout_ms.map(StdDuration::from_millis);
    let took = StdDuration::from_millis(since(ended.started_at.0, now).as_millis() as u64);
    MigrationRecord {
        from_node: ended.source.node.clone(),
        to_node: if success || ended.resumed_at.is_some() { to.to_owned() } else { String::new() },
        timestamp: Time(whole_seconds(ended.started_at.0)),
        reason: ended.reason.clone(),
        duration: took.into(),
        blackout: blackout.map(Into::into),
        success,
        message: ended.message.clone(),
    }
}

/// How many migrations have failed one after the other, up to now.
pub fn failures_in_a_row(status: &MigratableAppStatus) -> u32 {
    let failed = status.migration_history.iter().rev().take_while(|record| !record.success).count();
    u32::try_from(failed).unwrap_or(u32::MAX)
}

/// Whether there is a checkpoint of the run that a status tells of, rather than of one before it.
pub fn has_checkpoint(status: &MigratableAppStatus) -> bool {
    let last = status.migration.as_ref().filter(|last| last.checkpoint_id.is_some());
    let of_this_run = last.is_some_and(|last| match (&status.current_pod_name, &last.target) {
        (None, _) => true,
        (Some(pod), Some(target)) => {
            last.resumed_at.is_some() && target.pod == *pod && target.mark == status.current_pod_mark
        }
        (Some(_), None) => false,
    });
    status.checkpoint_status.is_some() || of_this_run
}

/// The name of the next migration of an application: it follows from the one before, so that everybody who reads the same status knows
/// it before it is written down.
pub fn next_id(app: &MigratableApp) -> String {
    let uid = app.metadata.uid.as_deref().unwrap_or_default();
    let last = app.status.as_ref().and_then(|status| status.migration.as_ref());
    let hash = blake3::hash(format!("{uid}-{}", last.map_or("", |last| &last.id)).as_bytes());
    hash.to_hex()[..16].to_owned()
}

/// A migration that begins.
pub fn beginning(
    id: String,
    trigger: &Trigger,
    source: Place,
    policy: &MigrationPolicy,
    maker: Option<TargetMadeBy>,
    now: Timestamp,
) -> Migration {
    // Nothing of a pod that is gone can be dumped.
    let recovers = trigger.by == TriggeredBy::Recovery;
    // Its target would have to exist beside it.
    let without_source = maker == Some(TargetMadeBy::StatefulSet);
    let strategy = match policy.strategy() {
        strategy if (recovers || without_source) && strategy.hands_over() => MigrationStrategy::LazyStorage,
        strategy => strategy,
    };
    Migration {
        id,
        stage: MigrationStage::ChoosingTarget,
        stage_at: MicroTime(now),
        reason: trigger.reason.clone(),
        triggered_by: trigger.by,
        strategy,
        notice: trigger.notice.clone(),
        started_at: MicroTime(now),
        timeout_at: MicroTime(now + policy.migration_timeout()),
        deadline: trigger.deadline.map(MicroTime),
        source,
        target: None,
        target_made_by: maker,
        attempt: 1,
        failures: None,
        retry_at: None,
        failed_nodes: Vec::new(),
        failed_checkpoints: Vec::new(),
        operation: None,
        source_stopped: recovers.then_some(true),
        checkpoint_id: None,
        handover_id: None,
        handover_generation: None,
        target_lost: None,
        cancel_requested: None,
        dump_at: None,
        committed_at: None,
        frozen_at: None,
        resumed_at: None,
        blackout_ms: None,
        resident_at: None,
        finished_at: None,
        message: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn migration(stage: MigrationStage) -> Migration {
        let source = Place { pod: "a-0".to_owned(), node: "a".to_owned(), mark: None };
        let trigger = Trigger {
            reason: "why".to_owned(),
            by: TriggeredBy::Person,
            deadline: None,
            notice: None,
            checkpoint_only: false,
        };
        let begun = beginning("i".to_owned(), &trigger, source, &MigrationPolicy::default(), None, at(0));
        Migration { stage, ..begun }
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_transition() {
        let mut status = MigratableAppStatus::default();
        set(&mut status, condition::READY, Some(true), "Running", "", at(1));
        set(&mut status, condition::READY, Some(true), "Running", "still", at(2));
        assert_eq!((status.conditions.len(), &status.conditions[0].last_transition_time.0), (1, &at(1)));
        set(&mut status, condition::READY, Some(false), "NotRunning", "", at(3));
        assert_eq!(status.conditions[0].last_transition_time.0, at(3));
    }

    #[test]
    fn a_migration_enters_the_history_once_and_the_history_is_bounded() {
        let mut status = MigratableAppStatus::default();
        for round in 0..15 {
            let mut moved = migration(MigrationStage::Succeeded);
            moved.id = format!("i{round}");
            moved.source_stopped = Some(true);
            moved.resumed_at = Some(MicroTime(at(5)));
            moved.target = Some(Place { pod: "a-1".to_owned(), node: "b".to_owned(), mark: None });
            moved.blackout_ms = Some(350);
            status = with_migration(&status, &moved, at(10));
            status = with_migration(&status, &moved, at(11));
        }
        assert_eq!(status.generation, Some(15));
        assert_eq!(status.migration_history.len(), MIGRATION_HISTORY_LIMIT);
        assert_eq!(
            (status.current_pod_name.as_deref(), status.current_node.as_deref()),
            (Some("a-1"), Some("b"))
        );
        let record = serde_json::to_value(&status.migration_history[0]).unwrap();
        assert_eq!((&record["blackout"], &record["duration"]), (&"350ms".into(), &"10s".into()));
    }

    #[test]
    fn what_does_not_run_anywhere_is_failed_and_what_runs_on_is_not() {
        let status = MigratableAppStatus::default();
        let runs_on = with_migration(&status, &migration(MigrationStage::Failed), at(9));
        assert_eq!((runs_on.phase, runs_on.current_pod_name.as_deref()), (Some(Phase::Running), Some("a-0")));
        let stopped = Migration { source_stopped: Some(true), ..migration(MigrationStage::Failed) };
        let lost = with_migration(&status, &stopped, at(9));
        assert_eq!((lost.phase, lost.current_pod_name.as_deref()), (Some(Phase::Failed), None));
        assert_eq!(failures_in_a_row(&lost), 1);
    }
}
