//! `migration-agent`: checkpoints and restores process trees from the command line.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
