//! `migration-operator`: see the library for what it can do so far.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use migration_operator::api::definition;

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
    let definition = definition().map_err(|error| error.to_string());
    let yaml = match definition.and_then(|it| serde_saphyr::to_string(&it).map_err(|error| error.to_string())) {
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
