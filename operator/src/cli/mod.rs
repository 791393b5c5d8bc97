//! The `migration-operator` command line.

mod manifests;
mod run;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};
use migration_operator::api::definition;

use serde::Serialize;

use self::{manifests::Manifests, run::Run};

/// Moves applications between Kubernetes nodes before their node disappears.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  migration-operator crd | kubectl apply -f -
  migration-operator run --cluster production --agent-image registry.example/migration-agent:0.1.0
  migration-operator run --log-format text --no-leader-election      # on a developer's machine, with KUBECONFIG

Exit codes: 0 ended by a signal; 1 failed; 2 not understood."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the CustomResourceDefinition of MigratableApp as YAML, for `kubectl apply -f -`
    Crd,
    /// Print what runs the operator in a cluster as YAML: roles, the Deployment, the webhook
    Manifests(Manifests),
    /// Work until a signal says to end
    Run(Run),
}

/// Runs what was typed.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => match definition() {
            Ok(definition) => print(&[definition]),
            Err(error) => {
                eprintln!("error: the definition cannot be represented: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Manifests(typed) => print(&manifests::documents(typed)),
        Command::Run(typed) => run::run(&typed),
    }
}

/// Prints YAML documents.
fn print<T: Serialize>(documents: &[T]) -> ExitCode {
    let mut text = String::new();
    for document in documents {
        match serde_saphyr::to_string(document) {
            Ok(yaml) => {
                if !text.is_empty() {
                    text.push_str("---\n");
                }
                text.push_str(&yaml);
            }
            Err(error) => {
                eprintln!("error: cannot write YAML: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot print: {error}");
            ExitCode::FAILURE
        }
    }
}
