//! A metadata service like those of AWS, Google Cloud and Azure, as far as they tell of interruptions.
//!
//! Tests drive it through [`Control`]; whoever rehearses an interruption starts the program `metadata-server` and sends
//! `POST /control/…` ([`control`] has the list). It keeps the rules that clients trip over: session tokens with an end,
//! headers that must be there, 404 until something is announced, requests that wait for a change, documents with an
//! incarnation. [`Fault`]s make it misbehave in the ways such services do.
//!
//! All clouds are served at one address, as all of them have the same one; [`Control::serve_only`] leaves one.
//! Everything ends when the [`MetadataServer`] is dropped.

mod aws;
mod azure;
pub mod control;
mod fault;
mod gcp;
mod query;
mod reply;
mod server;
mod state;

pub use azure::ScheduledEvent;
pub use fault::Fault;
pub use server::MetadataServer;
pub use state::{Cloud, Control, Seen};
