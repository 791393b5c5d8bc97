//! `launch` and `run`: in front of a workload.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use lazy_pages::ids::AppId;
use migration_launch::{Descriptors, LaunchError, launch};

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
#[command(after_help = "Examples:
  migration-agent launch --app cache --control /run/migration --pid-base 10000 -- redis-server --save ''
  migration-agent checkpoint --app cache --launcher /run/migration
  migration-agent launch --app cache --control /run/migration --restore
  migration-agent restore --app cache --launcher /run/migration

Like `run`, for a container: the workload gets everything this program was started with, this stays when a checkpoint
moves the workload away, until a signal ends it, and a tree can be restored into the container it is in. For containers
there is also `migration-launch`, a small program that does only this.")]
pub struct Launch {
    /// Name of the application: app, namespace/app or cluster/namespace/app
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Put the socket on which an agent talks to this launcher here
    #[arg(long, value_name = "DIR", required_if_eq("restore", "true"))]
    pub control: Option<PathBuf>,
    /// Start nothing: wait for the tree that an agent restores
    #[arg(long)]
    pub restore: bool,
    /// Give the workload a pid above this one, so that it is free where the workload is restored
    #[arg(long, value_name = "PID")]
    pub pid_base: Option<u32>,
    /// Write the workload's pid here
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// The workload
    #[arg(last = true, required_unless_present = "restore", value_name = "CMD")]
    pub command: Vec<OsString>,
}

impl From<Run> for migration_launch::Launch {
    fn from(typed: Run) -> Self {
        Self {
            app: typed.app.to_string(),
            command: typed.command,
            control: None,
            pid_base: None,
            pid_file: typed.pid_file,
            descriptors: Descriptors::Standard,
        }
    }
}

impl From<Launch> for migration_launch::Launch {
    fn from(typed: Launch) -> Self {
        Self {
            app: typed.app.to_string(),
            command: if typed.restore { Vec::new() } else { typed.command },
            control: typed.control,
            pid_base: typed.pid_base,
            pid_file: typed.pid_file,
            descriptors: Descriptors::Inherited,
        }
    }
}

/// Launches, and ends with the exit code of the workload.
pub fn run(what: &migration_launch::Launch) -> Result<ExitCode, LaunchError> {
    launch(what).map(|status| ExitCode::from(status.0))
}

/// Writes a pid file; see [`migration_launch::write_pid_file`]. The workload runs already, so a file that cannot be written
/// is said and not made a failure of it.
pub fn write_pid(path: &Path, pid: u32) {
    if let Err(error) = migration_launch::write_pid_file(path, pid) {
        eprintln!("migration-agent: cannot write {}: {error}", path.display());
    }
}
