//! Where pages come from that are not in the store, and who has to be told how serving them ended.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{
    server::Outcome,
    store::{ObjectStore, StoreError},
};

/// Where the pages of a restore come from if not from a store alone: another machine, in a
/// [handover](crate::handover).
#[async_trait]
pub trait Origin: Send + Sync + fmt::Debug {
    /// The store in which the restore finds what it needs.
    fn store(&self) -> Arc<dyn ObjectStore>;

    /// Serving has ended. Said again after a failure, and perhaps after a success.
    ///
    /// # Errors
    /// When nobody could be told.
    async fn over(&self, outcome: &Outcome) -> Result<(), StoreError>;
}

/// Makes the [`Origin`] that a text of [`DaemonConfig::origin`](super::daemon::DaemonConfig::origin) stands for, above the store.
pub type Origins = fn(&str, Arc<dyn ObjectStore>) -> Result<Arc<dyn Origin>, StoreError>;

/// For programs that know no origins.
///
/// # Errors
/// Always.
pub(super) fn no_origins(origin: &str, _: Arc<dyn ObjectStore>) -> Result<Arc<dyn Origin>, StoreError> {
    let reason = "this program cannot fetch pages from there".to_owned();
    Err(StoreError::Other { store: origin.to_owned(), reason })
}
