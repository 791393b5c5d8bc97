//! `bench`: how fast the project is, beside what there was before it, on one machine and in one run.
//!
//! Results go to standard output, as a table or as one JSON object; what is going on, to standard error.

mod engine;
mod migrate;
mod stock;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use migration_harness::bench::Outcome;

/// Measures, and says which aims are reached.
#[derive(Parser)]
#[command(arg_required_else_help = true)]
struct Cli {
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Checkpoint and lazy restore of one process, against stock CRIU with its images on a tmpfs
    Engine(engine::Options),
    /// A redis under load moves between two machines, with every strategy
    Migrate(migrate::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.bench {
        Bench::Engine(options) => engine::run(&options),
        Bench::Migrate(options) => migrate::run(&options),
    };
    match outcome.and_then(|outcome| print(&outcome, cli.json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(outcome: &Outcome, json: bool) -> Result<(), Box<dyn Error>> {
    let text = if json { serde_json::to_string(outcome)? + "\n" } else { outcome.table() };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}
