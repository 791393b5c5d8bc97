//! Pins: names that keep checkpoints from being deleted.
//!
//! What always holds: a pin names a checkpoint that exists. It is put while no delete can be under way (step 1 of
//! [`super::delete`]), and while it is there, its checkpoint is neither deleted nor collected. A pin whose content is not
//! understood, or names a checkpoint that does not exist, pins every checkpoint: it was damaged, stored or on its way.

use bytes::Bytes;

use super::{Catalog, CatalogError};
use crate::{
    format::keys,
    ids::{AppId, CheckpointId, PinName},
    store::StoreError,
};

/// Content of a pin at most; a checkpoint id has 26 bytes.
const MAX_CONTENT: u64 = 64;

/// A name that keeps a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The name.
    pub name: PinName,
    /// What it keeps; `None` if that is not understood, which keeps everything.
    pub checkpoint: Option<CheckpointId>,
}

impl Pin {
    /// Whether it keeps this checkpoint, when these exist.
    pub fn keeps(&self, id: CheckpointId, listed: &[CheckpointId]) -> bool {
        self.checkpoint.is_none_or(|pinned| pinned == id || !listed.contains(&pinned))
    }
}

impl Catalog {
    /// Keeps checkpoint `id` from being deleted until [`Self::unpin`]. Doing so twice is harmless.
    ///
    /// # Errors
    /// [`CatalogError::PinTaken`] when the name pins another checkpoint; [`CatalogError::UnknownCheckpoint`];
    /// [`CatalogError::DeleteUnderWay`]; when the store fails.
    pub async fn pin(&self, app: &AppId, id: CheckpointId, name: &PinName) -> Result<(), CatalogError> {
        self.exclusively(app, async |own, _| {
            self.load_manifest(app, id).await?;
            if !own.keeps_deletes_out() {
                return Err(CatalogError::DeleteTookTooLong { app: app.clone() });
            }
            let key = keys::pin(app, name);
            match self.store.put_new(&key, Bytes::from(id.to_string())).await {
                Err(StoreError::AlreadyExists { .. }) => match self.read_pin(&key).await? {
                    Some(Some(pinned)) if pinned == id => Ok(()),
                    _ => Err(CatalogError::PinTaken { app: app.clone(), name: name.clone() }),
                },
                other => Ok(other?),
            }
        })
        .await
    }

    /// Removes a pin; its checkpoint is kept no longer than any other. Gives what it was.
    ///
    /// # Errors
    /// [`CatalogError::UnknownPin`]; when the store fails.
    pub async fn unpin(&self, app: &AppId, name: &PinName) -> Result<Option<CheckpointId>, CatalogError> {
        let key = keys::pin(app, name);
        let unknown = || CatalogError::UnknownPin { app: app.clone(), name: name.clone() };
        let checkpoint = self.read_pin(&key).await?.ok_or_else(unknown)?;
        self.store.delete(&key).await?;
        Ok(checkpoint)
    }

    /// All pins of `app`, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn pins(&self, app: &AppId) -> Result<Vec<Pin>, CatalogError> {
        let prefix = keys::pins(app);
        let mut pins = Vec::new();
        for object in self.store.list(&prefix).await? {
            let Some(Ok(name)) = object.key.strip_prefix(&prefix).map(str::parse::<PinName>) else {
                continue;
            };
            if let Some(checkpoint) = self.read_pin(&object.key).await? {
                pins.push(Pin { name, checkpoint });
            }
        }
        Ok(pins)
    }

    /// What a pin keeps, `Some(None)` if that is not understood; `None` if there is no such pin.
    async fn read_pin(&self, key: &str) -> Result<Option<Option<CheckpointId>>, StoreError> {
        match self.store.get(key, MAX_CONTENT).await {
            Ok(content) => Ok(Some(std::str::from_utf8(&content).ok().and_then(|text| text.parse().ok()))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(StoreError::TooLarge { .. }) => Ok(Some(None)),
            Err(other) => Err(other),
        }
    }
}
