//! Targets that a controller makes: which pod each try is to have.
//!
//! What always holds: names and marks follow from the migration's id and the number of the try, so that the webhook gives a pod the
//! right one before it is written down, and no two pods get the same.

use super::decide::pod_name;
use crate::api::migration::{Migration, MigrationStage, Place, TargetMadeBy};

/// The target of the try with this number.
pub fn owner_made(maker: TargetMadeBy, source: &str, migration: &str, attempt: u32) -> Place {
    let (pod, mark) = match maker {
        TargetMadeBy::ReplicaSet => (pod_name(source, migration, attempt), None),
        TargetMadeBy::StatefulSet => (source.to_owned(), Some(format!("{migration}-{attempt}"))),
    };
    Place { pod, node: String::new(), mark }
}

/// What a pod that the controller makes now is to be: the first of these that there is none of. None when the application comes back
/// to where it was.
pub fn next_targets(written: &Migration, maker: TargetMadeBy) -> Vec<Place> {
    let of_try = |attempt: u32| owner_made(maker, &written.source.pod, &written.id, attempt);
    let following = of_try(written.attempt + 1);
    let target = written.target.as_ref().filter(|_| !was_asked(written));
    match (maker, written.stage, target) {
        // The pod before is gone, or could not be created.
        (TargetMadeBy::StatefulSet, MigrationStage::ChoosingTarget, _) if written.source_has_stopped() => {
            vec![of_try(written.attempt)]
        }
        (TargetMadeBy::StatefulSet, MigrationStage::Preparing, Some(target)) => vec![target.clone()],
        // What is written down is gone, and the next try will be another.
        (TargetMadeBy::StatefulSet, ..) => vec![following],
        (TargetMadeBy::ReplicaSet, ..) if written.returns() => Vec::new(),
        (TargetMadeBy::ReplicaSet, _, Some(target)) => vec![target.clone(), following],
        (TargetMadeBy::ReplicaSet, _, None) if written.target.is_some() => vec![following],
        (TargetMadeBy::ReplicaSet, _, None) => vec![of_try(written.attempt), following],
    }
}

/// Whether the target may have been asked to restore: another pod must not be taken for it, nor get what it was asked.
pub(super) fn was_asked(written: &Migration) -> bool {
    match written.stage {
        MigrationStage::Restoring | MigrationStage::Filling | MigrationStage::TakingBack => true,
        // It has failed to, and was kept for this try.
        MigrationStage::Preparing => {
            written.source_has_stopped()
                && written.target.as_ref().is_some_and(|target| {
                    let new = target_of(written, "");
                    (&new.pod, &new.mark) != (&target.pod, &target.mark)
                })
        }
        _ => false,
    }
}

/// The target of this try; `node` is where it goes if that is the operator's to say.
pub(super) fn target_of(written: &Migration, node: &str) -> Place {
    let Migration { id, attempt, source, .. } = written;
    match written.target_made_by {
        None => Place { pod: pod_name(&source.pod, id, *attempt), node: node.to_owned(), mark: None },
        Some(maker) => owner_made(maker, &source.pod, id, *attempt),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(change: serde_json::Value) -> Migration {
        let mut value = json!({
            "id": "0123456789abcdef", "stage": "Preparing", "stageAt": "2026-01-01T00:00:00Z", "reason": "test",
            "triggeredBy": "Person", "strategy": "full", "startedAt": "2026-01-01T00:00:00Z",
            "timeoutAt": "2026-01-01T00:01:00Z", "source": {"pod": "db-0", "node": "a"}, "attempt": 3,
        });
        for (key, change) in change.as_object().unwrap() {
            value[key] = change.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_replica_sets_pods_have_the_names_of_this_try_and_the_next() {
        let names = |written: &Migration| -> Vec<String> {
            next_targets(written, TargetMadeBy::ReplicaSet).into_iter().map(|place| place.pod).collect()
        };
        let choosing = written(json!({"stage": "ChoosingTarget"}));
        assert_eq!(names(&choosing), ["db-0-m01234567-3", "db-0-m01234567-4"]);
        // A dump that failed has counted, and the target of the try before is still the target.
        let kept = written(json!({"target": {"pod": "db-0-m01234567-1", "node": "b"}}));
        assert_eq!(names(&kept), ["db-0-m01234567-1", "db-0-m01234567-4"]);
        for stage in ["Restoring", "Filling", "TakingBack"] {
            let may_have_run = json!({"stage": stage, "target": {"pod": "db-0-m01234567-1", "node": "b"}});
            assert_eq!(names(&written(may_have_run)), ["db-0-m01234567-4"]);
        }
        let returns = written(json!({"target": {"pod": "db-0", "node": "a"}}));
        assert_eq!(names(&returns), Vec::<String>::new());
    }

    #[test]
    fn a_stateful_sets_pods_are_told_apart_by_the_try_they_are_for() {
        let mark = |written: &Migration| {
            let mut places = next_targets(written, TargetMadeBy::StatefulSet);
            assert_eq!((places.len(), places[0].pod.as_str()), (1, "db-0"));
            places.remove(0).mark.unwrap()
        };
        let target = json!({"pod": "db-0", "node": "", "mark": "0123456789abcdef-2"});
        assert_eq!(mark(&written(json!({"target": target}))), "0123456789abcdef-2");
        assert_eq!(mark(&written(json!({"stage": "Restoring", "target": target}))), "0123456789abcdef-4");
        let stopped = json!({"stage": "ChoosingTarget", "sourceStopped": true});
        assert_eq!(mark(&written(stopped)), "0123456789abcdef-3");
        assert_eq!(mark(&written(json!({"stage": "Dumping"}))), "0123456789abcdef-4");
    }
}
