//! The checkpoint a new one is compared with: its manifest and the hash of every page it stores.
//!
//! Loading takes a lease first, so that none of its packs is removed while a checkpoint that will refer to them is
//! made. A parent that cannot be loaded, for whatever reason, is no disaster: the caller makes a full checkpoint.
//!
//! Memory: 16 bytes a stored page, and about 50 a run.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use crate::{
    catalog::{Catalog, CatalogError, Lease},
    format::{Manifest, ObjectId, PageHash, Run, Source, keys},
    ids::{AppId, CheckpointId},
    store::{ObjectStore, StoreError},
};

/// A committed checkpoint, ready to be compared with.
#[derive(Debug)]
pub struct Parent {
    manifest: Manifest,
    hashes: Bytes,
    index: HashMap<ObjectId, Index>,
    lease: Lease,
}

/// Where an object's hashes are.
#[derive(Debug)]
struct Index {
    /// Position in the manifest.
    object: usize,
    /// For each run the number of stored pages before it, over all objects.
    hashes_before: Vec<u64>,
}

impl Parent {
    /// Loads checkpoint `id` of `app`. Release it when the checkpoint made from it is committed or given up.
    ///
    /// # Errors
    /// When the manifest or the hashes cannot be read or are not intact.
    pub async fn load(
        store: Arc<dyn ObjectStore>,
        app: &AppId,
        id: CheckpointId,
    ) -> Result<Arc<Self>, ParentError> {
        let lease = Lease::acquire(store.clone(), app, id).await?;
        match Self::read(store, app, id).await {
            Ok((manifest, hashes)) => Ok(Arc::new(Self { index: index(&manifest), manifest, hashes, lease })),
            Err(error) => {
                // What counts is why it cannot be loaded; the lease dies of age if it has to.
                drop(lease.release().await);
                Err(error)
            }
        }
    }

    async fn read(
        store: Arc<dyn ObjectStore>,
        app: &AppId,
        id: CheckpointId,
    ) -> Result<(Manifest, Bytes), ParentError> {
        let manifest = Catalog::new(store.clone()).load_manifest(app, id).await?;
        let blob = manifest.page_hashes;
        let hashes = store.get(&keys::hashes(app, id), blob.length).await?;
        if !blob.matches(&hashes) {
            return Err(ParentError::HashesDamaged { id });
        }
        Ok((manifest, hashes))
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The claim on its packs.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// A cursor over the pages of `object`, for looking up ascending addresses.
    pub(super) fn pages_of(&self, object: ObjectId) -> Option<PagesOf<'_>> {
        let index = self.index.get(&object)?;
        let runs = &self.manifest.objects[index.object].runs;
        Some(PagesOf { runs, hashes_before: &index.hashes_before, hashes: &self.hashes, at: None })
    }
}

fn index(manifest: &Manifest) -> HashMap<ObjectId, Index> {
    let mut before = 0;
    let mut index = HashMap::with_capacity(manifest.objects.len());
    for (position, object) in manifest.objects.iter().enumerate() {
        let count = |run: &Run| {
            let this = before;
            if run.source != Source::Zero {
                before += run.pages;
            }
            this
        };
        let hashes_before = object.runs.iter().map(count).collect();
        index.insert(object.id, Index { object: position, hashes_before });
    }
    index
}

/// Pages of one object.
pub(super) struct PagesOf<'p> {
    runs: &'p [Run],
    hashes_before: &'p [u64],
    hashes: &'p [u8],
    at: Option<usize>,
}

/// What the parent says of a page.
pub(super) enum KnownPage {
    Zero,
    Stored(StoredPage),
}

/// A page the parent stores.
pub(super) struct StoredPage {
    pub hash: PageHash,
    /// Position in the parent's frames.
    pub frame: u32,
    /// Position in that frame.
    pub page: u32,
}

impl PagesOf<'_> {
    /// The page with this number. Numbers must ascend from call to call.
    pub fn find(&mut self, page: u64) -> Option<KnownPage> {
        let mut at = match self.at {
            Some(at) => at,
            None => self.runs.partition_point(|run| run.end().page() <= page),
        };
        while self.runs.get(at).is_some_and(|run| run.end().page() <= page) {
            at += 1;
        }
        self.at = Some(at);
        let run = self.runs.get(at).filter(|run| run.start.page() <= page)?;
        let Source::Stored { frame, first, .. } = run.source else { return Some(KnownPage::Zero) };
        let inside = page - run.start.page();
        let number = (self.hashes_before[at] + inside) as usize;
        let (hashes, _) = self.hashes.as_chunks::<{ PageHash::BYTES }>();
        // The manifest's rules make the blob as long as there are stored pages.
        let hash = PageHash(hashes[number]);
        Some(KnownPage::Stored(StoredPage { hash, frame: frame.0, page: first + inside as u32 }))
    }
}

/// Why a checkpoint cannot be compared with.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// Its manifest cannot be had.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its hashes are not what was stored.
    #[error("the page hashes of checkpoint {id} are damaged")]
    HashesDamaged {
        /// The checkpoint.
        id: CheckpointId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
