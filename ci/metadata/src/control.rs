//! The service's remote control, for people with `curl`.
//!
//! | request | |
//! |---|---|
//! | `POST /control/aws/spot?action=terminate&in=120` | a spot interruption (`terminate`, `stop`, `hibernate`) in so many seconds |
//! | `POST /control/aws/rebalance` | a rebalance recommendation |
//! | `POST /control/aws/maintenance?id=e1&code=system-reboot&in=600` | scheduled maintenance |
//! | `POST /control/gcp/preempted` | the machine is preempted |
//! | `POST /control/gcp/maintenance?event=TERMINATE_ON_HOST_MAINTENANCE` | the value of `maintenance-event` |
//! | `POST /control/azure/event?id=e1&type=Preempt&in=30` | an event about the machine that asks |
//! | `POST /control/fault?kind=slow&ms=3000&for=20` | misbehave for so many seconds: `down`, `slow`, `garbage`, `unauthorized`, `unavailable`, `drop`, `silent` |
//! | `GET /control/requests` | what was asked, and how often |
//!
//! `DELETE` of the same path withdraws what was announced.

use std::time::Duration;

use hyper::{Method, StatusCode, Uri};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    azure::ScheduledEvent,
    fault::Fault,
    query::{number, parameter},
    reply::{Reply, bad_request, not_found, ok, text},
    state::Control,
};

/// Answers a request to `/control/…`.
pub(crate) fn answer(control: &Control, method: &Method, uri: &Uri) -> Reply {
    let announce = match *method {
        Method::POST => true,
        Method::DELETE => false,
        Method::GET if uri.path() == "/control/requests" => return ok(requests(control)),
        _ => return text(StatusCode::METHOD_NOT_ALLOWED, ""),
    };
    let word = |name, default| parameter(uri, name).unwrap_or(default);
    let later = |default| {
        Some(Timestamp::now() + SignedDuration::from_secs(number(uri, "in", default)?.min(1 << 32) as i64))
    };
    let Some(two_minutes) = later(120) else { return bad_request("`in` is a number of seconds") };
    let id = word("id", "rehearsal-1");
    match uri.path() {
        "/control/aws/spot" => {
            control.aws_spot(announce.then(|| (word("action", "terminate"), two_minutes)));
        }
        "/control/aws/rebalance" => control.aws_rebalance(announce.then(Timestamp::now)),
        "/control/aws/maintenance" => {
            control.aws_maintenance(id, announce.then(|| (word("code", "system-reboot"), two_minutes)));
        }
        "/control/gcp/preempted" => control.gcp_preempted(announce),
        "/control/gcp/maintenance" => {
            let event = word("event", "TERMINATE_ON_HOST_MAINTENANCE");
            control.gcp_maintenance(if announce { event } else { "NONE" });
        }
        "/control/azure/event" if announce => {
            let machine = control.lock().azure.machine.clone();
            control.azure_schedule(ScheduledEvent {
                id: id.to_owned(),
                kind: word("type", "Preempt").to_owned(),
                resources: vec![machine],
                not_before: later(30),
            });
        }
        "/control/azure/event" => control.azure_cancel(id),
        "/control/fault" if announce => return misbehave(control, uri),
        "/control/fault" => control.fault(None),
        _ => return not_found(),
    }
    ok("")
}

fn misbehave(control: &Control, uri: &Uri) -> Reply {
    let (Some(ms), Some(seconds)) = (number(uri, "ms", 3_000), number(uri, "for", 20)) else {
        return bad_request("`ms` and `for` are numbers");
    };
    let fault = match parameter(uri, "kind").unwrap_or_default() {
        "down" => Fault::Down,
        "slow" => Fault::Slow(Duration::from_millis(ms)),
        "garbage" => Fault::Garbage,
        "unauthorized" => Fault::Status(StatusCode::UNAUTHORIZED),
        "unavailable" => Fault::Status(StatusCode::SERVICE_UNAVAILABLE),
        "drop" => Fault::Drop,
        "silent" => Fault::Silent,
        _ => return bad_request("kind is down, slow, garbage, unauthorized, unavailable, drop or silent"),
    };
    control.fault(fault);
    // While nobody listens, nobody can be told to listen again.
    let control = control.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        control.fault(None);
    });
    ok("")
}

fn requests(control: &Control) -> String {
    let seen = control.seen();
    let lines = seen
        .iter()
        .map(|(seen, times)| json!({"request": seen.request, "status": seen.status, "times": times}));
    serde_json::Value::Array(lines.collect()).to_string()
}
