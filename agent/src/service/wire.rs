//! Between the API's messages and what the agent does.

use std::time::{Duration, Instant};

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
use crate::{AgentError, HOOK_TIMEOUT, Hook, HookCall, Stage};

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
        let PreCheckpointRequest {
            operation_id,
            app,
            pid,
            tcp_established,
            before_freeze,
            detach,
            deadline_ms,
        } = request;
        let spec = dump(Kind::PreCheckpoint, &app, pid, tcp_established, before_freeze)?;
        Ok(Self { id: id(&operation_id)?, spec, detach, deadline_ms })
    }
}

impl TryFrom<FinalDumpRequest> for Asked {
    type Error = ErrorDetail;

    fn try_from(request: FinalDumpRequest) -> Result<Self, ErrorDetail> {
        let spec =
            dump(Kind::FinalDump, &request.app, request.pid, request.tcp_established, request.before_freeze)?;
        let spec = Spec { strategy: handover_strategy(request.strategy)?, ..spec };
        let id = id(&request.operation_id)?;
        Ok(Self { id, spec, detach: request.detach, deadline_ms: request.deadline_ms })
    }
}

/// What both kinds of dump say.
fn dump(
    kind: Kind,
    app: &str,
    pid: u32,
    tcp_established: bool,
    hook: Option<wire::Hook>,
) -> Result<Spec, ErrorDetail> {
    Ok(Spec {
        kind,
        app: self::app(app)?,
        pid: self::pid(pid)?,
        checkpoint: String::new(),
        strategy: String::new(),
        tcp_established,
        hook: checked(hook)?,
        patience_s: 0,
        generation: 0,
        source: None,
    })
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
        let spec = Spec {
            kind: Kind::Restore,
            app: app(&request.app)?,
            pid: 0,
            checkpoint,
            strategy: strategy.to_owned(),
            tcp_established: request.tcp_established,
            hook: checked(request.after_restore)?,
            patience_s: request.patience_s,
            generation: request.generation,
            source: request.source,
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

fn pid(pid: u32) -> Result<u32, ErrorDetail> {
    if pid > 1 { Ok(pid) } else { Err(usage(format!("{pid} is not the root of a tree that can be moved"))) }
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
