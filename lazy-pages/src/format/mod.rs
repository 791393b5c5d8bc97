//! The checkpoint format, version 1. `FORMAT.md` beside `src` is the specification.

pub mod bundle;
mod files;
mod files_wire;
mod frame;
mod hash;
pub mod invariants;
pub mod keys;
mod manifest;
mod shape;
mod wire;

pub use self::{
    files::{Attributes, FileEntry, FileIdentity, FileKind, FilePolicy, LargeImage, Timestamp, pages_of},
    frame::{Codec, FRAME_HASH, FRAME_PAGES, FrameEntry, FrameError, VerifiedFrame},
    hash::{PageHash, frame_hash, hash_pages},
    manifest::{
        Blob, ExternalStream, FrameIndex, Host, Manifest, ManifestError, MemoryMap, ObjectId, PackEntry, Run,
        Source, Statistics, Task, Vma,
    },
    wire::{FORMAT_VERSION, MAX_MANIFEST},
};
