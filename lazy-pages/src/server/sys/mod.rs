//! Everything the page server asks of the kernel that Rust cannot check: the userfaultfd calls, memory shared between
//! processes, and processes that share one table of descriptors. The only module of this crate with `unsafe` code.
//!
//! What always holds: what leaves this module is safe to use as its signature says, whatever the arguments.

pub mod process;
pub mod shared;
pub mod socket;
pub mod uffd;
