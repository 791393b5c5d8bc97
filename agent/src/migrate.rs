//! Moving an application from one agent's machine to another's, by whoever can reach both.
//!
//! What always holds: this program only asks, and both agents keep what it asked for. Whatever moment it is killed at, the
//! application runs at one of them, or is stopped at the source, which takes it back when nobody runs it in time, or is a
//! committed checkpoint:
//!
//! | step | if it fails |
//! |---|---|
//! | a checkpoint while the application runs (the net below all that follows) | it runs on at the source |
//! | final dump | it runs on at the source |
//! | restore, `full` and `lazy-storage` | it is restored at the source, from the same checkpoint |
//! | restore, `lazy-direct` and `lazy-hybrid` | the stopped tree goes on at the source |
//! | pages arrive | see [`handover`](crate::handover) |

use std::time::{Duration, Instant};

use lazy_pages::ids::{AppId, CheckpointId};
use migration_proto::agent::{
    CheckpointResult, FinalDumpRequest, GetStatusRequest, HandoverResult, ListHandoversRequest, Operation,
    PreCheckpointRequest, RestoreRequest, RestoreResult, Source, Strategy as WireStrategy, TakeBackRequest,
    agent_client::AgentClient, handovers_client::HandoversClient, operation::Outcome,
};
use serde::Serialize;
use tonic::{Status, transport::Channel};

use crate::{
    AgentError, FileRules, Strategy,
    client::{AgentAddress, channel, refused, wire_files},
    service::tls::Files,
};

/// How often it is looked whether all pages are there.
const LOOK: Duration = Duration::from_millis(100);

/// What to move, and how.
#[derive(Clone, Debug)]
pub struct MigrateRequest {
    /// Whose processes.
    pub app: AppId,
    /// Root of the tree, as the source's agent sees it; 0 with a launcher.
    pub pid: u32,
    /// Control directory of the launcher in front of the tree, as the source's agent sees it.
    pub launcher: Option<String>,
    /// Control directory of a launcher that waits for it, as the target's agent sees it.
    pub target_launcher: Option<String>,
    /// Where pages come from meanwhile.
    pub strategy: Strategy,
    /// The agent where it runs.
    pub source: AgentAddress,
    /// The agent where it is to run.
    pub target: AgentAddress,
    /// How the target reaches the source's agent, where pages come from there.
    pub source_for_target: Option<AgentAddress>,
    /// What to show to both agents.
    pub files: Option<Files>,
    /// Which of its files travel with it.
    pub rules: FileRules,
    /// Leave established TCP connections behind.
    pub tcp_close: bool,
    /// Take a checkpoint first, while it runs.
    pub warm_up: bool,
    /// Wait until every page is at the target.
    pub wait_resident: bool,
}

/// A step that is over.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Which.
    pub name: &'static str,
    /// When it began, from the beginning of the migration.
    pub begun_ms: f64,
    /// How long it took.
    pub took_ms: f64,
}

/// A migration that is over.
#[derive(Clone, Debug, Serialize)]
pub struct Migration {
    /// cluster/namespace/app
    pub app: String,
    /// How it was moved.
    pub strategy: Strategy,
    /// The checkpoint or handover it was moved as.
    pub checkpoint: String,
    /// The root's pid at the target.
    pub pid: u32,
    /// From the beginning of the final dump until it ran at the target, in milliseconds, as seen from here.
    pub moved_ms: f64,
    /// What was done, in order.
    pub timeline: Vec<Step>,
}

struct Clock<'p> {
    begun: Instant,
    steps: Vec<Step>,
    progress: &'p mut dyn FnMut(&'static str),
}

impl Clock<'_> {
    async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, AgentError> {
        (self.progress)(name);
        let begun = Instant::now();
        let result = work.await;
        let since = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        let (begun_ms, took_ms) = (since(self.begun, begun), since(begun, Instant::now()));
        self.steps.push(Step { name, begun_ms, took_ms });
        result
    }
}

/// Moves it. `progress` is told each step that begins.
///
/// # Errors
/// What the agents said; the table above tells where the application is then, and so does the error.
pub async fn migrate(
    request: &MigrateRequest,
    progress: &mut dyn FnMut(&'static str),
) -> Result<Migration, AgentError> {
    let mut clock = Clock { begun: Instant::now(), steps: Vec::new(), progress };
    let hands_over = matches!(request.strategy, Strategy::LazyDirect | Strategy::LazyHybrid);
    let address = match (&request.source_for_target, hands_over) {
        (Some(address), true) => address.to_string(),
        (None, true) => {
            let what =
                "lazy-direct and lazy-hybrid need an address at which the target reaches the source's agent";
            return Err(AgentError::Usage(what.to_owned()));
        }
        (_, false) => String::new(),
    };
    let (source, target) = clock.step("connect", connect(request)).await?;
    let mut source_agent = AgentClient::new(source.clone());
    let mut target_agent = AgentClient::new(target.clone());
    if request.warm_up {
        clock.step("checkpoint", warm_up(&mut source_agent, request)).await?;
    }

    let dumping = Instant::now();
    let dumped = clock.step("final dump", final_dump(&mut source_agent, request)).await?;
    let id = dumped.id().to_owned();
    let wanted = dumped.restore(request, address);
    let restored = match clock.step("restore", restore(&mut target_agent, wanted)).await {
        Ok(restored) => restored,
        Err(error) => {
            let undone = clock.step("undo", undo(&source, &mut source_agent, request, &dumped)).await;
            return Err(failed(error, undone));
        }
    };
    let moved = dumping.elapsed();
    if request.wait_resident {
        clock.step("pages arrive", resident(&source, &mut target_agent, request, hands_over)).await?;
    }
    Ok(Migration {
        app: request.app.to_string(),
        strategy: request.strategy,
        checkpoint: id,
        pid: restored.pid,
        moved_ms: moved.as_secs_f64() * 1e3,
        timeline: clock.steps,
    })
}

enum Dumped {
    Checkpoint(CheckpointResult),
    Stopped(HandoverResult),
}

impl Dumped {
    fn id(&self) -> &str {
        match self {
            Self::Checkpoint(result) => &result.checkpoint,
            Self::Stopped(result) => &result.handover,
        }
    }

    fn restore(&self, request: &MigrateRequest, address: String) -> RestoreRequest {
        let source = match self {
            Self::Checkpoint(_) => None,
            Self::Stopped(result) => Some(Source { address, generation: result.generation }),
        };
        RestoreRequest {
            operation_id: operation_id(),
            app: request.app.to_string(),
            checkpoint: self.id().to_owned(),
            strategy: wire_strategy(request.strategy).into(),
            source,
            launcher: request.target_launcher.clone().unwrap_or_default(),
            ..Default::default()
        }
    }
}

/// An agent's name for a strategy.
pub fn wire_strategy(strategy: Strategy) -> WireStrategy {
    match strategy {
        Strategy::Full => WireStrategy::Full,
        Strategy::LazyStorage => WireStrategy::LazyStorage,
        Strategy::LazyDirect => WireStrategy::LazyDirect,
        Strategy::LazyHybrid => WireStrategy::LazyHybrid,
    }
}

/// Any ULID is an id that nobody has used.
fn operation_id() -> String {
    CheckpointId::new().to_string()
}

async fn connect(request: &MigrateRequest) -> Result<(Channel, Channel), AgentError> {
    let files = request.files.as_ref();
    let (source, target) =
        tokio::try_join!(channel(&request.source, files), channel(&request.target, files))?;
    let ready = async |channel: &Channel, who: &str| {
        let status = AgentClient::new(channel.clone()).get_status(GetStatusRequest::default()).await;
        let status = status.map_err(|status| refused(&status))?.into_inner();
        match status.capabilities.iter().find(|one| one.required && !one.ok) {
            None => Ok(()),
            Some(missing) => Err(AgentError::Service {
                reason: "not-ready".to_owned(),
                message: format!("the {who} cannot do it: {}: {}", missing.name, missing.detail),
                left: "the application runs on".to_owned(),
                hint: "see `migration-agent check` there".to_owned(),
            }),
        }
    };
    tokio::try_join!(ready(&source, "source"), ready(&target, "target"))?;
    Ok((source, target))
}

async fn warm_up(agent: &mut AgentClient<Channel>, request: &MigrateRequest) -> Result<(), AgentError> {
    let request = PreCheckpointRequest {
        operation_id: operation_id(),
        app: request.app.to_string(),
        pid: request.pid,
        launcher: request.launcher.clone().unwrap_or_default(),
        files: Some(wire_files(&request.rules)?),
        tcp_close: request.tcp_close,
        ..Default::default()
    };
    outcome(agent.pre_checkpoint(request).await).map(drop)
}

async fn final_dump(
    agent: &mut AgentClient<Channel>,
    request: &MigrateRequest,
) -> Result<Dumped, AgentError> {
    let request = FinalDumpRequest {
        operation_id: operation_id(),
        app: request.app.to_string(),
        pid: request.pid,
        launcher: request.launcher.clone().unwrap_or_default(),
        files: Some(wire_files(&request.rules)?),
        tcp_close: request.tcp_close,
        strategy: wire_strategy(request.strategy).into(),
        ..Default::default()
    };
    match outcome(agent.final_dump(request).await)? {
        Outcome::Checkpoint(result) => Ok(Dumped::Checkpoint(result)),
        Outcome::Handover(result) => Ok(Dumped::Stopped(result)),
        _ => Err(no_result()),
    }
}

async fn restore(
    agent: &mut AgentClient<Channel>,
    request: RestoreRequest,
) -> Result<RestoreResult, AgentError> {
    match outcome(agent.restore(request).await)? {
        Outcome::Restore(result) => Ok(result),
        _ => Err(no_result()),
    }
}

/// The application goes on where it was.
async fn undo(
    source: &Channel,
    agent: &mut AgentClient<Channel>,
    request: &MigrateRequest,
    dumped: &Dumped,
) -> Result<(), AgentError> {
    let app = request.app.to_string();
    match dumped {
        Dumped::Stopped(HandoverResult { handover, .. }) => {
            let request = TakeBackRequest { app, handover: handover.clone(), target_has_ended: false };
            let taken = HandoversClient::new(source.clone()).take_back(request).await;
            taken.map(drop).map_err(|status| refused(&status))
        }
        Dumped::Checkpoint(CheckpointResult { checkpoint, .. }) => {
            let request = RestoreRequest {
                operation_id: operation_id(),
                app,
                checkpoint: checkpoint.clone(),
                strategy: WireStrategy::LazyStorage.into(),
                launcher: request.launcher.clone().unwrap_or_default(),
                ..Default::default()
            };
            restore(agent, request).await.map(drop)
        }
    }
}

fn failed(error: AgentError, undone: Result<(), AgentError>) -> AgentError {
    let left = match &undone {
        Ok(()) => "the application runs at the source again".to_owned(),
        Err(undone) => {
            format!("the application could not be let go on at the source: {}", crate::error_chain(undone))
        }
    };
    let hint = match &undone {
        Ok(()) => "look at the target's log, then migrate again".to_owned(),
        Err(_) => "its checkpoint is in the store, or its tree is stopped at the source: `migration-agent status` there tells".to_owned(),
    };
    AgentError::Service { reason: error.reason().to_owned(), message: crate::error_chain(&error), left, hint }
}

/// Waits until the target needs nobody any more.
async fn resident(
    source: &Channel,
    target: &mut AgentClient<Channel>,
    request: &MigrateRequest,
    hands_over: bool,
) -> Result<(), AgentError> {
    let app = request.app.to_string();
    loop {
        let status =
            target.get_status(GetStatusRequest::default()).await.map_err(|status| refused(&status))?;
        let arriving = status.into_inner().arriving.iter().any(|tree| tree.app == app);
        let stopped = match hands_over {
            false => false,
            true => {
                let asked = ListHandoversRequest { app: app.clone() };
                let listed = HandoversClient::new(source.clone()).list_handovers(asked).await;
                !listed.map_err(|status| refused(&status))?.into_inner().handovers.is_empty()
            }
        };
        if !arriving && !stopped {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn outcome(answer: Result<tonic::Response<Operation>, Status>) -> Result<Outcome, AgentError> {
    let operation = answer.map_err(|status| refused(&status))?.into_inner();
    operation.outcome.ok_or_else(no_result)
}

fn no_result() -> AgentError {
    AgentError::Service {
        reason: "internal".to_owned(),
        message: "the agent answered without a result".to_owned(),
        left: String::new(),
        hint: "compare the versions of the agents".to_owned(),
    }
}
