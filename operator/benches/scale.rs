//! What the operator costs, on a real API server: `ci/bench operator [--json] [--apps N,N…]`.
//!
//! Kubelets and agents follow scripts, as in the tests; the operator is a process of its own, so that its processor time and
//! memory are its own, with the settings of a cluster. Its requests to the API server are counted on their way.
//!
//! - 100 applications of one node are triggered at once: how long until the last has moved, requests and processor time of each.
//! - Beside so many idle applications: what looking after them costs a second, and how long until a trigger is acted on,
//!   which is when its migration is written down. Five times the applications must not cost more than five times as much.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env, fs,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use futures::{
    StreamExt,
    future::{pending, ready},
    stream,
};
use hyper::Request;
use kube::{
    Api, Client, ResourceExt,
    client::Body,
    runtime::{WatchStreamExt, watcher},
};
use migration_kube::Cluster;
use migration_operator::{
    agents::{AgentError, Agents, At},
    api::{MigratableApp, Phase, migration::MigrationStage},
    context::Settings,
    controller,
    migration::Limits,
};
use serde_json::{Value, json};
use support::Scene;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

/// Applications that are interrupted at once.
const TOGETHER: usize = 100;
/// Their deadline: what spot machines give.
const DEADLINE: Duration = Duration::from_secs(120);
/// Triggers beside idle applications.
const TRIGGERS: usize = 20;
/// How long idle applications are watched: as long as it takes until all of them have been asked whether they can be moved.
const IDLE: Duration = Duration::from_secs(60);
/// Nothing takes that long.
const LIMIT: Duration = Duration::from_secs(1800);
/// Requests of this program under way at a time.
const AT_ONCE: usize = 16;

const USAGE: &str = "usage: ci/bench operator [--json] [--apps 200,1000,5000]";

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--as-operator", namespace, book] => runtime
            .map_err(Failure::from)
            .and_then(|runtime| runtime.block_on(operate(namespace, PathBuf::from(book)))),
        words => {
            let Some((as_json, sizes)) = understood(words) else {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            };
            runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(measure(&sizes))).map(
                |figures| {
                    if as_json {
                        println!("{}", json!({"bench": "operator", "figures": figures}));
                    } else {
                        figures.iter().for_each(|figure| println!("{}", line(figure)));
                    }
                },
            )
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn understood(words: &[&str]) -> Option<(bool, Vec<usize>)> {
    let (mut as_json, mut sizes) = (false, vec![200, 1000, 5000]);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--json" => as_json = true,
            "--apps" => {
                sizes = words.next()?.split(',').map(|size| size.parse().ok()).collect::<Option<_>>()?
            }
            _ => return None,
        }
    }
    sizes.is_sorted().then_some((as_json, sizes))
}

/// The operator: a process that says how many requests it has made whenever it is sent a line, and ends with its input.
async fn operate(namespace: &str, book: PathBuf) -> Result<(), Failure> {
    let requests: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
    let counted = Arc::clone(&requests);
    let below = Client::try_default().await?;
    let service = tower::service_fn(move |request: Request<Body>| {
        *counted.lock().unwrap_or_else(PoisonError::into_inner).entry(kind(&request)).or_default() += 1;
        let below = below.clone();
        async move { below.send(request).await }
    });
    let settings = Settings {
        limits: Limits::default(),
        resync: Duration::from_secs(30),
        ..support::settings(namespace)
    };
    let agents = Arc::new(Book { path: book, known: Mutex::default() });
    let client = Client::new(service, namespace);
    let leading = Arc::new(AtomicBool::new(true));
    tokio::spawn(controller::run(client, agents, settings, leading, |_| {}, pending()));
    tokio::task::spawn_blocking(move || {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            println!("{}", json!(*requests.lock().unwrap_or_else(PoisonError::into_inner)));
        }
    })
    .await?;
    std::process::exit(0)
}

/// What a request is: its method, and the resource without any names.
fn kind(request: &Request<Body>) -> String {
    let path = request.uri().path();
    // What comes before is the group, its version and the namespace.
    let resource = path.split_once("/namespaces/").and_then(|(_, rest)| rest.split_once('/'));
    let words: Vec<&str> = resource.map_or(path, |(_, resource)| resource).split('/').collect();
    let below = words.get(2).map(|below| format!("/{below}")).unwrap_or_default();
    format!("{} {}{below}", request.method(), words.first().unwrap_or(&path))
}

/// Where agents are, by the addresses of their pods: a file that grows.
#[derive(Debug)]
struct Book {
    path: PathBuf,
    /// And how much of the file has been read.
    known: Mutex<(HashMap<String, SocketAddr>, u64)>,
}

impl Book {
    fn find(&self, pod: &str) -> Option<SocketAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (places, read) = &mut *known;
        if !places.contains_key(pod) {
            let mut file = fs::File::open(&self.path).ok()?;
            file.seek(SeekFrom::Start(*read)).ok()?;
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            // The last line may be half written.
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            *read += whole as u64;
            let lines = text[..whole].lines().filter_map(|line| line.split_once(' '));
            places.extend(lines.filter_map(|(pod, at)| Some((pod.to_owned(), at.parse().ok()?))));
        }
        places.get(pod).copied()
    }
}

#[async_trait::async_trait]
impl Agents for Book {
    async fn channel(&self, at: &At) -> Result<Channel, AgentError> {
        let unreachable = |reason: String| AgentError::Unreachable { address: at.pod_ip.clone(), reason };
        let address = self.find(&at.pod_ip).ok_or_else(|| unreachable("there is none".to_owned()))?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| unreachable(error.to_string()))?;
        endpoint.connect().await.map_err(|error| unreachable(error.to_string()))
    }

    fn address(&self, at: &At) -> String {
        format!("https://{}:7443", at.pod_ip)
    }
}

/// That process, from here.
struct Operator {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What it has used since it began.
#[derive(Clone)]
struct Used {
    /// By what they are.
    kinds: BTreeMap<String, u64>,
    requests: f64,
    cpu_ms: f64,
    at: Instant,
}

impl Operator {
    fn start(kubeconfig: &Path, namespace: &str, book: &Path) -> Result<Self, Failure> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--as-operator").arg(namespace).arg(book).env("KUBECONFIG", kubeconfig);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (ask, answers) = (process.stdin.take(), process.stdout.take());
        let (ask, answers) = ask.zip(answers).ok_or("the operator has no streams")?;
        Ok(Self { process, ask, answers: BufReader::new(answers) })
    }

    fn used(&mut self) -> Result<Used, Failure> {
        writeln!(self.ask)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("no stat")?.1.split(' ').collect();
        // User and system time, fields 14 and 15, in hundredths of a second.
        let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        let kinds: BTreeMap<String, u64> = serde_json::from_str(&answer)?;
        let requests = kinds.values().sum::<u64>() as f64;
        Ok(Used { kinds, requests, cpu_ms: ticks * 10.0, at: Instant::now() })
    }

    fn memory_mib(&self) -> Result<f64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // Either fails when it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// All applications as they are: a listing of thousands, again and again, would be most of what the API server does.
#[derive(Clone, Debug, Default)]
struct Board(Arc<Mutex<HashMap<String, Seen>>>);

/// What is looked at of an application.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    migratable: bool,
    /// Times it has moved.
    moved: usize,
}

impl Board {
    /// Keeps it.
    fn follow(apps: Api<MigratableApp>) -> Self {
        let board = Self::default();
        let kept = board.clone();
        let changes = watcher(apps, watcher::Config::default()).default_backoff().applied_objects();
        tokio::spawn(changes.for_each(move |change| {
            // The watch begins again by itself.
            if let Ok(app) = change {
                let status = app.status.as_ref();
                let history = status.into_iter().flat_map(|status| &status.migration_history);
                let seen = Seen {
                    migratable: status.is_some_and(|status| support::holds(status, "Migratable")),
                    moved: history.filter(|record| record.success).count(),
                };
                kept.0.lock().unwrap_or_else(PoisonError::into_inner).insert(app.name_any(), seen);
            }
            ready(())
        }));
        board
    }

    /// Waits until so many applications are as wanted.
    async fn until(&self, wanted: impl Fn(&Seen) -> bool, count: usize) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let found = {
                let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                all.values().filter(|seen| wanted(seen)).count()
            };
            if found >= count {
                return Ok(());
            }
            if begun.elapsed() > LIMIT {
                return Err(format!("{found} of {count} applications are as wanted after {LIMIT:?}").into());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn measure(sizes: &[usize]) -> Result<Vec<Value>, Failure> {
    let cluster = Cluster::start(migration_kube::Options::default()).await?;
    cluster.install(&migration_operator::api::definition()?).await?;
    let scene = Scene::within(&cluster, "scale").await;
    let place = tempfile::tempdir()?;
    let book = place.path().join("agents");
    keep_book(&scene, book.clone())?;
    let mut operator = Operator::start(cluster.kubeconfig(), &scene.namespace, &book)?;

    let mut figures = Vec::new();
    let board = Board::follow(scene.apps());
    let mut there = TOGETHER;
    create(&scene, &board, &mut operator, 0..there).await?;
    let before = operator.used()?;
    let names: Vec<String> = (0..TOGETHER).map(app).collect();
    stream::iter(&names).for_each_concurrent(AT_ONCE, |name| scene.trigger(name)).await;
    board.until(|seen| seen.moved == 1, TOGETHER).await?;
    let after = operator.used()?;
    let took = after.at.duration_since(before.at).as_secs_f64();
    let together = TOGETHER as f64;
    figures.push(figure(
        format!("{TOGETHER} at once: until the last has moved"),
        took,
        "s",
        Some(DEADLINE.as_secs_f64()),
    ));
    figures.push(figure(
        "requests of a migration".to_owned(),
        (after.requests - before.requests) / together,
        "",
        None,
    ));
    figures.push(figure(
        "processor time of a migration".to_owned(),
        (after.cpu_ms - before.cpu_ms) / together,
        "ms",
        None,
    ));

    let mut costs = Vec::new();
    for &size in sizes {
        create(&scene, &board, &mut operator, there..size).await?;
        there = there.max(size);
        sleep(Duration::from_secs(5)).await;
        let before = operator.used()?;
        sleep(IDLE).await;
        let after = operator.used()?;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let requests = (after.requests - before.requests) / seconds;
        let cpu = (after.cpu_ms - before.cpu_ms) / seconds;
        let memory = operator.memory_mib()?;
        figures.push(figure(format!("{size} idle: requests a second"), requests, "", None));
        figures.push(figure(format!("{size} idle: processor time a second"), cpu, "ms", None));
        figures.push(figure(format!("{size} idle: memory"), memory, "MiB", None));
        let mut latencies = Vec::new();
        for number in 0..TRIGGERS.min(size) {
            latencies.push(latency(&scene, &app(there - 1 - number)).await?);
        }
        latencies.sort_by(f64::total_cmp);
        let quantile =
            |quantile: f64| latencies[((quantile * latencies.len() as f64).ceil() as usize).max(1) - 1];
        figures.push(figure(format!("{size} idle: trigger to action, p50"), quantile(0.5), "ms", None));
        figures.push(figure(
            format!("{size} idle: trigger to action, worst of {}", latencies.len()),
            quantile(1.0),
            "ms",
            Some(1000.0),
        ));
        costs.push((size as f64, cpu, memory));
    }
    if let [(few, cpu_of_few, memory_of_few), .., (many, cpu, memory)] = costs[..] {
        let times = many / few;
        let names = format!("{many} idle / {few} idle");
        figures.push(figure(format!("processor time, {names}"), cpu / cpu_of_few, "times", Some(times)));
        figures.push(figure(format!("memory, {names}"), memory / memory_of_few, "times", Some(times)));
    }
    let violations = scene.world.lock().violations.clone();
    if !violations.is_empty() {
        return Err(format!("what must never happen has: {violations:?}").into());
    }
    Ok(figures)
}

fn app(number: usize) -> String {
    format!("app-{number}")
}

/// Makes applications, and waits until all there are run.
async fn create(
    scene: &Scene,
    board: &Board,
    operator: &mut Operator,
    numbers: std::ops::Range<usize>,
) -> Result<(), Failure> {
    let (begun, before, wanted, count) = (Instant::now(), operator.used()?, numbers.end, numbers.len());
    let names: Vec<String> = numbers.map(app).collect();
    stream::iter(&names).for_each_concurrent(AT_ONCE, |name| scene.create(name, json!({}))).await;
    let made = begun.elapsed().as_secs_f64();
    board.until(|seen| seen.migratable, wanted).await?;
    if count > 0 {
        let after = operator.used()?;
        let each = |sum: f64| sum / count as f64;
        eprintln!(
            "bench: {count} more applications are there after {made:.0} s and run after {:.0} s; of each {:.1} ms and {:.1} requests:",
            begun.elapsed().as_secs_f64(),
            each(after.cpu_ms - before.cpu_ms),
            each(after.requests - before.requests),
        );
        for (kind, sum) in &after.kinds {
            eprintln!("  {:.2} {kind}", each((sum - before.kinds.get(kind).unwrap_or(&0)) as f64));
        }
    }
    Ok(())
}

/// Milliseconds from a trigger until its migration is written down; then waits until it has moved.
async fn latency(scene: &Scene, name: &str) -> Result<f64, Failure> {
    let written = scene.when_written(name, MigrationStage::ChoosingTarget, Instant::now);
    // The watch has begun by then.
    sleep(Duration::from_millis(500)).await;
    let history = scene.status(name).await.migration_history.len();
    let begun = Instant::now();
    scene.trigger(name).await;
    let written = written.await?;
    let after = scene.until_over(name, history + 1).await;
    if after.phase != Some(Phase::Running) {
        return Err(format!("{name} has not moved: {}", support::pretty(&after)).into());
    }
    Ok(written.duration_since(begun).as_secs_f64() * 1e3)
}

/// Writes down where agents are, for a process that asks them.
fn keep_book(scene: &Scene, path: PathBuf) -> Result<(), Failure> {
    let mut book = fs::File::create(path)?;
    let agents = scene.agents.clone();
    tokio::spawn(async move {
        let mut written = HashSet::new();
        loop {
            let new = agents.entries().into_iter().filter(|(pod, _)| !written.contains(pod));
            let new: Vec<(String, SocketAddr)> = new.collect();
            let text: String = new.iter().map(|(pod, at)| format!("{pod} {at}\n")).collect();
            if let Err(error) = book.write_all(text.as_bytes()) {
                eprintln!("bench: where agents are is not told any more: {error}");
                return;
            }
            written.extend(new.into_iter().map(|(pod, _)| pod));
            sleep(Duration::from_millis(100)).await;
        }
    });
    Ok(())
}

/// In the form of the other benchmarks.
fn figure(name: String, value: f64, unit: &str, aim: Option<f64>) -> Value {
    json!({"name": name, "value": value, "unit": unit, "aim": aim, "better": "lower"})
}

fn line(figure: &Value) -> String {
    let value = figure["value"].as_f64().unwrap_or_default();
    let aim = figure["aim"].as_f64().map_or(String::new(), |aim| {
        format!("  aim <= {aim:.0}: {}", if value <= aim { "reached" } else { "missed" })
    });
    let text = |field: &str| figure[field].as_str().unwrap_or_default().to_owned();
    format!("{:<60} {value:>9.1} {}{aim}", text("name"), text("unit"))
}
