//! What the tests, the demo and the benchmarks share.
//!
//! - [`workload`]: programs that fill their memory with contents they can check, and the means to ask them;
//!   the program itself is `workload`, built from [`sys`], [`pattern`], [`region`] and [`control`]
//! - [`redis`]: a redis server of one's own, filled and asked through its own protocol
//! - [`s3`]: an S3 server that can misbehave on demand; `s3-server` is the same as a program
//! - [`store`] and [`agent`]: somewhere to keep checkpoints, and the `migration-agent` command
//! - [`mod@bench`] and [`table`]: figures, and how they are shown
//! - [`machine`] and [`network`]: other machines, on this one
//! - [`process`]: looking at processes and ending them
//!
//! Everything here cleans up after itself by process id when its value is dropped.

pub mod agent;
pub mod bench;
pub mod control;
pub mod machine;
pub mod network;
pub mod pattern;
pub mod process;
pub mod redis;
pub mod region;
pub mod s3;
pub mod store;
#[allow(unsafe_code)]
pub mod sys;
pub mod table;
pub mod workload;
