//! `kubectl mapp`: looks at applications that can be moved, moves them, and tells how it went.
//!
//! It runs `kubectl`, which knows clusters, contexts and credentials; whoever may use that may use this. What it changes are
//! annotations that the operator obeys: nothing here moves anything by itself. Whatever it fails at, the application is as it was.

mod agent;
mod app;
mod cli;
mod error;
mod kubectl;
mod migrate;
mod status;

use std::process::ExitCode;

use clap::Parser;

use self::{
    cli::{Cli, Command},
    error::Error,
    kubectl::Kubectl,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print(cli.json);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    let kubectl = Kubectl::new(&cli.cluster);
    match &cli.command {
        Command::Status { name } => status::status(&kubectl, name.as_deref(), cli.json),
        Command::Migrate(typed) => migrate::migrate(&kubectl, typed, cli.json),
        Command::Restore(typed) => migrate::restore(&kubectl, typed, cli.json),
        Command::Checkpoints { name } => agent::checkpoints(&kubectl, name, cli.json),
        Command::Report(typed) => agent::report(&kubectl, typed, cli.json),
    }
}
