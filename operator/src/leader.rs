//! Which of several operators works: the one that holds a Lease.
//!
//! What always holds:
//! - A holder that could not renew the Lease stops working before anybody else may take it: it counts from before it asked, and
//!   for less time than the others wait.
//! - Who takes over goes on where the status says; calls of the one before that are still under way have the names of the same
//!   operations, and writes by an old state are refused. So two that both believe to lead for a moment do no harm.
//! - One that ends gives the Lease back, so that the next does not have to wait for it to expire.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{sleep, timeout};

use crate::{error::is, observe::now};

/// The name of the Lease.
pub const LEASE: &str = "migration-operator";

/// How long the others wait for a holder that does not renew.
const EXPIRES: Duration = Duration::from_secs(15);
/// How long a holder works on without having renewed.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often it is tried.
const TRY: Duration = Duration::from_secs(2);

/// Somebody who wants to lead.
#[derive(Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    expires: Duration,
    renew_within: Duration,
    pause: Duration,
    leading: Arc<AtomicBool>,
    /// The version of the Lease as another held it, and since when it has not changed by our clock.
    seen: Option<(Option<String>, Instant)>,
}

impl Candidate {
    /// One of this name, which nobody else has. Whether it leads is in `leading`.
    pub fn new(client: Client, namespace: &str, name: String, leading: Arc<AtomicBool>) -> Self {
        let leases = Api::namespaced(client, namespace);
        Self { leases, name, expires: EXPIRES, renew_within: RENEW_WITHIN, pause: TRY, leading, seen: None }
    }

    /// The same, with everything faster: a fifteenth, for tests.
    pub fn hurried(mut self) -> Self {
        self.expires /= 15;
        self.renew_within /= 15;
        self.pause /= 15;
        self
    }

    /// Leads whenever it can, for ever. `changed` is told.
    pub async fn run(&mut self, changed: impl Fn(bool)) {
        // When the renewal began that succeeded last.
        let mut renewed: Option<Instant> = None;
        loop {
            let begun = Instant::now();
            match timeout(self.renew_within / 2, self.hold()).await {
                Ok(Ok(true)) => renewed = Some(begun),
                Ok(Ok(false)) => renewed = None,
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be renewed"),
                Err(_) => tracing::warn!("the Lease cannot be renewed: the API server does not answer"),
            }
            let leads = renewed.is_some_and(|renewed| renewed.elapsed() < self.renew_within);
            if self.leading.swap(leads, Ordering::SeqCst) != leads {
                tracing::info!(leads, name = self.name, "leadership");
                changed(leads);
            }
            sleep(self.pause).await;
        }
    }

    /// Stops leading and lets the next one begin at once.
    pub async fn release(self) {
        self.leading.store(false, Ordering::SeqCst);
        let released = async {
            let Some(mut lease) = self.leases.get_opt(LEASE).await? else { return Ok(()) };
            let Some(spec) =
                lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.name))
            else {
                return Ok(());
            };
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.leases.replace(LEASE, &PostParams::default(), &lease).await.map(drop)
        };
        match timeout(self.renew_within / 2, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the Lease is not given back, and expires"),
            Err(_) => tracing::warn!("the Lease is not given back, and expires"),
        }
    }

    /// Takes the Lease, or renews it. Gives whether it is held.
    async fn hold(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(LEASE).await? else {
            return match self.leases.create(&PostParams::default(), &self.lease(None)).await {
                Ok(_) => Ok(true),
                Err(error) if is(&error, 409) => Ok(false),
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let version = lease.metadata.resource_version.clone();
        if holder.as_ref().is_some_and(|holder| *holder != self.name) {
            // Clocks differ: only whether it changes while ours runs tells whether somebody renews it.
            let since = match &self.seen {
                Some((seen, since)) if *seen == version => *since,
                _ => Instant::now(),
            };
            self.seen = Some((version, since));
            if since.elapsed() < self.expires {
                return Ok(false);
            }
        }
        match self.leases.replace(LEASE, &PostParams::default(), &self.lease(Some(&lease))).await {
            Ok(_) => {
                self.seen = None;
                Ok(true)
            }
            Err(error) if is(&error, 409) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The Lease as this one holds it.
    fn lease(&self, before: Option<&Lease>) -> Lease {
        let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let ours = spec.holder_identity.as_ref() == Some(&self.name);
        let now = MicroTime(now());
        let changes = spec.lease_transitions.unwrap_or(0) + i32::from(!ours && before.is_some());
        let spec = LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(i32::try_from(self.expires.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: if ours { spec.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(changes),
            ..Default::default()
        };
        let resource_version = before.and_then(|lease| lease.metadata.resource_version.clone());
        Lease {
            metadata: ObjectMeta { name: Some(LEASE.to_owned()), resource_version, ..ObjectMeta::default() },
            spec: Some(spec),
        }
    }
}
