//! `migrate`: a redis under load moves between two machines with every strategy.
//!
//! The machines have process ids and networks of their own, joined by a link of 2.5 Gbit/s; the store is an S3 server that answers
//! every request after 30 ms, behind links of the same bandwidth. A client does one increment after the other, at the source
//! until that does not answer any more, then at the target. A checkpoint is taken while it runs, as `migrate` does.
//!
//! *Blackout* is the time from the client's last answer at the source to its first at the target. No answered increment may
//! be missing afterwards, and all other data must be what it was.

use std::{
    error::Error,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use migration_harness::{
    bench::{Figure, Machine, Outcome},
    network::{Host, Network},
    process,
    redis::{Client, Reply, options},
    s3::{S3Options, S3Server},
};
use serde_json::Value;

use crate::stock::Criu;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Migrations of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Sizes of redis's values, in MiB
    #[arg(long, value_delimiter = ',', default_values_t = [256, 1024])]
    mib: Vec<u64>,
    /// Strategies
    #[arg(long, value_delimiter = ',', default_values_t = ["full", "lazy-storage", "lazy-direct", "lazy-hybrid"].map(String::from))]
    strategy: Vec<String>,
}

/// How long the store takes before it answers.
const FIRST_BYTE: Duration = Duration::from_millis(30);
/// Bandwidth of every link: 312 MB/s.
const RATE: &str = "2500mbit";
/// The aim for strategies that do not wait for the memory.
const BLACKOUT_AIM_MS: f64 = 700.0;
/// How long redis may take to answer again.
const LIMIT: Duration = Duration::from_secs(60);
/// How long after the migration the target has to answer.
const SOON: Duration = Duration::from_secs(10);
/// Where the agents and redis listen; the machines are this program's own.
const AGENT_PORT: u16 = 7070;
const REDIS_PORT: u16 = 6379;

pub fn run(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let machine = Machine::this(Criu::find().version()?);
    let mut figures = Vec::new();
    for strategy in &options.strategy {
        let mut by_size = Vec::new();
        for &mib in &options.mib {
            let (mut blackout, mut resident) = (Vec::new(), Vec::new());
            for round in 1..=options.rounds {
                let sample = measure(strategy, mib)?;
                let (all, [dump, restore]) = (sample.0, sample.2);
                let rest = all - dump - restore;
                eprintln!(
                    "migrate, {strategy}, {mib} MiB, round {round}: blackout {all:.0} ms: {dump:.0} final dump, {restore:.0} restore, \
                     {rest:.0} until an answer, less what went before the freeze"
                );
                blackout.push(sample.0);
                resident.push(sample.1);
            }
            let aim = strategy.starts_with("lazy-d") || strategy.starts_with("lazy-h");
            let aim = aim.then_some(BLACKOUT_AIM_MS);
            figures.push(Figure::lower(format!("{strategy}, {mib} MiB: blackout"), "ms", &blackout, aim));
            figures.push(Figure::lower(
                format!("{strategy}, {mib} MiB: until all is there"),
                "ms",
                &resident,
                None,
            ));
            by_size.push((mib, blackout));
        }
        if let [(small, first), .., (large, last)] = &by_size[..] {
            figures.push(Figure::ratio(
                format!("{strategy}: blackout, {large} MiB / {small} MiB"),
                last,
                first,
                None,
            ));
        }
    }
    Ok(Outcome { bench: "migrate", machine, figures })
}

/// Milliseconds of blackout, from the beginning of the final dump until all pages were there, and of the final dump and the restore
/// as who asked for them saw them.
fn measure(strategy: &str, mib: u64) -> Result<(f64, f64, [f64; 2]), Box<dyn Error>> {
    let place = tempfile::Builder::new().prefix("bench-").tempdir_in("/dev/shm")?;
    let objects = place.path().join("objects");
    std::fs::create_dir(&objects)?;
    let everywhere = S3Options { address: Ipv4Addr::UNSPECIFIED, ..S3Options::default() };
    let server = S3Server::start(&objects, everywhere)?;
    server.faults.delay_answers(FIRST_BYTE);
    let mut network = Network::new(RATE)?;
    for (host, name) in network.hosts.iter_mut().zip(["source", "target"]) {
        serve(host, &server, &place.path().join(name))?;
    }
    let [source, target] = &network.hosts;
    let mut front = source.beside("sh")?;
    // Its pid has to be free at the target, where the first ones are the agent's and its threads'.
    front.args(["-c", "echo 10000 > /proc/sys/kernel/ns_last_pid; \"$@\"; exit", "sh", "redis-server"]);
    front.args(options(place.path(), Ipv4Addr::UNSPECIFIED, REDIS_PORT));
    // Anybody may come: there is nobody else.
    let mut front = front.args(["--protected-mode", "no", "--enable-debug-command", "yes"]).spawn()?;
    let addresses = [source, target].map(|host| SocketAddr::from((host.address, REDIS_PORT)));
    let mut client = connect(addresses[0])?;
    let pid = client.server_pid()?;
    client.load(0, mib << 20)?;
    let digest = client.digest()?;
    drop(client);

    let from = format!("http://{}:{AGENT_PORT}", source.address);
    let to = format!("http://{}:{AGENT_PORT}", target.address);
    let over_link = format!("http://{}:{AGENT_PORT}", source.link);
    let mut command = agent(&server, Ipv4Addr::LOCALHOST, place.path())?;
    command.args(["migrate", "--app", "bench", "--tcp-close", "--json", "--strategy", strategy]);
    command.args(["--pid", &pid.to_string(), "--from", &from, "--to", &to, "--source-address", &over_link]);
    let over = AtomicBool::new(false);
    let (blackout, output) = thread::scope(|scope| {
        let load = scope.spawn(|| increments(addresses, &over).map_err(|error| error.to_string()));
        let output = command.output();
        over.store(true, Ordering::SeqCst);
        (load.join(), output)
    });
    let output = output?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stdout).into_owned().into());
    }
    let blackout = blackout.map_err(|_| "the client failed")??;

    let mut client = connect(addresses[1])?;
    client.command(&[b"DEL", b"increments"])?;
    if client.digest()? != digest {
        return Err("redis does not hold what it held".into());
    }
    // It stopped with redis, and nobody lets it go on.
    front.kill()?;
    front.wait()?;
    let moved: Value = serde_json::from_slice(&output.stdout)?;
    let steps = moved["timeline"].as_array().ok_or("no timeline")?;
    let step = |name: &str| steps.iter().find(|step| step["name"] == name).ok_or(format!("no {name}"));
    let took = |name: &str| Ok::<f64, Box<dyn Error>>(step(name)?["took_ms"].as_f64().ok_or("no time")?);
    let dump = step("final dump")?["begun_ms"].as_f64();
    let last = steps.last().and_then(|step| Some(step["begun_ms"].as_f64()? + step["took_ms"].as_f64()?));
    let resident = last.ok_or("no end")? - dump.ok_or("no final dump")?;
    Ok((blackout.as_secs_f64() * 1e3, resident, [took("final dump")?, took("restore")?]))
}

/// Starts an agent on a machine, which then is there for it.
fn serve(host: &mut Host, server: &S3Server, place: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(place)?;
    let mut command = agent(server, host.outside, place)?;
    command.args(["serve", "--json", "--insecure-plaintext", "--listen", &format!("0.0.0.0:{AGENT_PORT}")]);
    command.arg("--socket").arg(place.join("agent.sock")).arg("--state-dir").arg(place.join("state"));
    let child = host.start(&command)?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().ok_or("no output")?).read_line(&mut line)?;
    if line.is_empty() { Err("an agent did not begin to serve".into()) } else { Ok(()) }
}

/// `migration-agent`, for a machine that reaches the store at `outside`.
fn agent(server: &S3Server, outside: Ipv4Addr, place: &Path) -> Result<Command, Box<dyn Error>> {
    let store = server.url("bench").replace(&Ipv4Addr::UNSPECIFIED.to_string(), &outside.to_string());
    let mut command = Command::new(process::program("migration-agent")?);
    command
        .env("MIGRATION_STORE", store)
        .env("MIGRATION_WORK_DIR", place.join("work"))
        .env("HOME", place)
        .env("AWS_ACCESS_KEY_ID", &server.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
    if let Some(criu) = std::env::var_os("MIGRATION_CRIU") {
        command.env("MIGRATION_CRIU", criu);
    }
    Ok(command)
}

fn connect(address: SocketAddr) -> Result<Client, Box<dyn Error>> {
    let begun = Instant::now();
    loop {
        match Client::connect_to(address, LIMIT) {
            Ok(client) => return Ok(client),
            Err(error) if begun.elapsed() > LIMIT => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Increments at the source for as long as that answers, and meanwhile tries the target until that does. How long there was no
/// answer: from the last at the source to the first at the target. Ends in any case some time after all is `over`.
fn increments([source, target]: [SocketAddr; 2], over: &AtomicBool) -> Result<Duration, Box<dyn Error>> {
    let mut client = Client::connect_to(source, LIMIT)?;
    thread::scope(|scope| {
        let before = scope.spawn(move || {
            let (mut answered, mut last) = (0, Instant::now());
            // A checkpoint is a pause, and no end: that is when the connection breaks.
            while let Ok(number) = increment(&mut client) {
                (answered, last) = (number, Instant::now());
            }
            (answered, last)
        });
        let mut ended = None;
        let (first, at) = loop {
            // Nobody listens until it runs; then it answers, or a page that it needs for that is on its way.
            match Client::connect_to(target, LIMIT).and_then(|mut client| increment(&mut client)) {
                Ok(number) => break (number, Instant::now()),
                Err(error) => {
                    if over.load(Ordering::SeqCst) && ended.get_or_insert_with(Instant::now).elapsed() > SOON
                    {
                        return Err(error.into());
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
        };
        let (answered, last) = before.join().map_err(|_| "the client at the source failed")?;
        // One that was asked for and not answered may have been done.
        if !(answered + 1..=answered + 2).contains(&first) {
            return Err(format!("{answered} increments were answered, and the next one gives {first}").into());
        }
        Ok(at.duration_since(last))
    })
}

fn increment(client: &mut Client) -> std::io::Result<i64> {
    match client.command(&[b"INCR", b"increments"])? {
        Reply::Integer(number) => Ok(number),
        other => Err(std::io::Error::other(format!("{other:?}"))),
    }
}
