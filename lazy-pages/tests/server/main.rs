//! The page server against real userfaultfds: processes that arm their memory as CRIU does, register over CRIU's
//! protocol, and compare every page with what the checkpoint holds. Without CRIU, as root.

mod adversaries;
mod daemon;
mod failures;
mod images;
mod memory;
mod support;
mod takeover;
