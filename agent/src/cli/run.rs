//! `run`: in front of a workload.

use std::{fs, path::Path, process::ExitCode};

use migration_agent::{AgentError, launch, supervise, supervise::Signals};

use super::args::Run;

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
