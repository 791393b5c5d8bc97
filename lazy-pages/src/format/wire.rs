//! A manifest as bytes: a fixed header (magic, version, length, BLAKE3 of the body) and a protobuf body whose large
//! tables are columns. Decoding refuses anything that is not exactly what [`Manifest::encode`] would have accepted.

use bytes::Bytes;
use migration_proto::checkpoint as proto;
use prost::Message;

use crate::{
    format::{
        Blob, Codec, ExternalStream, FrameEntry, FrameIndex, Host, Manifest, ManifestError, MemoryMap,
        ObjectId, PackEntry, Run, Source, Statistics, Task, Vma,
        files_wire::{file_from_proto, file_to_proto, image_from_proto, image_to_proto},
        invariants::{self, MAX_PAGE},
        shape,
    },
    ids::{AppId, CheckpointId, InvalidId, PackId},
    units::{PAGE_SIZE, VirtAddr},
};

/// The version this program writes and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of a manifest at most, header and all. A terabyte of memory in whole frames takes about half of it.
pub const MAX_MANIFEST: u64 = 256 << 20;

/// First bytes of a manifest.
const MAGIC: [u8; 8] = *b"LPMANIFT";
const HEADER: usize = 8 + 4 + 8 + 32;

const KIND_ZERO: u32 = 0;
const KIND_LAZY: u32 = 1;
const KIND_EAGER: u32 = 2;

impl Manifest {
    /// The bytes of the manifest object.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] when a rule of the format is broken, or it is larger than [`MAX_MANIFEST`].
    pub fn encode(&self) -> Result<Bytes, ManifestError> {
        invariants::check(self)?;
        let body = to_proto(self).encode_to_vec();
        let length = (HEADER + body.len()) as u64;
        if length > MAX_MANIFEST {
            return Err(ManifestError::Invalid(format!(
                "it takes {length} bytes, {MAX_MANIFEST} are allowed"
            )));
        }
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(blake3::hash(&body).as_bytes());
        bytes.extend(body);
        Ok(bytes.into())
    }

    /// Reads the bytes of a manifest object.
    ///
    /// # Errors
    /// [`ManifestError::Damaged`] when they are not what was written, [`ManifestError::UnknownVersion`] when a newer
    /// program wrote them, [`ManifestError::Invalid`] when they break a rule of the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged(what.to_owned());
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(damaged("it is too large"));
        }
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut short"))?;
        if *magic != MAGIC {
            return Err(damaged("it does not start like one"));
        }
        // The version comes before all that a later one may change.
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut short"))?;
        let found = u32::from_le_bytes(*version);
        if found != FORMAT_VERSION {
            return Err(ManifestError::UnknownVersion { found, known: FORMAT_VERSION });
        }
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut short"))?;
        let (hash, body) = rest.split_first_chunk::<32>().ok_or_else(|| damaged("it is cut short"))?;
        let length = u64::from_le_bytes(*length);
        if length != body.len() as u64 {
            return Err(ManifestError::Damaged(format!("it has {} of {length} bytes", body.len())));
        }
        if blake3::hash(body) != *hash {
            return Err(damaged("it does not match its hash"));
        }
        shape::check(body).map_err(ManifestError::Damaged)?;
        let message = proto::Manifest::decode(body).map_err(|e| ManifestError::Damaged(e.to_string()))?;
        let manifest = from_proto(message)?;
        invariants::check(&manifest)?;
        Ok(manifest)
    }
}

fn to_proto(manifest: &Manifest) -> proto::Manifest {
    let host = &manifest.host;
    proto::Manifest {
        app: manifest.app.to_string(),
        id: manifest.id.to_bytes().to_vec(),
        parent: manifest.parent.map_or_else(Vec::new, |id| id.to_bytes().to_vec()),
        depth: manifest.depth,
        created_unix_ms: manifest.created_unix_ms,
        host: Some(proto::Host {
            kernel: host.kernel.clone(),
            architecture: host.architecture.clone(),
            cpu_features: host.cpu_features.clone(),
            criu_version: host.criu_version,
        }),
        page_size: PAGE_SIZE as u32,
        tasks: manifest.tasks.iter().map(task_to_proto).collect(),
        objects: manifest.objects.iter().map(object_to_proto).collect(),
        packs: packs_to_proto(manifest),
        bundle: Some(blob_to_proto(&manifest.bundle)),
        page_hashes: Some(blob_to_proto(&manifest.page_hashes)),
        streams: manifest
            .streams
            .iter()
            .map(|stream| proto::ExternalStream { key: stream.key.clone(), stdio: stream.stdio })
            .collect(),
        statistics: Some(proto::Statistics {
            pages_total: manifest.statistics.pages_total,
            pages_zero: manifest.statistics.pages_zero,
            pages_unchanged: manifest.statistics.pages_unchanged,
            pages_stored: manifest.statistics.pages_stored,
            pages_rewritten: manifest.statistics.pages_rewritten,
            bytes_uploaded: manifest.statistics.bytes_uploaded,
            elapsed_ms: manifest.statistics.elapsed_ms,
            bytes_per_second: manifest.statistics.bytes_per_second,
        }),
        files: manifest.files.iter().map(file_to_proto).collect(),
        large_images: manifest.large_images.iter().map(image_to_proto).collect(),
    }
}

fn task_to_proto(task: &Task) -> proto::Task {
    proto::Task {
        pid: task.pid,
        parent_pid: task.parent_pid,
        threads: task.threads,
        dead: task.dead,
        command: task.command.clone(),
    }
}

fn blob_to_proto(blob: &Blob) -> proto::Blob {
    proto::Blob { length: blob.length, hash: blob.hash.to_vec() }
}

fn object_to_proto(object: &MemoryMap) -> proto::MemoryObject {
    let (kind, id) = match object.id {
        ObjectId::Task(pid) => (proto::memory_object::Kind::Task, u64::from(pid)),
        ObjectId::Shared(id) => (proto::memory_object::Kind::Shared, id),
        ObjectId::File(number) => (proto::memory_object::Kind::File, u64::from(number)),
    };
    let mut runs = proto::Runs::default();
    let mut end = 0;
    for run in &object.runs {
        runs.gap.push(run.start.page() - end);
        runs.pages.push(run.pages);
        end = run.start.page() + run.pages;
        match run.source {
            Source::Zero => runs.kind.push(KIND_ZERO),
            Source::Stored { frame, first, eager } => {
                runs.kind.push(if eager { KIND_EAGER } else { KIND_LAZY });
                runs.frame.push(frame.0);
                runs.first.push(first);
            }
        }
    }
    let vma = |vma: &Vma| proto::Vma {
        start: vma.start.get(),
        end: vma.end.get(),
        wipe_on_fork: vma.wipe_on_fork,
        dont_fork: vma.dont_fork,
        grows_down: vma.grows_down,
    };
    proto::MemoryObject {
        kind: kind.into(),
        id,
        pages_id: object.pages_id,
        vmas: object.vmas.iter().map(vma).collect(),
        runs: Some(runs),
    }
}

fn packs_to_proto(manifest: &Manifest) -> Vec<proto::Pack> {
    let mut frames = manifest.frames.iter().peekable();
    let pack = |entry: &PackEntry| {
        let mut pack =
            proto::Pack { id: entry.id.to_bytes().to_vec(), length: entry.length, ..Default::default() };
        while let Some(frame) = frames.next_if(|frame| frame.pack == entry.id) {
            pack.offset.push(frame.offset);
            pack.stored_length.push(frame.stored_length);
            pack.pages.push(frame.pages);
            pack.codec.push(match frame.codec {
                Codec::None => 0,
                Codec::Lz4 => 1,
                Codec::Zstd => 2,
                Codec::AtSource => 3,
            });
            pack.hashes.extend(frame.hash);
        }
        pack
    };
    manifest.packs.iter().map(pack).collect()
}

pub(super) fn invalid(what: impl Into<String>) -> ManifestError {
    ManifestError::Invalid(what.into())
}

fn invalid_id(error: InvalidId) -> ManifestError {
    invalid(error.to_string())
}

pub(super) fn missing(what: &str) -> ManifestError {
    invalid(format!("{what} is missing"))
}

fn from_proto(message: proto::Manifest) -> Result<Manifest, ManifestError> {
    if message.page_size as usize != PAGE_SIZE {
        return Err(invalid(format!("its pages have {} bytes, not {PAGE_SIZE}", message.page_size)));
    }
    let app: AppId = message.app.parse().map_err(invalid_id)?;
    if app.as_str() != message.app {
        return Err(invalid(format!("application `{}` is not named in full", message.app)));
    }
    let parent = match message.parent.as_slice() {
        [] => None,
        bytes => Some(CheckpointId::from_bytes(bytes).map_err(invalid_id)?),
    };
    // Before there was a depth, it was left out.
    let depth = if parent.is_some() { message.depth.max(1) } else { message.depth };
    let host = message.host.ok_or_else(|| missing("host"))?;
    let statistics = message.statistics.ok_or_else(|| missing("statistics"))?;
    let (packs, frames) = packs_from_proto(message.packs)?;
    let task = |task: proto::Task| Task {
        pid: task.pid,
        parent_pid: task.parent_pid,
        threads: task.threads,
        dead: task.dead,
        command: task.command,
    };
    let stream = |stream: proto::ExternalStream| ExternalStream { key: stream.key, stdio: stream.stdio };
    Ok(Manifest {
        app,
        id: CheckpointId::from_bytes(&message.id).map_err(invalid_id)?,
        parent,
        depth,
        created_unix_ms: message.created_unix_ms,
        host: Host {
            kernel: host.kernel,
            architecture: host.architecture,
            cpu_features: host.cpu_features,
            criu_version: host.criu_version,
        },
        tasks: message.tasks.into_iter().map(task).collect(),
        objects: message.objects.into_iter().map(object_from_proto).collect::<Result<_, _>>()?,
        packs,
        frames,
        bundle: blob_from_proto(message.bundle, "bundle")?,
        page_hashes: blob_from_proto(message.page_hashes, "hashes")?,
        streams: message.streams.into_iter().map(stream).collect(),
        statistics: Statistics {
            pages_total: statistics.pages_total,
            pages_zero: statistics.pages_zero,
            pages_unchanged: statistics.pages_unchanged,
            pages_stored: statistics.pages_stored,
            pages_rewritten: statistics.pages_rewritten,
            bytes_uploaded: statistics.bytes_uploaded,
            elapsed_ms: statistics.elapsed_ms,
            bytes_per_second: statistics.bytes_per_second,
        },
        files: message.files.into_iter().map(file_from_proto).collect::<Result<_, _>>()?,
        large_images: message.large_images.into_iter().map(image_from_proto).collect(),
    })
}

fn blob_from_proto(blob: Option<proto::Blob>, what: &str) -> Result<Blob, ManifestError> {
    let blob = blob.ok_or_else(|| missing(what))?;
    let hash = blob.hash.try_into().map_err(|_| invalid(format!("the hash of {what} has not 32 bytes")))?;
    Ok(Blob { length: blob.length, hash })
}

fn object_from_proto(object: proto::MemoryObject) -> Result<MemoryMap, ManifestError> {
    let id = match object.kind() {
        proto::memory_object::Kind::Task => {
            ObjectId::Task(u32::try_from(object.id).map_err(|_| invalid("a pid has more than 32 bits"))?)
        }
        proto::memory_object::Kind::Shared => ObjectId::Shared(object.id),
        proto::memory_object::Kind::File => {
            let number = u32::try_from(object.id);
            ObjectId::File(number.map_err(|_| invalid("a file's number has more than 32 bits"))?)
        }
        proto::memory_object::Kind::Unspecified => return Err(invalid("an object is of unknown kind")),
    };
    let vma = |vma: &proto::Vma| {
        let (start, end) = (VirtAddr::containing(vma.start), VirtAddr::containing(vma.end));
        if (start.get(), end.get()) != (vma.start, vma.end) {
            return Err(invalid(format!(
                "an area starts or ends inside a page: {:#x}-{:#x}",
                vma.start, vma.end
            )));
        }
        let (wipe_on_fork, dont_fork, grows_down) = (vma.wipe_on_fork, vma.dont_fork, vma.grows_down);
        Ok(Vma { start, end, wipe_on_fork, dont_fork, grows_down })
    };
    Ok(MemoryMap {
        id,
        pages_id: object.pages_id,
        vmas: object.vmas.iter().map(vma).collect::<Result<_, _>>()?,
        runs: runs_from_proto(&object.runs.unwrap_or_default())?,
    })
}

fn runs_from_proto(columns: &proto::Runs) -> Result<Vec<Run>, ManifestError> {
    let count = columns.gap.len();
    let stored = columns.kind.iter().filter(|kind| **kind != KIND_ZERO).count();
    if [columns.pages.len(), columns.kind.len()] != [count; 2]
        || [columns.frame.len(), columns.first.len()] != [stored; 2]
    {
        return Err(invalid("the columns of runs differ in length"));
    }
    let mut places = columns.frame.iter().zip(&columns.first);
    let mut runs = Vec::with_capacity(count);
    let mut end = 0_u64;
    for ((gap, pages), kind) in columns.gap.iter().zip(&columns.pages).zip(&columns.kind) {
        let start = end.checked_add(*gap);
        let next = start.and_then(|start| start.checked_add(*pages)).filter(|end| *end <= MAX_PAGE);
        let (Some(start), Some(next)) = (start, next) else {
            return Err(invalid("a run leaves the address space"));
        };
        end = next;
        let source = match *kind {
            KIND_ZERO => Source::Zero,
            KIND_LAZY | KIND_EAGER => {
                let (frame, first) = places.next().ok_or_else(|| missing("the place of a run"))?;
                Source::Stored { frame: FrameIndex(*frame), first: *first, eager: *kind == KIND_EAGER }
            }
            other => return Err(invalid(format!("a run is of unknown kind {other}"))),
        };
        runs.push(Run { start: VirtAddr::of_page(start), pages: *pages, source });
    }
    Ok(runs)
}

fn packs_from_proto(messages: Vec<proto::Pack>) -> Result<(Vec<PackEntry>, Vec<FrameEntry>), ManifestError> {
    let mut packs = Vec::with_capacity(messages.len());
    let mut frames = Vec::with_capacity(messages.iter().map(|pack| pack.offset.len()).sum());
    for message in messages {
        let pack = PackId::from_bytes(&message.id).map_err(invalid_id)?;
        packs.push(PackEntry { id: pack, length: message.length });
        let count = message.offset.len();
        let (hashes, rest) = message.hashes.as_chunks::<16>();
        let columns = [message.stored_length.len(), message.pages.len(), message.codec.len(), hashes.len()];
        if columns != [count; 4] || !rest.is_empty() {
            return Err(invalid(format!("the columns of pack {pack} differ in length")));
        }
        let sizes = message.stored_length.iter().zip(&message.pages).zip(&message.codec);
        for ((&offset, ((&stored_length, &pages), codec)), &hash) in
            message.offset.iter().zip(sizes).zip(hashes)
        {
            let codec = match *codec {
                0 => Codec::None,
                1 => Codec::Lz4,
                2 => Codec::Zstd,
                3 => Codec::AtSource,
                other => return Err(invalid(format!("a frame of pack {pack} has unknown codec {other}"))),
            };
            frames.push(FrameEntry { pack, offset, stored_length, pages, codec, hash });
        }
    }
    Ok((packs, frames))
}
