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
        write_pid(path, child.id())?;
    }
    Ok(supervise::wait_for(child.id())?.into())
}

/// Writes a pid file that is never seen half written.
pub fn write_pid(path: &Path, pid: u32) -> Result<(), AgentError> {
    let failed = |source| AgentError::Io { what: format!("cannot write {}", path.display()), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    fs::write(&name, format!("{pid}\n")).map_err(failed)?;
    fs::rename(&name, path).map_err(failed)
}
