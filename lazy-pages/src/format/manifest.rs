//! A manifest: the commit record of a checkpoint, and the map from every page it knows to where its bytes are.
//!
//! What always holds of a [`Manifest`] that was decoded or can be encoded is listed, and checked both times, in
//! [`invariants`](super::invariants). The ones every reader leans on:
//! - Runs of a [`MemoryMap`] are sorted, do not overlap and are not empty.
//! - Every page of every [`Vma`] is in exactly one run, and no run crosses the edge of a VMA. So a page that is in no
//!   run was not there when the checkpoint was taken; "not listed" never means "zero".
//! - Every stored run lies inside the frame it names; every frame lies inside its pack.

use crate::{
    format::{FileEntry, FrameEntry, LargeImage},
    ids::{AppId, CheckpointId, PackId},
    units::VirtAddr,
};

/// The commit record of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Whose checkpoint it is.
    pub app: AppId,
    /// Its name.
    pub id: CheckpointId,
    /// The checkpoint it was compared with; `None` for a full one. It is not needed to restore this one.
    pub parent: Option<CheckpointId>,
    /// How many checkpoints it builds on, one on the other: one more than its parent, 0 for a full one. What was written
    /// before there was such a number counts as 1, the least it can be.
    pub depth: u32,
    /// Milliseconds since 1970, by the writer's clock.
    pub created_unix_ms: u64,
    /// The machine it was taken on.
    pub host: Host,
    /// Every task of the tree, parents before children.
    pub tasks: Vec<Task>,
    /// Memory of every live task and every shared object, and the content of files.
    pub objects: Vec<MemoryMap>,
    /// Every pack some frame is in, ascending by id.
    pub packs: Vec<PackEntry>,
    /// Every frame some run refers to, ascending by pack and offset; [`FrameIndex`] counts in this list.
    pub frames: Vec<FrameEntry>,
    /// CRIU's images other than pages.
    pub bundle: Blob,
    /// 16 bytes for each stored page, in the order of `objects` and their runs.
    pub page_hashes: Blob,
    /// Pipes and terminals shared with the outside.
    pub streams: Vec<ExternalStream>,
    /// How it was made.
    pub statistics: Statistics,
    /// Files that are carried, and files that have to be there.
    pub files: Vec<FileEntry>,
    /// Images of CRIU's that are not in the bundle.
    pub large_images: Vec<LargeImage>,
}

impl Manifest {
    /// The memory of `id`.
    pub fn object(&self, id: ObjectId) -> Option<&MemoryMap> {
        self.objects.iter().find(|object| object.id == id)
    }

    /// Pages that are in frames.
    pub fn stored_pages(&self) -> u64 {
        self.objects.iter().map(MemoryMap::stored_pages).sum()
    }
}

/// A pack and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Its name.
    pub id: PackId,
    /// Bytes of the whole object.
    pub length: u64,
}

/// Facts about the machine a checkpoint was taken on.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Host {
    /// `uname -r`
    pub kernel: String,
    /// `uname -m`
    pub architecture: String,
    /// Flags of the first CPU, as in `/proc/cpuinfo`.
    pub cpu_features: Vec<String>,
    /// `major * 10000 + minor * 100 + sublevel`
    pub criu_version: u32,
}

/// A task of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its pid, which a restore needs again.
    pub pid: u32,
    /// Its parent's.
    pub parent_pid: u32,
    /// How many threads it has.
    pub threads: u32,
    /// A zombie: no memory.
    pub dead: bool,
    /// `comm`, at most 15 characters.
    pub command: String,
}

/// Length and hash of an object that is always read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Bytes.
    pub length: u64,
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
}

impl Blob {
    /// Describes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, hash: *blake3::hash(bytes).as_bytes() }
    }

    /// Whether `bytes` are the ones described.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        *self == Self::of(bytes)
    }
}

/// Which memory a [`MemoryMap`] describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectId {
    /// Private memory of the task with this pid.
    Task(u32),
    /// Shared memory or a memfd with this CRIU shmid; addresses are offsets inside it.
    Shared(u64),
    /// The content of a file, by a number of this format's own; addresses are offsets inside it.
    File(u32),
}

/// What is known of one address space or shared object.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryMap {
    /// Whose memory.
    pub id: ObjectId,
    /// The number in the name of its `pages-<n>.img`; 0 for a file, which has none.
    pub pages_id: u32,
    /// Areas whose pages may be restored on demand, ascending. Empty for shared objects and files.
    pub vmas: Vec<Vma>,
    /// What the pages hold, ascending.
    pub runs: Vec<Run>,
}

impl MemoryMap {
    /// The run that holds the page at `address`.
    pub fn run_at(&self, address: VirtAddr) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.end() <= address);
        self.runs.get(at).filter(|run| run.start <= address)
    }

    /// The area that holds `address`.
    pub fn vma_at(&self, address: VirtAddr) -> Option<&Vma> {
        let at = self.vmas.partition_point(|vma| vma.end <= address);
        self.vmas.get(at).filter(|vma| vma.start <= address)
    }

    /// Whether `run`, one of this map's, must be in memory before the process runs. Zeros count outside lazy-capable
    /// areas: there a page that is not written keeps what is below it, such as a file's content.
    pub fn is_eager(&self, run: &Run) -> bool {
        match run.source {
            Source::Stored { eager, .. } => eager,
            Source::Zero => self.vma_at(run.start).is_none(),
        }
    }

    /// Pages that are in frames.
    pub fn stored_pages(&self) -> u64 {
        self.runs.iter().filter(|run| run.source != Source::Zero).map(|run| run.pages).sum()
    }
}

/// An area of a task in which page faults are served after a lazy restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: VirtAddr,
    /// First address after it.
    pub end: VirtAddr,
    /// A forked child sees zeros here (`MADV_WIPEONFORK`).
    pub wipe_on_fork: bool,
    /// A forked child does not have it (`MADV_DONTFORK`).
    pub dont_fork: bool,
    /// A stack, which the kernel extends downwards.
    pub grows_down: bool,
}

/// Pages next to each other that come from the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page.
    pub start: VirtAddr,
    /// How many, at least one. Of a stored run at most a frame's worth.
    pub pages: u64,
    /// Where their content is.
    pub source: Source,
}

impl Run {
    /// First address after it.
    pub fn end(&self) -> VirtAddr {
        self.start.add(self.pages)
    }
}

/// Where the content of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// All bytes are zero.
    Zero,
    /// In a frame.
    Stored {
        /// Which frame.
        frame: FrameIndex,
        /// Which page of the frame the run starts with.
        first: u32,
        /// It must be in memory before the process runs: userfaultfd cannot serve it.
        eager: bool,
    },
}

/// Position in [`Manifest::frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameIndex(pub u32);

/// A pipe or terminal the workload shared with whoever started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalStream {
    /// CRIU's name for it: `pipe:[inode]` or `tty[rdev:dev]`.
    pub key: String,
    /// The descriptor of the restoring side that takes its place: 0, 1 or 2.
    pub stdio: u32,
}

/// How a checkpoint was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Pages received from the frozen tree, and pages taken over from the parent because they had not arrived in it.
    /// Memory it never touched is in zero runs, but not counted.
    pub pages_total: u64,
    /// Pages of these that were all zero.
    pub pages_zero: u64,
    /// Pages found in the parent, by hash, and those taken over.
    pub pages_unchanged: u64,
    /// Pages in frames this checkpoint wrote.
    pub pages_stored: u64,
    /// Pages of these that had not changed: too little of their frames was still needed.
    pub pages_rewritten: u64,
    /// Bytes of all objects this checkpoint created, its manifest excepted.
    pub bytes_uploaded: u64,
    /// From its beginning until everything but the manifest was durable.
    pub elapsed_ms: u64,
    /// Bytes a second that the store took, measured over its packs; 0 if it had none.
    pub bytes_per_second: u64,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not a manifest, cut short, or changed since it was written.
    #[error("the manifest is damaged: {0}")]
    Damaged(String),
    /// Made by a newer version of this software.
    #[error("the manifest has format version {found}; this program reads version {known}")]
    UnknownVersion {
        /// The version found.
        found: u32,
        /// The version known.
        known: u32,
    },
    /// It is intact but breaks a rule of the format.
    #[error("the manifest breaks a rule of the format: {0}")]
    Invalid(String),
    /// It belongs to another application or checkpoint than its name says.
    #[error("the manifest is of {found}, not of {wanted}")]
    Foreign {
        /// What it says it is.
        found: String,
        /// What was asked for.
        wanted: String,
    },
}
