//! Process memory in object storage, served through userfaultfd.

pub mod format;
pub mod ids;
pub mod store;
pub mod units;
