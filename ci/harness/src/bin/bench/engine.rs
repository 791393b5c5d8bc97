//! `engine`: one process of 256 MiB and one of 1 GiB, checkpointed and restored by turns by stock CRIU and by the agent.
//!
//! Every round runs, with the same process: `criu dump`, `criu restore`, `criu restore --lazy-pages`; a full checkpoint
//! to the local store and a lazy restore; 1 % of the pages rewritten, an incremental checkpoint and a restore; a full
//! checkpoint to a store on disk and a restore. At its end the process checks all its memory. The first round warms up
//! and does not count. Stock images and the local store are on a tmpfs alike. Pages compress to one half, none is zero.
//!
//! Frozen times are CRIU's own, of the same clock for both. A process runs when it answers a question that was left for it
//! before the restore began; it is resident when the command that waits for that returns.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use migration_harness::agent::{Agent, Called, Restored};
use migration_harness::bench::{Figure, Machine, Outcome};
use migration_harness::process;
use migration_harness::store::Store;
use migration_harness::workload::{Ping, Workload};

use crate::stock::{Criu, end, wait_gone};

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds that count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Sizes of the process, in MiB
    #[arg(long, value_delimiter = ',', default_values_t = [256, 1024])]
    mib: Vec<u64>,
    /// A directory on a tmpfs, with room for twice the largest process
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    tmpfs: PathBuf,
}

/// Aims, from the project's plan.
const FROZEN_AIM: f64 = 1.3;
const RUNNING_AIM: f64 = 0.5;
const RESIDENT_AIM: f64 = 1.0;
/// "Does not grow with the size of the process": a quarter more for four times the memory leaves room for page tables
/// and hashes, not for pages.
const GROWTH_AIM: f64 = 1.25;
/// How long a restored process may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Part of the pages that is rewritten before the incremental checkpoint.
const WRITTEN: &str = "mutate 0.01";

/// Samples of one size, one of each for every round, in milliseconds and bytes.
#[derive(Default)]
struct Samples {
    stock_frozen: Vec<f64>,
    stock_running: Vec<f64>,
    stock_lazy_running: Vec<f64>,
    stock_resident: Vec<f64>,
    frozen: Vec<f64>,
    frozen_disk: Vec<f64>,
    frozen_again: Vec<f64>,
    running: Vec<f64>,
    resident: Vec<f64>,
    agent_memory: Vec<f64>,
    server_memory: Vec<f64>,
}

pub fn run(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    // Restored processes become children of this one, so that it can reap them and their ids are free at once.
    process::become_subreaper()?;
    let criu = Criu::find();
    let machine = Machine::this(criu.version()?);
    let mut measured = Vec::new();
    for &mib in &options.mib {
        measured.push((mib, measure(&criu, options, mib)?));
    }
    let mut figures: Vec<Figure> = measured.iter().flat_map(|(mib, samples)| samples.figures(*mib)).collect();
    if let [(small, first), .., (large, last)] = &measured[..] {
        let name = |what| format!("{what}: peak memory, {large} MiB / {small} MiB");
        figures.push(growth(name("agent"), &last.agent_memory, &first.agent_memory));
        figures.push(growth(name("page server"), &last.server_memory, &first.server_memory));
    }
    Ok(Outcome { bench: "engine", machine, figures })
}

fn growth(name: String, large: &[f64], small: &[f64]) -> Figure {
    Figure::ratio(name, large, small, Some(GROWTH_AIM))
}

fn measure(criu: &Criu, options: &Options, mib: u64) -> Result<Samples, Box<dyn Error>> {
    let heap = Workload::builder("heap").args(["--half", "--mib", &mib.to_string()]).start()?;
    round(criu, options, &heap, &mut Samples::default())?;
    eprintln!("engine, {mib} MiB: warm");
    let mut samples = Samples::default();
    for number in 1..=options.rounds {
        round(criu, options, &heap, &mut samples)?;
        eprintln!("engine, {mib} MiB: round {number} of {}", options.rounds);
    }
    Ok(samples)
}

fn round(
    criu: &Criu,
    options: &Options,
    heap: &Workload,
    samples: &mut Samples,
) -> Result<(), Box<dyn Error>> {
    {
        let images = criu.dump(heap.pid(), &options.tmpfs)?;
        samples.stock_frozen.push(ms(images.frozen));
        wait_gone(heap)?;
        samples.stock_running.push(ms(criu.restore(&images, &heap.leave_ping()?)?.running));
        end(heap)?;
        let times = criu.restore_lazily(&images, &heap.leave_ping()?)?;
        samples.stock_lazy_running.push(ms(times.running));
        samples.stock_resident.push(ms(times.resident));
    }
    {
        let store = Store::local(&options.tmpfs)?;
        let agent = Agent::new(&store)?;
        let mut memory = checkpoint(&agent, heap, &mut samples.frozen)?;
        let restored = restore(&agent, heap)?;
        samples.running.push(ms(restored.running));
        samples.resident.push(ms(restored.called.wall));
        samples.server_memory.push(restored.server_memory as f64);
        heap.act(WRITTEN)?;
        memory = memory.max(checkpoint(&agent, heap, &mut samples.frozen_again)?);
        memory = memory.max(restore(&agent, heap)?.called.peak_memory).max(restored.called.peak_memory);
        samples.agent_memory.push(memory as f64);
    }
    {
        let store = Store::local(&std::env::temp_dir())?;
        let agent = Agent::new(&store)?;
        checkpoint(&agent, heap, &mut samples.frozen_disk)?;
        restore(&agent, heap)?;
    }
    let report = heap.check()?;
    if report.bad > 0 {
        return Err(
            format!("{} of {} pages are wrong: {:?}", report.bad, report.pages, report.examples).into()
        );
    }
    Ok(())
}

const APP: &str = "bench/heap";

/// Checkpoints the process and returns the agent's peak memory.
fn checkpoint(agent: &Agent, heap: &Workload, frozen: &mut Vec<f64>) -> Result<u64, Box<dyn Error>> {
    let called = agent.checkpoint(APP, heap.pid())?;
    frozen.push(called.result.frozen_ms);
    wait_gone(heap)?;
    Ok(called.peak_memory)
}

struct RestoreSeen {
    called: Called<Restored>,
    running: Duration,
    server_memory: u64,
}

fn restore(agent: &Agent, heap: &Workload) -> Result<RestoreSeen, Box<dyn Error>> {
    let ping: Ping = heap.leave_ping()?;
    let mut running = None;
    let mut server = PageServer::default();
    let called = agent.restore(APP, |elapsed| {
        if running.is_none() && ping.is_answered() {
            running = Some(elapsed);
        }
        server.look(elapsed);
    })?;
    // On a busy machine it may answer only after the command has ended.
    let ended = Instant::now();
    if running.is_none() && process::wait_until(ANSWER_LIMIT, || ping.is_answered()) {
        running = Some(called.wall + ended.elapsed());
    }
    if server.memory == 0 {
        return Err("the page server was not seen".into());
    }
    let running = running.ok_or("the restored process does not answer")?;
    Ok(RestoreSeen { called, running, server_memory: server.memory })
}

/// The page server of the restore that is going on.
#[derive(Default)]
struct PageServer {
    pid: Option<i32>,
    searched: Duration,
    /// The most it has had at once, in bytes.
    memory: u64,
}

impl PageServer {
    /// Searching costs as much as all of /proc, so it is done every few milliseconds only.
    const BETWEEN_SEARCHES: Duration = Duration::from_millis(10);

    fn look(&mut self, elapsed: Duration) {
        if self.pid.is_none() && elapsed >= self.searched + Self::BETWEEN_SEARCHES {
            self.searched = elapsed;
            self.pid = process::all().into_iter().find(Self::is_one);
        }
        if let Some(memory) = self.pid.and_then(|pid| process::memory(pid, "VmHWM")) {
            self.memory = self.memory.max(memory);
        }
    }

    fn is_one(pid: &i32) -> bool {
        process::name(*pid).as_deref() == Some("migration-agent")
            && process::arguments(*pid).iter().any(|word| word == b"page-server")
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Samples {
    fn figures(&self, mib: u64) -> Vec<Figure> {
        let name = |what: &str| format!("{mib} MiB: {what}");
        let time = |what: &str, samples: &[f64]| Figure::lower(name(what), "ms", samples, None);
        let memory = |what: &str, samples: &[f64]| {
            let samples: Vec<f64> = samples.iter().map(|bytes| bytes / f64::from(1 << 20)).collect();
            Figure::lower(name(what), "MiB", &samples, None)
        };
        let ratio = |what: &str, ours: &[f64], theirs: &[f64], aim| {
            Figure::ratio(name(what), ours, theirs, Some(aim))
        };
        vec![
            ratio("frozen / criu dump", &self.frozen, &self.stock_frozen, FROZEN_AIM),
            ratio("running, lazy / criu restore", &self.running, &self.stock_running, RUNNING_AIM),
            ratio("resident / criu lazy-pages", &self.resident, &self.stock_resident, RESIDENT_AIM),
            time("frozen", &self.frozen),
            time("frozen, criu dump", &self.stock_frozen),
            time("frozen, store on disk", &self.frozen_disk),
            time("frozen, 1 % changed", &self.frozen_again),
            time("running, lazy", &self.running),
            time("running, criu restore", &self.stock_running),
            time("running, criu lazy-pages", &self.stock_lazy_running),
            time("resident", &self.resident),
            time("resident, criu lazy-pages", &self.stock_resident),
            memory("agent: peak memory", &self.agent_memory),
            memory("page server: peak memory", &self.server_memory),
        ]
    }
}
