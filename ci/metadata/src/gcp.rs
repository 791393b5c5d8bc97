//! Google Compute Engine: plain-text values with an `ETag`, and requests that wait until a value changes.
//!
//! Facts from the Compute Engine documentation, "View and query VM metadata" (`wait_for_change`, `last_etag`,
//! `timeout_sec`) and "Query the metadata server for maintenance event notices".

use std::time::Duration;

use hyper::{HeaderMap, StatusCode, Uri};

use crate::{
    query::{number, parameter},
    reply::{Reply, bad_request, not_found, ok, text, with},
};

/// How long a request waits that does not say.
const PATIENCE: u64 = 3_600;

#[derive(Debug)]
pub(crate) struct Gcp {
    pub preempted: bool,
    pub maintenance: String,
    /// Grows with every change of either.
    pub preempted_changes: u64,
    pub maintenance_changes: u64,
}

impl Default for Gcp {
    fn default() -> Self {
        Self {
            preempted: false,
            maintenance: "NONE".to_owned(),
            preempted_changes: 0,
            maintenance_changes: 0,
        }
    }
}

/// An answer, or until when to wait for something to change.
pub(crate) enum Answer {
    Now(Reply),
    /// The value's present tag, how long to wait for another one, and the answer if none comes.
    Wait(String, Duration, Reply),
}

impl Gcp {
    pub fn answer(&self, uri: &Uri, headers: &HeaderMap) -> Answer {
        let flavored = headers.get("metadata-flavor").is_some_and(|value| value == "Google");
        let reply = |reply| Answer::Now(with(reply, "metadata-flavor", "Google"));
        if !flavored {
            return reply(text(StatusCode::FORBIDDEN, "Missing Metadata-Flavor:Google header.\n"));
        }
        let (value, changes) = match uri.path() {
            "/" => return reply(ok("computeMetadata/\n")),
            "/computeMetadata/v1/instance/preempted" => {
                (if self.preempted { "TRUE" } else { "FALSE" }, self.preempted_changes)
            }
            "/computeMetadata/v1/instance/maintenance-event" => {
                (self.maintenance.as_str(), self.maintenance_changes)
            }
            _ => return reply(not_found()),
        };
        let tag = format!("{:016x}", (changes + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let present = with(with(ok(value.to_owned()), "etag", &tag), "metadata-flavor", "Google");
        let waits = parameter(uri, "wait_for_change").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let known = parameter(uri, "last_etag").is_none_or(|last| last == tag);
        match number(uri, "timeout_sec", PATIENCE) {
            _ if !waits || !known => Answer::Now(present),
            Some(seconds) => Answer::Wait(tag, Duration::from_secs(seconds), present),
            None => reply(bad_request("timeout_sec is a number")),
        }
    }
}
