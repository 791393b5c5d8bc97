//! `checkpoint`: a running tree goes into the store.

use std::sync::Arc;

use clap::Args;
use lazy_pages::ids::AppId;
use migration_agent::{AgentError, CheckpointRequest, Progress, checkpoint::DEFAULT_MAX_CHAIN_DEPTH};

use super::{
    args::Global,
    commands::agent,
    inspect::describe_checkpoint,
    output::{Output, ProgressLine},
};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  migration-agent checkpoint --app cache --pid 4711 --leave-running --json

The process is ended only after its checkpoint is durable. If anything fails before, it goes on running.")]
pub struct Checkpoint {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Root of the process tree
    #[arg(long)]
    pub pid: u32,
    /// Let the tree go on afterwards
    #[arg(long)]
    pub leave_running: bool,
    /// Carry established TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// Build on at most so many checkpoints, one on the other, then make a full one; 0 makes each a full one
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_CHAIN_DEPTH)]
    pub max_chain_depth: u32,
}

/// Takes it, and shows how far it is.
pub fn checkpoint(typed: Checkpoint, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let mut request = CheckpointRequest::new(typed.app, typed.pid);
    request.leave_running = typed.leave_running;
    request.tcp_established = typed.tcp_established;
    request.max_chain_depth = typed.max_chain_depth;
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::start(Arc::clone(&progress));
    let report = agent.checkpoint(&request, &progress);
    drop(line);
    output.result(&report?, describe_checkpoint);
    Ok(())
}
