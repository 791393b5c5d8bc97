//! The page server: puts pages of a checkpoint into the memory of processes that CRIU has restored, when they touch them
//! or before they do.
//!
//! CRIU rebuilds a tree of processes without their private memory and hands over a userfaultfd of each. From then on:
//! - a thread that touches a missing page waits until the page has been fetched, verified and copied;
//! - everything else is fetched in the background, and never delays a page that is waited for;
//! - forks, moves, removals and unmappings of memory that is still missing are followed.
//!
//! What always holds: **a process sees the bytes of the checkpoint or it is killed.** The kernel turns missing pages into
//! zeros when the last descriptor closes, so a descriptor is closed only when nothing is missing or its address space has
//! ended. If pages can never come (a missing pack, a damaged frame, a store that stays away longer than its patience), the
//! server kills the tree first. If the server itself dies, its guardian has the descriptors and starts another one, which
//! goes on; [`daemon`] tells which deaths that covers. A store that cannot be reached makes the processes wait where they
//! touch missing pages, and nothing else.
//!
//! Limits:
//! - A process that, after it was restored, changes what a forked child gets of an area (`MADV_WIPEONFORK`,
//!   `MADV_DONTFORK` and their opposites) and forks before all pages are there. The kernel does not report that change; the
//!   image's setting counts.
//!
//! Threads: one reads events (`events`), several unpack, verify and copy (`filler`), fetches run on tokio.

mod anchor;
pub mod daemon;
mod events;
mod filler;
mod frames;
mod guardian;
mod journal;
mod kill;
mod limits;
mod origin;
mod pace;
mod page_server;
mod page_state;
mod pages_record;
mod presence;
mod registration;
mod replay;
mod report;
mod saved;
mod snapshot;
mod space;
mod spaces;
mod state;
pub mod status;
#[allow(unsafe_code)]
mod sys;
mod trace;
mod tree;

pub use self::{
    anchor::{Anchor, Anchors},
    filler::{Limits, STORE_PATIENCE},
    journal::{STALL_BUCKETS, STALL_LIMITS_US},
    page_server::{Outcome, PageServer, PageServerConfig, ServerStats, StartError},
    snapshot::{LazyTree, Pending, SnapshotError},
    state::Role,
};
