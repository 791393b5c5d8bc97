//! What `restore` starts and nobody types: the page server and its guardian.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use lazy_pages::{
    ids::{AppId, CheckpointId},
    server::daemon,
};
use migration_agent::{handover, launcher, settings};

use super::{args::Global, output::Output};

#[derive(Debug, Args)]
pub struct PageServer {
    #[arg(long)]
    pub app: AppId,
    #[arg(long)]
    pub checkpoint: CheckpointId,
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub patience: u64,
    /// Where pages come from that are not in the store
    #[arg(long)]
    pub origin: Option<String>,
    /// Control directory of the launcher that holds the processes' descriptors too
    #[arg(long)]
    pub anchor: Option<String>,
}

/// What these programs know beside stores.
const SURROUNDINGS: daemon::Surroundings =
    daemon::Surroundings { origins: handover::origin, anchors: launcher::anchor };

/// Serves until every page is there.
pub fn serve(typed: PageServer, global: &Global) -> ExitCode {
    let store = match global.store.clone().map_or_else(settings::default_store, Ok) {
        Ok(store) => store,
        Err(error) => {
            Output { json: global.json }.error(&error, None);
            return ExitCode::FAILURE;
        }
    };
    let restore =
        daemon::Restore { app: typed.app, checkpoint: Some(typed.checkpoint), directory: typed.dir };
    let config = daemon::DaemonConfig {
        store,
        restores: vec![restore],
        json: global.json,
        patience: Duration::from_secs(typed.patience),
        revival: ["guardian", "--state"].map(OsString::from).to_vec(),
        origin: typed.origin,
        anchor: typed.anchor,
    };
    ExitCode::from(daemon::run(&config, SURROUNDINGS))
}

/// Guards until nothing is left to guard.
pub fn guard(state: i32) -> ExitCode {
    daemon::revive(state, SURROUNDINGS).map_or_else(
        |error| {
            tracing::error!(%error, "this is for page servers only");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}
