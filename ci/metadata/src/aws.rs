//! Amazon EC2: a session token first (version 2 of the service, the older one is off), then documents that are not there
//! until there is something to tell.
//!
//! Facts from the EC2 user guide, "Use the Instance Metadata Service" and "Spot Instance interruption notices".

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hyper::{HeaderMap, Method, StatusCode};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use crate::reply::{Reply, bad_request, not_found, ok, text, with};

/// The longest life of a token, in seconds: six hours.
const LONGEST: u64 = 21_600;

#[derive(Debug, Default)]
pub(crate) struct Aws {
    /// What the service takes, and until when.
    tokens: BTreeMap<String, Instant>,
    issued: u64,
    /// No token lives longer, whatever is asked for.
    pub token_limit: Option<Duration>,
    /// The action, and when.
    pub spot: Option<(String, Timestamp)>,
    pub rebalance: Option<Timestamp>,
    /// Code and start of each event.
    pub maintenance: BTreeMap<String, (String, Timestamp)>,
}

impl Aws {
    pub fn answer(&mut self, method: &Method, path: &str, headers: &HeaderMap) -> Reply {
        if path == "/latest/api/token" {
            return if method == Method::PUT {
                self.token(headers)
            } else {
                text(StatusCode::METHOD_NOT_ALLOWED, "")
            };
        }
        let shown = headers.get("x-aws-ec2-metadata-token").and_then(|value| value.to_str().ok());
        let known = shown.and_then(|token| self.tokens.get(token)).is_some_and(|end| Instant::now() < *end);
        if !known {
            return text(StatusCode::UNAUTHORIZED, "401 - Unauthorized\n");
        }
        match (path, &self.spot, &self.rebalance) {
            ("/latest/meta-data/spot/instance-action", Some((action, time)), _) => {
                ok(json!({"action": action, "time": seconds(*time)}).to_string())
            }
            ("/latest/meta-data/events/recommendations/rebalance", _, Some(time)) => {
                ok(json!({"noticeTime": seconds(*time)}).to_string())
            }
            ("/latest/meta-data/events/maintenance/scheduled", ..) => ok(self.scheduled()),
            ("/latest/meta-data/instance-id", ..) => ok("i-0123456789abcdef0"),
            _ => not_found(),
        }
    }

    /// Forgets all tokens.
    pub fn revoke(&mut self) {
        self.tokens.clear();
    }

    fn token(&mut self, headers: &HeaderMap) -> Reply {
        if headers.contains_key("x-forwarded-for") {
            return text(StatusCode::FORBIDDEN, "403 - Forbidden\n");
        }
        let asked = headers.get("x-aws-ec2-metadata-token-ttl-seconds");
        let asked: Option<u64> = asked.and_then(|value| value.to_str().ok()?.parse().ok());
        let Some(life) = asked.filter(|seconds| (1..=LONGEST).contains(seconds)).map(Duration::from_secs)
        else {
            return bad_request("X-aws-ec2-metadata-token-ttl-seconds is 1 to 21600");
        };
        let life = self.token_limit.map_or(life, |limit| life.min(limit));
        self.issued += 1;
        let token = format!("token-{:08}==", self.issued);
        self.tokens.insert(token.clone(), Instant::now() + life);
        with(ok(token), "x-aws-ec2-metadata-token-ttl-seconds", &life.as_secs().to_string())
    }

    fn scheduled(&self) -> String {
        let events = self.maintenance.iter().map(|(id, (code, start))| {
            let end = *start + jiff::SignedDuration::from_mins(30);
            json!({
                "NotBefore": day_first(*start),
                "Code": code,
                "Description": "scheduled maintenance",
                "EventId": id,
                "NotAfter": day_first(end),
                "State": "active",
            })
        });
        serde_json::Value::Array(events.collect()).to_string()
    }
}

/// Such as `2026-01-02T03:04:05Z`.
fn seconds(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Such as `21 Jan 2019 09:00:43 GMT`.
fn day_first(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%-d %b %Y %H:%M:%S GMT").to_string()
}
