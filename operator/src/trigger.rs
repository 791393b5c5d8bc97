//! What the annotations on a pod ask for.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use crate::api::{REASON_ANNOTATION, TRIGGER_ANNOTATION, TRIGGER_REQUESTED, migration::TriggeredBy};

/// Annotation: `monitor`, if a machine asks.
pub const TRIGGERED_BY_ANNOTATION: &str = "migration.io/triggered-by";
/// Annotation: when the machine goes away.
pub const DEADLINE_ANNOTATION: &str = "migration.io/deadline";
/// Annotation: the name of the notice; the same notice twice is one trigger.
pub const NOTICE_ANNOTATION: &str = "migration.io/notice";
/// Annotation: what a rebalance recommendation advises, `checkpoint` or `migrate`.
pub const ADVICE_ANNOTATION: &str = "migration.io/advice";

/// Annotation on a MigratableApp: `requested` has what failed last tried again.
pub const RETRY_ANNOTATION: &str = "migration.io/retry";
/// Annotation on a MigratableApp: `requested` has the migration that is under way cancelled.
pub const CANCEL_ANNOTATION: &str = "migration.io/cancel";
/// Annotation on a MigratableApp: `requested` has the application started anew, as the template is now, after a last checkpoint.
pub const RESTART_ANNOTATION: &str = "migration.io/restart";
/// Annotation on a MigratableApp: the pod an application was moved from is kept.
pub const PRESERVE_ANNOTATION: &str = "migration.io/debug-preserve-source-pod";

/// All annotations of a trigger; they are removed together once it is written down.
pub const ANNOTATIONS: [&str; 6] = [
    TRIGGER_ANNOTATION,
    REASON_ANNOTATION,
    TRIGGERED_BY_ANNOTATION,
    DEADLINE_ANNOTATION,
    NOTICE_ANNOTATION,
    ADVICE_ANNOTATION,
];

/// Somebody wants an application moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Why.
    pub reason: String,
    /// Who asks.
    pub by: TriggeredBy,
    /// When the machine goes away, if it does.
    pub deadline: Option<Timestamp>,
    /// The notice's name.
    pub notice: Option<String>,
    /// A checkpoint is enough.
    pub checkpoint_only: bool,
}

/// The trigger in a pod's annotations, if there is one.
pub fn of(annotations: &BTreeMap<String, String>) -> Option<Trigger> {
    let value = |name: &str| annotations.get(name).map(String::as_str).filter(|value| !value.is_empty());
    if value(TRIGGER_ANNOTATION) != Some(TRIGGER_REQUESTED) {
        return None;
    }
    let by = match value(TRIGGERED_BY_ANNOTATION) {
        Some("monitor") => TriggeredBy::Monitor,
        _ => TriggeredBy::Person,
    };
    Some(Trigger {
        reason: value(REASON_ANNOTATION).unwrap_or("requested").to_owned(),
        by,
        deadline: value(DEADLINE_ANNOTATION).and_then(|text| text.parse().ok()),
        notice: value(NOTICE_ANNOTATION).map(str::to_owned),
        checkpoint_only: by == TriggeredBy::Monitor && value(ADVICE_ANNOTATION) == Some("checkpoint"),
    })
}

/// Whether an annotation is set to `requested`, or, for switches, to `true`.
pub fn is_set(annotations: &BTreeMap<String, String>, name: &str) -> bool {
    annotations.get(name).is_some_and(|value| value == TRIGGER_REQUESTED || value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_person_needs_one_annotation_and_a_monitor_says_more() {
        let person = of(&annotations(&[(TRIGGER_ANNOTATION, "requested")])).unwrap();
        assert_eq!(
            (person.by, person.deadline, person.reason.as_str()),
            (TriggeredBy::Person, None, "requested")
        );
        let monitor = of(&annotations(&[
            (TRIGGER_ANNOTATION, "requested"),
            (REASON_ANNOTATION, "spot-interruption"),
            (TRIGGERED_BY_ANNOTATION, "monitor"),
            (DEADLINE_ANNOTATION, "2026-01-02T03:04:05Z"),
            (NOTICE_ANNOTATION, "n1"),
        ]))
        .unwrap();
        assert_eq!(monitor.by, TriggeredBy::Monitor);
        assert_eq!(monitor.deadline, Some("2026-01-02T03:04:05Z".parse().unwrap()));
        assert!(!monitor.checkpoint_only);
    }

    #[test]
    fn anything_but_a_request_is_none() {
        assert_eq!(of(&annotations(&[(TRIGGER_ANNOTATION, "done")])), None);
        assert_eq!(of(&annotations(&[(REASON_ANNOTATION, "because")])), None);
        // A date nobody can read does not keep an application from being moved.
        let odd =
            of(&annotations(&[(TRIGGER_ANNOTATION, "requested"), (DEADLINE_ANNOTATION, "soon")])).unwrap();
        assert_eq!(odd.deadline, None);
    }
}
