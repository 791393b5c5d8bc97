//! `restore`: a tree comes back, in front of this program or behind it.

use std::{
    env, fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use lazy_pages::{
    ids::{AppId, CheckpointId},
    server::STORE_PATIENCE,
};
use migration_agent::{
    AgentError, ExistingFiles, HookCall, Progress, PutBackReport, Residency, RestoreRequest, Restored,
    Strategy,
    launcher::Waiting,
    settings,
    supervise::{self, Signals},
};
use serde::Serialize;

use super::{
    args::Global,
    commands::agent,
    hooks::HookOptions,
    launch::write_pid,
    output::{Output, ProgressLine},
    remote::{self, Through},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent restore --app cache                     stay in front of it, until it ends
  migration-agent restore --app cache --detach            return when it runs
  migration-agent restore --app cache --wait-resident     return when all of its pages are in memory
  migration-agent restore --app cache --launcher DIR      into the container of a launcher that waits

In front, the workload's pipes and terminals continue on this program's standard streams. Detached, they continue in the file named by --output, which is shown in the result. With --agent it is that agent that
restores, always detached.

Files that travelled with the checkpoint are put back before the tree runs. Where another file has the name, its content stays beside it as NAME.before-CHECKPOINT. If the restore fails, all files are as they were.")]
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
    #[arg(long, conflicts_with = "agent")]
    pub wait_resident: bool,
    /// Where a detached workload's output goes: a file, or `inherit` for this program's own streams
    /// [default: a log file in the user's state directory]
    #[arg(long, value_name = "FILE|inherit", conflicts_with = "agent")]
    pub output: Option<PathBuf>,
    /// How long the restored processes wait for a store that cannot be reached, where they touch pages that have not come
    /// yet, before they are killed
    #[arg(long, value_name = "SECONDS", default_value_t = STORE_PATIENCE.as_secs())]
    pub patience: u64,
    /// How many requests at a time fetch pages that nobody waits for yet [default: what suits the store]. With 0 a page comes when it is
    /// touched, and the processes need the store as long as they live
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(..=256))]
    pub prefetch_workers: Option<u32>,
    /// Write the workload's pid here
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Restore established TCP connections
    #[arg(long)]
    pub tcp_established: bool,
    /// What becomes of files that are not as they were at the checkpoint: put them aside, replace them, or refuse to restore
    #[arg(long, default_value = "set-aside", value_name = "set-aside|replace|refuse")]
    pub existing_files: ExistingFiles,
    /// Call this when the tree runs: a command (words, no quoting, no shell) or an http:// address
    #[arg(long, value_name = "CMD|URL")]
    pub after_restore: Option<HookCall>,
    #[command(flatten)]
    pub hooks: HookOptions,
    /// Restore into the container of the launcher with this control directory: its namespaces, control groups and standard
    /// streams. This program, or the agent, stays until the workload ends, to tell the launcher how
    #[arg(long, value_name = "DIR", conflicts_with_all = ["detach", "wait_resident", "output"])]
    pub launcher: Option<PathBuf>,
    #[command(flatten)]
    pub through: Through,
}

/// What `restore` prints.
#[derive(Serialize)]
struct Report {
    checkpoint: String,
    app: String,
    pid: u32,
    strategy: Strategy,
    resume_ms: f64,
    #[serde(flatten)]
    residency: Option<Residency>,
    files: PutBackReport,
    /// Where the pipes and terminals of a detached workload continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    /// Why the hook failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    hook_failure: Option<String>,
}

/// Restores, then returns at once, when all pages are there, or when the workload ends.
pub fn restore(
    typed: Restore,
    global: &Global,
    output: Output,
    signals: &Signals,
) -> Result<ExitCode, AgentError> {
    if typed.through.agent.is_some() {
        return through_agent(&typed, output);
    }
    supervise::adopt_orphans()?;
    let agent = agent(global)?;
    let in_front = !typed.detach && !typed.wait_resident;
    let log = match (&typed.output, in_front) {
        (Some(path), _) if path == Path::new("inherit") => None,
        (Some(path), _) => Some(path.clone()),
        (None, true) => None,
        (None, false) => Some(default_log(&typed)?),
    };
    let page_server = env::current_exe().map_err(io_error("cannot find this program"))?;
    let launcher = typed.launcher.as_deref().map(Waiting::connect).transpose()?.map(Arc::new);
    let streams = match &launcher {
        Some(launcher) => launcher.streams()?,
        None => streams(log.as_deref())?,
    };
    let mut request = RestoreRequest::new(typed.app.clone(), streams, page_server);
    request.launcher = launcher.clone();
    request.checkpoint = typed.checkpoint;
    request.strategy = typed.strategy;
    request.patience = Duration::from_secs(typed.patience);
    request.prefetch = typed.prefetch_workers;
    request.page_server_log = (!in_front).then(|| page_server_log(&typed)).transpose()?;
    request.tcp_established = typed.tcp_established;
    request.existing_files = typed.existing_files;
    request.after_restore = typed.hooks.hook(&typed.after_restore);
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::start(Arc::clone(&progress));
    let mut restored = match agent.restore(request, &progress) {
        Ok(restored) => restored,
        Err(error) => {
            drop(line);
            return Err(error);
        }
    };
    if in_front {
        signals.forward_to(restored.pid);
    }
    if let Some(path) = &typed.pid_file {
        write_pid(path, restored.pid);
    }
    let report = |restored: &Restored, residency| Report {
        checkpoint: restored.checkpoint.to_string(),
        app: typed.app.to_string(),
        pid: restored.pid,
        strategy: restored.strategy,
        resume_ms: restored.resume.as_secs_f64() * 1e3,
        residency,
        files: restored.files.clone(),
        output: log.clone(),
        hook_failure: restored.hook_failure.clone(),
    };
    if typed.detach && !typed.wait_resident {
        drop(line);
        output.result(&report(&restored, None), describe);
        return Ok(ExitCode::SUCCESS);
    }
    let residency = restored.wait_resident();
    drop(line);
    if !in_front {
        output.result(&report(&restored, Some(residency?)), describe);
        return Ok(ExitCode::SUCCESS);
    }
    match residency {
        // Standard output belongs to the workload now, unless JSON was asked for.
        Ok(residency) if output.json => output.result(&report(&restored, Some(residency)), describe),
        Ok(residency) => eprintln!("migration-agent: {}", describe(&report(&restored, Some(residency)))),
        Err(error) => output.error(&error, Some("the checkpoint is as it was")),
    }
    let status = supervise::wait_for(restored.pid)?;
    // A launcher that saw for itself how the workload ended is gone already, and then this fails.
    if let Some(launcher) = launcher
        && let Err(error) = launcher.ended(status)
    {
        tracing::info!(%error, "the launcher was not told how the workload ended");
    }
    Ok(ExitCode::from(status.0))
}

/// An agent that serves restores it, and stays out of its way; so does this.
fn through_agent(typed: &Restore, output: Output) -> Result<ExitCode, AgentError> {
    let result = remote::restore(typed)?;
    if let Some(path) = &typed.pid_file {
        write_pid(path, result.pid);
    }
    let report = Report {
        checkpoint: result.checkpoint,
        app: result.app,
        pid: result.pid,
        strategy: typed.strategy,
        resume_ms: result.resume_ms.unwrap_or(f64::NAN),
        residency: None,
        files: PutBackReport {
            written: result.files_written,
            unchanged: result.files_unchanged,
            set_aside: result.files_set_aside,
        },
        output: Some(result.output).filter(|path| !path.is_empty()).map(PathBuf::from),
        hook_failure: Some(result.hook_failure).filter(|reason| !reason.is_empty()),
    };
    output.result(&report, describe);
    Ok(ExitCode::SUCCESS)
}

fn describe(report: &Report) -> String {
    let mut text = format!(
        "{} runs again as pid {} after {:.0} ms (checkpoint {})",
        report.app, report.pid, report.resume_ms, report.checkpoint
    );
    if let Some(residency) = &report.residency {
        text.push_str(&format!(
            "; all pages in memory after {:.0} ms, {} faults, {} fetched",
            residency.resident_ms,
            residency.faults,
            super::output::human_bytes(residency.fetched_bytes)
        ));
    }
    for path in &report.files.set_aside {
        text.push_str(&format!("\na file that was replaced is now {path}"));
    }
    if let Some(reason) = &report.hook_failure {
        text.push_str(&format!("\n{reason}"));
    }
    if let Some(path) = &report.output {
        text.push_str(&format!("\noutput continues in {}", path.display()));
    }
    text
}

/// What takes the place of the workload's pipes and terminals.
fn streams(log: Option<&Path>) -> Result<[OwnedFd; 3], AgentError> {
    let duplicate =
        |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().map_err(io_error("cannot duplicate a stream"));
    match log {
        None => Ok([duplicate(&io::stdin())?, duplicate(&io::stdout())?, duplicate(&io::stderr())?]),
        Some(path) => {
            let nothing = fs::File::open("/dev/null").map_err(io_error("cannot open /dev/null"))?;
            let file = fs::OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|source| AgentError::Io {
                what: format!("cannot open {}", path.display()),
                source,
            })?;
            Ok([nothing.into(), duplicate(&file)?, file.into()])
        }
    }
}

fn default_log(typed: &Restore) -> Result<PathBuf, AgentError> {
    log_file(typed, "log")
}

fn page_server_log(typed: &Restore) -> Result<PathBuf, AgentError> {
    log_file(typed, "page-server.log")
}

fn log_file(typed: &Restore, extension: &str) -> Result<PathBuf, AgentError> {
    let directory = settings::state_directory();
    fs::create_dir_all(&directory).map_err(|source| AgentError::Io {
        what: format!("cannot create {}", directory.display()),
        source,
    })?;
    Ok(settings::log_file(&directory, &typed.app, extension))
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { what: what.to_owned(), source }
}
