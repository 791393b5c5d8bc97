//! Amazon EC2's instance metadata: `spot/instance-action`, `events/recommendations/rebalance` and
//! `events/maintenance/scheduled`.
//!
//! The first two paths answer 404 while there is nothing to tell; only the documents themselves come here.
//! Facts from the EC2 user guide, "Spot Instance interruption notices", "EC2 instance rebalance recommendations" and
//! "Scheduled events for Amazon EC2 instances".

use serde::Deserialize;

use crate::notice::{Cloud, Notice, NoticeError, NoticeKind, from_json, http_time, quoted, rfc3339_time};

#[derive(Deserialize)]
struct InstanceAction {
    action: String,
    time: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rebalance {
    notice_time: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Maintenance {
    event_id: String,
    code: String,
    not_before: String,
    #[serde(default)]
    state: String,
}

/// The notice in a `spot/instance-action` document; its deadline is about two minutes after it appears.
///
/// # Errors
/// When the document is too long, is not that document, or its time is not RFC 3339.
pub fn spot_instance_action(document: &[u8]) -> Result<Notice, NoticeError> {
    let InstanceAction { action, time } = from_json(document)?;
    let kind = match action.as_str() {
        "terminate" => NoticeKind::Terminate,
        "stop" => NoticeKind::Stop,
        "hibernate" => NoticeKind::Hibernate,
        other => NoticeKind::Unrecognised(quoted(other)),
    };
    Ok(notice(kind, Some(rfc3339_time(&time)?)))
}

/// The notice in an `events/recommendations/rebalance` document. It has no deadline: the document's time is that of
/// the recommendation, and nothing is decided yet.
///
/// # Errors
/// When the document is too long, is not that document, or its time is not RFC 3339.
pub fn rebalance_recommendation(document: &[u8]) -> Result<Notice, NoticeError> {
    let Rebalance { notice_time } = from_json(document)?;
    let announced = Some(rfc3339_time(&notice_time)?);
    Ok(Notice { announced, ..notice(NoticeKind::RebalanceRecommended, None) })
}

/// The notices in an `events/maintenance/scheduled` document, in its order; those that are over or called off are none.
///
/// # Errors
/// When the document is too long, is not that document, or the time of an event is not in HTTP's format.
pub fn scheduled_maintenance(document: &[u8]) -> Result<Vec<Notice>, NoticeError> {
    let events: Vec<Maintenance> = from_json(document)?;
    let pending =
        events.into_iter().filter(|event| !matches!(event.state.as_str(), "completed" | "canceled"));
    pending
        .map(|event| {
            let kind = match event.code.as_str() {
                "instance-stop" | "instance-retirement" => NoticeKind::Stop,
                "instance-reboot" | "system-reboot" => NoticeKind::Reboot,
                // Network or power may fail for a while; the machine stays.
                "system-maintenance" => NoticeKind::Pause,
                other => NoticeKind::Unrecognised(quoted(other)),
            };
            let deadline = Some(http_time(&event.not_before)?);
            Ok(Notice { event_id: Some(event.event_id), ..notice(kind, deadline) })
        })
        .collect()
}

fn notice(kind: NoticeKind, deadline: Option<jiff::Timestamp>) -> Notice {
    Notice { source: Cloud::Aws, kind, deadline, announced: None, event_id: None, resources: Vec::new() }
}
