//! Azure's Scheduled Events: one document about all machines of a set, with an incarnation that grows with every change, and
//! requests to begin an event early.
//!
//! Facts from "Azure Metadata Service: Scheduled Events for Linux VMs".

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use jiff::{Timestamp, fmt::rfc2822};
use serde_json::{Value, json};

use crate::{
    query::parameter,
    reply::{Reply, bad_request, not_found, ok, text},
};

/// An event of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledEvent {
    /// Its id.
    pub id: String,
    /// `Preempt`, `Reboot`, `Redeploy`, `Freeze` or `Terminate`.
    pub kind: String,
    /// Names of the machines it is about.
    pub resources: Vec<String>,
    /// When it may begin; `None` once it has.
    pub not_before: Option<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct Azure {
    pub machine: String,
    pub events: Vec<ScheduledEvent>,
    pub incarnation: u64,
    /// Events that somebody asked to begin, in order.
    pub acknowledged: Vec<String>,
}

impl Default for Azure {
    fn default() -> Self {
        Self { machine: "node_0".to_owned(), events: Vec::new(), incarnation: 1, acknowledged: Vec::new() }
    }
}

impl Azure {
    pub fn answer(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Reply {
        if headers.get("metadata").is_none_or(|value| value != "true") {
            return bad_request("Required metadata header not specified");
        }
        if parameter(uri, "api-version").is_none() {
            return bad_request("api-version is missing");
        }
        match (uri.path(), method) {
            ("/metadata/scheduledevents", &Method::GET) => ok(self.document()),
            ("/metadata/scheduledevents", &Method::POST) => self.start(body),
            ("/metadata/instance/compute/name", &Method::GET) => ok(self.machine.clone()),
            ("/metadata/scheduledevents" | "/metadata/instance/compute/name", _) => {
                text(StatusCode::METHOD_NOT_ALLOWED, "")
            }
            _ => not_found(),
        }
    }

    fn document(&self) -> String {
        let events = self.events.iter().map(|event| {
            let status = if event.not_before.is_some() { "Scheduled" } else { "Started" };
            json!({
                "EventId": event.id,
                "EventType": event.kind,
                "ResourceType": "VirtualMachine",
                "Resources": event.resources,
                "EventStatus": status,
                "NotBefore": event.not_before.and_then(http_time).unwrap_or_default(),
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            })
        });
        json!({"DocumentIncarnation": self.incarnation, "Events": events.collect::<Vec<_>>()}).to_string()
    }

    /// `{"StartRequests": [{"EventId": "…"}]}`
    fn start(&mut self, body: &[u8]) -> Reply {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let ids = asked["StartRequests"].as_array().into_iter().flatten();
        let ids: Vec<&str> = ids.filter_map(|one| one["EventId"].as_str()).collect();
        let known = |id: &&str| self.events.iter().any(|event| event.id == *id);
        if ids.is_empty() || !ids.iter().all(known) {
            return bad_request("StartRequests names no event that is scheduled");
        }
        for id in ids {
            self.acknowledged.push(id.to_owned());
            self.events.iter_mut().filter(|event| event.id == id).for_each(|event| event.not_before = None);
        }
        self.incarnation += 1;
        ok("")
    }
}

fn http_time(time: Timestamp) -> Option<String> {
    rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()
}
