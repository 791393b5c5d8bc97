//! A page server as a process of its own: from the name of a checkpoint to its last page in memory.
//!
//! It writes the image directory, listens on `lazy-pages.socket` in it, says that it is ready, and serves one restore.
//! What happens is told on standard output, one line each ([`Report`]); a reader that goes away does not end it.
//!
//! SIGTERM, SIGINT and SIGHUP end it only while no task has registered. After that, processes depend on it: ending early
//! could only mean killing them, which nobody asked for, so it says how many pages are missing and goes on; it ends by
//! itself when all pages are there. SIGKILL ends it, and then its guardian kills the processes.

use std::{
    fs,
    io::{self, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Instant,
};

use serde::{Deserialize, Serialize};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    catalog::{Catalog, CatalogError},
    ids::{AppId, CheckpointId},
    materialize::{MaterializeError, materialize_lazy},
    reader::{Checkpoint, ReadError},
    server::{GuardianCommand, Limits, Outcome, PageServer, PageServerConfig, ServerStats, StartError},
    store::{self, StoreError, StoreUrl},
};

/// The socket's name, which CRIU knows.
pub const SOCKET: &str = "lazy-pages.socket";

/// Exit code: every page is in memory, or the processes ended by themselves.
pub const EXIT_DONE: u8 = 0;
/// Exit code: serving did not begin.
pub const EXIT_NOT_STARTED: u8 = 1;
/// Exit code: CRIU did not finish the restore.
pub const EXIT_RESTORE_FAILED: u8 = 3;
/// Exit code: pages could not be had; the processes were killed.
pub const EXIT_KILLED: u8 = 4;
/// Exit code: stopped by a signal before a restore had begun.
pub const EXIT_CANCELLED: u8 = 5;

/// What to serve and where.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Where checkpoints are.
    pub store: StoreUrl,
    /// Whose checkpoint.
    pub app: AppId,
    /// Which one; the newest if it is not said.
    pub checkpoint: Option<CheckpointId>,
    /// Directory for the images and the socket: empty or not there yet, best on a tmpfs.
    pub directory: PathBuf,
    /// Report as JSON.
    pub json: bool,
    /// How to start the guardian.
    pub guardian: GuardianCommand,
}

/// What a daemon reports on standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Report {
    /// CRIU may restore.
    Ready {
        /// The checkpoint that is served.
        checkpoint: String,
        /// Where its images are.
        directory: PathBuf,
        /// This process.
        pid: u32,
        /// Bytes of images written.
        image_bytes: u64,
        /// Time since the start.
        ready_ms: u64,
    },
    /// Every page is in memory; the daemon ends.
    Resident(ServerStats),
    /// All processes have ended before their pages had come; the daemon ends.
    Gone(ServerStats),
    /// Serving has failed, or did not begin; the daemon ends. Processes it served are dead.
    Failed {
        /// Why.
        reason: String,
    },
    /// A signal came before a restore had begun; the daemon ends.
    Cancelled,
}

impl Report {
    fn print(&self, json: bool) {
        let line = if json {
            serde_json::to_string(self)
                .unwrap_or_else(|error| format!("{{\"event\":\"failed\",\"reason\":\"{error}\"}}"))
        } else {
            self.text()
        };
        // Whoever listened may have gone; the processes still need their pages.
        let _ = writeln!(io::stdout(), "{line}");
    }

    fn text(&self) -> String {
        match self {
            Self::Ready { checkpoint, directory, .. } => format!(
                "ready: checkpoint {checkpoint} in {0}; restore with: criu restore --lazy-pages -D {0}",
                directory.display()
            ),
            Self::Resident(stats) => {
                let ms = stats.resident_ms.unwrap_or_default();
                format!(
                    "resident: all pages in memory after {ms} ms, {} page faults, {} bytes fetched",
                    stats.faults, stats.fetched_bytes
                )
            }
            Self::Gone(stats) => {
                format!("gone: the processes ended with {} pages installed", stats.installed_pages)
            }
            Self::Failed { reason } => format!("failed: {reason}"),
            Self::Cancelled => "cancelled before a restore".to_owned(),
        }
    }
}

/// Why serving did not begin.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Materialize(#[from] MaterializeError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{} cannot be made: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the runtime cannot be set up: {0}")]
    Runtime(io::Error),
}

/// Serves one restore and returns the exit code. Reports on standard output, failures included.
pub fn run(config: &DaemonConfig) -> u8 {
    let (report, code) = match serve(config) {
        Ok(Outcome::Resident(stats)) => (Report::Resident(stats), EXIT_DONE),
        Ok(Outcome::TreeGone(stats)) => (Report::Gone(stats), EXIT_DONE),
        Ok(Outcome::RestoreFailed { reason }) => (Report::Failed { reason }, EXIT_RESTORE_FAILED),
        Ok(Outcome::Stopped { reason }) => (Report::Failed { reason }, EXIT_KILLED),
        Ok(Outcome::Cancelled) => (Report::Cancelled, EXIT_CANCELLED),
        Err(error) => (Report::Failed { reason: with_causes(&error) }, EXIT_NOT_STARTED),
    };
    report.print(config.json);
    code
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn serve(config: &DaemonConfig) -> Result<Outcome, DaemonError> {
    let started = Instant::now();
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let store = store::open(&config.store)?;
    let checkpoint = runtime.block_on(async {
        let id = match config.checkpoint {
            Some(id) => id,
            None => Catalog::new(store.clone()).newest(&config.app).await?,
        };
        Ok::<_, DaemonError>(Checkpoint::open(store.clone(), &config.app, id).await?)
    })?;
    let outcome = serve_checkpoint(config, started, &runtime, store, &checkpoint);
    if let Err(error) = runtime.block_on(checkpoint.lease().release()) {
        tracing::warn!("the claim on the checkpoint stays until it is too old: {error}");
    }
    // A fetch nobody needs any more must not hold up the end.
    runtime.shutdown_background();
    outcome
}

fn serve_checkpoint(
    config: &DaemonConfig,
    started: Instant,
    runtime: &runtime::Runtime,
    store: Arc<dyn store::ObjectStore>,
    checkpoint: &Checkpoint,
) -> Result<Outcome, DaemonError> {
    let written = runtime.block_on(materialize_lazy(checkpoint, &config.directory))?;
    let path = config.directory.join(SOCKET);
    let listener =
        UnixListener::bind(&path).map_err(|source| DaemonError::Socket { path: path.clone(), source })?;
    let _unlink = Unlink(&path);
    let limits = Limits::for_store(&*store);
    let server = Arc::new(PageServer::start(PageServerConfig {
        store,
        manifest: checkpoint.manifest().clone(),
        listener,
        guardian: config.guardian.clone(),
        runtime: runtime.handle().clone(),
        limits,
    })?);
    heed_signals(runtime, &server)?;
    let report = Report::Ready {
        checkpoint: checkpoint.manifest().id.to_string(),
        directory: config.directory.clone(),
        pid: process::id(),
        image_bytes: written.bytes,
        ready_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    report.print(config.json);
    Ok(server.wait())
}

fn heed_signals(runtime: &runtime::Runtime, server: &Arc<PageServer>) -> Result<(), DaemonError> {
    let _runtime = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut signals = signal(kind).map_err(DaemonError::Runtime)?;
        let server = Arc::clone(server);
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                server.cancel();
                let missing = server.stats().missing_pages;
                if missing > 0 {
                    tracing::warn!(
                        missing,
                        "processes still need pages from here; this ends when they have them"
                    );
                }
            }
        });
    }
    Ok(())
}

/// Removes the socket: the next restore must not find a dead one.
struct Unlink<'p>(&'p Path);

impl Drop for Unlink<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}
