//! From the images of a dump whose memory stays in the tree to the manifest of a handover.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use criu_rpc::{ImageDir, PageObject, Version, images::PagemapEntry};
use lazy_pages::{
    format::{Blob, ExternalStream, Manifest, MemoryMap, ObjectId, PageHash, Statistics},
    handover::{Laid, ObjectPages, lay_out},
    ids::{AppId, CheckpointId},
    units::VirtAddr,
};

use crate::{
    dumped_images::{DumpedImages, object_id},
    error::AgentError,
    files::Listed,
    host,
};

/// CRIU's map of each object, and the number of its pages file.
pub type Pagemaps = HashMap<PageObject, (u32, Vec<PagemapEntry>)>;

/// Reads the images, which CRIU has just written to `images`, and lists the files that travel with them. What holds pages of shared memory goes to `pages`, because the
/// images of a handover are those of a lazy restore, which have none.
///
/// # Errors
/// When an image cannot be read or says what cannot be.
pub fn describe(
    (app, id): (&AppId, CheckpointId),
    (images, pages): (&Path, &Path),
    version: Version,
    streams: Vec<ExternalStream>,
    list: impl FnOnce() -> Result<Listed, AgentError>,
) -> Result<(Manifest, Bytes, Pagemaps), AgentError> {
    let pagemaps = pagemaps(images)?;
    set_aside(images, pages).map_err(AgentError::path("move images from", images))?;
    let files = list()?;
    let mut dumped = DumpedImages::read(images, &pagemaps, &HashMap::new())?;
    let mut objects: Vec<ObjectPages> = pagemaps
        .iter()
        .map(|(object, (pages_id, entries))| ObjectPages {
            id: object_id(*object),
            pages_id: *pages_id,
            vmas: dumped.vmas.remove(&object_id(*object)).unwrap_or_default(),
            present: entries.iter().map(|entry| (VirtAddr::containing(entry.vaddr), entry.pages)).collect(),
        })
        .collect();
    objects.extend(files.contents.into_iter().map(|(content, present)| ObjectPages {
        id: ObjectId::File(content),
        pages_id: 0,
        vmas: Vec::new(),
        present,
    }));
    objects.sort_by_key(|object| object.id);
    let Laid { objects, packs, frames } = lay_out(id, objects).ok_or(AgentError::TooLarge)?;
    let stored: u64 = objects.iter().map(MemoryMap::stored_pages).sum();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let manifest = Manifest {
        app: app.clone(),
        id,
        parent: None,
        depth: 0,
        created_unix_ms: now.as_millis() as u64,
        host: host::facts(version),
        tasks: dumped.tasks,
        objects,
        packs,
        frames,
        bundle: Blob::of(&dumped.bundle),
        // Of pages nobody has read.
        page_hashes: Blob { length: stored * PageHash::BYTES as u64, hash: [0; 32] },
        streams,
        files: files.files,
        large_images: files.large_images,
        statistics: Statistics { pages_total: stored, ..Statistics::default() },
    };
    Ok((manifest, dumped.bundle, pagemaps))
}

fn pagemaps(images: &Path) -> Result<Pagemaps, AgentError> {
    let directory = ImageDir::open(images)?;
    let mut objects: Vec<PageObject> = Vec::new();
    for file in fs::read_dir(images).map_err(AgentError::path("read", images))? {
        let name = file.map_err(AgentError::path("read", images))?.file_name();
        let shared = name.to_str().and_then(|name| name.strip_prefix("pagemap-shmem-")?.strip_suffix(".img"));
        objects.extend(shared.and_then(|id| id.parse().ok()).map(PageObject::Shared));
    }
    let live = directory.tasks()?.into_iter().filter(|task| !task.dead);
    objects.extend(live.map(|task| PageObject::Task(task.pid)));
    objects.into_iter().map(|object| Ok((object, directory.read_pagemap(object)?))).collect()
}

fn set_aside(images: &Path, pages: &Path) -> io::Result<()> {
    for file in fs::read_dir(images)? {
        let file = file?;
        let name = file.file_name();
        if name.as_encoded_bytes().starts_with(b"pages-") || name.as_encoded_bytes().starts_with(b"pagemap-")
        {
            fs::rename(file.path(), pages.join(name))?;
        }
    }
    Ok(())
}

/// The pagemap and the pages file of a shared object, where [`describe`] has put them.
///
/// # Errors
/// When they are not there.
pub fn shared(pages: &Path, id: u64) -> io::Result<(Vec<PagemapEntry>, fs::File)> {
    let directory = ImageDir::open(pages).map_err(io::Error::other)?;
    let (pages_id, mut entries) = directory.read_pagemap(PageObject::Shared(id)).map_err(io::Error::other)?;
    entries.retain(|entry| entry.present);
    Ok((entries, fs::File::open(directory.pages_path(pages_id))?))
}
