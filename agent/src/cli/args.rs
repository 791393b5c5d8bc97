//! What can be typed: the commands, and the options all of them have. A command's own are in its module.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lazy_pages::{store::StoreUrl, writer::Compression};
use migration_agent::serving::Serving;

use super::{
    checkpoint::Checkpoint,
    deadline::Deadline,
    gc::Gc,
    generation::Generation,
    inspect::{Delete, List, OneCheckpoint, Verify},
    launch::{Launch, Run},
    migrate::Migrate,
    pin::{Pin, Unpin},
    remote::{Cancel, Status, Watch},
    report::Report,
    restore::Restore,
    serve::Serve,
};

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
`run`, `launch` and a `restore` that stays in front end with the workload's own exit code."
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
    /// How pages are compressed: auto, none, lz4, zstd, or zstd:LEVEL. What is stored already stays as it is
    #[arg(long, global = true, value_name = "HOW", default_value_t)]
    pub compression: Compression,
    /// Print one JSON object a result on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// How messages on standard error look
    #[arg(long, global = true, value_enum, value_name = "text|json", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Say more on standard error; twice for every detail
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell what this machine can do, what is missing, and what that costs
    Check,
    /// Start a workload so that it can be moved, and stay in front of it
    Run(Run),
    /// The same in a container, from which the workload may be moved away and into which it may be restored
    Launch(Launch),
    /// Put a process tree into the store, and end it unless told otherwise
    Checkpoint(Checkpoint),
    /// Bring a process tree back
    Restore(Restore),
    /// Do what others ask for over gRPC
    Serve(Serve),
    /// Show what an agent that serves does and did
    Status(Status),
    /// Follow an operation of such an agent to its end
    Watch(Watch),
    /// Cancel an operation of such an agent
    Cancel(Cancel),
    /// Move an application from one agent's machine to another's
    Migrate(Migrate),
    /// Tell whether a final dump would be done before a deadline
    Deadline(Deadline),
    /// Tell which run of an application is the newest, or that a run has ended with its machine
    Generation(Generation),
    /// List applications, or the checkpoints of one
    List(List),
    /// Show what a checkpoint holds
    Show(OneCheckpoint),
    /// Tell what a checkpoint and its last restore did, and how long each part took
    Report(Report),
    /// Check that a checkpoint is complete
    Verify(Verify),
    /// Remove a checkpoint; pages that other checkpoints share stay
    Delete(Delete),
    /// Keep a checkpoint from being deleted
    Pin(Pin),
    /// Keep it no longer
    Unpin(Unpin),
    /// Delete the checkpoints that need not be kept
    Gc(Gc),
    #[command(flatten)]
    Serving(Serving),
}
