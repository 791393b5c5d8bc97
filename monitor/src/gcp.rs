//! Google Compute Engine's metadata: the plain-text values `instance/preempted` and `instance/maintenance-event`.
//!
//! Neither says when; the documentation promises 30 seconds from the notice of a preemption, best effort.

use crate::notice::{Cloud, Notice, NoticeError, NoticeKind, bounded, quoted};

/// The notice in a value of `instance/preempted`, if it is one: `TRUE` is, `FALSE` is not.
///
/// # Errors
/// When the value is anything else.
pub fn preempted(value: &[u8]) -> Result<Option<Notice>, NoticeError> {
    match word(value)? {
        "TRUE" => Ok(Some(notice(NoticeKind::Terminate))),
        "FALSE" => Ok(None),
        other => Err(NoticeError::UnexpectedValue(quoted(other))),
    }
}

/// The notice in a value of `instance/maintenance-event`, if it is one: everything but `NONE` is.
///
/// # Errors
/// When the value is empty, too long or not text.
pub fn maintenance_event(value: &[u8]) -> Result<Option<Notice>, NoticeError> {
    let kind = match word(value)? {
        "NONE" => return Ok(None),
        "TERMINATE_ON_HOST_MAINTENANCE" => NoticeKind::Terminate,
        "MIGRATE_ON_HOST_MAINTENANCE" => NoticeKind::Pause,
        "" => return Err(NoticeError::UnexpectedValue(String::new())),
        other => NoticeKind::Unrecognised(quoted(other)),
    };
    Ok(Some(notice(kind)))
}

fn word(value: &[u8]) -> Result<&str, NoticeError> {
    let bytes = bounded(value)?;
    std::str::from_utf8(bytes)
        .map(|text| text.trim_ascii())
        .map_err(|_| NoticeError::UnexpectedValue(quoted(&String::from_utf8_lossy(bytes))))
}

fn notice(kind: NoticeKind) -> Notice {
    Notice {
        source: Cloud::Gcp,
        kind,
        deadline: None,
        announced: None,
        event_id: None,
        resources: Vec::new(),
    }
}
