//! Takes checkpoints of process trees into object storage and restores them on demand.
//!
//! [`Agent`] is the library; the `migration-agent` command is a thin layer over it. The memory path lives in
//! [`lazy_pages`], the conversation with CRIU in [`criu_rpc`]; this crate joins them into pipelines whose first rule is
//! that nothing is ever lost: see [`checkpoint`] for what every crash leaves behind.
//!
//! ```no_run
//! use std::{fs::File, process::ExitCode, thread, time::Duration};
//!
//! use lazy_pages::store;
//! use migration_agent::{Agent, CheckpointRequest, Progress, RestoreRequest, serving::serve_pages};
//!
//! fn main() -> ExitCode {
//!     // A lazy restore starts this very program once more, to serve pages with the same store.
//!     if let Some(code) = serve_pages(store::open) {
//!         return code;
//!     }
//!     move_away_and_back().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
//! }
//!
//! fn move_away_and_back() -> Result<(), Box<dyn std::error::Error>> {
//!     let agent = Agent::new("s3://bucket/checkpoints?region=eu-central-1".parse()?, None, None)?;
//!     let (request, progress) = (CheckpointRequest::new("cache".parse()?, 4711), Progress::default());
//!     let report = thread::scope(|scope| {
//!         let working = scope.spawn(|| agent.checkpoint(&request, &progress));
//!         while !working.is_finished() {
//!             thread::sleep(Duration::from_millis(100));
//!             println!("{:?}", progress.now());
//!         }
//!         working.join().expect("no panic")
//!     })?;
//!     println!("frozen for {} ms", report.frozen_ms);
//!     let stream = || File::options().read(true).write(true).open("/dev/null").map(Into::into);
//!     let streams = [stream()?, stream()?, stream()?];
//!     let request = RestoreRequest::new("cache".parse()?, streams, std::env::current_exe()?);
//!     let mut restored = agent.restore(request, &Progress::default())?;
//!     println!("pid {} runs", restored.pid);
//!     println!("all pages are here after {} ms", restored.wait_resident()?.resident_ms);
//!     Ok(())
//! }
//! ```
//!
//! A program with an object store of its own implements [`ObjectStore`](lazy_pages::store::ObjectStore) and gives a function
//! that opens it to [`Agent::with_stores`] and [`serve_pages`](serving::serve_pages): `examples/embed.rs` does, and can be
//! run.

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
mod foreign_group;
pub mod handover;
pub mod hook;
mod host;
pub mod launcher;
pub mod migrate;
mod output;
mod page_server;
mod page_sink;
mod pagemap;
pub mod periodic;
mod progress;
mod records;
pub mod report;
pub mod restore;
pub mod service;
pub mod serving;
pub mod settings;
pub mod supervise;
pub mod sysctl;
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
