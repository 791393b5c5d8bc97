//! Why a checkpoint was not written.

use std::sync::Arc;

use crate::{
    format::{ManifestError, ObjectId, bundle},
    ids::{AppId, PackId},
    store::StoreError,
    units::VirtAddr,
};

/// Why a checkpoint was not written. Cheap to clone, since the first failure is reported by every call after it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The store failed.
    #[error("the checkpoint cannot be stored")]
    Store(#[source] Arc<StoreError>),
    /// What would have been committed breaks a rule of the format.
    #[error("the checkpoint is inconsistent")]
    Manifest(#[source] Arc<ManifestError>),
    /// A thread could not be started.
    #[error("a thread cannot be started")]
    Thread(#[source] Arc<std::io::Error>),
    /// The parent is of another application.
    #[error("a checkpoint of {app} cannot build on one of {parent}")]
    ForeignParent {
        /// Whose checkpoint is being made.
        app: AppId,
        /// Whose the parent is.
        parent: AppId,
    },
    /// Pages came before any object was opened.
    #[error("pages came before it was said whose they are")]
    NoObject,
    /// An object came twice.
    #[error("the pages of {0:?} came twice")]
    ObjectTwice(ObjectId),
    /// A page came twice, or was to be taken over twice.
    #[error("the page of {object:?} at {page} came twice")]
    PageTwice {
        /// Whose.
        object: ObjectId,
        /// The page.
        page: VirtAddr,
    },
    /// Areas or the parent's pages were given for an object that was not opened.
    #[error("there are areas or pages of {0:?}, but it was never opened")]
    NeverOpened(ObjectId),
    /// Pages were to be taken over, and there is nothing to take them from.
    #[error("pages of {0:?} are to be taken over from a parent, and there is none")]
    NoParent(ObjectId),
    /// A page was to be taken over that the parent knows nothing of.
    #[error("the page of {object:?} at {page} is to be taken over from the parent, which does not know it")]
    NotInParent {
        /// Whose, in the parent.
        object: ObjectId,
        /// The page.
        page: VirtAddr,
    },
    /// No pages, or pages beyond the end of the address range.
    #[error("{pages} pages from {address} are none, or leave the address range")]
    AddressRange {
        /// Where they start.
        address: VirtAddr,
        /// How many.
        pages: u64,
    },
    /// More frames than a manifest can number.
    #[error("the checkpoint needs more frames than a manifest can number")]
    TooManyFrames,
    /// The bundle is too large to be read back.
    #[error("the images take {length} bytes packed, {} are allowed", bundle::MAX_PACKED)]
    BundleTooLarge {
        /// Its size.
        length: u64,
    },
    /// A pack that unchanged pages are in has vanished or has another length.
    #[error("pack {pack}, which holds unchanged pages, is not in the store as it should be")]
    InheritedPackMissing {
        /// The pack.
        pack: PackId,
    },
    /// The claim on the parent's packs was given up, or all took so long that packs may be taken for garbage.
    #[error("writing the checkpoint took so long that its packs are no longer protected from deletion")]
    TooLate,
    /// A stage ended without saying why.
    #[error("writing the checkpoint was stopped")]
    Stopped,
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<ManifestError> for WriteError {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(Arc::new(error))
    }
}
