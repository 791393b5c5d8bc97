//! The Kubernetes side: applications that can be moved, and the machine that moves them.
//!
//! | | |
//! |---|---|
//! | [`api`] | `MigratableApp`: what users ask for and what is reported |
//! | [`migration`] | what a migration does next, as a function without input or output |
//! | [`controller`] | looks at applications and does it |
//! | [`agents`], [`pods`], [`placement`], [`schedule`] | the agents' calls, the pods, the nodes, the checkpoints' times |
//! | [`certificates`] | who issues what agents and operator show one another |
//! | [`webhook`], [`injection`] | pods that ask to be migratable by annotation, and what stands behind them |
//! | [`manifests`] | what is applied to a cluster, and the rights the operator has |
//!
//! This crate speaks Kubernetes and the agent's API. It knows nothing of CRIU or of pages.

mod act;
pub mod agents;
pub mod api;
mod cache;
pub mod certificates;
mod checkpoints;
pub mod context;
pub mod controller;
pub mod error;
mod finalize;
mod idle;
pub mod injection;
pub mod leader;
pub mod manifests;
pub mod metrics;
mod migratable;
mod migrate;
pub mod migration;
pub mod network;
mod observe;
pub mod placement;
pub mod pods;
mod restart;
pub mod schedule;
mod secrets;
pub mod server;
mod start;
mod status;
pub mod trigger;
pub mod webhook;
