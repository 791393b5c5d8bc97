//! One application and the agent: asks until there is a checkpoint.
//!
//! An operation is asked for detached, so that it outlives this program, and then watched. What is not answered is asked
//! again under the same id; what the agent says has failed, under the next one, a few times.

use std::{io, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use migration_proto::agent::{
    CancelOperationRequest, ErrorDetail, FileRules, FinalDumpRequest, Operation, OperationState,
    PreCheckpointRequest, Reason, StatusDetails, WatchRequest, agent_client::AgentClient, operation,
};
use prost::Message;
use tokio::{net::UnixStream, sync::mpsc, time::sleep};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use super::{
    Key,
    registration::{Application, Target, pid_in},
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the agent may take to write down what it is asked.
const ANSWER: Duration = Duration::from_secs(15);
/// Between attempts: short, as there is no time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often something that fails is tried.
const ATTEMPTS: u32 = 8;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dump {
    Final,
    PreCheckpoint,
}

/// How far it is.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// The agent has begun, under this id.
    Accepted(String),
    /// It did not work, and is tried again.
    Failed(&'static str, String),
    /// Nothing more is tried.
    Ended(Outcome),
}

/// How it ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// The checkpoint.
    Checkpoint(String),
    /// Every attempt failed; this is how the last one did.
    GivenUp(String),
}

/// The id of an attempt: the same for the same notice and application, whoever asks.
pub(super) fn operation(notice: &str, application: &Application, attempt: u32) -> String {
    let hash = blake3::hash(format!("{notice}\n{application:?}\n{attempt}").as_bytes()).to_hex();
    format!("{notice}-{}", hash.as_str().get(..12).unwrap_or_default())
}

/// Asks until there is a checkpoint, or it has failed too often.
pub(super) async fn ask(agent: PathBuf, dump: Dump, key: Key, told: mpsc::UnboundedSender<(Key, Asked)>) {
    // Nobody listens any more once the program ends.
    let tell = |asked| {
        let _ = told.send((key.clone(), asked));
    };
    let (notice, application) = &key;
    let (mut attempt, mut failures) = (0, 0);
    let mut pause = FIRST_PAUSE;
    loop {
        let id = operation(notice, application, attempt);
        match once(&agent, dump, &id, application, &tell).await {
            Ok(checkpoint) => return tell(Asked::Ended(Outcome::Checkpoint(checkpoint))),
            Err(Failure::NoProcess(message)) => tell(Asked::Failed("no-process", message)),
            Err(Failure::NoAnswer(message)) => tell(Asked::Failed("unreachable", message)),
            Err(Failure::Busy(message)) => {
                attempt += 1;
                tell(Asked::Failed("busy", message));
            }
            Err(Failure::Refused(message)) => {
                attempt += 1;
                failures += 1;
                if failures == ATTEMPTS {
                    return tell(Asked::Ended(Outcome::GivenUp(message)));
                }
                tell(Asked::Failed("refused", message));
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Cancels an operation. Whether that was possible shows in the agent's list; nobody waits for it here.
pub(super) async fn cancel(agent: PathBuf, operation: String) {
    let request = CancelOperationRequest { operation_id: operation.clone() };
    let cancelled = match connect(agent).await {
        Ok(mut client) => {
            client.cancel_operation(request).await.map(drop).map_err(|status| status.to_string())
        }
        Err(error) => Err(error),
    };
    if let Err(error) = cancelled {
        tracing::warn!(operation, error, "could not be cancelled");
    }
}

enum Failure {
    /// The pid is not known; it may be written down at any moment.
    NoProcess(String),
    /// It may have been begun or not: the same again.
    NoAnswer(String),
    /// Something else is done to the application, as when a periodic checkpoint of it is under way.
    Busy(String),
    /// It was not, or has failed.
    Refused(String),
}

async fn once(
    agent: &std::path::Path,
    dump: Dump,
    id: &str,
    application: &Application,
    tell: &impl Fn(Asked),
) -> Result<String, Failure> {
    let (pid, launcher) = match &application.target {
        Target::Pid(pid) => (*pid, String::new()),
        Target::Launcher(directory) => (0, directory.display().to_string()),
        Target::PidFile(file) => {
            let pid =
                pid_in(file).map_err(|error| Failure::NoProcess(format!("{}: {error}", file.display())))?;
            (pid, String::new())
        }
    };
    let mut client = connect(agent.to_owned()).await.map_err(Failure::NoAnswer)?;
    let files = Some(FileRules { paths: application.paths.clone(), ..FileRules::default() });
    let (operation_id, app) = (id.to_owned(), application.app.clone());
    let tcp_established = application.tcp_established;
    let begun = match dump {
        Dump::PreCheckpoint => {
            let request = PreCheckpointRequest {
                operation_id,
                app,
                pid,
                launcher,
                files,
                tcp_established,
                detach: true,
                ..PreCheckpointRequest::default()
            };
            tokio::time::timeout(ANSWER, client.pre_checkpoint(request)).await
        }
        Dump::Final => {
            let request = FinalDumpRequest {
                operation_id,
                app,
                pid,
                launcher,
                files,
                tcp_established,
                detach: true,
                ..FinalDumpRequest::default()
            };
            tokio::time::timeout(ANSWER, client.final_dump(request)).await
        }
    };
    let begun =
        begun.map_err(|_| Failure::NoAnswer(format!("the agent did not answer within {ANSWER:?}")))?;
    let mut now = begun.map_err(|status| failure(&status))?.into_inner();
    tell(Asked::Accepted(id.to_owned()));
    if now.state() == OperationState::Running {
        now = watch(&mut client, id).await?;
    }
    match now.outcome {
        Some(operation::Outcome::Checkpoint(result)) => Ok(result.checkpoint),
        // What is durable is there, whatever came after it.
        Some(operation::Outcome::Error(detail)) if !detail.checkpoint.is_empty() => Ok(detail.checkpoint),
        Some(operation::Outcome::Error(detail)) => Err(refused(&detail)),
        _ => Err(Failure::NoAnswer("the agent does not say how it ended".to_owned())),
    }
}

async fn watch(client: &mut AgentClient<Channel>, id: &str) -> Result<Operation, Failure> {
    let request = WatchRequest { operation_id: id.to_owned() };
    let mut changes = client.watch(request).await.map_err(|status| failure(&status))?.into_inner();
    while let Some(now) = changes.message().await.map_err(|status| failure(&status))? {
        if now.state() != OperationState::Running {
            return Ok(now);
        }
    }
    Err(Failure::NoAnswer("the agent ended".to_owned()))
}

async fn connect(agent: PathBuf) -> Result<AgentClient<Channel>, String> {
    let path = agent.clone();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The name is for the protocol only.
    let endpoint = Endpoint::from_static("http://agent").connect_timeout(CONNECT);
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(AgentClient::new(channel)),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Err(format!("the agent at {} cannot be reached{cause}", agent.display()))
        }
    }
}

fn failure(status: &Status) -> Failure {
    match detail_of(status) {
        // It is about to be replaced; whoever comes after it knows the operation.
        Some(detail) if detail.reason() == Reason::Stopping => Failure::NoAnswer(detail.message),
        Some(detail) => refused(&detail),
        None => Failure::NoAnswer(format!("the agent did not answer: {}", status.message())),
    }
}

fn refused(detail: &ErrorDetail) -> Failure {
    let said = [&detail.message, &detail.left, &detail.hint];
    let said: Vec<&str> = said.into_iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    match detail.reason() {
        Reason::Busy => Failure::Busy(said.join("; ")),
        _ => Failure::Refused(said.join("; ")),
    }
}

/// What the agent says about an error, if it is the agent that says so.
fn detail_of(status: &Status) -> Option<ErrorDetail> {
    const TYPE: &str = "type.googleapis.com/migration.agent.v1.ErrorDetail";
    let details = StatusDetails::decode(status.details()).ok()?;
    let ours = details.details.iter().find(|any| any.type_url == TYPE)?;
    ErrorDetail::decode(&ours.value[..]).ok()
}
