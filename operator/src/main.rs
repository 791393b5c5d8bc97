//! `migration-operator`: see the library for what it can do so far.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kube::CustomResourceExt;
use migration_operator::api::MigratableApp;

/// Moves applications between Kubernetes nodes before their node disappears.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the CustomResourceDefinition of MigratableApp as YAML, for `kubectl apply -f -`
    Crd,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => print_crd(),
    }
}

fn print_crd() -> ExitCode {
    let yaml = match serde_saphyr::to_string(&MigratableApp::crd()) {
        Ok(yaml) => yaml,
        Err(error) => {
            eprintln!("error: the definition cannot be written as YAML: {error}");
            return ExitCode::FAILURE;
        }
    };
    match std::io::stdout().lock().write_all(yaml.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write the definition: {error}");
            ExitCode::FAILURE
        }
    }
}
