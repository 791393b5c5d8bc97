//! `checkpoint`: a running tree goes into the store, once or at intervals.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use lazy_pages::{catalog::Retention, ids::AppId};
use migration_agent::{
    Agent, AgentError, CheckpointRequest, HookCall, Progress,
    checkpoint::DEFAULT_MAX_CHAIN_DEPTH,
    launcher,
    periodic::{Event, Periodic, Stop},
    supervise,
};

use super::{
    args::Global,
    commands::agent,
    duration,
    files::FileOptions,
    hooks::HookOptions,
    inspect::describe_checkpoint,
    output::{Output, ProgressLine, human_bytes},
    remote::{self, Through},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent checkpoint --app cache --pid 4711 --leave-running --json
  migration-agent checkpoint --app cache --pid 4711 --every 30s --keep 3
  migration-agent checkpoint --app cache --pid 4711 --path /var/lib/redis --same /mnt/shared --file-limit 8GiB

The process is ended only after its checkpoint is durable. If anything fails before, it goes on running.
With --agent it is that agent that does it, with its own store; then the pid is as that agent sees it.

Files that it has open for writing, or mapped for that, travel with the checkpoint, deleted ones too, and are put back by
a restore. Files it only reads must be where it is restored.

With --every, checkpoints are taken until the process ends or this program is told to end (SIGTERM, SIGINT), and the process goes on. A result is printed for each. One that fails is tried again at the next interval, and less and less often while that goes on failing. The exit code is 0 if the last one succeeded.")]
pub struct Checkpoint {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Root of the process tree
    #[arg(long, required_unless_present = "launcher")]
    pub pid: Option<u32>,
    /// The tree in front of which the launcher with this control directory is
    #[arg(long, value_name = "DIR", conflicts_with = "pid")]
    pub launcher: Option<PathBuf>,
    /// Let the tree go on afterwards
    #[arg(long)]
    pub leave_running: bool,
    /// Carry established TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// Leave established TCP connections behind: the restored process finds them closed
    #[arg(long, conflicts_with = "tcp_established")]
    pub tcp_close: bool,
    /// Build on at most so many checkpoints, one on the other, then make a full one; 0 makes each a full one
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_CHAIN_DEPTH)]
    pub max_chain_depth: u32,
    /// Take one at once and then at this interval, and let the tree go on: a number and ms, s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = duration::parse_interval, conflicts_with = "agent")]
    pub every: Option<Duration>,
    /// After each of these keep the newest so many, as `gc` does
    #[arg(long, value_name = "N", requires = "every")]
    pub keep: Option<usize>,
    /// After each of these keep those younger than this, as `gc` does
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "every")]
    pub keep_for: Option<Duration>,
    #[command(flatten)]
    pub files: FileOptions,
    /// Call this before the tree is frozen: a command (words, no quoting, no shell) or an http:// address
    #[arg(long, value_name = "CMD|URL")]
    pub before_freeze: Option<HookCall>,
    #[command(flatten)]
    pub hooks: HookOptions,
    #[command(flatten)]
    pub through: Through,
}

/// The root of the tree that is meant; 0 if only the agent that is asked can know it.
pub fn root(typed: &Checkpoint) -> Result<u32, AgentError> {
    match (typed.pid, &typed.launcher) {
        (Some(pid), _) => Ok(pid),
        _ if typed.through.agent.is_some() => Ok(0),
        (None, Some(directory)) => launcher::root_of(directory),
        (None, None) => Err(AgentError::Usage("there is neither --pid nor --launcher".to_owned())),
    }
}

/// Takes one and shows how far it is, or takes one after the other.
pub fn checkpoint(
    typed: Checkpoint,
    pid: u32,
    global: &Global,
    output: Output,
) -> Result<ExitCode, AgentError> {
    if typed.through.agent.is_some() {
        let report = remote::checkpoint(&typed)?;
        output.result(&report, describe_checkpoint);
        return Ok(ExitCode::SUCCESS);
    }
    let mut request = CheckpointRequest::new(typed.app.clone(), pid);
    request.launcher = typed.launcher.clone();
    request.leave_running = typed.leave_running;
    request.tcp_established = typed.tcp_established;
    request.tcp_close = typed.tcp_close;
    request.files = typed.files.rules();
    request.before_freeze = typed.hooks.hook(&typed.before_freeze);
    request.max_chain_depth = typed.max_chain_depth;
    if let Some(every) = typed.every {
        let stop = Stop::default();
        let retention = Retention { keep: typed.keep, keep_for: typed.keep_for };
        // Without a rule there is nothing to be done after each.
        let retention = (retention != Retention::default()).then_some(retention);
        // Before there is any other thread.
        supervise::stop_on_signals(stop.clone())?;
        return periodic(&agent(global)?, &Periodic { request, every, retention }, &stop, output);
    }
    let agent = agent(global)?;
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::start(Arc::clone(&progress));
    let report = agent.checkpoint(&request, &progress);
    drop(line);
    output.result(&report?, describe_checkpoint);
    Ok(ExitCode::SUCCESS)
}

fn periodic(agent: &Agent, periodic: &Periodic, stop: &Stop, output: Output) -> Result<ExitCode, AgentError> {
    let mut code = ExitCode::SUCCESS;
    let ended = agent.checkpoint_periodically(periodic, stop, &mut |event| match event {
        Event::Committed(report) => {
            code = ExitCode::SUCCESS;
            output.result(&report, describe_checkpoint);
        }
        Event::Failed(error, next) => {
            code = ExitCode::FAILURE;
            let left = format!("the process and earlier checkpoints; trying again in {next:.0?}");
            output.error(&error, Some(&left));
        }
        Event::Collected(collected) => {
            for id in &collected.deleted {
                tracing::info!(%id, freed = human_bytes(collected.bytes), "deleted: it need not be kept");
            }
            if let Some(why) = collected.left {
                tracing::warn!(%why, "what deleted checkpoints had stored stays until the next time");
            }
        }
        Event::NotCollected(error) => {
            tracing::warn!(%error, "old checkpoints stay until after the next one");
        }
    })?;
    tracing::info!(?ended, "no more checkpoints");
    Ok(code)
}
