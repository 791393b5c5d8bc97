//! Everything the project says to CRIU and reads from it, over CRIU's own interfaces: no log is parsed to learn whether
//! something worked, no command line but `criu swrk` is run.
//!
//! - [`Criu`]: a CRIU binary; each request to it is a short-lived `criu swrk` process.
//! - [`PageStream`]: the receiving end of a dump's memory, when the dump was given one end of a socketpair as page server.
//! - [`ImageDir`]: the image files beside the memory.
//! - [`CriuError`]: what went wrong in CRIU's own words, with a kind that names the pid or file, and a hint.

mod criu;
mod error;
pub mod images;
mod log;
mod notification;
mod options;
pub mod page_stream;
mod place;
mod session;
mod version;

pub use criu::{Criu, Features, Restored};
pub use error::{Cause, CriuError, Failure, HandlerError, RequestKind};
pub use images::{ImageDir, ImageError};
pub use notification::Notification;
pub use options::{CgroupMode, DumpOptions, NetworkLock, RestoreOptions, inherit_key};
pub use page_stream::{PageObject, PageStream, PageStreamError, Record};
pub use place::Place;
pub use version::Version;

/// Bytes in a page. CRIU counts native pages; others are not supported.
pub const PAGE_SIZE: usize = 4096;
