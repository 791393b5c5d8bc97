//! The `migration-operator` command line.

mod run;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};
use migration_operator::api::definition;

use self::run::Run;

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
    /// Work until a signal says to end
    Run(Run),
}

/// Runs what was typed.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => print_crd(),
        Command::Run(typed) => run::run(&typed),
    }
}

fn print_crd() -> ExitCode {
    let definition = definition().map_err(|error| error.to_string());
    let yaml = match definition.and_then(|it| serde_saphyr::to_string(&it).map_err(|error| error.to_string()))
    {
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
