//! Which checkpoints there are, and the end of them.
//!
//! What always holds:
//! - A checkpoint exists if and only if its manifest does.
//! - Whoever depends on a checkpoint's packs holds a [`Lease`] taken before its manifest was read.
//! - Deleting never takes a page from a checkpoint that still exists, or from one that is being made; the argument is
//!   in `catalog/delete.rs`. A crash while deleting leaves garbage, which a later delete, [`Catalog::collect`] or
//!   [`Catalog::sweep`] removes.
//! - A checkpoint that is pinned exists until it is unpinned.

mod collect;
mod delete;
mod lease;
mod pins;

use std::sync::Arc;

pub use self::{
    collect::{Collected, Kept, Retention},
    delete::{Deleted, LeftBecause},
    lease::{LEASE_LIFETIME, LEASE_USE, Lease},
    pins::Pin,
};
use crate::{
    format::{MAX_MANIFEST, Manifest, ManifestError, keys},
    ids::{AppId, CheckpointId, PinName},
    store::{ObjectStore, StoreError},
};

/// The checkpoints in a store.
#[derive(Clone, Debug)]
pub struct Catalog {
    store: Arc<dyn ObjectStore>,
}

impl Catalog {
    /// The checkpoints in `store`.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// Every application that has a checkpoint, in order of name. Lists the whole store.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn apps(&self) -> Result<Vec<AppId>, CatalogError> {
        let objects = self.store.list("").await?;
        let mut apps: Vec<AppId> =
            objects.iter().filter_map(|object| keys::app_of_manifest(&object.key)).collect();
        apps.sort();
        apps.dedup();
        Ok(apps)
    }

    /// All checkpoints of `app`, newest first.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn list(&self, app: &AppId) -> Result<Vec<CheckpointId>, CatalogError> {
        let prefix = keys::checkpoints(app);
        let objects = self.store.list(&prefix).await?;
        let committed =
            objects.iter().filter_map(|object| match keys::checkpoint_part(&prefix, &object.key) {
                Some((id, "manifest")) => Some(id),
                _ => None,
            });
        let mut ids: Vec<CheckpointId> = committed.collect();
        ids.sort_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// The checkpoint of `app` that was made last.
    ///
    /// # Errors
    /// [`CatalogError::NoCheckpoint`] when there is none; when the store cannot be listed.
    pub async fn newest(&self, app: &AppId) -> Result<CheckpointId, CatalogError> {
        let ids = self.list(app).await?;
        ids.first().copied().ok_or_else(|| CatalogError::NoCheckpoint { app: app.clone() })
    }

    /// The manifest of a checkpoint.
    ///
    /// # Errors
    /// [`CatalogError::UnknownCheckpoint`]; [`CatalogError::Manifest`] when it is damaged, of a newer version, or of
    /// another application or checkpoint than its key says; when the store fails.
    pub async fn load_manifest(&self, app: &AppId, id: CheckpointId) -> Result<Manifest, CatalogError> {
        let bytes = match self.store.get(&keys::manifest(app, id), MAX_MANIFEST).await {
            Err(StoreError::NotFound { .. }) => {
                return Err(CatalogError::UnknownCheckpoint { app: app.clone(), id });
            }
            other => other?,
        };
        let manifest_error = |source| CatalogError::Manifest { app: app.clone(), id, source };
        let manifest = Manifest::decode(&bytes).map_err(manifest_error)?;
        if manifest.app != *app || manifest.id != id {
            let found = format!("{} {}", manifest.app, manifest.id);
            return Err(manifest_error(ManifestError::Foreign { found, wanted: format!("{app} {id}") }));
        }
        Ok(manifest)
    }
}

/// Why a checkpoint cannot be found, read or deleted.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The application has no checkpoint at all.
    #[error("{app} has no checkpoint")]
    NoCheckpoint {
        /// The application.
        app: AppId,
    },
    /// The application has no such checkpoint.
    #[error("{app} has no checkpoint {id}")]
    UnknownCheckpoint {
        /// The application.
        app: AppId,
        /// What was asked for.
        id: CheckpointId,
    },
    /// It has a manifest, which cannot be used.
    #[error("checkpoint {id} of {app} cannot be used")]
    Manifest {
        /// The application.
        app: AppId,
        /// The checkpoint.
        id: CheckpointId,
        /// Why not.
        source: ManifestError,
    },
    /// It is being restored, or a checkpoint that builds on it is being made.
    #[error("checkpoint {id} of {app} is in use since {minutes} minutes (lease {lease})")]
    Leased {
        /// The application.
        app: AppId,
        /// The checkpoint.
        id: CheckpointId,
        /// Name of the lease object.
        lease: String,
        /// Age of the lease.
        minutes: u64,
    },
    /// It is pinned.
    #[error("checkpoint {id} of {app} is pinned as `{name}`")]
    Pinned {
        /// The application.
        app: AppId,
        /// The checkpoint.
        id: CheckpointId,
        /// Name of the pin.
        name: PinName,
    },
    /// The name of a pin is in use for another checkpoint.
    #[error("`{name}` pins another checkpoint of {app} already")]
    PinTaken {
        /// The application.
        app: AppId,
        /// Name of the pin.
        name: PinName,
    },
    /// There is no such pin.
    #[error("{app} has no pin `{name}`")]
    UnknownPin {
        /// The application.
        app: AppId,
        /// What was asked for.
        name: PinName,
    },
    /// Somebody else is deleting checkpoints of this application.
    #[error(
        "another delete of checkpoints of {app} is under way (lease {lease}), or ended abruptly in the last hour"
    )]
    DeleteUnderWay {
        /// The application.
        app: AppId,
        /// Name of the lease object.
        lease: String,
    },
    /// It took so long that another delete may have begun; nothing was deleted.
    #[error("deleting a checkpoint of {app} took too long; nothing was deleted")]
    DeleteTookTooLong {
        /// The application.
        app: AppId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
