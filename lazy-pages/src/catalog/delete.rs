//! Deleting checkpoints, and the packs nobody needs any more.
//!
//! The steps of deleting the checkpoints D, which are one ([`Catalog::delete`]) or many ([`Catalog::collect`]):
//! 1. Put a lease that says "deleting", then list leases. Another live one that says so: give up. So of any two deletes
//!    the later one sees the earlier, and at most one at a time gets past this step. Pins are put under such a lease too.
//! 2. A live lease or a pin names one of D: it is not deleted.
//! 3. For each of D, put a copy of its manifest as its tombstone, then delete the manifest. From here on it does not exist.
//! 4. List leases again, *then* list all checkpoints. If a live lease names one of D, whose lease was put after step 2,
//!    its manifest is put back: it exists again. Read what all manifests refer to.
//! 5. A live lease names a checkpoint that is not listed, or a manifest cannot be read: leave everything. The same if all
//!    this took so long that another delete may have begun; before step 3 and before anything is put back that is looked
//!    at, too.
//! 6. Else remove, of each checkpoint that has a tombstone and no manifest, the packs that no listed manifest refers to,
//!    bundle and hashes, and last the tombstone. Remove garbage of crashed writers: packs without a reference, and
//!    bundles and hashes without a manifest, older than [`LEASE_LIFETIME`].
//!
//! Why no checkpoint can lose a page. Say pack X is removed in step 6, and manifest M, which refers to X, exists after.
//! M was not listed in step 4, so it was committed after that listing; nobody but this delete puts manifests back, and it
//! lists those as its own. Either
//! - M's writer made X itself. X is garbage by age then: no checkpoint with a tombstone can refer to a pack of a writer
//!   that had not committed. So it is older than 24 hours; but a writer refuses to commit later than 23 hours after it
//!   began. Or
//! - M's writer found X in its parent P. It held a lease naming P from before it read P's manifest until after M was
//!   committed. If that lease was there when leases were listed, then by step 5 P was listed. If it was put later, P's
//!   manifest was read after the leases were listed; nobody deletes manifests between the two listings (step 1), so P
//!   either was listed, or was committed after the listing of manifests. Where P was listed, X has a reference and is
//!   kept. Where P was committed after it, P is itself such an M, made earlier; follow its parents down to the writer
//!   that made X, which is the first case.
//!
//! A reader is safe likewise: its lease on one of D, put before it read the manifest, either makes step 2 spare it, or is
//! found in step 4 and brings the manifest back before anything else of it was removed, or was put after step 3, and
//! there was no manifest to read.
//!
//! Crash points. Before step 3: nothing happened but a lease, which dies after an hour. After any tombstone was put: its
//! checkpoint exists, and a tombstone beside a manifest means nothing. After its manifest was deleted: it is gone whole,
//! and the tombstone tells the next delete, collection or sweep what to look at; that a lease on it may have come in
//! between keeps all packs, until it is given up. In step 6: the tombstone goes last, so the next one goes on.

use std::collections::{HashMap, HashSet};

use super::{
    Catalog, CatalogError,
    lease::{self, Found, Holder, LEASE_LIFETIME, Lease},
};
use crate::{
    format::{
        MAX_MANIFEST, Manifest,
        keys::{self, TOMBSTONE},
    },
    ids::{AppId, CheckpointId, PackId},
    store::{ObjectMeta, StoreError},
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftBecause {
    /// Somebody began to use the checkpoint in the very moment it was deleted.
    #[error("somebody began to use a checkpoint that is gone (lease {lease})")]
    Leased {
        /// Name of the lease object.
        lease: String,
    },
    /// A checkpoint whose packs cannot be known, for its manifest is damaged or of a newer version.
    #[error("what checkpoint {0} needs is not known, for its manifest cannot be read")]
    Unreadable(CheckpointId),
    /// Finding out what is needed took the better part of an hour.
    #[error("it took too long to find out what is needed")]
    TookTooLong,
}

/// What step 4 to 6 did.
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub packs: u64,
    pub bytes: u64,
    pub left: Option<LeftBecause>,
    /// Checkpoints whose manifest was put back, and the lease because of which.
    pub put_back: Vec<(CheckpointId, String)>,
}

impl Catalog {
    /// Deletes a checkpoint, and all packs that only it needs.
    ///
    /// # Errors
    /// [`CatalogError::UnknownCheckpoint`]; [`CatalogError::Leased`] when it is in use; [`CatalogError::Pinned`];
    /// [`CatalogError::DeleteUnderWay`]; when the store fails. It is deleted or not, never in part; what an error or a
    /// crash leaves behind is removed by a later delete.
    pub async fn delete(&self, app: &AppId, id: CheckpointId) -> Result<Deleted, CatalogError> {
        self.exclusively(app, async |own, leases| {
            if let Some(lease) = lease::holding(leases, id) {
                return Err(CatalogError::Leased {
                    app: app.clone(),
                    id,
                    lease: lease.key.clone(),
                    minutes: lease.age().as_secs() / 60,
                });
            }
            let listed = self.list(app).await?;
            if let Some(pin) = self.pins(app).await?.into_iter().find(|pin| pin.keeps(id, &listed)) {
                return Err(CatalogError::Pinned { app: app.clone(), id, name: pin.name });
            }
            let readable = match self.load_manifest(app, id).await {
                Ok(_) => true,
                // It can still be deleted; its packs are found by age.
                Err(CatalogError::Manifest { .. }) => false,
                Err(other) => return Err(other),
            };
            if !own.keeps_deletes_out() {
                return Err(CatalogError::DeleteTookTooLong { app: app.clone() });
            }
            match readable {
                true => self.condemn(app, id).await?,
                false => self.store.delete(&keys::manifest(app, id)).await?,
            }
            let swept = self.sweep_now(app, own, &[id].into(), &HashMap::new()).await?;
            let Swept { packs, bytes, left, put_back } = swept;
            match put_back.into_iter().next() {
                Some((id, lease)) => Err(CatalogError::Leased { app: app.clone(), id, lease, minutes: 0 }),
                None => Ok(Deleted { packs, bytes, left }),
            }
        })
        .await
    }

    /// Removes what crashed writers left behind more than a day ago, and what is left of deleted checkpoints.
    ///
    /// # Errors
    /// [`CatalogError::DeleteUnderWay`]; when the store fails.
    pub async fn sweep(&self, app: &AppId) -> Result<Deleted, CatalogError> {
        self.exclusively(app, async |own, _| {
            let swept = self.sweep_now(app, own, &HashSet::new(), &HashMap::new()).await?;
            Ok(Deleted { packs: swept.packs, bytes: swept.bytes, left: swept.left })
        })
        .await
    }

    /// Step 1 around `work`, which is given the lease put and the leases found.
    pub(super) async fn exclusively<T>(
        &self,
        app: &AppId,
        work: impl AsyncFnOnce(&Lease, &[Found]) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
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

    /// Step 3 for one checkpoint that can be read.
    pub(super) async fn condemn(&self, app: &AppId, id: CheckpointId) -> Result<(), CatalogError> {
        // Not as it came: what is put back one day must be the manifest.
        let manifest = self.load_manifest(app, id).await?.encode();
        let manifest = manifest.map_err(|source| CatalogError::Manifest { app: app.clone(), id, source })?;
        let tombstone = keys::tombstone(app, id);
        match self.store.put_new(&tombstone, manifest.clone()).await {
            Err(StoreError::AlreadyExists { .. }) => {
                // Of an earlier attempt: manifests never change.
                if self.read_tombstone(app, id).await?.is_none() {
                    self.store.delete(&tombstone).await?;
                    self.store.put_new(&tombstone, manifest).await?;
                }
            }
            other => other?,
        }
        Ok(self.store.delete(&keys::manifest(app, id)).await?)
    }

    /// The manifest a tombstone is of; `None` if it is damaged.
    async fn read_tombstone(&self, app: &AppId, id: CheckpointId) -> Result<Option<Manifest>, StoreError> {
        let bytes = self.store.get(&keys::tombstone(app, id), MAX_MANIFEST).await?;
        let manifest = Manifest::decode(&bytes).ok();
        Ok(manifest.filter(|manifest| manifest.app == *app && manifest.id == id))
    }

    /// Steps 4 to 6. `gone` are the checkpoints whose manifests were deleted just now; `known` tells what some
    /// checkpoints refer to.
    pub(super) async fn sweep_now(
        &self,
        app: &AppId,
        own: &Lease,
        gone: &HashSet<CheckpointId>,
        known: &HashMap<CheckpointId, Vec<PackId>>,
    ) -> Result<Swept, CatalogError> {
        let mut swept = Swept::default();
        let leases = lease::list(&*self.store, app).await?;
        let prefix = keys::checkpoints(app);
        let objects = self.store.list(&prefix).await?;
        let mut parts: HashMap<CheckpointId, Vec<(&str, &ObjectMeta)>> = HashMap::new();
        let mut listed = HashSet::new();
        for object in &objects {
            match keys::checkpoint_part(&prefix, &object.key) {
                Some((id, "manifest")) => _ = listed.insert(id),
                Some((id, part)) => parts.entry(id).or_default().push((part, object)),
                None => {}
            }
        }
        let dead =
            |id: &CheckpointId| parts.get(id).into_iter().flatten().any(|(part, _)| *part == TOMBSTONE);
        for lease in leases.iter().filter(|lease| lease.is_live()) {
            if let Holder::Of(id) = lease.of
                && gone.contains(&id)
                && !listed.contains(&id)
                && dead(&id)
                && let Some(manifest) = self.read_tombstone(app, id).await?
                && let Ok(manifest) = manifest.encode()
                && own.keeps_deletes_out()
            {
                self.store.put_new(&keys::manifest(app, id), manifest).await?;
                listed.insert(id);
                swept.put_back.push((id, lease.key.clone()));
            }
        }
        let unexplained = |lease: &&Found| match lease.of {
            Holder::Of(id) => !listed.contains(&id),
            Holder::Unknown => true,
            Holder::Deleting => false,
        };
        if let Some(lease) = leases.iter().filter(|lease| lease.is_live()).find(unexplained) {
            swept.left = Some(LeftBecause::Leased { lease: lease.key.clone() });
            return Ok(swept);
        }
        let mut needed = HashSet::new();
        for &id in &listed {
            if let Some(packs) = known.get(&id) {
                needed.extend(packs);
                continue;
            }
            match self.load_manifest(app, id).await {
                Ok(Manifest { packs, .. }) => needed.extend(packs.iter().map(|pack| pack.id)),
                Err(CatalogError::Manifest { .. } | CatalogError::UnknownCheckpoint { .. }) => {
                    swept.left = Some(LeftBecause::Unreadable(id));
                    return Ok(swept);
                }
                Err(other) => return Err(other),
            }
        }
        let mut unneeded = HashSet::new();
        for &id in parts.keys().filter(|id| !listed.contains(id) && dead(id)) {
            // Without one, packs are found by age.
            if let Some(manifest) = self.read_tombstone(app, id).await? {
                unneeded.extend(manifest.packs.iter().map(|pack| pack.id));
            }
        }

        if !own.keeps_deletes_out() {
            swept.left = Some(LeftBecause::TookTooLong);
            return Ok(swept);
        }

        let old = |created| lease::age(created) > LEASE_LIFETIME;
        let prefix = keys::packs(app);
        for object in self.store.list(&prefix).await? {
            let Some(Ok(id)) = object.key.strip_prefix(&prefix).map(str::parse::<PackId>) else { continue };
            if !needed.contains(&id) && (unneeded.contains(&id) || old(id.created())) {
                self.store.delete(&object.key).await?;
                swept.packs += 1;
                swept.bytes += object.length;
            }
        }
        // What describes a handover is of no use without the stopped tree, and none of those is stopped for so long.
        let prefix = keys::handovers(app);
        for object in self.store.list(&prefix).await? {
            if keys::checkpoint_part(&prefix, &object.key).is_some_and(|(id, _)| old(id.created())) {
                self.store.delete(&object.key).await?;
                swept.bytes += object.length;
            }
        }
        for (id, objects) in &parts {
            let removed = !listed.contains(id) && (dead(id) || gone.contains(id) || old(id.created()));
            let (tombstones, others): (Vec<_>, Vec<_>) =
                objects.iter().partition(|(part, _)| *part == TOMBSTONE);
            for (_, object) in others.iter().filter(|_| removed) {
                self.store.delete(&object.key).await?;
                swept.bytes += object.length;
            }
            // One beside a manifest is of a delete that went no further.
            for (_, object) in tombstones {
                self.store.delete(&object.key).await?;
            }
        }
        for lease in leases.iter().filter(|lease| !lease.is_live()) {
            self.store.delete(&lease.key).await?;
        }
        Ok(swept)
    }
}
