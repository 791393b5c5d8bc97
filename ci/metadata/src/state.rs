//! What the service tells, how it misbehaves, and what it was asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    aws::Aws,
    azure::{Azure, ScheduledEvent},
    fault::Fault,
    gcp::Gcp,
};

/// A cloud that is imitated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cloud {
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Gcp,
    /// Microsoft Azure.
    Azure,
}

/// A request and the status it was answered with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Such as `GET /latest/meta-data/spot/instance-action`.
    pub request: String,
    /// The status; 0 when no answer was given.
    pub status: u16,
}

#[derive(Debug)]
pub(crate) struct State {
    pub clouds: BTreeSet<Cloud>,
    pub fault: Option<Fault>,
    pub aws: Aws,
    pub gcp: Gcp,
    pub azure: Azure,
    pub seen: BTreeMap<Seen, u64>,
}

/// Decides what a [`crate::MetadataServer`] says. Clones are handles to the same service.
#[derive(Clone, Debug)]
pub struct Control {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
}

impl Control {
    pub(crate) fn new() -> Self {
        let state = State {
            clouds: BTreeSet::from([Cloud::Aws, Cloud::Gcp, Cloud::Azure]),
            fault: None,
            aws: Aws::default(),
            gcp: Gcp::default(),
            azure: Azure::default(),
            seen: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), changes: watch::Sender::new(0) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changes.send_modify(|number| *number += 1);
        result
    }

    /// Answers for one cloud only; the others' paths are not found.
    pub fn serve_only(&self, cloud: Cloud) {
        self.change(|state| state.clouds = BTreeSet::from([cloud]));
    }

    /// Misbehaves from now on, or not any more.
    pub fn fault(&self, fault: impl Into<Option<Fault>>) {
        self.change(|state| state.fault = fault.into());
    }

    /// AWS: announces a spot interruption (`terminate`, `stop`, `hibernate`), or withdraws it.
    pub fn aws_spot(&self, action: Option<(&str, Timestamp)>) {
        self.change(|state| state.aws.spot = action.map(|(action, time)| (action.to_owned(), time)));
    }

    /// AWS: recommends rebalancing, or not any more.
    pub fn aws_rebalance(&self, noticed: Option<Timestamp>) {
        self.change(|state| state.aws.rebalance = noticed);
    }

    /// AWS: schedules maintenance (`system-reboot`, `instance-stop`, `instance-retirement`, …), or calls it off.
    pub fn aws_maintenance(&self, id: &str, event: Option<(&str, Timestamp)>) {
        self.change(|state| match event {
            Some((code, start)) => {
                state.aws.maintenance.insert(id.to_owned(), (code.to_owned(), start));
            }
            None => {
                state.aws.maintenance.remove(id);
            }
        });
    }

    /// AWS: no token lives longer than that, whatever is asked for.
    pub fn aws_token_limit(&self, limit: Duration) {
        self.change(|state| state.aws.token_limit = Some(limit));
    }

    /// AWS: all tokens given out so far are worth nothing any more.
    pub fn aws_revoke_tokens(&self) {
        self.change(|state| state.aws.revoke());
    }

    /// Google Cloud: the machine is preempted, or is not.
    pub fn gcp_preempted(&self, preempted: bool) {
        self.change(|state| {
            state.gcp.preempted = preempted;
            state.gcp.preempted_changes += 1;
        });
    }

    /// Google Cloud: the value of `maintenance-event`; `NONE` when there is none.
    pub fn gcp_maintenance(&self, value: &str) {
        self.change(|state| {
            state.gcp.maintenance = value.to_owned();
            state.gcp.maintenance_changes += 1;
        });
    }

    /// Azure: schedules an event.
    pub fn azure_schedule(&self, event: ScheduledEvent) {
        self.change(|state| {
            state.azure.events.retain(|other| other.id != event.id);
            state.azure.events.push(event);
            state.azure.incarnation += 1;
        });
    }

    /// Azure: takes an event out of the document, as happens when it is cancelled or over.
    pub fn azure_cancel(&self, id: &str) {
        self.change(|state| {
            state.azure.events.retain(|event| event.id != id);
            state.azure.incarnation += 1;
        });
    }

    /// Azure: the name of the machine that asks.
    pub fn azure_machine(&self, name: &str) {
        self.change(|state| state.azure.machine = name.to_owned());
    }

    /// Azure: the events that clients asked to begin.
    pub fn azure_acknowledged(&self) -> Vec<String> {
        self.lock().azure.acknowledged.clone()
    }

    /// What was asked so far, and how often.
    pub fn seen(&self) -> BTreeMap<Seen, u64> {
        self.lock().seen.clone()
    }

    /// How often a path was asked for with one of these answers.
    pub fn count(&self, path: &str, status: impl Fn(u16) -> bool) -> u64 {
        let state = self.lock();
        let fits = |seen: &&Seen| seen.request.ends_with(path) && status(seen.status);
        state.seen.iter().filter(|(seen, _)| fits(seen)).map(|(_, times)| times).sum()
    }

    pub(crate) fn note(&self, request: &str, status: u16) {
        let request = request.to_owned();
        *self.lock().seen.entry(Seen { request, status }).or_default() += 1;
    }
}
