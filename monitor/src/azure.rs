//! Azure's Scheduled Events document.
//!
//! It speaks of every machine of the scale set or availability set; [`Notice::resources`] names the ones an event is
//! about, and the caller picks its own. An event that has started has an empty `NotBefore` and so no deadline.
//! Facts from "Azure Metadata Service: Scheduled Events for Linux VMs".

use serde::Deserialize;

use crate::notice::{Cloud, Notice, NoticeError, NoticeKind, from_json, http_time, quoted};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_id: String,
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    not_before: String,
}

/// The notices in a Scheduled Events document, in its order; none when nothing is scheduled.
///
/// # Errors
/// When the document is too long, is not that document, or a time in it is not in HTTP's format.
pub fn scheduled_events(document: &[u8]) -> Result<Vec<Notice>, NoticeError> {
    let Document { events } = from_json(document)?;
    events.into_iter().map(notice).collect()
}

fn notice(event: Event) -> Result<Notice, NoticeError> {
    let kind = match event.event_type.as_str() {
        "Preempt" | "Terminate" => NoticeKind::Terminate,
        "Reboot" => NoticeKind::Reboot,
        "Redeploy" => NoticeKind::Redeploy,
        "Freeze" => NoticeKind::Pause,
        other => NoticeKind::Unrecognised(quoted(other)),
    };
    let deadline = match event.not_before.as_str() {
        "" => None,
        time => Some(http_time(time)?),
    };
    Ok(Notice {
        source: Cloud::Azure,
        kind,
        deadline,
        announced: None,
        event_id: Some(event.event_id),
        resources: event.resources,
    })
}
