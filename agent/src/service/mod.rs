//! The agent as a service: checkpoints and restores asked for over gRPC.
//!
//! What always holds:
//! - What is asked for is written down before it begins and its end before it is answered ([`journal`]). A call repeated
//!   with the same operation id, to this agent or to the one that takes its place, never does anything twice
//!   (`operations`); what was under way when an agent died is settled by facts (`recovery`).
//! - An operation that is given up leaves what it began with: see [`Cancel`](crate::Cancel). The end of this process, however
//!   it comes, is such a case; restored trees and their page servers do not depend on it.
//! - Who may ask is known from the connection alone: the machine's root over a Unix socket, or the names in a client's
//!   certificate ([`tls`], [`caller`]). There is no other way in unless plaintext is asked for by name.

mod api;
pub mod caller;
mod checkpoints;
mod error;
mod handovers;
pub mod journal;
pub mod keeper;
mod listen;
mod metrics;
mod operations;
mod orphans;
mod recovery;
mod server;
pub mod tls;
mod wire;

pub use self::{
    caller::{Caller, Rules},
    error::{detail_of, word as reason_word},
    operations::Hooks,
    server::{Config, Listen, Reached, serve},
};
