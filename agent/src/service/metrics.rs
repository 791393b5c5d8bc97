//! What the service has done, in numbers, for Prometheus and its like (OpenMetrics over HTTP).
//!
//! Durations are those of single operations, in seconds:
//!
//! | | from | until |
//! |---|---|---|
//! | `migration_frozen_seconds` | the first task stops | the last one ends or goes on; of a handover, until it may run elsewhere |
//! | `migration_dump_seconds` | the beginning of a checkpoint | its end |
//! | `migration_upload_seconds` | all memory has been read | the last object is durable |
//! | `migration_resume_seconds` | the beginning of a restore | the tree runs |
//! | `migration_first_fault_seconds` | a restored task's registration | the first page that one waits for |
//! | `migration_resident_seconds` | the beginning of a restore | its last page is in memory |
//!
//! A page server is a process of its own. What it has counted is taken over when it ends; how far it is meanwhile is looked
//! at whenever somebody asks.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use lazy_pages::{
    server::{STALL_LIMITS_US, ServerStats, status},
    units::PAGE_SIZE,
};
use migration_proto::agent::{CheckpointResult, ErrorDetail};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::{net::TcpListener, task::spawn_blocking};

use super::{error::word, journal::Kind};
use crate::{Progress, Residency, Stage, Strategy};

/// How long a scraper may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// Upper ends for durations: from a small freeze to a slow store.
const SECONDS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    operations: Family<Labels, Counter>,
    frozen: Histograms,
    dump: Histograms,
    upload: Histograms,
    resume: Histogram,
    first_fault: Histogram,
    resident: Histogram,
    headroom: Histogram,
    stalls: Histogram,
    stalled: Counter<f64, std::sync::atomic::AtomicU64>,
    faults: Family<Labels, Counter>,
    bytes: Family<Labels, Counter>,
    pages: Family<Labels, Counter>,
    dedup: Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    compression: Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    integrity: Family<Labels, Counter>,
    missing: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
    handed_over: Counter,
    stopped: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let stalls = STALL_LIMITS_US.map(|limit| limit as f64 / 1e6);
        let mut new = Self {
            registry: Registry::with_prefix("migration"),
            operations: Family::default(),
            frozen: Family::new_with_constructor(seconds),
            dump: Family::new_with_constructor(seconds),
            upload: Family::new_with_constructor(seconds),
            resume: seconds(),
            first_fault: seconds(),
            resident: seconds(),
            headroom: seconds(),
            stalls: Histogram::new(stalls),
            stalled: Counter::default(),
            faults: Family::default(),
            bytes: Family::default(),
            pages: Family::default(),
            dedup: Family::default(),
            compression: Family::default(),
            integrity: Family::default(),
            missing: Family::default(),
            waiting: Family::default(),
            handed_over: Counter::default(),
            stopped: Gauge::default(),
        };
        new.register();
        new
    }
}

impl Metrics {
    fn register(&mut self) {
        let all = &mut self.registry;
        all.register("operations", "Operations that ended, by kind and outcome", self.operations.clone());
        for (name, help, histogram) in [
            ("frozen", "How long trees did not run", &self.frozen),
            ("dump", "How long checkpoints took", &self.dump),
            ("upload", "How long memory that had been read was waited for", &self.upload),
        ] {
            all.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        for (name, help, histogram) in [
            ("resume", "How long it took until restored trees ran", &self.resume),
            ("first_fault", "When the first page of a restored tree was waited for", &self.first_fault),
            ("resident", "How long it took until restored trees had all their pages", &self.resident),
            (
                "deadline_headroom",
                "What was left until the deadline when an operation succeeded",
                &self.headroom,
            ),
            ("stall", "How long pages were waited for, up to the end of their bucket", &self.stalls),
        ] {
            all.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        all.register_with_unit(
            "stalled",
            "How long pages were waited for in all",
            Unit::Seconds,
            self.stalled.clone(),
        );
        all.register(
            "faults",
            "Page faults that waited for a page server, by where pages come from",
            self.faults.clone(),
        );
        all.register("bytes", "Bytes moved, by direction and tier", self.bytes.clone());
        all.register("pages", "Pages of checkpoints, by what became of them", self.pages.clone());
        let help =
            "Of the pages that are not zero, the part that the last checkpoint found in the one before";
        all.register("dedup_ratio", help, self.dedup.clone());
        let help = "Memory stored by the last checkpoint, for each byte it sent";
        all.register("compression_ratio", help, self.compression.clone());
        all.register("integrity_failures", "Data that was not what had been stored", self.integrity.clone());
        all.register("missing_pages", "Pages that restored trees still lack", self.missing.clone());
        all.register("waiting_frames", "Frames that restored trees wait for now", self.waiting.clone());
        let help = "Memory of trees that are stopped here, given to whoever runs them elsewhere";
        all.register_with_unit("handed_over", help, Unit::Bytes, self.handed_over.clone());
        all.register(
            "stopped_trees",
            "Trees that are stopped here to be run elsewhere",
            self.stopped.clone(),
        );
    }

    /// A checkpoint is there.
    pub fn checkpoint(&self, kind: Kind, result: &CheckpointResult, progress: &Progress) {
        let of = || vec![("kind", kind.word().to_owned())];
        if let Some(ms) = result.frozen_ms {
            self.frozen.get_or_create(&of()).observe(ms / 1e3);
        }
        if let Some(ms) = result.total_ms {
            self.dump.get_or_create(&of()).observe(ms / 1e3);
        }
        if let Some(time) = progress.time_in(Stage::Committing) {
            self.upload.get_or_create(&of()).observe(time.as_secs_f64());
        }
        let count = |what: &str, pages| {
            self.pages.get_or_create(&vec![("what", what.to_owned())]).inc_by(pages);
        };
        count("zero", result.pages_zero);
        count("unchanged", result.pages_unchanged);
        count("stored", result.pages_stored);
        self.moved("uploaded", "store", result.bytes_uploaded);
        // Dumped memory comes from the tree and goes no further by itself.
        self.moved("dumped", "memory", result.bytes_memory);
        let ratio = |part: u64, of: u64| part as f64 / of as f64;
        let app = vec![("app", result.app.clone())];
        let known = result.pages_total.saturating_sub(result.pages_zero);
        if known > 0 {
            self.dedup.get_or_create(&app).set(ratio(result.pages_unchanged, known));
        }
        if result.bytes_uploaded > 0 {
            let stored = result.pages_stored * PAGE_SIZE as u64;
            self.compression.get_or_create(&app).set(ratio(stored, result.bytes_uploaded));
        }
    }

    /// A tree is stopped, and may be run elsewhere.
    pub fn stopped(&self, after_ms: Option<f64>) {
        if let Some(ms) = after_ms {
            self.frozen.get_or_create(&vec![("kind", "handover".to_owned())]).observe(ms / 1e3);
        }
    }

    /// How many trees are stopped.
    pub fn stopped_trees(&self, count: usize) {
        self.stopped.set(count as i64);
    }

    /// Memory of a stopped tree was given away.
    pub fn handed_over(&self, bytes: u64) {
        self.handed_over.inc_by(bytes);
    }

    /// A restored tree runs.
    pub fn resumed(&self, after: Duration) {
        self.resume.observe(after.as_secs_f64());
    }

    /// A restored tree has all of its pages.
    pub fn resident(&self, residency: &Residency, server: Option<&ServerStats>, strategy: Strategy) {
        let source = match strategy {
            Strategy::Full | Strategy::LazyStorage => "store",
            Strategy::LazyDirect => "source-agent",
            Strategy::LazyHybrid => "source-agent-or-store",
        };
        self.resident.observe(residency.resident_ms / 1e3);
        self.moved("fetched", source, residency.fetched_bytes);
        let Some(server) = server else { return };
        if let Some(ms) = server.first_fault_ms {
            self.first_fault.observe(ms as f64 / 1e3);
        }
        self.faults.get_or_create(&vec![("source", source.to_owned())]).inc_by(server.faults);
        self.stalled.inc_by(server.stalled_us as f64 / 1e6);
        let limits = STALL_LIMITS_US.iter().map(|limit| *limit as f64 / 1e6).chain([f64::INFINITY]);
        for (count, limit) in server.stalls.iter().zip(limits) {
            // How long exactly is known in all only; see `migration_stalled_seconds`.
            let inside = if limit.is_finite() { limit } else { server.longest_fault_us as f64 / 1e6 };
            (0..*count).for_each(|_| self.stalls.observe(inside));
        }
        self.damaged("page-server", server.damaged_frames);
    }

    /// An operation has ended; `headroom` until its deadline.
    pub fn ended(&self, kind: Kind, failed: Option<&ErrorDetail>, headroom_ms: Option<i64>) {
        let outcome = failed.map_or("ok".to_owned(), |detail| word(detail.reason()));
        self.operations.get_or_create(&vec![("kind", kind.word().to_owned()), ("outcome", outcome)]).inc();
        if let (None, Some(ms)) = (failed, headroom_ms) {
            self.headroom.observe(ms.max(0) as f64 / 1e3);
        }
    }

    /// An operation met data that was not what had been stored.
    pub fn damaged(&self, seen_by: &'static str, times: u64) {
        self.integrity.get_or_create(&vec![("seen_by", seen_by.to_owned())]).inc_by(times);
    }

    fn moved(&self, direction: &str, tier: &str, bytes: u64) {
        let labels = vec![("direction", direction.to_owned()), ("tier", tier.to_owned())];
        self.bytes.get_or_create(&labels).inc_by(bytes);
    }

    /// All of it as text.
    fn text(&self) -> Result<String, std::fmt::Error> {
        self.missing.clear();
        self.waiting.clear();
        for daemon in status::find().unwrap_or_default() {
            for restore in daemon.status().restores {
                let app = vec![("app", restore.app)];
                self.missing.get_or_create(&app).set(restore.stats.missing_pages as i64);
                self.waiting.get_or_create(&app).set(restore.stats.waiting as i64);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Answers scrapers until this is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a scraper cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&metrics)));
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // A scraper that goes away is its own business.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    metrics: Arc<Metrics>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "GET /metrics\n".to_owned()));
    }
    let text = spawn_blocking(move || metrics.text()).await.map_err(io::Error::other);
    Ok(match text {
        Ok(Ok(text)) => {
            let mut response = plain(StatusCode::OK, text);
            let kind = header::HeaderValue::from_static(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            );
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Ok(Err(_)) | Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "not known\n".to_owned()),
    })
}
