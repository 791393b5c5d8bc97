//! `run`: in front of a workload.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use lazy_pages::ids::AppId;
use migration_agent::{AgentError, launch, supervise, supervise::Signals};

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

/// Starts the workload and ends with its exit code.
pub fn run(typed: &Run, signals: &Signals) -> Result<ExitCode, AgentError> {
    supervise::adopt_orphans()?;
    let child = launch::start(&typed.command)?;
    signals.forward_to(child.id());
    eprintln!("migration-agent: {} runs as pid {}", typed.app, child.id());
    if let Some(path) = &typed.pid_file {
        write_pid(path, child.id());
    }
    Ok(supervise::wait_for(child.id())?.into())
}

/// Writes a pid file that is never seen half written. The workload runs already, so a file that cannot be written is said
/// and not made a failure of it.
pub fn write_pid(path: &Path, pid: u32) {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    if let Err(error) = fs::write(&name, format!("{pid}\n")).and_then(|()| fs::rename(&name, path)) {
        eprintln!("migration-agent: cannot write {}: {error}", path.display());
    }
}
