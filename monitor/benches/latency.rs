//! From a notice to the trigger, on a real API server: `ci/bench monitor [--json]`.
//!
//! What is measured begins when the metadata service could first be asked about a notice, and ends when somebody who watches the
//! pod sees its trigger. Notices come at random moments, on several nodes at once, each with a metadata service and a
//! monitor of its own; afterwards each is withdrawn, and the next one waits until nothing is left of it.

use std::{
    env,
    error::Error,
    fs,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{PostParams, WatchEvent, WatchParams},
};
use migration_kube::{Cluster, Options};
use migration_metadata::{MetadataServer, ScheduledEvent};
use migration_monitor::{
    Cloud,
    board::Board,
    health::Heartbeat,
    kubernetes,
    metrics::Metrics,
    policy::{Policy, Rebalance},
    sources,
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::sleep};

const LANES: usize = 10;
const ROUNDS: usize = 10;
/// Nothing takes that long.
const LIMIT: Duration = Duration::from_secs(60);

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let mut as_json = false;
    // `--bench` is what cargo says.
    for argument in env::args().skip(1).filter(|argument| argument != "--bench") {
        if argument != "--json" {
            eprintln!("usage: ci/bench monitor [--json]");
            return ExitCode::from(2);
        }
        as_json = true;
    }
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match outcome.map_err(Failure::from).and_then(|runtime| runtime.block_on(measure())) {
        Ok(figures) if as_json => {
            println!("{}", json!({"bench": "monitor", "machine": machine(), "figures": figures}))
        }
        Ok(figures) => figures.iter().for_each(|figure| println!("{}", line(figure))),
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn measure() -> Result<Vec<Value>, Failure> {
    let cluster = Cluster::start(Options::default()).await?;
    let namespace = cluster.namespace("bench").await?;
    let mut figures = Vec::new();
    for (cloud, how, aim) in [
        (Cloud::Aws, "AWS, asked every second", 1500.0),
        (Cloud::Azure, "Azure, asked every second", 1500.0),
        (Cloud::Gcp, "Google Cloud, waiting for the change", 300.0),
    ] {
        let mut lanes = JoinSet::new();
        for number in 0..LANES {
            let name = format!("{}-{number}", cloud.word());
            lanes.spawn(lane(cluster.client().await?, namespace.clone(), name, cloud));
        }
        let mut samples = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            samples.extend(lane??);
        }
        samples.sort_by(f64::total_cmp);
        eprintln!("bench: {how}: {} notices", samples.len());
        figures.push(figure(format!("notice to trigger, {how}: p50"), &samples, 0.50, None));
        figures.push(figure(format!("notice to trigger, {how}: p99"), &samples, 0.99, Some(aim)));
    }
    Ok(figures)
}

/// One node after another notice.
async fn lane(client: Client, namespace: String, name: String, cloud: Cloud) -> Result<Vec<f64>, Failure> {
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"migration.io/app": name}},
        "spec": {"nodeName": name, "containers": [{"name": "main", "image": "none"}]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;

    let server = MetadataServer::start(([127, 0, 0, 1], 0).into()).await?;
    let metrics = Arc::new(Metrics::default());
    let board = Board::new(Arc::clone(&metrics));
    let view = board.watch();
    let settings = sources::Settings {
        endpoint: server.url().parse()?,
        cloud: Some(cloud),
        interval: Duration::from_secs(1),
        machine: None,
    };
    let policy = Policy { rebalance: Rebalance::Ignore, lead: Duration::from_secs(900) };
    let acting = kubernetes::Settings { node: name.clone(), cordon: false, policy, acknowledge: None };
    // Both end with this lane.
    let mut running = JoinSet::new();
    running.spawn(async move { match sources::run(settings, board, watch::Sender::new(None)).await {} });
    running.spawn(async move {
        match kubernetes::run(client, acting, view, Heartbeat::default(), metrics).await {}
    });
    sleep(Duration::from_secs(2)).await;

    let mut samples = Vec::new();
    for round in 0..ROUNDS {
        sleep(Duration::from_millis(fastrand::u64(0..1000))).await;
        let version = pods.get(&name).await?.resource_version().unwrap_or_default();
        let seen = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut changes = Box::pin(pods.watch(&seen, &version).await?);
        let begun = Instant::now();
        announce(&server, cloud, round, true);
        let triggered = async {
            while let Some(event) = changes.try_next().await? {
                if let WatchEvent::Modified(pod) = event
                    && pod.annotations().contains_key("migration.io/trigger")
                {
                    return Ok::<_, Failure>(begun.elapsed());
                }
            }
            Err("the watch has ended".into())
        };
        samples.push(tokio::time::timeout(LIMIT, triggered).await??.as_secs_f64() * 1e3);
        announce(&server, cloud, round, false);
        let withdrawn = Instant::now();
        loop {
            let pod = pods.get(&name).await?;
            let node = nodes.get(&name).await?.spec.unwrap_or_default();
            let tainted = node.taints.iter().flatten().any(|taint| taint.key == kubernetes::TAINT);
            if !tainted && !pod.annotations().contains_key("migration.io/trigger") {
                break;
            }
            if withdrawn.elapsed() > LIMIT {
                return Err(format!("{name} is still marked {LIMIT:?} after the notice was withdrawn").into());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(samples)
}

fn announce(server: &MetadataServer, cloud: Cloud, round: usize, there: bool) {
    let soon = Timestamp::now() + SignedDuration::from_secs(120);
    match cloud {
        Cloud::Aws => server.aws_spot(there.then_some(("terminate", soon))),
        Cloud::Gcp => server.gcp_preempted(there),
        Cloud::Azure if there => server.azure_schedule(ScheduledEvent {
            id: format!("event-{round}"),
            kind: "Preempt".to_owned(),
            resources: vec!["node_0".to_owned()],
            not_before: Some(soon),
        }),
        Cloud::Azure => server.azure_cancel(&format!("event-{round}")),
    }
}

/// In the form of the other benchmarks.
fn figure(name: String, sorted: &[f64], quantile: f64, aim: Option<f64>) -> Value {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    let value = sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default();
    let spread = sorted.last().zip(sorted.first()).map_or(0.0, |(last, first)| last - first);
    json!({"name": name, "value": value, "unit": "ms", "aim": aim, "better": "lower", "spread": spread})
}

fn line(figure: &Value) -> String {
    let (value, spread) =
        (figure["value"].as_f64().unwrap_or_default(), figure["spread"].as_f64().unwrap_or_default());
    let aim = figure["aim"].as_f64().map_or(String::new(), |aim| {
        format!("  aim <= {aim:.0} ms: {}", if value <= aim { "reached" } else { "missed" })
    });
    format!("{:<60} {value:>7.0} ms  spread {spread:>5.0}{aim}", figure["name"].as_str().unwrap_or_default())
}

fn machine() -> Value {
    let line_of = |file: &str, start: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(start)?.trim_start().strip_prefix(':'));
        line.map(|rest| rest.trim().to_owned())
    };
    let kilobytes =
        line_of("/proc/meminfo", "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
    json!({
        "processor": line_of("/proc/cpuinfo", "model name"),
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_bytes": kilobytes.unwrap_or_default() * 1024,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    })
}
