//! `status`, `watch`, `cancel`, and checkpoints and restores by an agent that serves.

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use lazy_pages::ids::{AppId, CheckpointId};
use migration_agent::{
    AgentError, ByteCounts, CheckpointReport, FileCounts, PageCounts,
    client::{self, AgentAddress},
    migrate::wire_strategy,
    service::{reason_word, tls::Files},
};
use migration_proto::agent::{
    AgentStatus, CancelOperationRequest, CheckpointResult, FinalDumpRequest, GetStatusRequest,
    ListOperationsRequest, Operation, OperationState, PreCheckpointRequest, RestoreRequest, RestoreResult,
    WatchRequest, agent_client::AgentClient, operation::Outcome,
};
use serde_json::{Value, json};
use tonic::{Request, transport::Channel};

use super::{
    checkpoint::Checkpoint,
    output::{Output, human_bytes},
    restore::Restore,
};

/// Where an agent serves unless something else is said.
pub const SOCKET: &str = "/run/migration-agent/agent.sock";

/// The certificate to show to an agent.
#[derive(Debug, Args)]
pub struct Certificates {
    /// Certificate to show, PEM
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authorities that the other end's certificate may come from, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
}

impl Certificates {
    /// The files, if they were named.
    pub fn files(&self) -> Option<Files> {
        Some(Files { cert: self.tls_cert.clone()?, key: self.tls_key.clone()?, ca: self.tls_ca.clone()? })
    }
}

/// An agent to ask, if one is to be asked.
#[derive(Debug, Args)]
pub struct Through {
    /// Let an agent that serves do it: unix:/path or https://host:port
    #[arg(long, value_name = "ADDRESS")]
    pub agent: Option<AgentAddress>,
    /// Name of the operation, the same again when a call is repeated [default: a new one]
    #[arg(long, value_name = "ID", requires = "agent")]
    pub operation: Option<String>,
    /// Give it up after this time; what cannot be given up any more goes on
    #[arg(long, value_name = "SECONDS", requires = "agent")]
    pub timeout: Option<u64>,
    #[command(flatten)]
    pub certificates: Certificates,
}

/// An agent to ask.
#[derive(Debug, Args)]
pub struct At {
    /// The agent: unix:/path or https://host:port [default: unix:/run/migration-agent/agent.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub agent: Option<AgentAddress>,
    #[command(flatten)]
    pub certificates: Certificates,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent status
  migration-agent status --app cache --json
  migration-agent status --agent https://node7:7070 --tls-cert op.pem --tls-key op.key --tls-ca ca.pem")]
pub struct Status {
    #[command(flatten)]
    pub at: At,
    /// Operations of this application only
    #[arg(long, value_name = "NAME")]
    pub app: Option<AppId>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  migration-agent watch 01JD0000000000000000000000

Prints a line whenever something changes, and ends when the operation does: with exit code 1 if that failed. Being watched
does not keep an operation from being cancelled.")]
pub struct Watch {
    /// The operation
    pub operation: String,
    #[command(flatten)]
    pub at: At,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  migration-agent cancel 01JD0000000000000000000000

Waits until the operation has ended. A cancelled checkpoint leaves the process running; one that is committed already, and a
restore whose processes are about to run, cannot be cancelled and succeed.")]
pub struct Cancel {
    /// The operation
    pub operation: String,
    #[command(flatten)]
    pub at: At,
}

/// Shows what an agent does and did.
pub fn status(typed: &Status, output: Output) -> Result<(), AgentError> {
    let app = typed.app.as_ref().map(ToString::to_string).unwrap_or_default();
    let (status, operations) = typed.at.ask(async |mut agent| {
        let status = agent.get_status(GetStatusRequest::default()).await?.into_inner();
        let operations = agent.list_operations(ListOperationsRequest { app }).await?.into_inner().operations;
        Ok((status, operations))
    })?;
    let object = json!({
        "version": status.version,
        "store": status.store,
        "ready": status.capabilities.iter().all(|one| one.ok || !one.required),
        "running_operations": status.running_operations,
        "arriving": status.arriving.iter().map(|tree| json!({
            "app": tree.app,
            "checkpoint": tree.checkpoint,
            "phase": tree.phase,
            "missing_pages": tree.missing_pages,
            "faults": tree.faults,
            "needs_attach": tree.needs_attach,
        })).collect::<Vec<_>>(),
        "operations": operations.iter().map(object).collect::<Vec<_>>(),
    });
    output.result(&object, |_| describe_status(&status, &operations));
    Ok(())
}

/// Follows an operation.
pub fn watch(typed: &Watch, output: Output) -> Result<ExitCode, AgentError> {
    let request = WatchRequest { operation_id: typed.operation.clone() };
    let last = typed.at.ask(async |mut agent| {
        let mut changes = agent.watch(request).await?.into_inner();
        let mut last = None;
        while let Some(operation) = changes.message().await? {
            output.result(&object(&operation), |_| describe(&operation));
            let _ = std::io::stdout().flush();
            last = Some(operation);
        }
        Ok(last)
    })?;
    let succeeded = last.is_some_and(|operation| operation.state() == OperationState::Succeeded);
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Cancels an operation.
pub fn cancel(typed: &Cancel, output: Output) -> Result<(), AgentError> {
    let request = CancelOperationRequest { operation_id: typed.operation.clone() };
    let operation =
        typed.at.ask(async |mut agent| Ok(agent.cancel_operation(request).await?.into_inner()))?;
    output.result(&object(&operation), |_| describe(&operation));
    Ok(())
}

/// Lets an agent take a checkpoint.
pub fn checkpoint(typed: &Checkpoint) -> Result<CheckpointReport, AgentError> {
    let (operation_id, app) = (typed.through.operation(), typed.app.to_string());
    let (pid, tcp_established) = (typed.pid.unwrap_or(0), typed.tcp_established);
    let launcher = typed.launcher.as_deref().map(client::wire_path).transpose()?.unwrap_or_default();
    let files = Some(client::wire_files(&typed.files.rules())?);
    let before_freeze = typed.hooks.wire(&typed.before_freeze);
    let operation = typed.through.ask(async |mut agent| {
        let answer = if typed.leave_running {
            let request = PreCheckpointRequest {
                operation_id,
                app,
                pid,
                tcp_established,
                before_freeze,
                launcher,
                files,
                tcp_close: typed.tcp_close,
                max_chain_depth: Some(typed.max_chain_depth),
                ..Default::default()
            };
            agent.pre_checkpoint(typed.through.limited(request)).await?
        } else {
            let request = FinalDumpRequest {
                operation_id,
                app,
                pid,
                tcp_established,
                before_freeze,
                launcher,
                files,
                tcp_close: typed.tcp_close,
                ..Default::default()
            };
            agent.final_dump(typed.through.limited(request)).await?
        };
        Ok(answer.into_inner())
    })?;
    match operation.outcome {
        Some(Outcome::Checkpoint(result)) => Ok(report(result)),
        _ => Err(no_result()),
    }
}

/// Lets an agent restore.
pub fn restore(typed: &Restore) -> Result<RestoreResult, AgentError> {
    let request = RestoreRequest {
        operation_id: typed.through.operation(),
        app: typed.app.to_string(),
        checkpoint: typed.checkpoint.map(|id| id.to_string()).unwrap_or_default(),
        strategy: wire_strategy(typed.strategy).into(),
        tcp_established: typed.tcp_established,
        patience_s: typed.patience,
        prefetch_workers: typed.prefetch_workers,
        after_restore: typed.hooks.wire(&typed.after_restore),
        launcher: typed.launcher.as_deref().map(client::wire_path).transpose()?.unwrap_or_default(),
        existing_files: client::wire_existing_files(typed.existing_files).into(),
        ..Default::default()
    };
    let request = typed.through.limited(request);
    let operation = typed.through.ask(async |mut agent| Ok(agent.restore(request).await?.into_inner()))?;
    match operation.outcome {
        Some(Outcome::Restore(result)) => Ok(result),
        _ => Err(no_result()),
    }
}

impl At {
    fn ask<T>(
        &self,
        call: impl AsyncFnOnce(AgentClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, AgentError> {
        let address = match &self.agent {
            Some(address) => address.clone(),
            None => AgentAddress::Unix(SOCKET.into()),
        };
        ask(&address, &self.certificates, call)
    }
}

impl Through {
    fn ask<T>(
        &self,
        call: impl AsyncFnOnce(AgentClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, AgentError> {
        let address =
            self.agent.as_ref().ok_or_else(|| AgentError::Usage("--agent is missing".to_owned()))?;
        ask(address, &self.certificates, call)
    }

    /// An id that nobody used before unless one was given. Any ULID will do.
    fn operation(&self) -> String {
        self.operation.clone().unwrap_or_else(|| CheckpointId::new().to_string())
    }

    fn limited<T>(&self, request: T) -> Request<T> {
        let mut request = Request::new(request);
        if let Some(seconds) = self.timeout {
            request.set_timeout(Duration::from_secs(seconds));
        }
        request
    }
}

fn ask<T>(
    address: &AgentAddress,
    certificates: &Certificates,
    call: impl AsyncFnOnce(AgentClient<Channel>) -> Result<T, tonic::Status>,
) -> Result<T, AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| AgentError::Io { what: "cannot start the runtime".to_owned(), source })?;
    runtime.block_on(async {
        let agent = client::connect(address, certificates.files().as_ref()).await?;
        call(agent).await.map_err(|status| client::refused(&status))
    })
}

fn no_result() -> AgentError {
    AgentError::Usage("the agent answered without a result: it is of another version".to_owned())
}

/// The report of a checkpoint, as one taken here has. Times that nobody knows any more are no numbers, and null in JSON.
fn report(result: CheckpointResult) -> CheckpointReport {
    CheckpointReport {
        depth: result.depth,
        files: FileCounts {
            carried: result.files_carried,
            bytes: result.files_bytes,
            read: result.files_read,
        },
        checkpoint: result.checkpoint,
        app: result.app,
        parent: Some(result.parent).filter(|parent| !parent.is_empty()),
        frozen_ms: result.frozen_ms.unwrap_or(f64::NAN),
        total_ms: result.total_ms.unwrap_or(f64::NAN),
        pages: PageCounts {
            total: result.pages_total,
            zero: result.pages_zero,
            unchanged: result.pages_unchanged,
            pending: result.pages_pending,
            stored: result.pages_stored,
        },
        bytes: ByteCounts { memory: result.bytes_memory, uploaded: result.bytes_uploaded },
        left: match result.left.as_str() {
            "running" => "running",
            "ended" => "ended",
            _ => "killed",
        },
    }
}

/// An operation as JSON.
fn object(operation: &Operation) -> Value {
    let mut object = json!({
        "operation": operation.id,
        "kind": word(operation.kind().as_str_name(), "OPERATION_KIND_"),
        "app": operation.app,
        "state": word(operation.state().as_str_name(), "OPERATION_STATE_"),
        "stage": word(operation.stage().as_str_name(), "STAGE_"),
        "pages_done": operation.pages_done,
        "bytes_done": operation.bytes_done,
        "bytes_total": operation.bytes_total,
        "deadline_headroom_ms": operation.deadline_headroom_ms,
        "started_unix_ms": operation.started_unix_ms,
        "finished_unix_ms": Some(operation.finished_unix_ms).filter(|ms| *ms > 0),
    });
    let (name, outcome) = match &operation.outcome {
        None => return object,
        Some(Outcome::Checkpoint(result)) => ("result", json!(report(result.clone()))),
        Some(Outcome::Restore(result)) => (
            "result",
            json!({
                "checkpoint": result.checkpoint,
                "app": result.app,
                "pid": result.pid,
                "strategy": word(result.strategy().as_str_name(), "STRATEGY_"),
                "resume_ms": result.resume_ms,
                "output": result.output,
                "files": {
                    "written": result.files_written,
                    "unchanged": result.files_unchanged,
                    "set_aside": result.files_set_aside,
                },
                "hook_failure": Some(&result.hook_failure).filter(|text| !text.is_empty()),
            }),
        ),
        Some(Outcome::Handover(result)) => (
            "result",
            json!({
                "handover": result.handover,
                "app": result.app,
                "generation": result.generation,
                "stored_pages": result.stored_pages,
                "stopped_ms": result.stopped_ms,
            }),
        ),
        Some(Outcome::Error(detail)) => (
            "error",
            json!({
                "reason": reason_word(detail.reason()),
                "message": detail.message,
                "left": detail.left,
                "hint": detail.hint,
                "checkpoint": Some(&detail.checkpoint).filter(|id| !id.is_empty()),
            }),
        ),
    };
    object[name] = outcome;
    object
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase().replace('_', "-")
}

fn describe(operation: &Operation) -> String {
    let mut text = format!(
        "{}  {:<14}  {:<24}  {}",
        operation.id,
        word(operation.kind().as_str_name(), "OPERATION_KIND_"),
        operation.app,
        word(operation.state().as_str_name(), "OPERATION_STATE_"),
    );
    if operation.state() == OperationState::Running {
        let total =
            operation.bytes_total.map(|total| format!(" of {}", human_bytes(total))).unwrap_or_default();
        let stage = word(operation.stage().as_str_name(), "STAGE_");
        text.push_str(&format!(", {stage}, {}{total}", human_bytes(operation.bytes_done)));
        if let Some(headroom) = operation.deadline_headroom_ms {
            text.push_str(&format!(", {:.1} s left", headroom as f64 / 1e3));
        }
    }
    match &operation.outcome {
        Some(Outcome::Checkpoint(result)) => {
            text.push_str(&format!(": checkpoint {}, the process is {}", result.checkpoint, result.left));
        }
        Some(Outcome::Restore(result)) => text.push_str(&format!(": runs as pid {}", result.pid)),
        Some(Outcome::Handover(result)) => {
            text.push_str(&format!(": the process is stopped as handover {}", result.handover));
        }
        Some(Outcome::Error(detail)) => text.push_str(&format!(": {}; {}", detail.message, detail.left)),
        None => {}
    }
    text
}

fn describe_status(status: &AgentStatus, operations: &[Operation]) -> String {
    let mut lines = vec![format!("agent {}, {}", status.version, status.store)];
    for one in status.capabilities.iter().filter(|one| one.required && !one.ok) {
        lines.push(format!("MISSING  {}: {}", one.name, one.detail));
    }
    for tree in &status.arriving {
        let attach =
            if tree.needs_attach { "; its page server died again and again: attach one" } else { "" };
        lines.push(format!("{} is {}, {} pages missing{attach}", tree.app, tree.phase, tree.missing_pages));
    }
    lines.extend(operations.iter().map(describe));
    lines.join("\n")
}
