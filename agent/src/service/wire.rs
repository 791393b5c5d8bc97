//! Between the API's messages and what the agent does.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lazy_pages::{
    ids::{AppId, CheckpointId},
    units::PAGE_SIZE,
};
use migration_proto::agent::{
    self as wire, ErrorDetail, FinalDumpRequest, Operation, OperationState, PreCheckpointRequest, Reason,
    RestoreRequest, operation,
};

use super::{
    error,
    journal::{Kind, OperationId, Outcome, Spec},
    operations::Entry,
};
use crate::{
    AgentError, DEFAULT_FILE_LIMIT, ExistingFiles, FileRules, HOOK_TIMEOUT, Hook, HookCall, OpenFiles, Stage,
};

/// A request for an operation, whatever its kind.
#[derive(Debug)]
pub struct Asked {
    /// The operation's name.
    pub id: OperationId,
    /// What it is to do.
    pub spec: Spec,
    /// It is to outlive the call.
    pub detach: bool,
    /// 0 for none.
    pub deadline_ms: u64,
}

impl TryFrom<PreCheckpointRequest> for Asked {
    type Error = ErrorDetail;

    fn try_from(request: PreCheckpointRequest) -> Result<Self, ErrorDetail> {
        let spec = Spec {
            pid: root(request.pid, &request.launcher)?,
            tcp_established: request.tcp_established,
            hook: checked(request.before_freeze)?,
            launcher: launcher(request.launcher)?,
            files: checked_files(request.files)?,
            tcp_close: request.tcp_close,
            max_chain_depth: request.max_chain_depth,
            ..Spec::new(Kind::PreCheckpoint, app(&request.app)?)
        };
        let id = id(&request.operation_id)?;
        Ok(Self { id, spec, detach: request.detach, deadline_ms: request.deadline_ms })
    }
}

impl TryFrom<FinalDumpRequest> for Asked {
    type Error = ErrorDetail;

    fn try_from(request: FinalDumpRequest) -> Result<Self, ErrorDetail> {
        let spec = Spec {
            pid: root(request.pid, &request.launcher)?,
            strategy: handover_strategy(request.strategy)?,
            tcp_established: request.tcp_established,
            hook: checked(request.before_freeze)?,
            launcher: launcher(request.launcher)?,
            files: checked_files(request.files)?,
            tcp_close: request.tcp_close,
            ..Spec::new(Kind::FinalDump, app(&request.app)?)
        };
        let id = id(&request.operation_id)?;
        Ok(Self { id, spec, detach: request.detach, deadline_ms: request.deadline_ms })
    }
}

impl TryFrom<RestoreRequest> for Asked {
    type Error = ErrorDetail;

    fn try_from(request: RestoreRequest) -> Result<Self, ErrorDetail> {
        let strategy = match strategy(request.strategy)? {
            "" => "lazy-storage",
            name => name,
        };
        let checkpoint = match request.checkpoint.as_str() {
            "" => String::new(),
            text => text.parse::<CheckpointId>().map_err(|error| usage(error.to_string()))?.to_string(),
        };
        existing_files(request.existing_files).map_err(usage)?;
        let spec = Spec {
            checkpoint,
            strategy: strategy.to_owned(),
            tcp_established: request.tcp_established,
            hook: checked(request.after_restore)?,
            patience_s: request.patience_s,
            prefetch: request.prefetch_workers,
            generation: request.generation,
            source: request.source,
            launcher: launcher(request.launcher)?,
            existing_files: request.existing_files,
            ..Spec::new(Kind::Restore, app(&request.app)?)
        };
        if spec.hands_over() != spec.source.is_some() || (spec.hands_over() && spec.checkpoint.is_empty()) {
            return Err(usage(
                "lazy-direct and lazy-hybrid, and only they, run a handover of a source".into(),
            ));
        }
        let id = id(&request.operation_id)?;
        Ok(Self { id, spec, detach: request.detach, deadline_ms: request.deadline_ms })
    }
}

/// A strategy's name; empty for none.
fn strategy(number: i32) -> Result<&'static str, ErrorDetail> {
    match wire::Strategy::try_from(number) {
        Ok(wire::Strategy::Unspecified) => Ok(""),
        Ok(wire::Strategy::LazyStorage) => Ok("lazy-storage"),
        Ok(wire::Strategy::Full) => Ok("full"),
        Ok(wire::Strategy::LazyDirect) => Ok("lazy-direct"),
        Ok(wire::Strategy::LazyHybrid) => Ok("lazy-hybrid"),
        Err(_) => Err(usage(format!("this agent knows no strategy {number}"))),
    }
}

/// The strategy of a dump that stops a tree; empty for one that ends it, whatever a restore of it will do.
fn handover_strategy(number: i32) -> Result<String, ErrorDetail> {
    let name = strategy(number)?;
    Ok(if matches!(name, "lazy-direct" | "lazy-hybrid") { name.to_owned() } else { String::new() })
}

/// A hook as it came, if it can be called.
fn checked(hook: Option<wire::Hook>) -> Result<Option<wire::Hook>, ErrorDetail> {
    if let Some(hook) = &hook {
        self::hook(hook).map_err(|error| error::of_error(&error, Some("nothing was begun".to_owned())))?;
    }
    Ok(hook)
}

/// What is to be called.
///
/// # Errors
/// When that says nothing.
pub fn hook(hook: &wire::Hook) -> Result<Hook, AgentError> {
    let empty = || AgentError::Usage("an empty hook".to_owned());
    let call = match hook.call.as_ref().ok_or_else(empty)? {
        wire::hook::Call::Command(command) if command.argv.is_empty() => return Err(empty()),
        wire::hook::Call::Command(command) => HookCall::Command(command.argv.clone()),
        wire::hook::Call::Url(url) => match url.parse()? {
            HookCall::Command(_) => return Err(AgentError::Usage(format!("`{url}` is no address"))),
            call => call,
        },
    };
    let timeout = match hook.timeout_ms {
        0 => HOOK_TIMEOUT,
        ms => Duration::from_millis(ms),
    };
    Ok(Hook { call, timeout, ignore_failure: hook.ignore_failure })
}

fn id(text: &str) -> Result<OperationId, ErrorDetail> {
    text.parse().map_err(|error| error::of_error(&error, Some("nothing was begun".to_owned())))
}

/// The root of a tree, of which the launcher in front of it tells if there is one.
fn root(pid: u32, launcher: &str) -> Result<u32, ErrorDetail> {
    match (pid, launcher) {
        (0, launcher) if !launcher.is_empty() => Ok(0),
        (_, launcher) if !launcher.is_empty() => Err(usage("there is a pid beside a launcher".into())),
        (0 | 1, _) => Err(usage(format!("{pid} is not the root of a tree that can be moved"))),
        _ => Ok(pid),
    }
}

/// # Errors
/// When it is no absolute path.
pub fn launcher(directory: String) -> Result<String, ErrorDetail> {
    match directory.is_empty() || directory.starts_with('/') {
        true => Ok(directory),
        false => Err(usage(format!("`{directory}` is no absolute path of a launcher's control directory"))),
    }
}

fn checked_files(rules: Option<wire::FileRules>) -> Result<Option<wire::FileRules>, ErrorDetail> {
    rules.as_ref().map(file_rules).transpose().map_err(usage)?;
    Ok(rules)
}

/// Which files travel.
///
/// # Errors
/// What is wrong with the rules, in words.
pub fn file_rules(rules: &wire::FileRules) -> Result<FileRules, String> {
    let paths = |paths: &[String]| -> Result<Vec<PathBuf>, String> {
        match paths.iter().find(|path| !path.starts_with('/')) {
            Some(path) => Err(format!("`{path}` is no absolute path")),
            None => Ok(paths.iter().map(PathBuf::from).collect()),
        }
    };
    let open = match wire::OpenFiles::try_from(rules.open) {
        Ok(wire::OpenFiles::Unspecified | wire::OpenFiles::Carry) => OpenFiles::Carry,
        Ok(wire::OpenFiles::Same) => OpenFiles::Same,
        Ok(wire::OpenFiles::Ignore) => OpenFiles::Ignore,
        Err(_) => return Err(format!("this agent knows no rule {} for open files", rules.open)),
    };
    let limit = if rules.limit == 0 { DEFAULT_FILE_LIMIT } else { rules.limit };
    Ok(FileRules { listed: paths(&rules.paths)?, open, same: paths(&rules.same)?, limit })
}

/// What becomes of files that are in the way.
///
/// # Errors
/// In words, when this agent knows no such rule.
pub fn existing_files(number: i32) -> Result<ExistingFiles, String> {
    match wire::ExistingFiles::try_from(number) {
        Ok(wire::ExistingFiles::Unspecified | wire::ExistingFiles::SetAside) => Ok(ExistingFiles::SetAside),
        Ok(wire::ExistingFiles::Replace) => Ok(ExistingFiles::Replace),
        Ok(wire::ExistingFiles::Refuse) => Ok(ExistingFiles::Refuse),
        Err(_) => Err(format!("this agent knows no rule {number} for existing files")),
    }
}

/// The name of an application in full.
///
/// # Errors
/// When it is no name.
pub fn app(text: &str) -> Result<String, ErrorDetail> {
    text.parse::<AppId>().map(|app| app.to_string()).map_err(|error| usage(error.to_string()))
}

fn usage(message: String) -> ErrorDetail {
    error::detail(Reason::Usage, message, "nothing was begun", "correct the request")
}

/// An operation as it is now.
pub fn operation(entry: &Entry) -> Operation {
    let record = entry.record();
    let (stage, bytes_done) = entry.progress().now();
    let (state, outcome) = match record.end.as_ref().map(|end| &end.outcome) {
        None => (OperationState::Running, None),
        Some(Outcome::Checkpoint(result)) => {
            (OperationState::Succeeded, Some(operation::Outcome::Checkpoint(result.clone())))
        }
        Some(Outcome::Restore(result)) => {
            (OperationState::Succeeded, Some(operation::Outcome::Restore(result.clone())))
        }
        Some(Outcome::Handover(result)) => {
            (OperationState::Succeeded, Some(operation::Outcome::Handover(result.clone())))
        }
        Some(Outcome::Failed(detail)) => {
            (OperationState::Failed, Some(operation::Outcome::Error(detail.clone())))
        }
    };
    Operation {
        id: record.id.to_string(),
        kind: record.spec.kind.wire().into(),
        app: record.spec.app,
        state: state.into(),
        stage: wire_stage(stage).into(),
        pages_done: bytes_done / PAGE_SIZE as u64,
        bytes_done,
        bytes_total: entry.progress().total(),
        deadline_headroom_ms: entry.headroom_ms(),
        started_unix_ms: record.started_unix_ms,
        finished_unix_ms: record.end.map_or(0, |end| end.unix_ms),
        outcome,
    }
}

/// Milliseconds from one moment to another, less than 0 if that was before.
pub fn signed_ms(from: Instant, to: Instant) -> i64 {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match to.checked_duration_since(from) {
        Some(after) => ms(after),
        None => -ms(from.duration_since(to)),
    }
}

fn wire_stage(stage: Stage) -> wire::Stage {
    match stage {
        Stage::Preparing => wire::Stage::Preparing,
        Stage::Dumping => wire::Stage::Dumping,
        Stage::Committing => wire::Stage::Committing,
        Stage::Fetching => wire::Stage::Fetching,
        Stage::Restoring => wire::Stage::Restoring,
        Stage::Filling => wire::Stage::Filling,
        // The service verifies nothing on its own.
        Stage::Verifying => wire::Stage::Unspecified,
    }
}
