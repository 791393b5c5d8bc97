//! A program that checkpoints and restores a process it looks after, with an object store of its own and its own way to
//! show progress.
//!
//! Run as root: `cargo run --example embed -- /some/directory`. It starts a process that counts, takes a checkpoint of it
//! while it runs, another one that ends it, brings it back on demand, and shows that it went on counting.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use lazy_pages::{
    ids::AppId,
    store::{self, ObjectMeta, ObjectStore, StoreError, StoreUrl},
};
use migration_agent::{
    Agent, CheckpointRequest, Progress, RestoreRequest, serving::serve_pages, supervise::adopt_orphans,
};

fn main() -> ExitCode {
    // A lazy restore starts this very program once more, to serve the pages.
    if let Some(code) = serve_pages(open) {
        return code;
    }
    match std::env::args_os().nth(1) {
        Some(place) => embed(Path::new(&place)).map_or_else(
            |error| {
                eprintln!("embed: {error}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        ),
        None => {
            eprintln!("usage: embed DIRECTORY");
            ExitCode::FAILURE
        }
    }
}

fn embed(place: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(place)?;
    adopt_orphans()?;
    let app: AppId = "counter".parse()?;
    let url: StoreUrl = format!("file://{}", place.join("store").display()).parse()?;
    let agent = Agent::with_stores(open, url, None, None)?;

    let counted = place.join("counted");
    let mut counter = Command::new("setsid")
        .args([
            "sh",
            "-c",
            "number=0; while sleep 0.01; do number=$((number + 1)); echo $number > counted; done",
        ])
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = counter.id();
    wait_for_more(&counted, 0)?;

    let mut request = CheckpointRequest::new(app.clone(), pid);
    request.leave_running = true;
    let report = shown(|progress| agent.checkpoint(&request, progress))?;
    println!("checkpoint {}: frozen for {:.0} ms, and it counts on", report.checkpoint, report.frozen_ms);

    request.leave_running = false;
    let report = shown(|progress| agent.checkpoint(&request, progress))?;
    println!("checkpoint {}: {} pages were new", report.checkpoint, report.pages.stored);
    counter.wait()?;
    let before = number(&counted);

    let nothing = || fs::File::options().read(true).write(true).open("/dev/null").map(Into::into);
    let streams = [nothing()?, nothing()?, nothing()?];
    let request = RestoreRequest::new(app, streams, std::env::current_exe()?);
    let mut restored = shown(|progress| agent.restore(request, progress))?;
    println!("pid {} runs again after {:.0} ms", restored.pid, restored.resume.as_secs_f64() * 1e3);
    let residency = restored.wait_resident()?;
    println!(
        "all its memory is there after {:.0} ms, {} page faults",
        residency.resident_ms, residency.faults
    );
    wait_for_more(&counted, before)?;
    println!("it has counted on from {before}; {} requests to the store", REQUESTS.load(Ordering::Relaxed));
    end(restored.pid)?;
    Ok(())
}

/// Shows how far an operation is while it runs.
fn shown<T>(
    operation: impl FnOnce(&Progress) -> Result<T, migration_agent::AgentError>,
) -> Result<T, Box<dyn Error>> {
    let progress = Progress::default();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(50));
                let (stage, bytes) = progress.now();
                eprintln!("  {}, {} KiB", stage.label(), bytes >> 10);
            }
        });
        let result = operation(&progress);
        over.store(true, Ordering::Release);
        Ok(result?)
    })
}

/// Requests this process has made.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// The store for an address: one of the library's, below one that counts. Nothing but the trait is needed.
fn open(url: &StoreUrl) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Ok(Arc::new(Counted(store::open(url)?)))
}

#[derive(Debug)]
struct Counted(Arc<dyn ObjectStore>);

impl Counted {
    fn count(&self) -> &dyn ObjectStore {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
        &*self.0
    }
}

#[async_trait]
impl ObjectStore for Counted {
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.count().get(key, limit).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.count().get_range(key, offset, length).await
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.count().put_new(key, body).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.count().list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.count().delete(key).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.count().probe().await
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn is_local(&self) -> bool {
        self.0.is_local()
    }
}

fn number(counted: &PathBuf) -> u64 {
    fs::read_to_string(counted).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn wait_for_more(counted: &PathBuf, than: u64) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    while number(counted) <= than {
        if begun.elapsed() > Duration::from_secs(30) {
            return Err("the counter does not count".into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn end(pid: u32) -> Result<(), Box<dyn Error>> {
    let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
    if status.success() { Ok(()) } else { Err("the counter cannot be ended".into()) }
}
