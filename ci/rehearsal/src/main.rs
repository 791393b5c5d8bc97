//! `scenario NAME`: rehearses one thing that happens to applications, on the cluster of `ci/cluster`, and says when what happened.
//!
//! What always holds: every scenario compares all data before and after and counts what a client saw meanwhile; what does not agree is
//! an error, and the exit code is 1. Applications are deleted at the end and nodes are as they were, also after an error.

mod application;
mod cluster;
mod faults;
mod http;
mod manifest;
mod observer;
mod redis;
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
    /// How often it moves (back-and-forth)
    #[arg(long, value_name = "N", default_value_t = 50)]
    moves: u64,
    /// What chooses strategies and faults (back-and-forth)
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// The cloud announces that it takes a node back: what runs there is elsewhere before it does
    Spot,
    /// Somebody asks for it with an annotation
    Manual,
    /// The cloud recommends to leave a node
    Rebalance,
    /// A Deployment's pod moves
    Deployment,
    /// A StatefulSet's pod moves
    Statefulset,
    /// A node ends without notice: its application goes on from the last periodic checkpoint
    NodeVanishes,
    /// It has to leave again while pages still arrive
    SecondNotice,
    /// The target's node ends in the middle of the restore
    TargetDies,
    /// The store is away for a minute, from the moment the application stands still
    StoreDown,
    /// Ten applications of one node move at once
    TenApps,
    /// The operator is killed in every stage of a migration
    OperatorKilled,
    /// Children, threads, open files on a volume, and a log
    Tree,
    /// The same, and it ignores signals
    Stubborn,
    /// The target cannot have the application's image, or has another one
    WrongImage,
    /// memcached, nginx, numpy, Node.js and Java
    Applications,
    /// Many moves with random strategies and faults
    BackAndForth,
}

/// Why a scenario has failed.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (strategy, mib) = (cli.strategy.as_str(), |usual| cli.mib.unwrap_or(usual));
    let result = match cli.scenario {
        Scenario::Spot => scenarios::spot(strategy, mib(64)),
        Scenario::Manual => scenarios::manual(strategy, mib(64)),
        Scenario::Rebalance => scenarios::rebalance(strategy, mib(64)),
        Scenario::Deployment => scenarios::deployment(strategy, mib(64)),
        Scenario::Statefulset => scenarios::stateful_set(strategy, mib(64)),
        Scenario::NodeVanishes => scenarios::node_vanishes(strategy, mib(64)),
        Scenario::SecondNotice => scenarios::second_notice(strategy, mib(64)),
        Scenario::TargetDies => scenarios::target_dies(mib(64)),
        Scenario::StoreDown => scenarios::store_down(strategy, mib(64)),
        Scenario::TenApps => scenarios::ten_apps(strategy, mib(8)),
        Scenario::OperatorKilled => scenarios::operator_killed(strategy, mib(16)),
        Scenario::Tree => scenarios::tree(strategy),
        Scenario::Stubborn => scenarios::stubborn(strategy),
        Scenario::WrongImage => scenarios::wrong_image(strategy, mib(64)),
        Scenario::Applications => scenarios::applications(strategy),
        Scenario::BackAndForth => scenarios::back_and_forth(mib(32), cli.moves, cli.seed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scenario: {error}");
            ExitCode::FAILURE
        }
    }
}
