//! Know before the machine is gone: interruption notices, and what is done about them.
//!
//! [`sources`] ask a cloud's metadata service and report to the [`board`]; [`plan`] decides what is to be done; in a cluster,
//! [`kubernetes`] triggers the machine's migratable pods and marks its node; elsewhere, [`standalone`] has the local agent
//! take checkpoints. Below them are [`Notice`] and a parser for each document, pure functions of its bytes.
//!
//! What always holds: a document that announces something never parses to "nothing". A word this version does not know
//! becomes [`NoticeKind::Unrecognised`], because an interruption by another name is still one; a document that cannot
//! be understood at all is an error. Parsers never panic, and refuse documents over [`MAX_DOCUMENT`] bytes. A notice that
//! was seen once is neither lost nor acted on twice, also when the monitor is killed in between.

pub mod aws;
pub mod azure;
pub mod board;
pub mod gcp;
pub mod health;
pub mod http;
pub mod kubernetes;
pub mod metrics;
mod notice;
pub mod plan;
pub mod policy;
pub mod sources;
pub mod standalone;

pub use notice::{Cloud, MAX_DOCUMENT, Notice, NoticeError, NoticeKind};
