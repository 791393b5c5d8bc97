//! The page server of a restore: a program that restores is also the program that serves its pages.
//!
//! A restored tree depends on its page server after whoever restored it has ended. So that is a process of its own, and
//! the same program, started with arguments that only this module makes and understands. A program that embeds this
//! library and restores lazily calls [`serve_pages`] before anything else, and names itself in
//! [`RestoreRequest::page_server`](crate::RestoreRequest::page_server).

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use lazy_pages::{
    ids::{AppId, CheckpointId},
    server::daemon::{self, DaemonConfig, Restore, Stores, Surroundings},
    store::StoreUrl,
};

use crate::{handover, launcher};

/// What a restore starts and nobody types.
#[derive(Debug, Subcommand)]
pub enum Serving {
    /// Serves the pages of one restore
    #[command(hide = true)]
    PageServer(Box<PageServer>),
    /// Goes on guarding a page server after all of its other processes have died
    #[command(hide = true)]
    Guardian {
        /// Number of the descriptor of what it needs to know
        #[arg(long)]
        state: i32,
    },
}

/// Which restore, and how.
#[derive(Debug, Args)]
pub struct PageServer {
    /// Where the checkpoint is
    #[arg(long, env = "MIGRATION_STORE")]
    pub store: StoreUrl,
    /// Whose
    #[arg(long)]
    pub app: AppId,
    /// Which
    #[arg(long)]
    pub checkpoint: CheckpointId,
    /// Where its images go, and the socket
    #[arg(long)]
    pub dir: PathBuf,
    /// For how many seconds processes wait for what does not come
    #[arg(long)]
    pub patience: u64,
    /// How many requests at a time fetch what nobody waits for yet
    #[arg(long)]
    pub prefetch_workers: Option<u32>,
    /// Where pages come from that are not in the store
    #[arg(long)]
    pub origin: Option<String>,
    /// Control directory of the launcher that holds the processes' descriptors too
    #[arg(long)]
    pub anchor: Option<String>,
}

impl Serving {
    /// Serves, or guards, until nobody depends on it. To be called before any other thread exists.
    pub fn run(self, stores: Stores) -> ExitCode {
        let surroundings = Surroundings { stores, origins: handover::origin, anchors: launcher::anchor };
        match self {
            Self::PageServer(typed) => {
                let PageServer { store, app, checkpoint, dir, patience, prefetch_workers, origin, anchor } =
                    *typed;
                let config = DaemonConfig {
                    store,
                    restores: vec![Restore { app, checkpoint: Some(checkpoint), directory: dir }],
                    json: true,
                    patience: Duration::from_secs(patience),
                    prefetch: prefetch_workers,
                    revival: ["guardian", "--state"].map(OsString::from).to_vec(),
                    origin,
                    anchor,
                };
                ExitCode::from(daemon::run(&config, surroundings))
            }
            Self::Guardian { state } => daemon::revive(state, surroundings).map_or_else(
                |error| {
                    tracing::error!(%error, "this is for page servers only");
                    ExitCode::FAILURE
                },
                ExitCode::from,
            ),
        }
    }
}

#[derive(Parser)]
struct Typed {
    #[command(subcommand)]
    serving: Serving,
}

/// Serves pages if this process was started to do that, and gives the exit code when nobody depends on it any more. `None`
/// at once in every other process. To be called before any other thread exists.
pub fn serve_pages(stores: Stores) -> Option<ExitCode> {
    let asked = std::env::args_os().nth(1).is_some_and(|word| word == "page-server" || word == "guardian");
    asked.then(|| match Typed::try_parse() {
        Ok(typed) => typed.serving.run(stores),
        Err(error) => {
            tracing::error!(%error, "this is for page servers only");
            ExitCode::FAILURE
        }
    })
}
