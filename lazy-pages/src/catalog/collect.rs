//! Retention: which checkpoints are kept, and the end of all others.
//!
//! [`Catalog::collect`] deletes, in one go and by the steps of [`super::delete`], every checkpoint that its [`Retention`]
//! does not keep. Never the newest one that can be read, one that is pinned, or one that somebody reads or builds on. A
//! checkpoint whose manifest cannot be read is never chosen; as nobody knows what it needs, nothing is deleted then.
//!
//! It can be ended at any point, by a crash or a store that fails: every checkpoint exists in whole or not at all, and
//! the next one finishes the work.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{
    Catalog, CatalogError,
    delete::{LeftBecause, Swept},
    lease::{self, Found},
};
use crate::ids::{AppId, CheckpointId, PackId, PinName};

/// Which checkpoints to keep: those that any part of it names. Without any part, all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many. The newest is kept even if this is 0.
    pub keep: Option<usize>,
    /// Those made less than so long ago.
    pub keep_for: Option<Duration>,
}

/// Why a checkpoint is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is the newest.
    Newest,
    /// It is one of the newest, or there is no rule.
    Count,
    /// It is too young.
    Age,
    /// It is pinned.
    Pinned(PinName),
    /// It is in use; the name of the lease object.
    Leased(String),
    /// Its manifest cannot be read.
    Unreadable,
}

/// What was, or would be, kept and deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Checkpoints deleted, newest first.
    pub deleted: Vec<CheckpointId>,
    /// Checkpoints that are still there, newest first, and why.
    pub kept: Vec<(CheckpointId, Kept)>,
    /// Packs removed.
    pub packs: u64,
    /// Bytes of all objects removed, manifests excepted.
    pub bytes: u64,
    /// Why objects that are no longer needed were left for the next time, if they were.
    pub left: Option<LeftBecause>,
}

impl Catalog {
    /// Deletes the checkpoints of `app` that `retention` does not keep, and what earlier crashes left behind.
    ///
    /// # Errors
    /// [`CatalogError::DeleteUnderWay`]; when the store fails. Each checkpoint is then deleted or not, never in part.
    pub async fn collect(&self, app: &AppId, retention: Retention) -> Result<Collected, CatalogError> {
        self.exclusively(app, async |own, leases| {
            let Survey { mut doomed, mut kept, packs } = self.survey(app, retention, leases).await?;
            if let Some((id, _)) = kept.iter().find(|(_, why)| *why == Kept::Unreadable) {
                let left = Some(LeftBecause::Unreadable(*id));
                return Ok(Collected { kept, left, ..Collected::default() });
            }
            // The oldest first: what a crash leaves is then what was to be kept and the newest of the rest.
            let mut condemned = HashSet::new();
            for id in doomed.iter().rev() {
                if !own.keeps_deletes_out() {
                    break;
                }
                self.condemn(app, *id).await?;
                condemned.insert(*id);
            }
            let Swept { packs, bytes, left, put_back } = self.sweep_now(app, own, &condemned, &packs).await?;
            doomed.retain(|id| condemned.contains(id) && put_back.iter().all(|(back, _)| back != id));
            kept.extend(put_back.into_iter().map(|(id, lease)| (id, Kept::Leased(lease))));
            kept.sort_by(|(a, _), (b, _)| b.cmp(a));
            Ok(Collected { deleted: doomed, kept, packs, bytes, left })
        })
        .await
    }

    /// What [`Self::collect`] would do now. Changes nothing; packs and bytes are not counted.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn plan(&self, app: &AppId, retention: Retention) -> Result<Collected, CatalogError> {
        let leases = lease::list(&*self.store, app).await?;
        let Survey { mut doomed, kept, .. } = self.survey(app, retention, &leases).await?;
        let unreadable = kept.iter().find(|(_, why)| *why == Kept::Unreadable);
        let left = unreadable.map(|(id, _)| LeftBecause::Unreadable(*id));
        if left.is_some() {
            doomed.clear();
        }
        Ok(Collected { deleted: doomed, kept, left, ..Collected::default() })
    }

    /// Looks at every checkpoint.
    async fn survey(
        &self,
        app: &AppId,
        retention: Retention,
        leases: &[Found],
    ) -> Result<Survey, CatalogError> {
        let pins = self.pins(app).await?;
        let mut survey = Survey::default();
        let mut readable = 0;
        let listed = self.list(app).await?;
        for &id in &listed {
            match self.load_manifest(app, id).await {
                Ok(manifest) => {
                    let packs = manifest.packs.iter().map(|pack| pack.id).collect();
                    survey.packs.insert(id, packs);
                }
                Err(CatalogError::Manifest { .. }) => {
                    survey.kept.push((id, Kept::Unreadable));
                    continue;
                }
                // Only a delete that was believed dead takes it away now.
                Err(CatalogError::UnknownCheckpoint { .. }) => continue,
                Err(other) => return Err(other),
            }
            let pin =
                || pins.iter().find(|pin| pin.keeps(id, &listed)).map(|pin| Kept::Pinned(pin.name.clone()));
            let lease = || lease::holding(leases, id).map(|lease| Kept::Leased(lease.key.clone()));
            match retention.keeps(readable, lease::age(id.created())).or_else(pin).or_else(lease) {
                Some(why) => survey.kept.push((id, why)),
                None => survey.doomed.push(id),
            }
            readable += 1;
        }
        Ok(survey)
    }
}

impl Retention {
    /// Why it keeps the checkpoint that has `newer` ones above it and this age.
    fn keeps(&self, newer: usize, age: Duration) -> Option<Kept> {
        let no_rule = *self == Self::default();
        match newer {
            0 => Some(Kept::Newest),
            _ if no_rule || self.keep.is_some_and(|keep| newer < keep) => Some(Kept::Count),
            _ if self.keep_for.is_some_and(|keep_for| age < keep_for) => Some(Kept::Age),
            _ => None,
        }
    }
}

/// Every checkpoint, newest first.
#[derive(Default)]
struct Survey {
    doomed: Vec<CheckpointId>,
    kept: Vec<(CheckpointId, Kept)>,
    /// What those that can be read refer to.
    packs: HashMap<CheckpointId, Vec<PackId>>,
}
