//! A real Kubernetes API server for tests, on this machine, in seconds.
//!
//! ```no_run
//! # async fn test() -> Result<(), Box<dyn std::error::Error>> {
//! use migration_kube::Cluster;
//!
//! let cluster = Cluster::shared()?;                       // one for all tests of a binary
//! let namespace = cluster.namespace("placement").await?;  // one for each test
//! let client = cluster.client().await?;
//! cluster.kubectl(&["get", "pods", "-n", &namespace])?;
//! # Ok(()) }
//! ```
//!
//! What always holds:
//!
//! - The programs are those that `ci/build-kube` has built: the API server 1.20 with RBAC, admission and everything else it has,
//!   and behind it, for definitions and what they define, the 1.36 one, which knows CEL and tells `kubectl explain` of fields. Clients
//!   see one server.
//! - Nothing of it is left when the test process has ended, in whatever way: no process, no directory.
//! - Nothing runs pods: nodes and the status of pods are what a test writes. Only `ci/cluster` adds kubelets to it ([`Nodes`]).
//!
//! It fails with an [`Error`] that says what is missing. `MIGRATION_KUBECONFIG` makes the shared cluster another one, such as one that
//! `kube-stack up` keeps running; namespaces then stay.

mod cluster;
mod credentials;
mod definitions;
mod error;
mod programs;
mod stack;
mod supervisor;

pub use cluster::Cluster;
pub use error::Error;
pub use stack::{Nodes, Options, Stack};
