//! An agent that takes no checkpoints, but keeps the rules of those that do: an id is used once, what is asked again is joined
//! or answered as before, and what is detached outlives its caller and the agent.

#![allow(dead_code, reason = "every test file uses its own part of it")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use migration_proto::agent::{
    AgentStatus, CancelOperationRequest, CheckpointResult, CollectRequest, CollectResponse, DirtyVolume,
    ErrorDetail, FinalDumpRequest, GetDirtyVolumeRequest, GetStatusRequest, ListCheckpointsRequest,
    ListCheckpointsResponse, ListOperationsRequest, ListOperationsResponse, Operation, OperationState,
    PreCheckpointRequest, Reason, RestoreRequest, StatusDetails, WatchRequest,
    agent_server::{Agent, AgentServer},
    operation::Outcome,
};
use prost::Message;
use tokio::{net::UnixListener, task::JoinHandle, time::sleep};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};

/// How an application is to be treated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Script {
    /// How long a checkpoint takes.
    pub takes: Duration,
    /// How many of the first operations fail.
    pub failures: u32,
    /// How many of the first calls come while something else is done.
    pub busy: u32,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub app: String,
    pub operation: String,
    pub end: bool,
    pub pid: u32,
    pub launcher: String,
    pub tcp_established: bool,
    pub paths: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    call: Call,
    ends: Instant,
    fails: bool,
    cancelled: bool,
}

/// What an agent has on its disk.
#[derive(Debug, Default)]
pub struct Journal {
    entries: BTreeMap<String, Entry>,
    /// Every operation, in the order in which they were begun.
    pub begun: Vec<Call>,
    pub scripts: BTreeMap<String, Script>,
}

#[derive(Clone)]
struct Api(Arc<Mutex<Journal>>);

/// An agent that serves until it is dropped.
pub struct Scripted {
    pub journal: Arc<Mutex<Journal>>,
    pub socket: PathBuf,
    serving: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Scripted {
    /// Serves at `socket`, with what another one has written down.
    pub fn start(socket: &Path, journal: Arc<Mutex<Journal>>) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let service = AgentServer::new(Api(Arc::clone(&journal)));
        let serving = Server::builder().add_service(service).serve_with_incoming(listener);
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        Self { journal, socket: socket.to_owned(), serving }
    }

    pub fn script(&self, app: &str, script: Script) {
        self.journal.lock().unwrap().scripts.insert(app.to_owned(), script);
    }

    /// What was begun so far.
    pub fn begun(&self) -> Vec<Call> {
        self.journal.lock().unwrap().begun.clone()
    }

    /// Applications of which there is a checkpoint, and whether they were ended.
    pub fn done(&self) -> BTreeMap<String, bool> {
        let journal = self.journal.lock().unwrap();
        let ended = journal.entries.values().filter(|entry| entry.state() == OperationState::Succeeded);
        ended.map(|entry| (entry.call.app.clone(), entry.call.end)).collect()
    }

    pub fn cancelled(&self) -> Vec<String> {
        let journal = self.journal.lock().unwrap();
        let cancelled = journal.entries.values().filter(|entry| entry.cancelled);
        cancelled.map(|entry| entry.call.app.clone()).collect()
    }
}

impl Entry {
    fn state(&self) -> OperationState {
        match (self.cancelled, Instant::now() < self.ends, self.fails) {
            (true, ..) | (_, false, true) => OperationState::Failed,
            (_, true, _) => OperationState::Running,
            (_, false, false) => OperationState::Succeeded,
        }
    }

    fn operation(&self) -> Operation {
        let outcome = match self.state() {
            OperationState::Succeeded => Some(Outcome::Checkpoint(CheckpointResult {
                checkpoint: format!("checkpoint-of-{}", self.call.app),
                ..CheckpointResult::default()
            })),
            OperationState::Failed => Some(Outcome::Error(self.error())),
            _ => None,
        };
        let (id, app, state) = (self.call.operation.clone(), self.call.app.clone(), self.state().into());
        Operation { id, app, state, outcome, ..Operation::default() }
    }

    fn error(&self) -> ErrorDetail {
        let reason = if self.cancelled { Reason::Cancelled } else { Reason::Store };
        let (message, left) = ("it did not work".to_owned(), "the process runs".to_owned());
        ErrorDetail { reason: reason.into(), message, left, ..ErrorDetail::default() }
    }
}

fn refused(detail: ErrorDetail) -> Status {
    let type_url = "type.googleapis.com/migration.agent.v1.ErrorDetail".to_owned();
    let any = prost_types::Any { type_url, value: detail.encode_to_vec() };
    let details = StatusDetails { code: 9, message: detail.message.clone(), details: vec![any] };
    Status::with_details(Code::FailedPrecondition, detail.message, details.encode_to_vec().into())
}

impl Api {
    fn begin(&self, call: Call, detach: bool) -> Result<Response<Operation>, Status> {
        assert!(detach, "what is asked for has to outlive a monitor that is killed");
        assert!((8..=64).contains(&call.operation.len()), "{}", call.operation);
        let mut journal = self.0.lock().unwrap();
        if let Some(script) = journal.scripts.get_mut(&call.app)
            && script.busy > 0
        {
            script.busy -= 1;
            return Err(refused(ErrorDetail { reason: Reason::Busy.into(), ..ErrorDetail::default() }));
        }
        if !journal.entries.contains_key(&call.operation) {
            let script = journal.scripts.get(&call.app).copied().unwrap_or_default();
            let before = journal.begun.iter().filter(|other| other.app == call.app).count();
            let entry = Entry {
                call: call.clone(),
                ends: Instant::now() + script.takes,
                fails: before < script.failures as usize,
                cancelled: false,
            };
            journal.entries.insert(call.operation.clone(), entry);
            journal.begun.push(call.clone());
        }
        let entry = &journal.entries[&call.operation];
        if entry.call != call {
            let reason = Reason::OperationMismatch.into();
            return Err(refused(ErrorDetail { reason, ..ErrorDetail::default() }));
        }
        match entry.state() {
            OperationState::Failed => Err(refused(entry.error())),
            _ => Ok(Response::new(entry.operation())),
        }
    }

    fn now(&self, id: &str) -> Result<Operation, Status> {
        let journal = self.0.lock().unwrap();
        journal.entries.get(id).map(Entry::operation).ok_or_else(|| Status::not_found("no such operation"))
    }
}

type Stage<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Agent for Api {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Operation, Status>> + Send>>;

    async fn pre_checkpoint(&self, request: Request<PreCheckpointRequest>) -> Stage<Operation> {
        let asked = request.into_inner();
        let call = Call {
            app: asked.app,
            operation: asked.operation_id,
            end: false,
            pid: asked.pid,
            launcher: asked.launcher,
            tcp_established: asked.tcp_established,
            paths: asked.files.unwrap_or_default().paths,
        };
        self.begin(call, asked.detach)
    }

    async fn final_dump(&self, request: Request<FinalDumpRequest>) -> Stage<Operation> {
        let asked = request.into_inner();
        let call = Call {
            app: asked.app,
            operation: asked.operation_id,
            end: true,
            pid: asked.pid,
            launcher: asked.launcher,
            tcp_established: asked.tcp_established,
            paths: asked.files.unwrap_or_default().paths,
        };
        self.begin(call, asked.detach)
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Stage<Self::WatchStream> {
        let id = request.into_inner().operation_id;
        let (told, tell) = tokio::sync::mpsc::channel(4);
        let mut now = self.now(&id)?;
        let api = self.clone();
        tokio::spawn(async move {
            while now.state() == OperationState::Running {
                if told.send(Ok(now)).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
                let Ok(next) = api.now(&id) else { return };
                now = next;
            }
            let _ = told.send(Ok(now)).await;
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(tell))))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Stage<Operation> {
        let id = request.into_inner().operation_id;
        if let Some(entry) = self.0.lock().unwrap().entries.get_mut(&id) {
            entry.cancelled |= entry.state() == OperationState::Running;
        }
        self.now(&id).map(Response::new)
    }

    async fn restore(&self, _: Request<RestoreRequest>) -> Stage<Operation> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Stage<AgentStatus> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_dirty_volume(&self, _: Request<GetDirtyVolumeRequest>) -> Stage<DirtyVolume> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_operations(&self, _: Request<ListOperationsRequest>) -> Stage<ListOperationsResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_checkpoints(&self, _: Request<ListCheckpointsRequest>) -> Stage<ListCheckpointsResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn collect(&self, _: Request<CollectRequest>) -> Stage<CollectResponse> {
        Err(Status::unimplemented("not here"))
    }
}
