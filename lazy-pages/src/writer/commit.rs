//! The commit: all objects durable first, the manifest last.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use super::{
    Running, Target, WriteError,
    packer::Packed,
    seal::{Tables, seal},
};
use crate::{
    catalog::LEASE_USE,
    format::{
        Blob, ExternalStream, FileEntry, Host, LargeImage, Manifest, ObjectId, PackEntry, Statistics, Task,
        Vma, bundle::MAX_PACKED, keys, pages_of,
    },
    ids::{AppId, PackId},
    store::ObjectStore,
    units::VirtAddr,
};

/// What is known only after the pages.
#[derive(Clone, Debug)]
pub struct CheckpointMeta {
    /// Lazy-capable areas of each task, ascending. A task that is not mentioned has none.
    pub vmas: HashMap<ObjectId, Vec<Vma>>,
    /// Every task, parents before children.
    pub tasks: Vec<Task>,
    /// This machine.
    pub host: Host,
    /// Pipes and terminals shared with the outside.
    pub streams: Vec<ExternalStream>,
    /// CRIU's other images, see [`bundle::pack`](crate::format::bundle::pack).
    pub bundle: Bytes,
    /// Files that are carried or have to be there. Each content was opened as an object, whose pages may be less than the
    /// whole: what was not received is zero.
    pub files: Vec<FileEntry>,
    /// Images of CRIU's whose content was opened as an object.
    pub large_images: Vec<LargeImage>,
}

/// All pages are packed; some packs may still be on their way. Dropping it gives the checkpoint up.
#[derive(Debug)]
pub struct SealedPages {
    pub(super) target: Target,
    pub(super) running: Running,
    pub(super) objects: Vec<(ObjectId, u32)>,
    pub(super) positions: HashMap<ObjectId, usize>,
    pub(super) packed: Packed,
}

impl SealedPages {
    /// Makes everything durable, then creates the manifest: from then on the checkpoint exists.
    ///
    /// # Errors
    /// The first failure. [`WriteError::TooLate`] when its packs, or those of its parent, may no longer be safe from
    /// deletion. The checkpoint does not exist after an error, except that an error of the very last put may leave
    /// the complete checkpoint.
    pub async fn commit(self, meta: CheckpointMeta) -> Result<Manifest, WriteError> {
        self.commit_if(meta, || true).await
    }

    /// The same, but asks before the manifest is put, which cannot be taken back.
    ///
    /// # Errors
    /// [`WriteError::Stopped`] when the answer was no; those of [`Self::commit`].
    pub async fn commit_if(
        self,
        meta: CheckpointMeta,
        permit: impl FnOnce() -> bool,
    ) -> Result<Manifest, WriteError> {
        let Self { target, running, objects, positions: _, packed } = self;
        let Target { store, app, id, parent, begun } = &target;
        let CheckpointMeta { mut vmas, tasks, host, streams, bundle, files, large_images } = meta;
        if bundle.len() as u64 > MAX_PACKED {
            return Err(WriteError::BundleTooLarge { length: bundle.len() as u64 });
        }

        let counts = packed.counts;
        let written: u64 = packed.packs.iter().map(|pack| pack.length).sum();
        let contents = files.iter().filter_map(|file| Some((file.content()?, file.size)));
        for (content, size) in contents.chain(large_images.iter().map(|image| (image.content, image.size))) {
            vmas.insert(ObjectId::File(content), whole(size));
        }
        let areas = |(object, pages_id)| (object, pages_id, vmas.remove(&object).unwrap_or_default());
        let objects = objects.into_iter().map(areas).collect();
        if let Some(stray) = vmas.into_keys().min() {
            return Err(WriteError::NeverOpened(stray));
        }
        let Tables { objects, frames, packs, hashes, inherited } = seal(packed, objects, parent.as_deref())?;
        let hashes = Bytes::from(hashes);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut manifest = Manifest {
            app: app.clone(),
            id: *id,
            parent: parent.as_ref().map(|parent| parent.manifest().id),
            depth: parent.as_ref().map_or(0, |parent| parent.manifest().depth.saturating_add(1)),
            created_unix_ms: now.as_millis() as u64,
            host,
            tasks,
            objects,
            packs,
            frames,
            bundle: Blob::of(&bundle),
            page_hashes: Blob::of(&hashes),
            streams,
            statistics: Statistics {
                pages_total: counts.total,
                pages_zero: counts.zero,
                pages_unchanged: counts.unchanged,
                pages_stored: counts.stored,
                pages_rewritten: counts.rewritten,
                bytes_uploaded: written + (hashes.len() + bundle.len()) as u64,
                // Known when all of it is durable.
                elapsed_ms: 0,
                bytes_per_second: 0,
            },
            files,
            large_images,
        };
        let put = async |key: String, body: Bytes| store.put_new(&key, body).await.map_err(WriteError::from);
        tokio::try_join!(
            put(keys::bundle(app, *id), bundle),
            put(keys::hashes(app, *id), hashes),
            check_inherited(&**store, app, &inherited),
            running.0.finish(),
        )?;
        // Later than this, deleting could take packs for garbage; see `catalog::delete`.
        let too_late = begun.elapsed().unwrap_or_default() >= LEASE_USE;
        if too_late || parent.as_ref().is_some_and(|parent| !parent.lease().is_usable()) {
            return Err(WriteError::TooLate);
        }
        manifest.statistics.elapsed_ms = begun.elapsed().unwrap_or_default().as_millis() as u64;
        manifest.statistics.bytes_per_second = running.0.bytes_per_second();
        let encoded = manifest.encode()?;
        if !permit() {
            return Err(WriteError::Stopped);
        }
        put(keys::manifest(app, *id), encoded).await?;
        Ok(manifest)
    }
}

/// The area that a file of `size` bytes is, for as long as its runs are made.
fn whole(size: u64) -> Vec<Vma> {
    let end = VirtAddr::of_page(pages_of(size));
    let start = VirtAddr::default();
    let area = Vma { start, end, wipe_on_fork: false, dont_fork: false, grows_down: false };
    if start < end { vec![area] } else { Vec::new() }
}

/// The lease keeps these packs from being deleted by us, not by anybody with another tool. One listing is enough to
/// know.
async fn check_inherited(
    store: &dyn ObjectStore,
    app: &AppId,
    inherited: &[PackEntry],
) -> Result<(), WriteError> {
    if inherited.is_empty() {
        return Ok(());
    }
    let prefix = keys::packs(app);
    let objects = store.list(&prefix).await?;
    let there: HashMap<PackId, u64> = objects
        .iter()
        .filter_map(|object| Some((object.key.strip_prefix(&prefix)?.parse().ok()?, object.length)))
        .collect();
    match inherited.iter().find(|pack| there.get(&pack.id) != Some(&pack.length)) {
        Some(missing) => Err(WriteError::InheritedPackMissing { pack: missing.id }),
        None => Ok(()),
    }
}
