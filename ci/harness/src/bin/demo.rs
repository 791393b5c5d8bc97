//! `demo`: a redis server full of data goes into object storage and comes back, twice, from two kinds of store.
//!
//! For each store: redis starts under `migration-agent run` and is filled through its own protocol; a checkpoint ends it;
//! it is restored on demand and answers while its memory is still on the way; its digest is what it was; it accepts
//! writes; a second checkpoint, which stores only what has changed, ends it again; it is restored again, and its digest
//! is once more what it was. Any deviation is a failure: a message, `"ok": false`, exit code 1.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use migration_harness::agent::{Agent, Checkpointed, Restored};
use migration_harness::redis::{Client, Server, first_reply, key, value};
use migration_harness::store::Store;
use migration_harness::{process, table};
use serde::Serialize;
use serde_json::json;

/// Checkpoints a redis server into object storage and brings it back, twice, from a local store and from S3.
#[derive(Parser)]
struct Cli {
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Data to load into redis, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    mib: u64,
    /// Where the stores are made, for as long as the demonstration runs [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Name of the application.
const APP: &str = "demo/redis";
/// Keys are looked up at so many places right after the first reply, when most of memory is still missing.
const PROBES: u64 = 64;
/// How long the restored server may take to answer.
const REPLY_LIMIT: Duration = Duration::from_secs(120);
/// The part of the data that is written between the two checkpoints.
const WRITTEN_PART: u64 = 64;

/// What was seen with one store.
#[derive(Serialize)]
struct Seen {
    store: &'static str,
    keys: u64,
    loaded_bytes: u64,
    digest: String,
    digest_after_writes: String,
    first: Round,
    second: Round,
}

/// A checkpoint and the restore that followed.
#[derive(Serialize)]
struct Round {
    freeze_ms: f64,
    checkpoint_ms: f64,
    memory_bytes: u64,
    pages: u64,
    pages_unchanged: u64,
    uploaded_bytes: u64,
    resume_ms: f64,
    first_reply_ms: f64,
    resident_ms: f64,
    faults: u64,
    fetched_bytes: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let folder = cli.dir.clone().unwrap_or_else(std::env::temp_dir);
    match demonstrate(&folder, cli.mib << 20) {
        Ok(seen) if cli.json => println!("{}", json!({ "ok": true, "stores": seen })),
        Ok(seen) => {
            print!("{}", as_table(&seen));
            println!("\nEvery digest was equal before and after, and every restored server accepted writes.");
        }
        Err(error) => {
            if cli.json {
                println!("{}", json!({ "ok": false, "error": error.to_string() }));
            }
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn demonstrate(folder: &Path, bytes: u64) -> io::Result<Vec<Seen>> {
    // Restored servers become children of this process when their restore command ends: only who may reap them can see
    // their process id become free in time for the next restore.
    process::become_subreaper()?;
    let stores: [fn(&Path) -> io::Result<Store>; 2] = [Store::local, Store::s3];
    stores.into_iter().map(|store| with_store(&store(folder)?, bytes)).collect()
}

fn with_store(store: &Store, bytes: u64) -> io::Result<Seen> {
    say(store, "starting redis under migration-agent run");
    let agent = Agent::new(store)?;
    let mut server = Server::start_with(&agent.run(APP), Stdio::null(), Stdio::null())?;
    let loaded = server.client()?.load(0, bytes)?;
    let digest = server.client()?.digest()?;
    say(store, &format!("{} keys, {} of data, digest {digest}", loaded.keys, table::mib(loaded.bytes)));

    let first = round(store, &agent, &server, loaded.keys)?;
    let front = server.take_front();
    ensure_equal(&digest, &server.client()?.digest()?)?;

    let written = server.client()?.load(loaded.keys, bytes / WRITTEN_PART)?;
    let keys = loaded.keys + written.keys;
    ensure(server.client()?.keys()? == keys, || format!("{keys} keys expected after the writes"))?;
    let digest_after_writes = server.client()?.digest()?;
    ensure(digest != digest_after_writes, || "writes did not change the digest".into())?;
    say(
        store,
        &format!("digest equal; {} more written, digest {digest_after_writes}", table::mib(written.bytes)),
    );

    let second = round(store, &agent, &server, keys)?;
    ensure_equal(&digest_after_writes, &server.client()?.digest()?)?;
    server.client()?.set(b"last", b"write")?;
    ensure(second.uploaded_bytes < first.uploaded_bytes, || "the second checkpoint uploaded no less".into())?;
    say(store, "digest equal again");
    if let Some(mut front) = front {
        front.wait()?;
    }
    Ok(Seen {
        store: store.name(),
        keys,
        loaded_bytes: loaded.bytes,
        digest,
        digest_after_writes,
        first,
        second,
    })
}

/// Checkpoint, gone, restore, first reply, some values, all pages.
fn round(store: &Store, agent: &Agent, server: &Server, keys: u64) -> io::Result<Round> {
    let checkpointed = agent.checkpoint(APP, server.pid())?.result;
    ensure(checkpointed.left == "killed", || format!("left {} after the checkpoint", checkpointed.left))?;
    ensure(process::wait_gone(server.pid(), Duration::from_secs(10)), || "redis is still there".into())?;
    ensure(Client::connect(server.port(), Duration::from_secs(1)).is_err(), || {
        "something still listens".into()
    })?;
    say(store, &format!("checkpoint {} taken, the process is gone", checkpointed.checkpoint));

    let begin = Instant::now();
    let (restored, replied) = thread::scope(|scope| {
        let port = server.port();
        let replied = scope.spawn(move || {
            let when = first_reply(port, REPLY_LIMIT)?;
            probe(port, keys)?;
            io::Result::Ok(when)
        });
        let restored = agent.restore(APP, |_| {});
        let replied = replied.join().unwrap_or_else(|_| Err(io::Error::other("the client panicked")));
        (restored, replied)
    });
    // A restore that failed explains a missing reply, not the other way round.
    let (restored, replied) = (restored?.result, replied?);
    ensure(restored.checkpoint == checkpointed.checkpoint, || {
        format!("{} was restored", restored.checkpoint)
    })?;
    ensure(restored.pid == server.pid(), || format!("restored as process {}", restored.pid))?;
    Ok(Round::of(&checkpointed, &restored, replied - begin))
}

/// Values spread over all of memory are what was loaded.
fn probe(port: u16, keys: u64) -> io::Result<()> {
    let mut client = Client::connect(port, REPLY_LIMIT)?;
    for number in (0..PROBES).map(|probe| probe * (keys - 1) / (PROBES - 1)) {
        let found = client.get(key(number).as_bytes())?;
        ensure(found.as_deref() == Some(&value(number)), || format!("{} has another value", key(number)))?;
    }
    Ok(())
}

impl Round {
    fn of(checkpointed: &Checkpointed, restored: &Restored, first_reply: Duration) -> Self {
        Round {
            freeze_ms: checkpointed.frozen_ms,
            checkpoint_ms: checkpointed.total_ms,
            memory_bytes: checkpointed.bytes.memory,
            pages: checkpointed.pages.total,
            pages_unchanged: checkpointed.pages.unchanged,
            uploaded_bytes: checkpointed.bytes.uploaded,
            resume_ms: restored.resume_ms,
            first_reply_ms: first_reply.as_secs_f64() * 1e3,
            resident_ms: restored.resident_ms,
            faults: restored.faults,
            fetched_bytes: restored.fetched_bytes,
        }
    }
}

fn as_table(seen: &[Seen]) -> String {
    let rounds = || {
        seen.iter()
            .flat_map(|seen| [(seen.store, "first", &seen.first), (seen.store, "second", &seen.second)])
    };
    let row = |name: &str, cell: &dyn Fn(&Round) -> String| -> Vec<String> {
        [name.to_owned()].into_iter().chain(rounds().map(|(_, _, round)| cell(round))).collect()
    };
    let ms = |value: f64| format!("{value:.0} ms");
    let heading =
        ["".to_owned()].into_iter().chain(rounds().map(|(store, which, _)| format!("{store}, {which}")));
    table::layout(&[
        heading.collect(),
        row("memory", &|round| table::mib(round.memory_bytes)),
        row("freeze", &|round| ms(round.freeze_ms)),
        row("checkpoint and upload", &|round| ms(round.checkpoint_ms)),
        row("bytes uploaded", &|round| table::mib(round.uploaded_bytes)),
        row("resume", &|round| ms(round.resume_ms)),
        row("first reply", &|round| ms(round.first_reply_ms)),
        row("all resident", &|round| ms(round.resident_ms)),
        row("page faults", &|round| round.faults.to_string()),
        row("bytes fetched", &|round| table::mib(round.fetched_bytes)),
    ])
}

fn say(store: &Store, text: &str) {
    eprintln!("{}: {text}", store.name());
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(what())) }
}

fn ensure_equal(before: &str, after: &str) -> io::Result<()> {
    ensure(before == after, || format!("the digest was {before} and is {after}"))
}
