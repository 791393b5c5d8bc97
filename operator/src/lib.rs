//! The Kubernetes side: applications that can be moved, and (later) the machine that moves them.
//!
//! What is here: the API, [`api::MigratableApp`], and the command that prints its definition
//! (`migration-operator crd`). What is not here yet: the controller that checkpoints and moves pods, pod building,
//! the injection webhook, CEL rules in the schema, and the deployment manifests.
//!
//! This crate speaks Kubernetes and the agent's API. It knows nothing of CRIU or of pages.

mod act;
pub mod agents;
pub mod api;
pub mod certificates;
mod checkpoints;
pub mod context;
pub mod controller;
pub mod error;
mod finalize;
mod idle;
pub mod leader;
mod migratable;
mod migrate;
pub mod metrics;
pub mod manifests;
pub mod migration;
mod observe;
pub mod placement;
pub mod pods;
pub mod schedule;
mod secrets;
pub mod server;
mod status;
pub mod trigger;
