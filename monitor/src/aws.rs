//! Amazon EC2's instance metadata: `spot/instance-action` and `events/recommendations/rebalance`.
//!
//! Both paths answer 404 while there is nothing to tell; only the documents themselves come here.
//! Facts from the EC2 user guide, "Spot Instance interruption notices" and "EC2 instance rebalance recommendations".

use serde::Deserialize;

use crate::notice::{Cloud, Notice, NoticeError, NoticeKind, from_json, quoted, rfc3339_time};

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
    rfc3339_time(&notice_time)?;
    Ok(notice(NoticeKind::RebalanceRecommended, None))
}

fn notice(kind: NoticeKind, deadline: Option<jiff::Timestamp>) -> Notice {
    Notice { source: Cloud::Aws, kind, deadline, event_id: None, resources: Vec::new() }
}
