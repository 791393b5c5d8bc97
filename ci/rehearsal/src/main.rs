//! `scenario NAME`: rehearses one thing that happens to applications, on the cluster of `ci/cluster`, and says when what happened.
//!
//! What always holds: every scenario compares all data before and after and counts what a client saw meanwhile; what does not agree is
//! an error, and the exit code is 1. Applications are deleted at the end and nodes are as they were, also after an error.

mod application;
mod cluster;
mod observer;
mod scenarios;
mod timeline;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Rehearse what happens to applications when their nodes go
#[derive(Parser)]
#[command(after_help = "ci/cluster up has to have succeeded.")]
struct Cli {
    /// Which one
    scenario: Scenario,
    /// How much data each application has
    #[arg(long, value_name = "MIB")]
    mib: Option<u64>,
    /// How its memory gets there: full, lazy-storage, lazy-direct or lazy-hybrid
    #[arg(long, value_name = "STRATEGY", default_value = "lazy-storage")]
    strategy: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// The cloud announces that it takes a node back: what runs there is elsewhere before it does
    Spot,
    /// Somebody asks for it with an annotation
    Manual,
    /// A node ends without notice: its application goes on from the last periodic checkpoint
    NodeVanishes,
    /// Ten applications of one node move at once
    TenApps,
    /// The operator is killed in every stage of a migration
    OperatorKilled,
}

/// Why a scenario has failed.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (strategy, mib) = (cli.strategy.as_str(), |usual| cli.mib.unwrap_or(usual));
    let result = match cli.scenario {
        Scenario::Spot => scenarios::spot(strategy, mib(64)),
        Scenario::Manual => scenarios::manual(strategy, mib(64)),
        Scenario::NodeVanishes => scenarios::node_vanishes(strategy, mib(64)),
        Scenario::TenApps => scenarios::ten_apps(strategy, mib(8)),
        Scenario::OperatorKilled => scenarios::operator_killed(strategy, mib(16)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scenario: {error}");
            ExitCode::FAILURE
        }
    }
}
