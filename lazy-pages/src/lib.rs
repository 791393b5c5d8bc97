//! Process memory in object storage, served through userfaultfd.

pub mod catalog;
pub mod format;
pub mod handover;
pub mod ids;
pub mod kernel;
pub mod materialize;
pub mod reader;
pub mod record;
pub mod server;
pub mod store;
pub mod units;
pub mod verify;
pub mod writer;
