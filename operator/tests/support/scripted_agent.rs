//! An agent that follows a script: the real API, and a model of processes instead of processes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use migration_operator::agents::{AgentError, Agents, At};
use migration_proto::agent::{
    AgentStatus, ArrivingTree, CancelOperationRequest, Capability, CheckpointResult, CollectRequest,
    CollectResponse, DirtyVolume, ErrorDetail, FinalDumpRequest, FinishHandoverRequest,
    FinishHandoverResponse, Frame, GetDirtyVolumeRequest, GetStatusRequest, HandoverResult,
    ListCheckpointsRequest, ListCheckpointsResponse, ListHandoversRequest, ListHandoversResponse,
    ListOperationsRequest, ListOperationsResponse, Operation, OperationKind, OperationState,
    PreCheckpointRequest, ReadFramesRequest, Reason, RestoreRequest, RestoreResult, StatusDetails,
    StoppedTree, StoredCheckpoint, Strategy, TakeBackRequest, TakeBackResponse, Tree, WatchRequest,
    agent_server::{self, AgentServer},
    handovers_server::{self, HandoversServer},
    operation::Outcome,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};
use tokio_stream::{Empty, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use super::world::{Fate, World};

/// The agents of all pods, by the pods' addresses.
#[derive(Clone, Debug, Default)]
pub struct Scripted {
    at: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
    /// Calls that were made, by name.
    pub calls: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

#[async_trait::async_trait]
impl Agents for Scripted {
    async fn channel(&self, at: &At) -> Result<Channel, AgentError> {
        let found = self.at.lock().unwrap_or_else(PoisonError::into_inner).get(&at.pod_ip).copied();
        let unreachable = |reason: String| AgentError::Unreachable { address: at.pod_ip.clone(), reason };
        let address = found.ok_or_else(|| unreachable("there is none".to_owned()))?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| unreachable(error.to_string()))?;
        endpoint.connect().await.map_err(|error| unreachable(error.to_string()))
    }

    fn address(&self, at: &At) -> String {
        format!("https://{}:7443", at.pod_ip)
    }
}

/// One agent; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    task: JoinHandle<()>,
    pod: String,
    agents: Scripted,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.agents.at.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pod);
    }
}

impl Scripted {
    /// Every agent there is: its pod's address, and its own.
    pub fn entries(&self) -> Vec<(String, SocketAddr)> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.iter().map(|(pod, address)| (pod.clone(), *address)).collect()
    }

    /// Starts the agent of the pod with this address.
    pub async fn start(&self, world: &World, pod: &str) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let agent = ScriptedAgent {
            world: world.clone(),
            pod: pod.to_owned(),
            operations: Arc::default(),
            calls: Arc::clone(&self.calls),
        };
        let serving = Server::builder()
            .add_service(AgentServer::new(agent.clone()))
            .add_service(HandoversServer::new(agent))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move {
            let _ = serving.await;
        });
        self.at.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned(), address);
        Running { task, pod: pod.to_owned(), agents: self.clone() }
    }
}

#[derive(Clone, Debug)]
struct ScriptedAgent {
    world: World,
    pod: String,
    /// The journal, newest last.
    operations: Arc<Mutex<Vec<Operation>>>,
    calls: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

type Answer<T> = Result<Response<T>, Status>;

/// What an operation is to do.
#[derive(Clone, Debug)]
struct Asked {
    id: String,
    app: String,
    kind: OperationKind,
    strategy: Strategy,
    checkpoint: String,
    source_generation: Option<u64>,
    deadline_ms: u64,
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn detail(reason: Reason) -> ErrorDetail {
    ErrorDetail { reason: reason.into(), message: format!("scripted: {reason:?}"), ..Default::default() }
}

fn status(reason: Reason) -> Status {
    let detail = detail(reason);
    let type_url = "type.googleapis.com/migration.agent.v1.ErrorDetail".to_owned();
    let any = prost_types::Any { type_url, value: detail.encode_to_vec() };
    let details =
        StatusDetails { code: Code::Aborted.into(), message: detail.message.clone(), details: vec![any] };
    Status::with_details(Code::Aborted, detail.message, details.encode_to_vec().into())
}

impl ScriptedAgent {
    async fn called(&self, name: &'static str) -> Result<(), Status> {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        if self.world.lock().silent.contains(&self.pod) {
            // Longer than any call is waited for.
            sleep(Duration::from_secs(3600)).await;
        }
        Ok(())
    }

    fn journal<T>(&self, use_it: impl FnOnce(&mut Vec<Operation>) -> T) -> T {
        use_it(&mut self.operations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, asked: Asked) -> Answer<Operation> {
        if let Some(known) = self.journal(|all| all.iter().find(|one| one.id == asked.id).cloned()) {
            return Ok(Response::new(known));
        }
        let busy = self.journal(|all| {
            all.iter().any(|one| one.app == asked.app && one.state() == OperationState::Running)
        });
        if busy {
            return Err(status(Reason::Busy));
        }
        let operation = Operation {
            id: asked.id.clone(),
            kind: asked.kind.into(),
            app: asked.app.clone(),
            state: OperationState::Running.into(),
            started_unix_ms: unix_ms(),
            ..Default::default()
        };
        self.journal(|all| all.push(operation.clone()));
        let agent = self.clone();
        // It outlives the call, and ends with the pod: nothing it does then is seen by anybody.
        tokio::spawn(async move { agent.perform(asked).await });
        Ok(Response::new(operation))
    }

    async fn perform(&self, asked: Asked) {
        let (fate, pace) = {
            let mut world = self.world.lock();
            let fate = world.fates.get_mut(&asked.kind).and_then(std::collections::VecDeque::pop_front);
            (fate, world.pace)
        };
        let takes = match &fate {
            Some(Fate::Takes(time)) => *time,
            Some(Fate::Hangs) => Duration::from_secs(3600),
            _ => pace,
        };
        let limit = Duration::from_millis(if asked.deadline_ms == 0 { u64::MAX } else { asked.deadline_ms });
        let late = takes > limit;
        let until = tokio::time::Instant::now() + takes.min(limit);
        while tokio::time::Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
            let cancelled = self.journal(|all| {
                all.iter().any(|one| one.id == asked.id && one.state() != OperationState::Running)
            });
            if cancelled || Arc::strong_count(&self.operations) == 1 {
                return;
            }
        }
        let outcome = match fate {
            Some(Fate::Fails(reason)) => Err(reason),
            _ if late => Err(Reason::Deadline),
            _ => self.effect(&asked),
        };
        self.end(&asked.id, outcome.unwrap_or_else(|reason| Outcome::Error(detail(reason))));
    }

    fn end(&self, id: &str, outcome: Outcome) {
        self.journal(|all| {
            let Some(operation) =
                all.iter_mut().find(|one| one.id == id && one.state() == OperationState::Running)
            else {
                return;
            };
            let failed = matches!(outcome, Outcome::Error(_));
            let state = if failed { OperationState::Failed } else { OperationState::Succeeded };
            operation.state = state.into();
            operation.finished_unix_ms = unix_ms();
            operation.outcome = Some(outcome);
        });
    }

    /// What it does to the world, in one instant.
    fn effect(&self, asked: &Asked) -> Result<Outcome, Reason> {
        let mut world = self.world.lock();
        let here = world.entry(&asked.app).runs.contains(&self.pod);
        match asked.kind {
            OperationKind::PreCheckpoint if !here => Err(Reason::Launcher),
            OperationKind::PreCheckpoint => {
                let id = world.new_id("CP");
                world.entry(&asked.app).checkpoints.push(id.clone());
                Ok(Outcome::Checkpoint(CheckpointResult {
                    checkpoint: id,
                    app: asked.app.clone(),
                    frozen_ms: Some(3.0),
                    total_ms: Some(20.0),
                    left: "running".to_owned(),
                    ..Default::default()
                }))
            }
            OperationKind::FinalDump if !here => Err(Reason::Launcher),
            OperationKind::FinalDump => {
                let hands_over = matches!(asked.strategy, Strategy::LazyDirect | Strategy::LazyHybrid);
                let id = world.new_id(if hands_over { "HO" } else { "FD" });
                let app = world.entry(&asked.app);
                app.dumps += 1;
                app.runs.retain(|pod| *pod != self.pod);
                if hands_over {
                    app.generation += 1;
                    let generation = app.generation;
                    app.stopped = Some((self.pod.clone(), id.clone(), generation));
                    return Ok(Outcome::Handover(HandoverResult {
                        handover: id,
                        app: asked.app.clone(),
                        generation,
                        stored_pages: 7,
                        stopped_ms: Some(2.0),
                    }));
                }
                app.checkpoints.push(id.clone());
                Ok(Outcome::Checkpoint(CheckpointResult {
                    checkpoint: id,
                    app: asked.app.clone(),
                    frozen_ms: Some(12.0),
                    total_ms: Some(15.0),
                    left: "killed".to_owned(),
                    ..Default::default()
                }))
            }
            _ => self.restore(&mut world, asked),
        }
    }

    fn restore(&self, world: &mut super::world::State, asked: &Asked) -> Result<Outcome, Reason> {
        let app = world.entry(&asked.app).clone();
        let checkpoint = match asked.source_generation {
            Some(_) if app.stopped.as_ref().is_none_or(|(_, id, _)| *id != asked.checkpoint) => {
                return Err(Reason::HandoverOver);
            }
            Some(_) => asked.checkpoint.clone(),
            None if asked.checkpoint.is_empty() => {
                app.checkpoints.last().cloned().ok_or(Reason::NoCheckpoint)?
            }
            None if !app.checkpoints.contains(&asked.checkpoint) => return Err(Reason::UnknownCheckpoint),
            None => asked.checkpoint.clone(),
        };
        world.entry(&asked.app).restores += 1;
        world.run(&asked.app, &self.pod);
        Ok(Outcome::Restore(RestoreResult {
            checkpoint,
            app: asked.app.clone(),
            pid: 10001,
            strategy: asked.strategy.into(),
            resume_ms: Some(9.0),
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl agent_server::Agent for ScriptedAgent {
    async fn pre_checkpoint(&self, request: Request<PreCheckpointRequest>) -> Answer<Operation> {
        self.called("PreCheckpoint").await?;
        let request = request.into_inner();
        self.begin(Asked {
            id: request.operation_id,
            app: request.app,
            kind: OperationKind::PreCheckpoint,
            strategy: Strategy::Unspecified,
            checkpoint: String::new(),
            source_generation: None,
            deadline_ms: request.deadline_ms,
        })
    }

    async fn final_dump(&self, request: Request<FinalDumpRequest>) -> Answer<Operation> {
        self.called("FinalDump").await?;
        let strategy = request.get_ref().strategy();
        let request = request.into_inner();
        self.begin(Asked {
            id: request.operation_id,
            app: request.app,
            kind: OperationKind::FinalDump,
            strategy,
            checkpoint: String::new(),
            source_generation: None,
            deadline_ms: request.deadline_ms,
        })
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Answer<Operation> {
        self.called("Restore").await?;
        let strategy = request.get_ref().strategy();
        let request = request.into_inner();
        self.world.lock().prefetch = request.prefetch_workers;
        self.begin(Asked {
            id: request.operation_id,
            app: request.app,
            kind: OperationKind::Restore,
            strategy,
            checkpoint: request.checkpoint,
            source_generation: request.source.map(|source| source.generation),
            deadline_ms: request.deadline_ms,
        })
    }

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Answer<AgentStatus> {
        self.called("GetStatus").await?;
        let world = self.world.lock();
        let capability = |name: &str| Capability {
            name: name.to_owned(),
            ok: !world.missing.iter().any(|missing| missing == name),
            required: true,
            detail: "scripted".to_owned(),
        };
        let runs_here = world.apps.values().any(|app| app.runs.contains(&self.pod));
        let asked = !request.get_ref().launcher.is_empty();
        let tree = asked.then_some(Tree { pid: if runs_here { 10_000 } else { 0 }, leaves: false });
        let only_here = world.only_there.clone().filter(|_| runs_here);
        let cpu_features = only_here.into_iter().chain(["avx2".to_owned()]).collect();
        let mut arriving = Vec::new();
        let restored =
            self.journal(|all| all.iter().rev().find(|one| one.kind() == OperationKind::Restore).cloned());
        if let Some(restored) = restored.filter(|one| one.state() == OperationState::Succeeded)
            && unix_ms() < restored.finished_unix_ms + world.resident_after.as_millis() as u64
        {
            arriving.push(ArrivingTree { app: restored.app, missing_pages: 9, ..Default::default() });
        }
        let capabilities = vec![capability("criu"), capability("store")];
        drop(world);
        if arriving.is_empty() {
            // The target is done with the source, as its page server would tell it.
            let here: Vec<String> = {
                let world = self.world.lock();
                let here = world.apps.iter().filter(|(_, app)| app.runs.contains(&self.pod));
                here.map(|(name, _)| name.clone()).collect()
            };
            for app in here {
                self.world.lock().entry(&app).stopped = None;
            }
        }
        Ok(Response::new(AgentStatus {
            version: "scripted".to_owned(),
            capabilities,
            arriving,
            cpu_features,
            tree,
            ..Default::default()
        }))
    }

    async fn get_dirty_volume(&self, _: Request<GetDirtyVolumeRequest>) -> Answer<DirtyVolume> {
        self.called("GetDirtyVolume").await?;
        Ok(Response::new(DirtyVolume { bytes: 50_000_000, upload_bytes: 50_000_000, checkpoints: 1 }))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Answer<ListOperationsResponse> {
        self.called("ListOperations").await?;
        let app = request.into_inner().app;
        let operations = self.journal(|all| all.iter().rev().filter(|one| one.app == app).cloned().collect());
        Ok(Response::new(ListOperationsResponse { operations }))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Answer<Operation> {
        self.called("CancelOperation").await?;
        let id = request.into_inner().operation_id;
        self.end(&id, Outcome::Error(detail(Reason::Cancelled)));
        let known = self.journal(|all| all.iter().find(|one| one.id == id).cloned());
        known.map(Response::new).ok_or_else(|| status(Reason::UnknownOperation))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Answer<ListCheckpointsResponse> {
        self.called("ListCheckpoints").await?;
        let app = self.world.app(&request.into_inner().app);
        let one = |id: &String| StoredCheckpoint {
            checkpoint: id.clone(),
            created_unix_ms: unix_ms(),
            ..Default::default()
        };
        let checkpoints: Vec<_> = app.checkpoints.iter().map(one).collect();
        Ok(Response::new(ListCheckpointsResponse {
            stored_bytes: 1000 * checkpoints.len() as u64,
            checkpoints,
        }))
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Answer<CollectResponse> {
        self.called("Collect").await?;
        let request = request.into_inner();
        let mut world = self.world.lock();
        let app = world.entry(&request.app);
        let keep = if request.all { 0 } else { request.keep as usize };
        app.collected |= request.all;
        let excess = app.checkpoints.len().saturating_sub(keep);
        let deleted: Vec<String> = app.checkpoints.drain(..excess).collect();
        Ok(Response::new(CollectResponse {
            freed_bytes: 1000 * deleted.len() as u64,
            deleted,
            kept: Vec::new(),
        }))
    }

    type WatchStream = Empty<Result<Operation, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        Err(Status::unimplemented("the operator does not watch"))
    }
}

#[tonic::async_trait]
impl handovers_server::Handovers for ScriptedAgent {
    type ReadFramesStream = Empty<Result<Frame, Status>>;

    async fn read_frames(&self, _: Request<ReadFramesRequest>) -> Answer<Self::ReadFramesStream> {
        Err(Status::unimplemented("the operator reads no pages"))
    }

    async fn finish_handover(&self, _: Request<FinishHandoverRequest>) -> Answer<FinishHandoverResponse> {
        Err(Status::unimplemented("the operator finishes no handover"))
    }

    async fn list_handovers(&self, request: Request<ListHandoversRequest>) -> Answer<ListHandoversResponse> {
        self.called("ListHandovers").await?;
        let name = request.into_inner().app;
        let app = self.world.app(&name);
        let here = app.stopped.filter(|(pod, ..)| *pod == self.pod);
        let handovers = here
            .map(|(_, handover, generation)| StoppedTree {
                app: name,
                handover,
                generation,
                ..Default::default()
            })
            .into_iter()
            .collect();
        Ok(Response::new(ListHandoversResponse { handovers }))
    }

    async fn take_back(&self, request: Request<TakeBackRequest>) -> Answer<TakeBackResponse> {
        self.called("TakeBack").await?;
        let TakeBackRequest { app, handover, target_has_ended } = request.into_inner();
        let mut world = self.world.lock();
        let entry = world.entry(&app);
        match &entry.stopped {
            Some((pod, id, _)) if *pod == self.pod && *id == handover => {
                if !entry.runs.is_empty() {
                    assert!(!target_has_ended, "{app} runs in {:?}", entry.runs);
                    return Err(status(Reason::RunsElsewhere));
                }
                entry.stopped = None;
                world.run(&app, &self.pod);
                Ok(Response::new(TakeBackResponse {}))
            }
            _ => Err(status(Reason::UnknownOperation)),
        }
    }
}
