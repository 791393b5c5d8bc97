//! `workload`: programs that do one odd thing each with their memory, know what every byte of it should be, and tell on
//! request. They are what gets checkpointed and restored in tests.
//!
//! What always holds: a task that has announced itself as ready has no descriptors but its standard ones (and those its
//! scenario is about), is in a session of its own, has no terminal, and answers every request. It ends when its control
//! directory is gone, so that nothing outlives a test that was killed.

mod areas;
mod churn;
mod heap;
mod shared;
mod stdout;
mod task;
mod threads;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use migration_harness::pattern::Mix;
use migration_harness::sys::PAGE_SIZE;
use nix::unistd::{close, setsid};

use crate::task::Control;

/// A program that checks its own memory.
#[derive(Parser)]
#[command(arg_required_else_help = true)]
struct Cli {
    /// Directory for requests and answers; it must exist
    #[arg(long)]
    control: PathBuf,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// One task. `mutate` rewrites a fraction of its pages, `mutate F` that fraction; `corrupt` damages one page;
    /// `watch MS` checks again and again for so many milliseconds
    Heap {
        #[command(flatten)]
        memory: Memory,
        /// Only pages that compress to one half, none of them zero
        #[arg(long)]
        half: bool,
        /// Fraction of the pages that `mutate` rewrites
        #[arg(long, default_value_t = 0.1)]
        fraction: f64,
    },
    /// Four tasks that share memory copy-on-write (`main`, `child`, `grandchild`, `sibling`) and a zombie. `mutate` in
    /// any of them must not be seen by the others; `reap` takes the zombie's exit status
    Tree(Memory),
    /// Ten threads that read and write the same pages without pause, checking sequence numbers
    Threads(Memory),
    /// Shared anonymous memory and a memfd, in `main` and `child`. `write` in one must be seen by the other
    Shared(Memory),
    /// Locked, protected, file-backed, wiped-on-fork, not-forked and huge-page areas, guard pages, a deep stack
    Areas(Memory),
    /// Areas made by MADV_GUARD_INSTALL (Linux 6.13, CRIU 4.2)
    Guards(Memory),
    /// `churn` forks, moves, unmaps, drops, frees, splits and grows memory while the rest is checked
    Churn {
        #[command(flatten)]
        memory: Memory,
        /// Churn all the time, not only on request
        #[arg(long)]
        continuous: bool,
    },
    /// Prints a counter to standard output and standard error every 10 ms
    Stdout,
}

/// How much memory, and which.
#[derive(clap::Args, Clone, Copy)]
struct Memory {
    /// Memory to fill, in MiB
    #[arg(long, default_value_t = 32)]
    mib: usize,
    /// What the contents are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Memory {
    fn pages(self) -> usize {
        (self.mib << 20) / PAGE_SIZE
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    leave_the_caller();
    let control = Control::new(cli.control);
    control.tell_on_panic();
    let outcome = match cli.scenario {
        Scenario::Heap { memory, half, fraction } => {
            let mix = if half { Mix::Half } else { Mix::Mixed };
            heap::run(&control, memory, mix, fraction)
        }
        Scenario::Tree(memory) => tree::run(&control, memory),
        Scenario::Threads(memory) => threads::run(&control, memory),
        Scenario::Shared(memory) => shared::run(&control, memory),
        Scenario::Areas(memory) => areas::run(&control, memory),
        Scenario::Guards(memory) => areas::run_guards(&control, memory),
        Scenario::Churn { memory, continuous } => churn::run(&control, memory, continuous),
        Scenario::Stdout => stdout::run(&control),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            control.last_words(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// A session of its own, and no descriptors but the standard ones.
fn leave_the_caller() {
    // Fails where whoever started this has done it already.
    let _ = setsid();
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open {
        if descriptor > 2 {
            // The one that listed them is closed already.
            let _ = close(descriptor);
        }
    }
}
