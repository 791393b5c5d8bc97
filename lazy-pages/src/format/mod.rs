//! The checkpoint format, version 1. `FORMAT.md` beside `src` is the specification.

mod frame;
mod manifest;

pub use self::{
    frame::{Codec, FrameEntry, FrameError, VerifiedFrame},
    manifest::{
        Blob, ExternalStream, FrameIndex, Host, Manifest, ManifestError, MemoryMap, ObjectId, Run, Source, Statistics,
        Task, Vma,
    },
};
