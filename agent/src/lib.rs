//! Takes checkpoints of process trees into object storage and restores them on demand.
//!
//! [`Agent`] is the library; the `migration-agent` command is a thin layer over it. The memory path lives in
//! [`lazy_pages`], the conversation with CRIU in [`criu_rpc`]; this crate joins them into pipelines whose first rule is
//! that nothing is ever lost: see [`checkpoint`] for what every crash leaves behind.

mod agent;
mod arriving;
mod cancel;
pub mod capabilities;
pub mod checkpoint;
pub mod client;
mod container;
pub mod deadline;
mod dumped_images;
mod error;
pub mod fence;
mod files;
pub mod handover;
pub mod hook;
mod host;
pub mod launcher;
pub mod migrate;
mod page_server;
mod page_sink;
mod pagemap;
pub mod periodic;
mod progress;
pub mod restore;
pub mod service;
pub mod settings;
pub mod supervise;
mod tree;
mod userfault;
pub mod volume;
mod workdir;

pub use self::{
    agent::Agent,
    cancel::Cancel,
    checkpoint::{ByteCounts, CheckpointReport, CheckpointRequest, PageCounts},
    error::{AgentError, chain as error_chain},
    files::{DEFAULT_FILE_LIMIT, ExistingFiles, FileCounts, FileRules, FilesError, OpenFiles, PutBackReport},
    hook::{HOOK_TIMEOUT, Hook, HookCall, HookEvent},
    progress::{Progress, Stage},
    restore::{Residency, RestoreRequest, Restored, Strategy},
    tree::is_alive,
};
