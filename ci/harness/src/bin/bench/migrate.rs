//! `migrate`: a process of 256 MiB and one of 1 GiB moves between two agents with every strategy.
//!
//! The target's agent is in a pid namespace of its own. Both use one S3 server, which answers every request after 30 ms; the
//! agents' connection is the loopback. No checkpoint is taken before, so all memory moves. Pages compress to one half,
//! none is zero.
//!
//! *Away* is the time in which the process does nothing: it leaves a mark of where it runs every few milliseconds, and what
//! counts is the time from its last mark at the source to its first at the target. At the end it checks all its memory.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use migration_harness::bench::{Figure, Machine, Outcome};
use migration_harness::machine::own_pids;
use migration_harness::process;
use migration_harness::s3::{S3Options, S3Server};
use migration_harness::workload::Workload;
use serde_json::Value;

use crate::stock::Criu;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Migrations of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Sizes of the process, in MiB
    #[arg(long, value_delimiter = ',', default_values_t = [256, 1024])]
    mib: Vec<u64>,
    /// Strategies
    #[arg(long, value_delimiter = ',', default_values_t = ["full", "lazy-storage", "lazy-direct", "lazy-hybrid"].map(String::from))]
    strategy: Vec<String>,
}

/// How long the store takes before it answers.
const FIRST_BYTE: Duration = Duration::from_millis(30);
/// The aim for strategies that do not wait for the memory.
const AWAY_AIM_MS: f64 = 700.0;
/// How long a process may take to run again.
const LIMIT: Duration = Duration::from_secs(60);

pub fn run(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    process::become_subreaper()?;
    let machine = Machine::this(Criu::find().version()?);
    let mut figures = Vec::new();
    for strategy in &options.strategy {
        let mut by_size = Vec::new();
        for &mib in &options.mib {
            let (mut away, mut resident) = (Vec::new(), Vec::new());
            for round in 1..=options.rounds {
                let sample = measure(strategy, mib)?;
                eprintln!("migrate, {strategy}, {mib} MiB, round {round}: away {:.0} ms", sample.0);
                away.push(sample.0);
                resident.push(sample.1);
            }
            let aim = strategy.starts_with("lazy-d") || strategy.starts_with("lazy-h");
            let aim = aim.then_some(AWAY_AIM_MS);
            figures.push(Figure::lower(format!("{strategy}, {mib} MiB: away"), "ms", &away, aim));
            figures.push(Figure::lower(
                format!("{strategy}, {mib} MiB: until all is there"),
                "ms",
                &resident,
                None,
            ));
            by_size.push((mib, away));
        }
        if let [(small, first), .., (large, last)] = &by_size[..] {
            figures.push(Figure::ratio(
                format!("{strategy}: away, {large} MiB / {small} MiB"),
                last,
                first,
                None,
            ));
        }
    }
    Ok(Outcome { bench: "migrate", machine, figures })
}

/// An agent that serves; ends when dropped.
struct Serving(Child);

impl Serving {
    fn start(mut command: Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        if line.is_empty() {
            return Err("an agent did not begin to serve".into());
        }
        Ok(Self(child))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent(server: &S3Server, place: &Path) -> Result<Command, Box<dyn Error>> {
    let mut command = Command::new(process::program("migration-agent")?);
    command
        .env("MIGRATION_STORE", server.url("bench"))
        .env("MIGRATION_WORK_DIR", place.join("work"))
        .env("HOME", place)
        .env("AWS_ACCESS_KEY_ID", &server.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &server.secret_key)
        .stdin(Stdio::null());
    if let Some(criu) = std::env::var_os("MIGRATION_CRIU") {
        command.env("MIGRATION_CRIU", criu);
    }
    Ok(command)
}

fn serve(server: &S3Server, place: &Path, port: u16) -> Result<Command, Box<dyn Error>> {
    std::fs::create_dir_all(place)?;
    let mut command = agent(server, place)?;
    command.args(["serve", "--json", "--insecure-plaintext", "--listen", &format!("127.0.0.1:{port}")]);
    command.arg("--socket").arg(place.join("agent.sock")).arg("--state-dir").arg(place.join("state"));
    Ok(command)
}

/// Milliseconds away, and from the beginning of the final dump until all pages were there.
fn measure(strategy: &str, mib: u64) -> Result<(f64, f64), Box<dyn Error>> {
    let place = tempfile::Builder::new().prefix("bench-").tempdir_in("/dev/shm")?;
    let objects = place.path().join("objects");
    std::fs::create_dir(&objects)?;
    let server = S3Server::start(&objects, S3Options::default())?;
    server.faults.delay_answers(FIRST_BYTE);
    let (here, there) = (process::free_port()?, process::free_port()?);
    let _source = Serving::start(serve(&server, &place.path().join("source"), here)?)?;
    let _target = Serving::start(own_pids(&serve(&server, &place.path().join("target"), there)?))?;
    let mut heap = Workload::builder("heap").args(["--half", "--mib", &mib.to_string()]).start()?;
    heap.mark_places()?;

    let (from, to) = (format!("http://127.0.0.1:{here}"), format!("http://127.0.0.1:{there}"));
    let mut command = agent(&server, place.path())?;
    command.args(["migrate", "--app", "bench", "--cold", "--json", "--strategy", strategy]);
    command.args(["--pid", &heap.pid().to_string(), "--from", &from, "--to", &to, "--source-address", &from]);
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stdout).into_owned().into());
    }
    let moved: Value = serde_json::from_slice(&output.stdout)?;
    let steps = moved["timeline"].as_array().ok_or("no timeline")?;
    let begun = |name: &str| {
        steps.iter().find(|step| step["name"] == name).and_then(|step| step["begun_ms"].as_f64())
    };
    let last = steps.last().and_then(|step| Some(step["begun_ms"].as_f64()? + step["took_ms"].as_f64()?));
    let resident = last.ok_or("no end")? - begun("final dump").ok_or("no final dump")?;

    let asked = Instant::now();
    while heap.places().len() < 2 && asked.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(5));
    }
    heap.follow()?;
    let report = heap.check()?;
    if report.bad > 0 {
        return Err(format!("{} of {} pages are wrong", report.bad, report.pages).into());
    }
    let away = heap.away().ok_or("it left no mark at the target")?;
    Ok((away.as_secs_f64() * 1e3, resident))
}
