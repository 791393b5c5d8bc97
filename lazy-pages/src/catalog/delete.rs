//! Deleting a checkpoint, and the packs nobody needs any more.
//!
//! The steps of [`Catalog::delete`] of checkpoint D:
//! 1. Put a lease that says "deleting", then list leases. Another live one that says so: give up. So of any two deletes
//!    the later one sees the earlier, and at most one at a time gets past this step.
//! 2. A live lease names D: give up.
//! 3. Delete D's manifest. From here on D does not exist.
//! 4. List leases again, *then* list all manifests and read what they refer to.
//! 5. A live lease names a checkpoint that is not listed, or a manifest cannot be read: leave everything. The same if all
//!    this took so long that another delete may have begun; before step 3 that is an error.
//! 6. Else remove D's bundle and hashes, D's packs that no listed manifest refers to, and garbage of earlier crashes:
//!    packs without a reference, and bundles and hashes without a manifest, older than [`LEASE_LIFETIME`].
//!
//! Why no checkpoint can lose a page. Say pack X is removed in step 6, and manifest M, which refers to X, exists after.
//! M was not listed in step 4, so it was committed after that listing. Either
//! - M's writer made X itself. X is garbage by age then (D cannot refer to a pack of a writer that had not committed),
//!   so it is older than 24 hours; but a writer refuses to commit later than 23 hours after it began. Or
//! - M's writer found X in its parent P. It held a lease naming P from before it read P's manifest until after M was
//!   committed. If that lease was there when leases were listed, then by step 5 P was listed. If it was put later, P's
//!   manifest was read after the leases were listed; nobody deletes manifests between the two listings (step 1), so P
//!   either was listed, or was committed after the listing of manifests. Where P was listed, X has a reference and is
//!   kept. Where P was committed after it, P is itself such an M, made earlier; follow its parents down to the writer
//!   that made X, which is the first case.
//!
//! A reader is safe likewise: its lease on D, put before it read D's manifest, either makes step 2 give up, or is found
//! in step 4 naming a checkpoint that is no longer listed, or was put after step 3, and D's manifest was not there to
//! read.
//!
//! Crash points. Before step 3: nothing happened but a lease, which dies after an hour. After it: D is gone whole, and
//! what it leaves has no manifest; the next sweep removes it once it is a day old. During step 6: the same.

use std::collections::{HashMap, HashSet};

use super::{
    Catalog, CatalogError,
    lease::{self, Found, Holder, LEASE_LIFETIME, Lease},
};
use crate::{
    format::{Manifest, keys},
    ids::{AppId, CheckpointId, PackId},
    store::ObjectMeta,
};

/// What a delete or a sweep did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Deleted {
    /// Packs removed.
    pub packs: u64,
    /// Bytes of all objects removed, manifests excepted.
    pub bytes: u64,
    /// Why objects that are no longer needed were left for a later sweep, if they were.
    pub left: Option<LeftBecause>,
}

/// Why nothing but the manifest was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftBecause {
    /// Somebody began to use the checkpoint in the very moment it was deleted.
    Leased {
        /// Name of the lease object.
        lease: String,
    },
    /// A checkpoint whose packs cannot be known, for its manifest is damaged or of a newer version.
    Unreadable(CheckpointId),
    /// Finding out what is needed took the better part of an hour.
    TookTooLong,
}

impl Catalog {
    /// Deletes a checkpoint, and all packs that only it needs.
    ///
    /// # Errors
    /// [`CatalogError::UnknownCheckpoint`]; [`CatalogError::Leased`] when it is in use;
    /// [`CatalogError::DeleteUnderWay`]; when the store fails. It is deleted or not, never in part; what an error or a
    /// crash leaves behind is removed by a later delete.
    pub async fn delete(&self, app: &AppId, id: CheckpointId) -> Result<Deleted, CatalogError> {
        self.exclusively(app, async |own, leases| {
            let holds = |lease: &&Found| matches!(lease.of, Holder::Unknown) || lease.of == Holder::Of(id);
            if let Some(lease) = leases.iter().filter(|lease| lease.is_live()).find(holds) {
                return Err(CatalogError::Leased {
                    app: app.clone(),
                    id,
                    lease: lease.key.clone(),
                    minutes: lease.age().as_secs() / 60,
                });
            }
            let packs = match self.load_manifest(app, id).await {
                Ok(manifest) => manifest.packs.iter().map(|pack| pack.id).collect(),
                // It can still be deleted; its packs are found by age.
                Err(CatalogError::Manifest { .. }) => HashSet::new(),
                Err(other) => return Err(other),
            };
            if !own.keeps_deletes_out() {
                return Err(CatalogError::DeleteTookTooLong { app: app.clone() });
            }
            self.store.delete(&keys::manifest(app, id)).await?;
            self.sweep_now(app, own, Some(id), &packs).await
        })
        .await
    }

    /// Removes what crashed writers and deletes left behind more than a day ago.
    ///
    /// # Errors
    /// [`CatalogError::DeleteUnderWay`]; when the store fails.
    pub async fn sweep(&self, app: &AppId) -> Result<Deleted, CatalogError> {
        self.exclusively(app, async |own, _| self.sweep_now(app, own, None, &HashSet::new()).await).await
    }

    /// Step 1 around `work`, which is given the lease put and the leases found.
    async fn exclusively(
        &self,
        app: &AppId,
        work: impl AsyncFnOnce(&Lease, &[Found]) -> Result<Deleted, CatalogError>,
    ) -> Result<Deleted, CatalogError> {
        let own = Lease::acquire_for_delete(self.store.clone(), app).await?;
        let attempt = async {
            let leases = lease::list(&*self.store, app).await?;
            let other =
                |lease: &&Found| lease.of == Holder::Deleting && lease.id != own.id() && lease.is_live();
            if let Some(other) = leases.iter().find(other) {
                return Err(CatalogError::DeleteUnderWay { app: app.clone(), lease: other.key.clone() });
            }
            work(&own, &leases).await
        };
        let result = attempt.await;
        // Failing to take it back only delays the next delete.
        if let Err(error) = own.release().await {
            tracing::warn!(%app, %error, "the lease of a delete could not be removed and will die of age");
        }
        result
    }

    /// Steps 4 to 6. `gone` is the checkpoint just deleted, `its_packs` the packs it referred to.
    async fn sweep_now(
        &self,
        app: &AppId,
        own: &Lease,
        gone: Option<CheckpointId>,
        its_packs: &HashSet<PackId>,
    ) -> Result<Deleted, CatalogError> {
        let leases = lease::list(&*self.store, app).await?;
        let prefix = keys::checkpoints(app);
        let objects = self.store.list(&prefix).await?;
        let mut parts: HashMap<CheckpointId, Vec<&ObjectMeta>> = HashMap::new();
        let mut listed = HashSet::new();
        for object in &objects {
            match keys::checkpoint_part(&prefix, &object.key) {
                Some((id, "manifest")) => _ = listed.insert(id),
                Some((id, _)) => parts.entry(id).or_default().push(object),
                None => {}
            }
        }
        let unexplained = |lease: &&Found| match lease.of {
            Holder::Of(id) => !listed.contains(&id),
            Holder::Unknown => true,
            Holder::Deleting => false,
        };
        if let Some(lease) = leases.iter().filter(|lease| lease.is_live()).find(unexplained) {
            let left = Some(LeftBecause::Leased { lease: lease.key.clone() });
            return Ok(Deleted { left, ..Deleted::default() });
        }
        let mut needed = HashSet::new();
        for &id in &listed {
            match self.load_manifest(app, id).await {
                Ok(Manifest { packs, .. }) => needed.extend(packs.iter().map(|pack| pack.id)),
                Err(CatalogError::Manifest { .. } | CatalogError::UnknownCheckpoint { .. }) => {
                    return Ok(Deleted { left: Some(LeftBecause::Unreadable(id)), ..Deleted::default() });
                }
                Err(other) => return Err(other),
            }
        }

        if !own.keeps_deletes_out() {
            return Ok(Deleted { left: Some(LeftBecause::TookTooLong), ..Deleted::default() });
        }

        let old = |created| lease::age(created) > LEASE_LIFETIME;
        let mut deleted = Deleted::default();
        for (id, objects) in parts {
            if !listed.contains(&id) && (Some(id) == gone || old(id.created())) {
                for object in objects {
                    self.store.delete(&object.key).await?;
                    deleted.bytes += object.length;
                }
            }
        }
        let prefix = keys::packs(app);
        for object in self.store.list(&prefix).await? {
            let Some(Ok(id)) = object.key.strip_prefix(&prefix).map(str::parse::<PackId>) else { continue };
            if !needed.contains(&id) && (its_packs.contains(&id) || old(id.created())) {
                self.store.delete(&object.key).await?;
                deleted.packs += 1;
                deleted.bytes += object.length;
            }
        }
        for lease in leases.iter().filter(|lease| !lease.is_live()) {
            self.store.delete(&lease.key).await?;
        }
        Ok(deleted)
    }
}
