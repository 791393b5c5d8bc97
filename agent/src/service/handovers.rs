//! The trees that are stopped on this machine to be handed over: kept, given to whoever runs them page by page, and in the
//! end ended or taken back. The rules are those of [`handover`](crate::handover).

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lazy_pages::ids::{CheckpointId, PackId};
use migration_proto::agent::{
    FinishHandoverRequest, FinishHandoverResponse, Frame, ListHandoversRequest, ListHandoversResponse,
    ReadFramesRequest, Reason, StoppedTree, TakeBackRequest, TakeBackResponse, handovers_server,
};
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{
    api::{allow, broken, caller_of, refused},
    caller::Caller,
    error,
    metrics::Metrics,
    wire,
};
use crate::{
    Agent, AgentError, Progress,
    fence::Fence,
    handover::{Handover, pack},
};

/// How often the store is asked who runs it.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is looked at whether it still stands still.
const GLANCE: Duration = Duration::from_millis(50);

/// Frames on their way to one caller.
const AHEAD: usize = 4;

/// The stopped trees of an agent.
#[derive(Debug)]
pub struct Handovers {
    agent: Arc<Agent>,
    /// How long a stopped tree waits for somebody to run it before it is taken back.
    claim_timeout: Duration,
    kept: Mutex<HashMap<CheckpointId, Arc<Handover>>>,
    metrics: Arc<Metrics>,
}

impl Handovers {
    /// Takes up those that the agent before has left.
    ///
    /// # Errors
    /// When it cannot be known what they are.
    pub fn open(
        agent: Arc<Agent>,
        claim_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, AgentError> {
        let found = agent.handovers()?;
        let handovers = Arc::new(Self { agent, claim_timeout, kept: Mutex::default(), metrics });
        for handover in found {
            tracing::warn!(app = %handover.app(), id = %handover.id(), "a tree is stopped since before this agent");
            handovers.keep(Arc::new(handover))?;
        }
        Ok(handovers)
    }

    /// Keeps a stopped tree until it is ended or taken back, and makes the checkpoint of it that was promised.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn keep(self: &Arc<Self>, handover: Arc<Handover>) -> Result<(), AgentError> {
        self.change(|kept| drop(kept.insert(handover.id(), Arc::clone(&handover))));
        if handover.will_be_uploaded() {
            let (agent, handover) = (Arc::clone(&self.agent), Arc::clone(&handover));
            spawn("upload", move || upload(&agent, &handover))?;
        }
        let kept = Arc::clone(self);
        spawn("handover", move || kept.watch(&handover))
    }

    /// Whether a tree is stopped here under this name.
    pub fn find(&self, id: CheckpointId) -> Option<Arc<Handover>> {
        self.lock().get(&id).cloned()
    }

    /// Follows what the store says of its generation until it is over.
    fn watch(&self, handover: &Handover) {
        let begun = Instant::now();
        let fence = Fence::new(Arc::clone(self.agent.store()), handover.app().clone());
        let mut has_run = false;
        while !handover.is_over() {
            let begins_to_run = guard(handover, LOOK, &mut has_run);
            let over = self.agent.block_on(async {
                let Some(runner) = fence.runner(handover.generation()).await? else {
                    return Ok(begun.elapsed() > self.claim_timeout);
                };
                // Either way it may go on here: whoever ran it says that nothing of it does.
                Ok(runner == *handover.runner() || fence.has_ended(handover.generation()).await?)
            });
            let result = match over {
                Ok(true) => handover.take_back(),
                // Its memory is of no use to others any more. It may be that nobody runs it yet.
                Ok(false) if begins_to_run && !handover.is_uploaded() => handover.take_back(),
                Ok(false) => self.end_if_uploaded(handover, &fence),
                Err(error) => Err(error),
            };
            match result {
                Ok(()) | Err(AgentError::HandoverOver { .. }) => {}
                Err(error) => {
                    let id = handover.id();
                    tracing::warn!(%id, error = crate::error_chain(&error), "the tree stays stopped for now");
                }
            }
        }
        self.change(|kept| drop(kept.remove(&handover.id())));
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<CheckpointId, Arc<Handover>>)) {
        let mut kept = self.lock();
        change(&mut kept);
        self.metrics.stopped_trees(kept.len());
    }

    /// Rule 3: somebody runs it, and everything is in the store.
    fn end_if_uploaded(&self, handover: &Handover, fence: &Fence) -> Result<(), AgentError> {
        let runs = self.agent.block_on(fence.runner(handover.generation()))?.is_some();
        if runs && handover.is_uploaded() { handover.end() } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CheckpointId, Arc<Handover>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits, and stops a tree again that somebody lets run. Returns early, and `true`, when that is seen the first time.
fn guard(handover: &Handover, time: Duration, has_run: &mut bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < time && !handover.is_over() {
        thread::sleep(GLANCE);
        if handover.stands_still() || handover.is_over() {
            continue;
        }
        handover.stop_again();
        if !std::mem::replace(has_run, true) {
            let (id, pid) = (handover.id(), handover.root());
            tracing::error!(%id, pid, "somebody has let a stopped tree run: it is stopped again, and nothing more is read from it");
            return true;
        }
    }
    false
}

/// Makes the checkpoint, again and again until it is there or nobody needs it any more.
fn upload(agent: &Agent, handover: &Handover) {
    while !handover.is_over() && !handover.is_uploaded() {
        match handover.upload(agent, &Progress::default()) {
            Ok(manifest) => {
                tracing::info!(id = %manifest.id, "the stopped tree is a checkpoint now");
            }
            Err(AgentError::HandoverOver { .. }) => {}
            Err(error @ AgentError::HasRun { .. }) => {
                tracing::error!(%error, "there will be no checkpoint of the stopped tree");
                return;
            }
            Err(error) => {
                tracing::warn!(error = crate::error_chain(&error), "the stopped tree is no checkpoint yet");
                thread::sleep(LOOK);
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), AgentError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(AgentError::io("cannot start a thread"))
}

/// The calls.
#[derive(Clone, Debug)]
pub struct HandoversApi {
    /// What they are about.
    pub handovers: Arc<Handovers>,
}

type Answer<T> = Result<Response<T>, Status>;

impl HandoversApi {
    /// The handover that a caller means and may touch.
    fn find<T>(&self, request: &Request<T>, app: &str, id: &str) -> Result<Arc<Handover>, Status> {
        let app = wire::app(app).map_err(refused)?;
        allow(&caller_of(request)?, &app)?;
        let found = id.parse().ok().and_then(|id| self.handovers.find(id));
        found.filter(|handover| handover.app().as_str() == app).ok_or_else(|| {
            let message = format!("no tree of {app} is stopped here as handover {id}");
            refused(error::detail(
                Reason::UnknownOperation,
                message,
                "",
                "`migration-agent status` lists them",
            ))
        })
    }
}

#[tonic::async_trait]
impl handovers_server::Handovers for HandoversApi {
    type ReadFramesStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn read_frames(&self, request: Request<ReadFramesRequest>) -> Answer<Self::ReadFramesStream> {
        let ReadFramesRequest { app, handover, .. } = request.get_ref();
        let handover = self.find(&request, app, handover)?;
        let ReadFramesRequest { pack: name, offset, length, .. } = request.into_inner();
        let name: PackId = name.parse().map_err(|_| Status::invalid_argument("no pack has such a name"))?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        // Reading memory blocks, and packing it takes a processor.
        let metrics = Arc::clone(&self.handovers.metrics);
        spawn_blocking(move || {
            let sent = handover.read_frames(name, offset, length, &mut |frame| {
                metrics.handed_over(frame.len() as u64);
                let (data, plain_length) = pack(frame);
                sender.blocking_send(Ok(Frame { data, plain_length })).is_ok()
            });
            if let Err(error) = sent {
                let _ = sender.blocking_send(Err(refused(error::of_error(&error, None))));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn finish_handover(
        &self,
        request: Request<FinishHandoverRequest>,
    ) -> Answer<FinishHandoverResponse> {
        let FinishHandoverRequest { app, handover } = request.get_ref();
        let handover = self.find(&request, app, handover)?;
        let ended = spawn_blocking(move || handover.end()).await.map_err(broken)?;
        ended.map_err(|error| refused(error::of_error(&error, None)))?;
        Ok(Response::new(FinishHandoverResponse {}))
    }

    async fn list_handovers(&self, request: Request<ListHandoversRequest>) -> Answer<ListHandoversResponse> {
        let caller = caller_of(&request)?;
        let app = match request.get_ref().app.as_str() {
            "" => String::new(),
            app => wire::app(app).map_err(refused)?,
        };
        let all: Vec<_> = self.handovers.lock().values().cloned().collect();
        let visible = |handover: &&Arc<Handover>| {
            let of = handover.app().as_str();
            caller.may_touch(of) && (app.is_empty() || of == app)
        };
        let tree = |handover: &Arc<Handover>| StoppedTree {
            app: handover.app().to_string(),
            handover: handover.id().to_string(),
            pid: handover.root(),
            generation: handover.generation(),
            stored_pages: handover.manifest().stored_pages(),
        };
        let handovers = all.iter().filter(visible).map(tree).collect();
        Ok(Response::new(ListHandoversResponse { handovers }))
    }

    async fn take_back(&self, request: Request<TakeBackRequest>) -> Answer<TakeBackResponse> {
        let TakeBackRequest { app, handover, target_has_ended } = request.get_ref();
        let handover = self.find(&request, app, handover)?;
        let target_has_ended = *target_has_ended && caller_of(&request)? == Caller::Operator;
        let take_back = move || {
            if target_has_ended {
                handover.target_has_ended()?;
            }
            handover.take_back()
        };
        let taken = spawn_blocking(take_back).await.map_err(broken)?;
        taken.map_err(|error| refused(error::of_error(&error, Some("the tree stays stopped".to_owned()))))?;
        Ok(Response::new(TakeBackResponse {}))
    }
}
