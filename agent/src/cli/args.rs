//! What can be typed.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use lazy_pages::{
    ids::{AppId, CheckpointId},
    server::STORE_PATIENCE,
    store::StoreUrl,
};
use migration_agent::Strategy;

/// Moves running processes between machines, with their memory in object storage.
#[derive(Debug, Parser)]
#[command(
    name = "migration-agent",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  migration-agent check
  migration-agent run --app cache -- redis-server --save ''
  migration-agent checkpoint --app cache --pid $(pgrep -n redis-server)
  migration-agent restore --app cache --detach
  migration-agent list --app cache

Stores:
  file:///var/lib/checkpoints
  s3://bucket/prefix?region=eu-central-1
  s3://bucket?endpoint=http://127.0.0.1:9000&region=us-east-1&path-style=true
S3 credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), a profile, or the instance.

Exit codes: 0 done; 1 failed (the message says what was left as it was); 2 not understood.
`run` and a `restore` that stays in front end with the workload's own exit code."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options every command has.
#[derive(Debug, Args)]
pub struct Global {
    /// Where checkpoints are [default: MIGRATION_STORE, else a directory under the user's data directory]
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<StoreUrl>,
    /// The criu program [default: MIGRATION_CRIU, else criu in PATH]
    #[arg(long, global = true, value_name = "PATH")]
    pub criu: Option<PathBuf>,
    /// Where short-lived metadata files are put, best a tmpfs [default: MIGRATION_WORK_DIR, else one that is found]
    #[arg(long, global = true, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Print one JSON object a result on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error; twice for every detail
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell what this machine can do, what is missing, and what that costs
    Check,
    /// Start a workload so that it can be moved, and stay in front of it
    Run(Run),
    /// Put a process tree into the store, and end it unless told otherwise
    Checkpoint(Checkpoint),
    /// Bring a process tree back
    Restore(Restore),
    /// List applications, or the checkpoints of one
    List(List),
    /// Show what a checkpoint holds
    Show(OneCheckpoint),
    /// Check that a checkpoint is complete
    Verify(Verify),
    /// Remove a checkpoint; pages that other checkpoints share stay
    Delete(Delete),
    /// Serve the pages of one lazy restore (started by `restore`)
    #[command(hide = true)]
    PageServer(PageServer),
    /// Guard what a page server has left (started by it)
    #[command(hide = true)]
    Guardian {
        /// Number of the descriptor of its state
        #[arg(long)]
        state: i32,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  migration-agent run --app cache --pid-file /run/cache.pid -- redis-server --save ''

The workload gets a session of its own and this program's standard streams, environment and working directory. Signals
are passed on to it, and its exit code comes back; 128 plus the signal if one ended it, so 137 after a checkpoint that
moved it away.")]
pub struct Run {
    /// Name of the application: app, namespace/app or cluster/namespace/app
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Write the workload's pid here
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// The workload
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

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
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent restore --app cache                     stay in front of it, until it ends
  migration-agent restore --app cache --detach            return when it runs
  migration-agent restore --app cache --wait-resident     return when all of its pages are in memory

In front, the workload's pipes and terminals continue on this program's standard streams. Detached, they continue in the file named by --output, which is shown in the result.")]
pub struct Restore {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Which checkpoint [default: the newest]
    #[arg(long, value_name = "ID")]
    pub checkpoint: Option<CheckpointId>,
    /// Where pages come from: `full` fetches all before the process runs, `lazy-storage` on demand
    #[arg(long, default_value = "lazy-storage", value_name = "full|lazy-storage")]
    pub strategy: Strategy,
    /// Return as soon as the process runs; its page server goes on in the background
    #[arg(long)]
    pub detach: bool,
    /// Return when all pages are in memory
    #[arg(long)]
    pub wait_resident: bool,
    /// Where a detached workload's output goes: a file, or `inherit` for this program's own streams
    /// [default: a log file in the user's state directory]
    #[arg(long, value_name = "FILE|inherit")]
    pub output: Option<PathBuf>,
    /// How long the restored processes wait for a store that cannot be reached, where they touch pages that have not come
    /// yet, before they are killed
    #[arg(long, value_name = "SECONDS", default_value_t = STORE_PATIENCE.as_secs())]
    pub patience: u64,
    /// Write the workload's pid here
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Restore established TCP connections
    #[arg(long)]
    pub tcp_established: bool,
}

#[derive(Debug, Args)]
pub struct List {
    /// Name of the application; without it, all applications are listed
    #[arg(long, value_name = "NAME")]
    pub app: Option<AppId>,
}

#[derive(Debug, Args)]
pub struct OneCheckpoint {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Which checkpoint [default: the newest]
    #[arg(long, value_name = "ID")]
    pub checkpoint: Option<CheckpointId>,
}

#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub which: OneCheckpoint,
    /// Fetch every page and check its hash
    #[arg(long)]
    pub read_data: bool,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Which checkpoint
    #[arg(long, value_name = "ID")]
    pub checkpoint: CheckpointId,
}

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
}
