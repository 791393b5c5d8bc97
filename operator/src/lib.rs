//! The Kubernetes side: applications that can be moved, and what moves them.
//!
//! The operator decides and writes down; agents do the work. For each [`api::MigratableApp`] it keeps one pod running
//! ([`pods`]), has checkpoints made ([`schedule`]), and moves it to another node ([`placement`]) when somebody asks or its node
//! goes away ([`trigger`]). How an application moves is decided by a function without I/O ([`migration`]); where it is on its way
//! is in its status ([`api::migration`]), so that an operator can be killed at any moment and another one goes on
//! ([`controller`], [`leader`]).
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
pub mod metrics;
mod migratable;
mod migrate;
pub mod migration;
mod observe;
pub mod placement;
pub mod pods;
pub mod schedule;
mod secrets;
pub mod server;
mod status;
pub mod trigger;
