//! Leases: "I depend on this checkpoint's packs", an object that deletion looks for.
//!
//! A lease is put **before** the manifest it is about is read, and removed when nothing depends on that manifest any
//! more: after a restore is complete, after the checkpoint that builds on it was committed. It is dead
//! [`LEASE_LIFETIME`] after it was made, so that a crashed holder does not keep a checkpoint for ever; its holder must
//! not commit anything based on it later than [`LEASE_USE`]. The hour between the two allows for clocks that disagree.
//!
//! Dropping a lease that was not released removes it in the background when a tokio runtime is there to do it; if not,
//! it dies of age.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use crate::{
    format::keys,
    ids::{AppId, CheckpointId, LeaseId},
    store::{ObjectStore, StoreError},
};

/// A lease older than this counts for nothing.
pub const LEASE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How long its holder may rely on it.
pub const LEASE_USE: Duration = Duration::from_secs(23 * 3600);

/// A lease for deleting is short: it keeps other deletes out, nothing else.
const DELETE_LIFETIME: Duration = Duration::from_secs(3600);

/// How long a delete may rely on being alone.
const DELETE_USE: Duration = Duration::from_secs(50 * 60);

/// Content of a lease at most; a checkpoint id has 26 bytes.
const MAX_CONTENT: u64 = 64;

const DELETING: &str = "deleting";

/// A claim on the packs of one checkpoint.
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn ObjectStore>,
    key: String,
    id: LeaseId,
    released: AtomicBool,
}

impl Lease {
    /// Claims the packs of `checkpoint`, whether or not it exists. Read its manifest after this.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn acquire(
        store: Arc<dyn ObjectStore>,
        app: &AppId,
        checkpoint: CheckpointId,
    ) -> Result<Self, StoreError> {
        Self::put(store, app, checkpoint.to_string()).await
    }

    /// The lease with this name, which another process took and has left to this one.
    pub fn inherited(store: Arc<dyn ObjectStore>, app: &AppId, id: LeaseId) -> Self {
        Self { store, key: keys::lease(app, id), id, released: AtomicBool::new(false) }
    }

    /// Announces a delete, see [`super::delete`].
    pub(super) async fn acquire_for_delete(
        store: Arc<dyn ObjectStore>,
        app: &AppId,
    ) -> Result<Self, StoreError> {
        Self::put(store, app, DELETING.to_owned()).await
    }

    async fn put(store: Arc<dyn ObjectStore>, app: &AppId, content: String) -> Result<Self, StoreError> {
        let id = LeaseId::new();
        let key = keys::lease(app, id);
        store.put_new(&key, Bytes::from(content)).await?;
        Ok(Self { store, key, id, released: AtomicBool::new(false) })
    }

    /// Leaves it to another process, which knows it by its name: it is not removed when this is dropped.
    pub fn leave(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// Its name.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Whether something that depends on it may still be committed.
    pub fn is_usable(&self) -> bool {
        !self.released.load(Ordering::Relaxed) && age(self.id.created()) < LEASE_USE
    }

    /// Whether a delete that holds it is still sure to be the only one.
    pub(super) fn keeps_deletes_out(&self) -> bool {
        age(self.id.created()) < DELETE_USE
    }

    /// Gives it up. Doing so twice is harmless.
    ///
    /// # Errors
    /// When the store fails; the lease then dies of age.
    pub async fn release(&self) -> Result<(), StoreError> {
        if !self.released.swap(true, Ordering::Relaxed) {
            self.store.delete(&self.key).await?;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.released.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, key) = (self.store.clone(), std::mem::take(&mut self.key));
            runtime.spawn(async move {
                if let Err(error) = store.delete(&key).await {
                    tracing::warn!(%key, %error, "a lease could not be removed and will die of age");
                }
            });
        }
    }
}

/// What is known of a lease object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub id: LeaseId,
    pub key: String,
    pub of: Holder,
}

/// Who put a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A reader or writer that depends on this checkpoint.
    Of(CheckpointId),
    /// A delete.
    Deleting,
    /// Not understood; treated as if it named every checkpoint.
    Unknown,
}

impl Found {
    pub fn age(&self) -> Duration {
        age(self.id.created())
    }

    pub fn is_live(&self) -> bool {
        let lifetime = if self.of == Holder::Deleting { DELETE_LIFETIME } else { LEASE_LIFETIME };
        self.age() < lifetime
    }
}

/// A live lease that keeps checkpoint `id`.
pub(super) fn holding(leases: &[Found], id: CheckpointId) -> Option<&Found> {
    let holds = |of: &Holder| *of == Holder::Unknown || *of == Holder::Of(id);
    leases.iter().find(|lease| lease.is_live() && holds(&lease.of))
}

/// All leases of `app`, dead ones too. One that is released meanwhile is left out.
pub(super) async fn list(store: &dyn ObjectStore, app: &AppId) -> Result<Vec<Found>, StoreError> {
    let prefix = keys::leases(app);
    let mut found = Vec::new();
    for object in store.list(&prefix).await? {
        let Some(Ok(id)) = object.key.strip_prefix(&prefix).map(str::parse::<LeaseId>) else { continue };
        let of = match store.get(&object.key, MAX_CONTENT).await {
            Ok(content) => holder(&content),
            Err(StoreError::NotFound { .. }) => continue,
            Err(StoreError::TooLarge { .. }) => Holder::Unknown,
            Err(other) => return Err(other),
        };
        found.push(Found { id, key: object.key, of });
    }
    Ok(found)
}

fn holder(content: &[u8]) -> Holder {
    match std::str::from_utf8(content) {
        Ok(DELETING) => Holder::Deleting,
        Ok(text) => text.parse().map_or(Holder::Unknown, Holder::Of),
        Err(_) => Holder::Unknown,
    }
}

/// Time since `created`; zero if that is in the future.
pub(super) fn age(created: SystemTime) -> Duration {
    SystemTime::now().duration_since(created).unwrap_or_default()
}
