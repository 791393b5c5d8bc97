//! A store that misbehaves on purpose, to prove that nothing above it ever believes a store too much.
//!
//! [`FaultyStore`] stands before another store and, by a [`FaultPlan`], breaks these promises of
//! [`ObjectStore`](super::ObjectStore):
//! - an operation may fail with `Unavailable`, `Denied` or `Other` though trying once more would have helped: nothing
//!   is retried here;
//! - an operation may come late or hang for long;
//! - a body may be shorter than what was asked for, announced by `Truncated` or by nothing;
//! - a bit of a body may be another than the one stored;
//! - a put may be reported `Unavailable` though it was done, without being read back;
//! - for some time everything may be `Unavailable`.
//!
//! What it never does: overwrite an object, give bytes of another object or from another place of it, say that a put or
//! a delete was done which was not, leave something out of a listing, or do anything it was not asked to do.
//!
//! What happens to an operation depends on the plan's seed and the operation's number alone, outages excepted, which
//! depend on the time. A caller that asks for the same things in the same order meets the same faults.

mod dice;
mod plan;

use std::{
    collections::BTreeMap,
    env,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use self::dice::{BodyFault, ErrorKind, Fate, PutFault};
pub use self::plan::{FaultPlan, InvalidPlan, Outage, Stall};
use super::{ObjectMeta, ObjectStore, StoreError};

/// Names the plan for every store that [`open`](super::open) opens.
const VARIABLE: &str = "MIGRATION_STORE_FAULTS";

/// A store that misbehaves by a plan.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    plan: FaultPlan,
    opened: Instant,
    operations: AtomicU64,
    injected: Mutex<BTreeMap<Fault, u64>>,
}

/// What an operation met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// It failed as `Unavailable`.
    Unavailable,
    /// It failed as `Denied`.
    Denied,
    /// It failed as `Other`.
    Other,
    /// It failed because of the outage.
    Outage,
    /// It hung before it went on.
    Stall,
    /// It failed as `Truncated`.
    Truncated,
    /// It gave a short body as if it were whole.
    Shortened,
    /// It gave a body with a wrong bit.
    Flipped,
    /// It put the object, and failed.
    PutHidden,
    /// It failed in the same words, and did not put the object.
    PutLost,
}

/// `store` as it is, or behind a [`FaultyStore`] when the environment holds a plan.
///
/// # Errors
/// When what it holds is no plan: a test that believes to inject faults must not run without.
pub(super) fn from_environment(store: Arc<dyn ObjectStore>) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let Some(text) = env::var_os(VARIABLE).filter(|text| !text.is_empty()) else { return Ok(store) };
    let plan = text.to_string_lossy().parse::<FaultPlan>().map_err(|error| StoreError::Other {
        store: store.describe(),
        reason: format!("{VARIABLE} is not understood: {error}"),
    })?;
    tracing::warn!(store = store.describe(), %plan, "{VARIABLE} is set: the store will misbehave on purpose");
    Ok(Arc::new(FaultyStore::new(store, plan)))
}

impl FaultyStore {
    /// Misbehaves before `inner` by `plan`. The time of an outage counts from here.
    pub fn new(inner: Arc<dyn ObjectStore>, plan: FaultPlan) -> Self {
        Self {
            inner,
            plan,
            opened: Instant::now(),
            operations: AtomicU64::new(0),
            injected: Mutex::default(),
        }
    }

    /// How often each fault was met so far; latency is not counted.
    pub fn injected(&self) -> BTreeMap<Fault, u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Fault, u64>> {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, fault: Fault) {
        *self.lock().entry(fault).or_default() += 1;
    }

    /// What every operation goes through first: numbers it, makes it late, lets it fail. Gives the rest of its fate.
    async fn meet(&self) -> Result<Fate, StoreError> {
        let fate = Fate::of(&self.plan, self.operations.fetch_add(1, Ordering::Relaxed));
        if fate.stalled {
            self.count(Fault::Stall);
        }
        if !fate.delay.is_zero() {
            sleep(fate.delay).await;
        }
        if self.plan.outage.is_some_and(|outage| outage.contains(self.opened.elapsed())) {
            self.count(Fault::Outage);
            return Err(self.unavailable("an injected outage"));
        }
        let (store, reason) = (self.describe(), "an injected error".to_owned());
        match fate.error {
            None => Ok(fate),
            Some(ErrorKind::Unavailable) => {
                self.count(Fault::Unavailable);
                Err(StoreError::Unavailable { store, reason })
            }
            Some(ErrorKind::Denied) => {
                self.count(Fault::Denied);
                Err(StoreError::Denied { store, reason })
            }
            Some(ErrorKind::Other) => {
                self.count(Fault::Other);
                Err(StoreError::Other { store, reason })
            }
        }
    }

    fn unavailable(&self, reason: &str) -> StoreError {
        StoreError::Unavailable { store: self.describe(), reason: reason.to_owned() }
    }

    /// What becomes of a body on its way.
    fn carry(&self, key: &str, body: Bytes, fate: &Fate) -> Result<Bytes, StoreError> {
        // There is nothing to cut off or to change.
        if body.is_empty() {
            return Ok(body);
        }
        match fate.body {
            None => Ok(body),
            Some(BodyFault::Truncated(share)) => {
                self.count(Fault::Truncated);
                let (got, wanted) = (share.of(body.len()) as u64, body.len() as u64);
                Err(StoreError::Truncated { store: self.describe(), key: key.to_owned(), got, wanted })
            }
            Some(BodyFault::Shortened(share)) => {
                self.count(Fault::Shortened);
                Ok(body.slice(..share.of(body.len())))
            }
            Some(BodyFault::Flipped(share)) => {
                self.count(Fault::Flipped);
                let mut body = Vec::from(body);
                let bit = share.of(body.len() * 8);
                body[bit / 8] ^= 1 << (bit % 8);
                Ok(body.into())
            }
        }
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let fate = self.meet().await?;
        self.carry(key, self.inner.get(key, limit).await?, &fate)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let fate = self.meet().await?;
        self.carry(key, self.inner.get_range(key, offset, length).await?, &fate)
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        match self.meet().await?.put {
            None => self.inner.put_new(key, body).await,
            Some(PutFault::Hidden) => {
                self.inner.put_new(key, body).await?;
                self.count(Fault::PutHidden);
                Err(self.unavailable("an injected loss of the answer"))
            }
            Some(PutFault::Lost) => {
                self.count(Fault::PutLost);
                Err(self.unavailable("an injected loss of the request"))
            }
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.meet().await?;
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.meet().await?;
        self.inner.delete(key).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.meet().await?;
        self.inner.probe().await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }
}
