//! The `migration-agent` command line.
//!
//! Results go to standard output, everything else to standard error. With `--json` every command prints exactly one JSON
//! object a result, an error included.

mod args;
mod check;
mod checkpoint;
mod commands;
mod deadline;
mod duration;
mod files;
mod gc;
mod generation;
mod hooks;
mod inspect;
mod launch;
mod migrate;
mod output;
mod pin;
mod remote;
mod report;
mod restore;
mod serve;

pub use self::commands::main;
