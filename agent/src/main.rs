//! `migration-agent`: checkpoints and restores process trees from the command line.

use std::{env, ffi::OsString, process::ExitCode};

use migration_launch::stand_in;

mod cli;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        // Before anything else: it is to become a workload that finds what this process was started with.
        [first, rest @ ..] if first == stand_in::NAME => stand_in::main(rest),
        _ => cli::main(),
    }
}
