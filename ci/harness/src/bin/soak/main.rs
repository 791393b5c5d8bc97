//! `soak`: migrations under faults, as many as asked for, all of memory compared after each.
//!
//! Everything random follows from the seed and the number of the run, so a run that fails can be looked at again alone
//! (`--only`); what the machine does in between is as it comes. What counts in the end: **corrupt** (a byte that is not
//! what it should be) and **lost** (a process that neither runs nor can be restored from its newest committed
//! checkpoint). Both must be 0.

mod faults;
mod migration;
mod random;
mod tally;
mod world;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use migration_harness::process;

use crate::random::Random;
use crate::tally::Tally;
use crate::world::World;

/// How many migrations a workload goes through before another takes its place.
const RUNS_OF_A_WORLD: u64 = 6;

/// Migrates self-checking processes while stores fail and processes are killed, and checks all memory after each.
///
/// Exit codes: 0 nothing was corrupt or lost; 1 something was; 2 wrong command line.
#[derive(Parser)]
#[command(after_help = "Examples:
  soak --seed 1 --runs 300
  soak --seed 1 --only 17      look at one run again (with those before it of the same workload)
  soak --runs 20 --json")]
struct Options {
    /// What is random follows from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many migrations
    #[arg(long, default_value_t = 300)]
    runs: u64,
    /// Only this run, and those before it of the same workload
    #[arg(long)]
    only: Option<u64>,
    /// Memory of each workload, in MiB
    #[arg(long, default_value_t = 32)]
    mib: usize,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = process::become_subreaper() {
        eprintln!("soak: {error}");
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    let runs = match options.only {
        Some(run) => run / RUNS_OF_A_WORLD * RUNS_OF_A_WORLD..run + 1,
        None => 0..options.runs,
    };
    let mut world: Option<World> = None;
    for run in runs {
        if run % RUNS_OF_A_WORLD == 0 {
            world = None;
        }
        let mut random = Random::new(options.seed, run);
        tally.trail.clear();
        let outcome = match &mut world {
            Some(world) => migration::run(world, &mut random, &mut tally),
            None => World::new(&mut Random::new(options.seed, u64::MAX - run), options.mib).and_then(|new| {
                tally.world(&new);
                migration::run(world.insert(new), &mut random, &mut tally)
            }),
        };
        if let Err(failure) = outcome {
            eprintln!("soak: run {run} of seed {}: {failure}", options.seed);
            tally.trail.iter().for_each(|step| eprintln!("    {step}"));
            tally.failed(&failure);
            // Whatever state it is in, the next run must not inherit it.
            world = None;
        }
        tally.runs += 1;
        if run % 10 == 9 {
            eprintln!(
                "soak: {} runs after {} s: {}",
                tally.runs,
                started.elapsed().as_secs(),
                tally.verdict()
            );
        }
    }
    drop(world);
    tally.seconds = started.elapsed().as_secs_f64();
    let text =
        if options.json { serde_json::to_string(&tally).unwrap_or_default() + "\n" } else { tally.table() };
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    if tally.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
