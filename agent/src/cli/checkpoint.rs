//! `checkpoint`: a running tree goes into the store.

use std::sync::Arc;

use clap::Args;
use lazy_pages::ids::AppId;
use migration_agent::{AgentError, CheckpointRequest, HookCall, Progress};

use super::{
    args::Global,
    commands::agent,
    hooks::HookOptions,
    inspect::describe_checkpoint,
    output::{Output, ProgressLine},
    remote::{self, Through},
};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  migration-agent checkpoint --app cache --pid 4711 --leave-running --json

The process is ended only after its checkpoint is durable. If anything fails before, it goes on running.
With --agent it is that agent that does it, with its own store; then the pid is as that agent sees it.")]
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
    /// Call this before the tree is frozen: a command (words, no quoting, no shell) or an http:// address
    #[arg(long, value_name = "CMD|URL")]
    pub before_freeze: Option<HookCall>,
    #[command(flatten)]
    pub hooks: HookOptions,
    #[command(flatten)]
    pub through: Through,
}

/// Takes it, and shows how far it is.
pub fn checkpoint(typed: Checkpoint, global: &Global, output: Output) -> Result<(), AgentError> {
    if typed.through.agent.is_some() {
        let report = remote::checkpoint(&typed)?;
        output.result(&report, describe_checkpoint);
        return Ok(());
    }
    let agent = agent(global)?;
    let mut request = CheckpointRequest::new(typed.app, typed.pid);
    request.leave_running = typed.leave_running;
    request.tcp_established = typed.tcp_established;
    request.before_freeze = typed.hooks.hook(&typed.before_freeze);
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::start(Arc::clone(&progress));
    let report = agent.checkpoint(&request, &progress);
    drop(line);
    output.result(&report?, describe_checkpoint);
    Ok(())
}
