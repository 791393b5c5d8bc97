//! A monitor's sources on a metadata service that does as it is told, and waiting for what is to come.

#![allow(dead_code, reason = "every test file uses its own part of it")]

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use migration_metadata::MetadataServer;
use migration_monitor::{
    Cloud,
    board::{Board, Sighting, Source, View},
    metrics::Metrics,
    sources::{self, Settings},
};
use tokio::{sync::watch, task::JoinHandle};

/// Long enough for anything on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const CLOUDS: [(migration_metadata::Cloud, Cloud); 3] = [
    (migration_metadata::Cloud::Aws, Cloud::Aws),
    (migration_metadata::Cloud::Gcp, Cloud::Gcp),
    (migration_metadata::Cloud::Azure, Cloud::Azure),
];

/// Sources that watch a metadata service.
pub struct Watched {
    pub server: MetadataServer,
    pub metrics: Arc<Metrics>,
    pub view: watch::Receiver<View>,
    pub found: watch::Receiver<Option<Cloud>>,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A metadata service on a free port.
pub async fn metadata() -> MetadataServer {
    MetadataServer::start(([127, 0, 0, 1], 0).into()).await.unwrap()
}

impl Watched {
    /// Watches `server` as a machine of `cloud`.
    pub fn start(server: MetadataServer, cloud: Option<Cloud>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let board = Board::new(Arc::clone(&metrics));
        let view = board.watch();
        let settings = Settings {
            endpoint: server.url().parse().unwrap(),
            cloud,
            interval: Duration::from_millis(200),
            machine: None,
        };
        let (found, finds) = watch::channel(None);
        let task = tokio::spawn(async move { match sources::run(settings, board, found).await {} });
        Self { server, metrics, view, found: finds, task }
    }

    /// Watches a cloud that is in order, and has heard all of its sources.
    pub async fn of(cloud: Cloud) -> Self {
        let watched = Self::start(metadata().await, Some(cloud));
        watched.heard(cloud).await;
        watched
    }

    /// Waits until every source of a cloud has answered.
    pub async fn heard(&self, cloud: Cloud) {
        let all = || Source::of(cloud).iter().all(|source| self.view.borrow().sources.contains_key(source));
        until("every source has answered", async || all()).await;
    }

    /// What a source announces.
    pub fn announced(&self, source: Source) -> Vec<Sighting> {
        self.view.borrow().sources.get(&source).cloned().unwrap_or_default()
    }

    /// Waits until a source announces so many notices, and gives how long that took.
    pub async fn announces(&self, source: Source, how_many: usize) -> Duration {
        let begun = Instant::now();
        let what = format!("{} announces {how_many}", source.word());
        until(&what, async || self.announced(source).len() == how_many).await;
        begun.elapsed()
    }

    /// The value of a metric's line.
    pub fn number(&self, line: &str) -> f64 {
        number(&self.metrics, line)
    }
}

/// The value of a metric's line; 0 if there is none.
pub fn number(metrics: &Metrics, line: &str) -> f64 {
    let text = metrics.text().unwrap();
    let found = text.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or(0.0)
}

/// The sum of all lines that begin so.
pub fn sum(metrics: &Metrics, begin: &str) -> f64 {
    let text = metrics.text().unwrap();
    let values = text.lines().filter(|one| one.starts_with(begin)).filter_map(|one| one.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

/// Waits until something is so.
#[track_caller]
pub fn until<F: Future<Output = bool>>(what: &str, so: impl Fn() -> F) -> impl Future<Output = ()> {
    until_within(what, LIMIT, so)
}

/// Waits until something is so, for some time.
pub async fn until_within<F: Future<Output = bool>>(what: &str, limit: Duration, so: impl Fn() -> F) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
