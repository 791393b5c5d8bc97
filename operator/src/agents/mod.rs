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
    meaning::{failure, failure_of, seen, wire_strategy},
    tls::{Mtls, TlsFiles},
};

/// The port of an agent in its pod.
pub const PORT: u16 = 7443;

/// How long an agent may take to answer: they answer at once, or look into the store first.
pub const CALL: Duration = Duration::from_secs(10);

/// How connections to agents are made.
#[async_trait]
pub trait Agents: Send + Sync + 'static {
    /// Connects to the agent in the pod with this address.
    ///
    /// # Errors
    /// When it cannot be reached, or is not one of ours.
    async fn channel(&self, pod_ip: &str) -> Result<Channel, AgentError>;

    /// At which address one agent finds the one in the pod with this address.
    fn address(&self, pod_ip: &str) -> String;
}
