//! The calls.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use lazy_pages::{ids::AppId, server::status};
use migration_proto::agent::{
    AgentStatus, ArrivingTree, CancelOperationRequest, Capability, CollectRequest, CollectResponse,
    DirtyVolume, ErrorDetail, FinalDumpRequest, GetDirtyVolumeRequest, GetStatusRequest,
    ListCheckpointsRequest, ListCheckpointsResponse, ListOperationsRequest, ListOperationsResponse,
    Operation, OperationState, PreCheckpointRequest, Reason, RestoreRequest, Tree, WatchRequest,
    agent_server, operation::Outcome,
};
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{
    caller::{Caller, Peer},
    checkpoints, error,
    operations::{Call, Entry, Operations},
    wire::{self, Asked},
};
use crate::{
    Agent, host,
    launcher::{self, Behind},
    volume::{DirtyVolume as _, FromStatistics},
};

/// How often a watched operation is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The service behind the API.
#[derive(Clone, Debug)]
pub struct Api {
    /// What does the work.
    pub agent: Arc<Agent>,
    /// What is done and was done.
    pub operations: Arc<Operations>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Api {
    /// Begins an operation, or joins it, and waits for its end.
    async fn operate<R>(&self, request: Request<R>) -> Answer<Operation>
    where
        R: TryInto<Asked, Error = ErrorDetail>,
    {
        let begun = Instant::now();
        let caller = caller_of(&request)?;
        let timeout = timeout_of(&request);
        let asked: Asked = request.into_inner().try_into().map_err(refused)?;
        allow(&caller, &asked.spec.app)?;
        let own = Some(asked.deadline_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
        let of_call = timeout.filter(|_| !asked.detach);
        let deadline = own.into_iter().chain(of_call).min().and_then(|left| begun.checked_add(left));
        let Asked { id, spec, detach, .. } = asked;
        let call = Call { id, spec, caller, deadline, detach };
        let operations = Arc::clone(&self.operations);
        // If this call is dropped meanwhile, so is what it began: then nobody waits for it.
        let waiter =
            spawn_blocking(move || operations.begin(call)).await.map_err(broken)?.map_err(refused)?;
        if !detach {
            waiter.entry().ended().await;
        }
        let operation = wire::operation(waiter.entry());
        match &operation.outcome {
            Some(Outcome::Error(detail)) if !detach => Err(error::status(detail)),
            _ => Ok(Response::new(operation)),
        }
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Api {
    async fn pre_checkpoint(&self, request: Request<PreCheckpointRequest>) -> Answer<Operation> {
        self.operate(request).await
    }

    async fn final_dump(&self, request: Request<FinalDumpRequest>) -> Answer<Operation> {
        self.operate(request).await
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Answer<Operation> {
        self.operate(request).await
    }

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Answer<AgentStatus> {
        let caller = caller_of(&request)?;
        let agent = Arc::clone(&self.agent);
        let running = self.operations.list(&caller, "").iter().filter(|entry| !entry.has_ended()).count();
        let launcher = wire::launcher(request.get_ref().launcher.clone()).map_err(refused)?;
        let asked = (!launcher.is_empty() && caller == Caller::Operator).then(|| PathBuf::from(launcher));
        let look = move || AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: agent.store().describe(),
            capabilities: agent.capabilities().into_iter().map(capability).collect(),
            running_operations: running as u32,
            arriving: arriving(&caller),
            cpu_features: host::instruction_sets(),
            tree: asked.and_then(|launcher| tree(&launcher)),
        };
        Ok(Response::new(spawn_blocking(look).await.map_err(broken)?))
    }

    async fn get_dirty_volume(&self, request: Request<GetDirtyVolumeRequest>) -> Answer<DirtyVolume> {
        let app = named(&request, &request.get_ref().app)?;
        let agent = Arc::clone(&self.agent);
        let known = spawn_blocking(move || FromStatistics(&agent).estimate(&app)).await.map_err(broken)?;
        let known = known.map_err(|error| refused(error::of_error(&error, None)))?;
        Ok(Response::new(known.map_or_else(DirtyVolume::default, |known| DirtyVolume {
            bytes: known.changed.0,
            upload_bytes: known.upload.0,
            checkpoints: known.checkpoints,
        })))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Answer<ListOperationsResponse> {
        let caller = caller_of(&request)?;
        let app = match request.get_ref().app.as_str() {
            "" => String::new(),
            app => wire::app(app).map_err(refused)?,
        };
        let found = self.operations.list(&caller, &app);
        let operations = found.iter().map(|entry| wire::operation(entry)).collect();
        Ok(Response::new(ListOperationsResponse { operations }))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Answer<Operation> {
        let caller = caller_of(&request)?;
        let entry = self.operations.find(&caller, &request.get_ref().operation_id).map_err(refused)?;
        entry.give_up(Reason::Cancelled);
        entry.ended().await;
        Ok(Response::new(wire::operation(&entry)))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Answer<ListCheckpointsResponse> {
        let app = named(&request, &request.get_ref().app)?;
        let agent = Arc::clone(&self.agent);
        let listed = spawn_blocking(move || checkpoints::list(&agent, &app)).await.map_err(broken)?;
        listed.map(Response::new).map_err(|failed| refused(error::of_error(&failed, None)))
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Answer<CollectResponse> {
        let app = named(&request, &request.get_ref().app)?;
        let (agent, request) = (Arc::clone(&self.agent), request.into_inner());
        tracing::info!(%app, keep = request.keep, keep_for_s = request.keep_for_s, all = request.all, "collects");
        let collect = move || checkpoints::collect(&agent, &app, &request);
        spawn_blocking(collect).await.map_err(broken)?.map(Response::new).map_err(refused)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Operation, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let caller = caller_of(&request)?;
        let entry = self.operations.find(&caller, &request.get_ref().operation_id).map_err(refused)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(report(entry, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The application that is named, if the caller may touch it.
fn named<T>(request: &Request<T>, app: &str) -> Result<AppId, Status> {
    let caller = caller_of(request)?;
    let app = wire::app(app).map_err(refused)?;
    allow(&caller, &app)?;
    app.parse().map_err(|_| Status::internal("a name that is none"))
}

/// Sends an operation as it is, then whenever it has changed, until it has ended or nobody listens.
async fn report(entry: Arc<Entry>, to: mpsc::Sender<Result<Operation, Status>>) {
    let mut last = None;
    loop {
        let now = wire::operation(&entry);
        let ended = now.state() != OperationState::Running;
        // Time alone is no change.
        let seen = Operation { deadline_headroom_ms: None, ..now.clone() };
        if last.as_ref() != Some(&seen) {
            if to.send(Ok(now)).await.is_err() {
                return;
            }
            last = Some(seen);
        }
        if ended {
            return;
        }
        tokio::select! {
            () = entry.ended() => {}
            () = tokio::time::sleep(LOOK) => {}
            () = to.closed() => return,
        }
    }
}

fn arriving(caller: &Caller) -> Vec<ArrivingTree> {
    let found = status::find().unwrap_or_else(|error| {
        tracing::warn!(%error, "page servers cannot be looked for");
        Vec::new()
    });
    let daemons = found.iter().map(|daemon| daemon.status());
    let trees = daemons.flat_map(|daemon| {
        let needs_attach = daemon.needs_attach;
        daemon.restores.into_iter().map(move |restore| ArrivingTree {
            app: restore.app,
            checkpoint: restore.checkpoint.unwrap_or_default(),
            phase: restore.phase.to_owned(),
            missing_pages: restore.stats.missing_pages,
            faults: restore.stats.faults,
            needs_attach,
        })
    });
    trees.filter(|tree| caller.may_touch(&tree.app)).collect()
}

fn tree(launcher: &Path) -> Option<Tree> {
    match launcher::behind(launcher) {
        Ok(Behind { root, leaves }) => Some(Tree { pid: root.unwrap_or(0), leaves }),
        Err(error) => {
            tracing::warn!(error = crate::error_chain(&error), "what runs here is not known");
            None
        }
    }
}

fn capability(one: crate::capabilities::Capability) -> Capability {
    Capability { name: one.name.to_owned(), ok: one.ok, required: one.required, detail: one.detail }
}

/// Who calls: known from the connection.
pub fn caller_of<T>(request: &Request<T>) -> Result<Caller, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.map(|peer| peer.caller.clone()).ok_or_else(|| Status::unauthenticated("the caller is not known"))
}

pub fn allow(caller: &Caller, app: &str) -> Result<(), Status> {
    if caller.may_touch(app) {
        return Ok(());
    }
    tracing::warn!(?caller, app, "refused: not its application");
    let message = format!("this client may not touch {app}");
    let hint = "use the certificate of that application, or an operator's";
    Err(refused(error::detail(Reason::Forbidden, message, "nothing was begun", hint)))
}

/// How long the caller waits for an answer; see the gRPC protocol.
fn timeout_of<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

pub fn refused(detail: ErrorDetail) -> Status {
    error::status(&detail)
}

pub fn broken(error: tokio::task::JoinError) -> Status {
    let hint = "look at the agent's log";
    error::status(&error::detail(Reason::Internal, error.to_string(), "", hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_a_caller_waits_is_read_as_grpc_writes_it() {
        let timeout = |text: &str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("grpc-timeout", text.parse().unwrap());
            timeout_of(&request)
        };
        assert_eq!(timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "5", "S", "5X", "123456789S", "-1S"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
        assert_eq!(timeout_of(&Request::new(())), None);
    }
}
