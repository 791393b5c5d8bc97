//! The calls, each with a limit in time.

use std::time::Duration;

use migration_proto::agent::{
    AgentStatus, CancelOperationRequest, CollectRequest, CollectResponse, DirtyVolume, ErrorDetail,
    FinalDumpRequest, GetDirtyVolumeRequest, GetStatusRequest, ListCheckpointsRequest,
    ListCheckpointsResponse, ListHandoversRequest, ListOperationsRequest, Operation, PreCheckpointRequest,
    RestoreRequest, StatusDetails, StoppedTree, TakeBackRequest, Tree, agent_client::AgentClient,
    handovers_client::HandoversClient,
};
use prost::Message;
use tokio::time::timeout;
use tonic::{Response, Status, transport::Channel};

use super::{Agents, At, CALL};

/// How long it is waited for an operation to end that was cancelled; it ends all the same.
const CANCEL: Duration = Duration::from_secs(1);

/// Collecting deletes many objects; what was not done in time is done by the next call.
const COLLECT: Duration = Duration::from_secs(30);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Whether the call was heard is not known.
    #[error("the agent at {address} does not answer: {reason}")]
    Unreachable {
        /// The pod's address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The agent says no, and why.
    #[error("{}", .0.message)]
    Refused(Box<ErrorDetail>),
    /// What we would show to an agent cannot be used.
    #[error("no agent can be asked: {0}")]
    Certificates(String),
}

/// The agent of one pod.
#[derive(Clone, Debug)]
pub struct Agent {
    channel: Channel,
    address: String,
}

impl Agent {
    /// Connects to an agent.
    ///
    /// # Errors
    /// When it does not answer in time, or is not one of ours.
    pub async fn connect(agents: &dyn Agents, at: &At) -> Result<Self, AgentError> {
        let address = at.pod_ip.clone();
        match timeout(CALL, agents.channel(at)).await {
            Ok(channel) => Ok(Self { channel: channel?, address }),
            Err(_) => Err(AgentError::Unreachable { address, reason: "no connection in time".to_owned() }),
        }
    }

    fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
    }

    fn handovers_client(&self) -> HandoversClient<Channel> {
        HandoversClient::new(self.channel.clone())
    }

    async fn call<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AgentError> {
        match timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(match detail_of(&status) {
                Some(detail) => AgentError::Refused(Box::new(detail)),
                None => AgentError::Unreachable {
                    address: self.address.clone(),
                    reason: status.message().to_owned(),
                },
            }),
            Err(_) => Err(AgentError::Unreachable {
                address: self.address.clone(),
                reason: "no answer in time".to_owned(),
            }),
        }
    }

    /// What it can do.
    ///
    /// # Errors
    /// As every call.
    pub async fn status(&self) -> Result<AgentStatus, AgentError> {
        self.call(CALL, self.agent().get_status(GetStatusRequest::default())).await
    }

    /// What is behind the launcher with this control directory; `None` if that does not answer.
    ///
    /// # Errors
    /// As every call.
    pub async fn tree(&self, launcher: &str) -> Result<Option<Tree>, AgentError> {
        let request = GetStatusRequest { launcher: launcher.to_owned() };
        Ok(self.call(CALL, self.agent().get_status(request)).await?.tree)
    }

    /// The operations of an application it knows.
    ///
    /// # Errors
    /// As every call.
    pub async fn operations(&self, app: &str) -> Result<Vec<Operation>, AgentError> {
        let request = ListOperationsRequest { app: app.to_owned() };
        Ok(self.call(CALL, self.agent().list_operations(request)).await?.operations)
    }

    /// Begins a checkpoint that leaves the application running.
    ///
    /// # Errors
    /// As every call.
    pub async fn pre_checkpoint(&self, request: PreCheckpointRequest) -> Result<Operation, AgentError> {
        self.call(CALL, self.agent().pre_checkpoint(request)).await
    }

    /// Begins the final dump.
    ///
    /// # Errors
    /// As every call.
    pub async fn final_dump(&self, request: FinalDumpRequest) -> Result<Operation, AgentError> {
        self.call(CALL, self.agent().final_dump(request)).await
    }

    /// Begins a restore.
    ///
    /// # Errors
    /// As every call.
    pub async fn restore(&self, request: RestoreRequest) -> Result<Operation, AgentError> {
        self.call(CALL, self.agent().restore(request)).await
    }

    /// Has an operation cancelled, and waits for that only a moment.
    ///
    /// # Errors
    /// When the agent says no. One that has not answered yet cancels it.
    pub async fn cancel(&self, operation: &str) -> Result<(), AgentError> {
        let request = CancelOperationRequest { operation_id: operation.to_owned() };
        match self.call(CANCEL, self.agent().cancel_operation(request)).await {
            Ok(_) | Err(AgentError::Unreachable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The committed checkpoints of an application, oldest first.
    ///
    /// # Errors
    /// As every call.
    pub async fn checkpoints(&self, app: &str) -> Result<ListCheckpointsResponse, AgentError> {
        let request = ListCheckpointsRequest { app: app.to_owned() };
        self.call(CALL, self.agent().list_checkpoints(request)).await
    }

    /// Deletes checkpoints.
    ///
    /// # Errors
    /// As every call. What was deleted is deleted.
    pub async fn collect(&self, request: CollectRequest) -> Result<CollectResponse, AgentError> {
        self.call(COLLECT, self.agent().collect(request)).await
    }

    /// How much a checkpoint would have to write.
    ///
    /// # Errors
    /// As every call.
    pub async fn dirty_volume(&self, app: &str) -> Result<DirtyVolume, AgentError> {
        let request = GetDirtyVolumeRequest { app: app.to_owned() };
        self.call(CALL, self.agent().get_dirty_volume(request)).await
    }

    /// The trees of an application that are stopped there.
    ///
    /// # Errors
    /// As every call.
    pub async fn handovers(&self, app: &str) -> Result<Vec<StoppedTree>, AgentError> {
        let request = ListHandoversRequest { app: app.to_owned() };
        Ok(self.call(CALL, self.handovers_client().list_handovers(request)).await?.handovers)
    }

    /// Lets a stopped tree go on; also one that was claimed, if nothing of it runs at its target any more.
    ///
    /// # Errors
    /// As every call; it stays stopped then.
    pub async fn take_back(
        &self,
        app: &str,
        handover: &str,
        target_has_ended: bool,
    ) -> Result<(), AgentError> {
        let request =
            TakeBackRequest { app: app.to_owned(), handover: handover.to_owned(), target_has_ended };
        self.call(CALL, self.handovers_client().take_back(request)).await.map(drop)
    }
}

/// The detail that an agent's status carries.
fn detail_of(status: &Status) -> Option<ErrorDetail> {
    const TYPE: &str = "type.googleapis.com/migration.agent.v1.ErrorDetail";
    let details = StatusDetails::decode(status.details()).ok()?;
    let ours = details.details.iter().find(|any| any.type_url == TYPE)?;
    ErrorDetail::decode(&ours.value[..]).ok()
}
