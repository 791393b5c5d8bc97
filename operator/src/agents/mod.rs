//! The agents in the applications' pods: connections, calls, and what their answers mean.
//!
//! What always holds: every call ends, with an answer or an [`AgentError`], within [`CALL`]; nothing here waits for an
//! operation. Every call can be repeated.

mod client;
mod meaning;
mod tls;

use std::time::Duration;

use async_trait::async_trait;
use tonic::transport::Channel;

pub use self::{
    client::{Agent, AgentError},
    meaning::{failure, seen, wire_strategy},
    tls::Mtls,
};

/// The port of an agent in its pod.
pub const PORT: u16 = 7443;

/// How long an agent may take to answer: they answer at once, or look into the store first.
pub const CALL: Duration = Duration::from_secs(10);

/// Where an agent is, and whose it has to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// Its pod's address.
    pub pod_ip: String,
    /// The application's namespace.
    pub namespace: String,
    /// The application.
    pub app: String,
}

/// How connections to agents are made.
#[async_trait]
pub trait Agents: Send + Sync + 'static {
    /// Connects to an agent.
    ///
    /// # Errors
    /// When it cannot be reached, or is not the one that it has to be.
    async fn channel(&self, at: &At) -> Result<Channel, AgentError>;

    /// At which address another agent finds it.
    fn address(&self, at: &At) -> String;
}
