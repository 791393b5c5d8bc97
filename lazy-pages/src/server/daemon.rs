//! A page server as a process of its own: from the name of a checkpoint to its last page in memory.
//!
//! It writes the image directory, listens on `lazy-pages.socket` in it, says that it is ready, and serves one restore;
//! or several, each with a directory of its own. What happens is told on standard output, one line each ([`Report`]); a
//! reader that goes away does not end it.
//!
//! The process that calls [`run`] becomes the guardian of one it starts, the server, and of a standby. All of them have
//! the same descriptors and share what the server knows.
//!
//! | who dies | what happens |
//! |---|---|
//! | server | tasks wait at missing pages; the guardian starts another server, which replays the journal and goes on |
//! | server, again and again | after five in a row the guardian waits for somebody to attach one, then ends the tree |
//! | guardian | the standby becomes the guardian and starts a standby |
//! | standby | the guardian starts another one |
//! | guardian and server | the standby becomes the guardian, and starts both |
//! | standby and server | the guardian starts both |
//! | guardian and standby | the server becomes the guardian, and starts both; meanwhile a *holder* does what it says |
//! | all three in the same instant | see below |
//!
//! Roles are filled again within milliseconds, and then the next death is as harmless. Nothing a dead server knew has to be
//! read from the store again: the manifest is kept in memory too, so that a server can be replaced while the store cannot
//! be reached.
//!
//! What remains: all three killed before one of them has run again, for instance by a service manager that ends a whole
//! control group; then the kernel closes the descriptors, and the processes would see zeros. An [`Anchor`], as the launcher
//! of a container is, kills the processes before that; without one, run the page server in
//! the control group of the processes it serves, or outside of any that is ended without them. A machine that loses its
//! power, or whose kernel fails, loses the processes too: nobody is left to see zeros.
//!
//! SIGTERM, SIGINT and SIGHUP end it only while no task has registered. After that, processes depend on it: ending early
//! could only mean killing them, which nobody asked for, so it says how many pages are missing and goes on; it ends by
//! itself when all pages are there.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::SigSet;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

pub use super::{
    origin::{Origin, Origins},
    report::Report,
};
use crate::{
    catalog::{CatalogError, Lease},
    format::{Manifest, ManifestError},
    ids::{AppId, CheckpointId},
    materialize::{MaterializeError, Materialized, materialize_lazy},
    reader::{Checkpoint, ReadError},
    record::{Records, RestoreName},
    server::{
        Anchor, Anchors, Limits, Outcome, PageServer, PageServerConfig, ServerStats, StartError,
        anchor::no_anchors,
        frames::Layout,
        guardian::{SIGNALS, Work, guard, hold, revive_alone, wait_for},
        journal::{Journal, Number, Phase},
        kill::{cut_connections, end_tree, let_go, unknown_spaces},
        origin::no_origins,
        pages_record::pages_record,
        saved::{Saved, read_whole},
        state::{Role, State},
        status,
        sys::{
            process::{duplicate, take_over},
            shared::memory_file,
        },
    },
    store::{self, ObjectStore, StoreError, StoreUrl},
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

/// One restore to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Whose checkpoint.
    pub app: AppId,
    /// Which one; the newest if it is not said.
    pub checkpoint: Option<CheckpointId>,
    /// Directory for the images and the socket: empty or not there yet, best on a tmpfs.
    pub directory: PathBuf,
}

/// What to serve and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Where checkpoints are.
    pub store: StoreUrl,
    /// The restores, each on its own: one that fails harms no other.
    pub restores: Vec<Restore>,
    /// Report as JSON.
    pub json: bool,
    /// How long processes wait for what does not come, a store that cannot be reached or a server to be attached, before
    /// they are killed.
    pub patience: Duration,
    /// How many requests at a time fetch what nobody waits for yet; what suits the store when `None`. See [`Limits::with_prefetch`].
    pub prefetch: Option<u32>,
    /// The arguments with which this program calls [`revive`], the number of a descriptor excepted, which follows them.
    pub revival: Vec<OsString>,
    /// What to make an [`Origin`] of, where pages come from somewhere else than the store.
    pub origin: Option<String>,
    /// What to make an [`Anchor`] of, if there is one; for a single restore.
    pub anchor: Option<String>,
}

/// Opens the store at an address.
pub type Stores = fn(&StoreUrl) -> Result<Arc<dyn ObjectStore>, StoreError>;

/// How a program makes of texts in a [`DaemonConfig`] what they stand for.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Opens the store at an address: [`store::open`], unless the program has a store of its own.
    pub stores: Stores,
    /// Of [`DaemonConfig::origin`].
    pub origins: Origins,
    /// Of [`DaemonConfig::anchor`].
    pub anchors: Anchors,
}

impl Surroundings {
    /// Those of a program that knows neither.
    pub const NONE: Self = Self { stores: store::open, origins: no_origins, anchors: no_anchors };
}

/// Why serving did not begin, or did not go on.
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
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{} cannot be made: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the runtime cannot be set up: {0}")]
    Runtime(io::Error),
    #[error("the anchor cannot be reached: {0}")]
    Anchor(io::Error),
    #[error("what another page server would need cannot be kept: {0}")]
    State(io::Error),
    #[error("the page server died while it prepared the restore")]
    DiedPreparing,
}

/// Serves and returns the exit code. Reports on standard output, failures included. Call it before any other thread exists.
pub fn run(config: &DaemonConfig, surroundings: Surroundings) -> u8 {
    let saved = match (&config.anchor, config.restores.len()) {
        (Some(_), 2..) => Err(io::Error::other("an anchor is for a single restore")),
        _ => Saved::of(config).save(),
    };
    let begun = saved
        .and_then(|saved| State::create(config.restores.len(), saved))
        .and_then(|state| guard(&state, &Daemon { config, surroundings }));
    begun.unwrap_or_else(|error| {
        for restore in &config.restores {
            let reason = format!("the page server cannot start: {error}");
            Report::Failed { reason }.print(&restore.app, config.json);
        }
        EXIT_NOT_STARTED
    })
}

/// Becomes the guardian of what another one has left, at the descriptor with this number. Call it before any other thread
/// exists.
///
/// # Errors
/// When there is nothing of the kind.
pub fn revive(state: RawFd, surroundings: Surroundings) -> io::Result<u8> {
    let state = State::open(take_over(state)?)?;
    let config = Saved::load(state.config())?;
    if let Some(other) = status::other_holder(&state) {
        // Whoever was left has been joined by others meanwhile. If that one is alone, it will notice.
        tracing::info!(other, "this page server is guarded by others");
        return Ok(state.outcome().unwrap_or(EXIT_DONE));
    }
    // Held by processes that are not there any more; one of them was this one.
    state.call(Role::Server);
    state.call(Role::Standby);
    guard(&state, &Daemon { config: &config, surroundings })
}

/// What every process of a page server does, one at a time.
struct Daemon<'c> {
    config: &'c DaemonConfig,
    surroundings: Surroundings,
}

impl Work for Daemon<'_> {
    fn serve(&self, state: &State) {
        // Every thread's death is the server's: what is left of it could not be trusted, and another one goes on.
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            process::abort();
        }));
        match Server::new(self, state) {
            Ok(server) => server.run(),
            Err(error) => {
                for (restore, journal) in self.config.restores.iter().zip(state.journals()) {
                    // Whoever depends on it is served by the next one, if that can start.
                    if journal.phase() == Phase::New {
                        Report::Failed { reason: with_causes(&error) }.print(&restore.app, self.config.json);
                        journal.finish(EXIT_NOT_STARTED);
                    }
                }
            }
        }
    }

    fn killed(&self, restore: usize, reason: &str) {
        let app = &self.config.restores[restore].app;
        Report::Failed { reason: reason.to_owned() }.print(app, self.config.json);
    }

    fn patience(&self) -> Duration {
        self.config.patience
    }

    fn revival(&self, state: BorrowedFd<'_>) -> Vec<OsString> {
        let mut arguments = self.config.revival.clone();
        arguments.push(state.as_raw_fd().to_string().into());
        arguments
    }
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

/// The process that serves.
struct Server<'c> {
    daemon: &'c Daemon<'c>,
    config: &'c DaemonConfig,
    state: &'c State,
    origin: Option<Arc<dyn Origin>>,
    anchor: Option<Arc<dyn Anchor>>,
    store: Arc<dyn ObjectStore>,
    runtime: runtime::Runtime,
    running: Mutex<Vec<Arc<PageServer>>>,
    cancelled: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

impl<'c> Server<'c> {
    fn new(daemon: &'c Daemon<'c>, state: &'c State) -> Result<Self, DaemonError> {
        let config = daemon.config;
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(DaemonError::Runtime)?;
        let store = (daemon.surroundings.stores)(&config.store)?;
        let origin = match &config.origin {
            Some(origin) => Some((daemon.surroundings.origins)(origin, Arc::clone(&store))?),
            None => None,
        };
        let anchor = match config.anchor.as_deref().map(daemon.surroundings.anchors).transpose() {
            Ok(anchor) => anchor,
            Err(error) if state.journals().iter().all(|journal| journal.phase() == Phase::New) => {
                return Err(DaemonError::Anchor(error));
            }
            // Processes depend on this server, with or without somebody else who holds their descriptors.
            Err(error) => {
                tracing::error!("the anchor cannot be reached any more: {error}");
                None
            }
        };
        let store = origin.as_ref().map_or(store, |origin| origin.store());
        let (cancelled, over) = (watch::channel(false).0, watch::channel(false).0);
        let running = Mutex::default();
        Ok(Self { daemon, config, state, origin, anchor, store, runtime, running, cancelled, over })
    }

    fn run(self) {
        // Unknown descriptors are those of tasks that were handed over in a dead server's last moment, so of a restore that
        // was under way.
        let unknown = !unknown_spaces(self.state).is_empty();
        thread::scope(|scope| {
            let server = &self;
            scope.spawn(|| server.heed_signals());
            let restores = self.config.restores.iter().zip(self.state.journals()).enumerate();
            let served: Vec<_> = restores
                .map(|(at, (restore, journal))| {
                    scope.spawn(move || server.serve_one(at, restore, journal, unknown))
                })
                .collect();
            while !served.iter().all(thread::ScopedJoinHandle::is_finished) {
                self.watch_guards();
            }
            self.over.send_replace(true);
        });
        // A fetch nobody needs any more must not hold up the end.
        self.runtime.shutdown_background();
    }

    /// One restore, from whatever its journal says to its end.
    fn serve_one(&self, at: usize, restore: &Restore, journal: &Arc<Journal>, unknown: bool) {
        let outcome = match journal.phase() {
            Phase::Over if journal.is_finished() => return,
            Phase::Over => {
                let_go(self.state, at);
                if let Some(anchor) = &self.anchor {
                    anchor.release();
                }
                Ok(concluded(journal))
            }
            Phase::New => self.begin(restore, journal),
            Phase::Preparing => Err(DaemonError::DiedPreparing),
            Phase::Listening | Phase::Restoring if unknown => Ok(self.end_restore(at, journal)),
            Phase::Listening | Phase::Restoring | Phase::Running => self.take_over(at, restore, journal),
        };
        // Said to the origin after all else; whoever dies before that leaves it to the next server.
        let ended = outcome.as_ref().ok().cloned();
        let (report, code) = match outcome {
            Ok(Outcome::Resident(stats)) => (Report::Resident(stats), EXIT_DONE),
            Ok(Outcome::TreeGone(stats)) => (Report::Gone(stats), EXIT_DONE),
            Ok(Outcome::RestoreFailed { reason }) => (Report::Failed { reason }, EXIT_RESTORE_FAILED),
            Ok(Outcome::Stopped { reason }) => (Report::Failed { reason }, EXIT_KILLED),
            Ok(Outcome::Cancelled) => (Report::Cancelled, EXIT_CANCELLED),
            Err(error) => (Report::Failed { reason: with_causes(&error) }, EXIT_NOT_STARTED),
        };
        journal.conclude(code);
        let _ = fs::remove_file(restore.directory.join(SOCKET));
        report.print(&restore.app, self.config.json);
        self.release(restore, journal);
        if let Some(outcome) = ended {
            if let Some(origin) = &self.origin {
                self.tell(&**origin, &outcome);
            }
            self.keep_record(restore, journal, &outcome);
        }
        journal.finish(code);
    }

    /// Keeps what happened for whoever wonders afterwards. Nobody waits for it any more, and nothing is lost without it.
    fn keep_record(&self, restore: &Restore, journal: &Journal, outcome: &Outcome) {
        let Some((checkpoint, lease)) = journal.checkpoint() else { return };
        let Some(manifest) = journal.manifest().and_then(|manifest| read_whole(manifest).ok()) else {
            return;
        };
        let Ok(manifest) = Manifest::decode(&manifest) else { return };
        let Some(record) = pages_record(journal, &Layout::new(Arc::new(manifest)), outcome) else { return };
        let name = RestoreName { lease, checkpoint, handover: self.origin.is_some() };
        let records = Records::new(Arc::clone(&self.store), restore.app.clone());
        let kept = self.runtime.block_on(async {
            tokio::time::timeout(RECORD_PATIENCE, records.keep_pages(name, &record)).await
        });
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("there will be no report of how the pages came: {error}"),
            Err(_) => {
                tracing::warn!("there will be no report of how the pages came: the store takes too long")
            }
        }
    }

    /// Tells the origin how it ended, patiently.
    fn tell(&self, origin: &dyn Origin, outcome: &Outcome) {
        const BETWEEN: Duration = Duration::from_secs(1);
        let begun = Instant::now();
        while let Err(error) = self.runtime.block_on(origin.over(outcome)) {
            tracing::warn!("{origin:?} has to be told how it ended: {error}");
            if begun.elapsed() > self.config.patience {
                return;
            }
            thread::sleep(BETWEEN);
        }
    }

    fn release(&self, restore: &Restore, journal: &Journal) {
        let Some((_, lease)) = journal.checkpoint() else { return };
        let lease = Lease::inherited(Arc::clone(&self.store), &restore.app, lease);
        if let Err(error) = self.runtime.block_on(lease.release()) {
            tracing::warn!("the claim on the checkpoint stays until it is too old: {error}");
        }
    }

    /// The first server of a restore.
    fn begin(&self, restore: &Restore, journal: &Arc<Journal>) -> Result<Outcome, DaemonError> {
        let started = Instant::now();
        journal.enter(Phase::Preparing);
        let mut cancelled = self.cancelled.subscribe();
        let prepared = self.runtime.block_on(async {
            tokio::select! {
                prepared = self.prepare(restore, journal) => prepared.map(Some),
                _ = cancelled.wait_for(|cancelled| *cancelled) => Ok(None),
            }
        })?;
        let Some((manifest, written)) = prepared else { return Ok(Outcome::Cancelled) };
        let path = restore.directory.join(SOCKET);
        let failed = |source| DaemonError::Socket { path: path.clone(), source };
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // A successor finds it by its number.
        let number = listener.try_clone().map_err(failed)?.into_raw_fd();
        journal.set_listener(number);
        let id = manifest.id;
        self.start(manifest, listener, journal, || {
            Report::Ready {
                checkpoint: id.to_string(),
                directory: restore.directory.clone(),
                pid: process::id(),
                guardian: self.state.holder(Role::Guardian),
                image_bytes: written.bytes,
                ready_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                lease: journal.checkpoint().map(|(_, lease)| lease.to_string()),
            }
            .print(&restore.app, self.config.json)
        })
    }

    async fn prepare(
        &self,
        restore: &Restore,
        journal: &Journal,
    ) -> Result<(Arc<Manifest>, Materialized), DaemonError> {
        let store = Arc::clone(&self.store);
        let checkpoint = match restore.checkpoint {
            Some(id) => Checkpoint::open_to_restore(store, &restore.app, id).await?,
            None => Checkpoint::open_newest(store, &restore.app).await?,
        };
        let manifest = Arc::clone(checkpoint.manifest());
        let id = manifest.id;
        let kept = memory_file("lazy-pages-manifest", &manifest.encode()?).map_err(DaemonError::State)?;
        journal.set_checkpoint(id, checkpoint.lease().id(), kept.into_raw_fd());
        let written = materialize_lazy(&checkpoint, &restore.directory).await?;
        // The lease is the journal's from here on.
        checkpoint.lease().leave();
        Ok((manifest, written))
    }

    /// A restore another server had begun to serve.
    fn take_over(
        &self,
        at: usize,
        restore: &Restore,
        journal: &Arc<Journal>,
    ) -> Result<Outcome, DaemonError> {
        let started = self.left(journal).and_then(|(manifest, listener)| {
            self.start(manifest, listener, journal, || self.report_takeover(restore, journal))
        });
        started.or_else(|error| {
            let reason =
                format!("its page server died, and its work cannot be taken over: {}", with_causes(&error));
            tracing::error!("the restored processes are killed: {reason}");
            end_tree(self.state, at);
            Ok(Outcome::Stopped { reason })
        })
    }

    /// The last server died in the moment between receiving a task's descriptor and recording it. Nobody knows whose that is,
    /// so what CRIU has made so far is ended.
    fn end_restore(&self, at: usize, journal: &Journal) -> Outcome {
        cut_connections(journal);
        end_tree(self.state, at);
        Outcome::RestoreFailed { reason: "the page server died while a task registered".to_owned() }
    }

    fn report_takeover(&self, restore: &Restore, journal: &Journal) {
        let report =
            Report::TakenOver { pid: process::id(), missing_pages: journal.value(Number::MissingPages) };
        report.print(&restore.app, self.config.json);
    }

    /// What a dead server has left.
    fn left(&self, journal: &Journal) -> Result<(Arc<Manifest>, UnixListener), DaemonError> {
        let kept = |number: Option<RawFd>| number.ok_or_else(|| io::Error::other("it is not in the journal"));
        let manifest = kept(journal.manifest()).and_then(read_whole).map_err(DaemonError::State)?;
        let listener = kept(journal.listener()).and_then(duplicate).map_err(DaemonError::State)?;
        Ok((Arc::new(Manifest::decode(&manifest)?), listener.into()))
    }

    fn start(
        &self,
        manifest: Arc<Manifest>,
        listener: UnixListener,
        journal: &Arc<Journal>,
        report: impl FnOnce(),
    ) -> Result<Outcome, DaemonError> {
        let limits = Limits { store_patience: self.config.patience, ..Limits::for_store(&*self.store) };
        let limits = match self.config.prefetch {
            Some(requests) => limits.with_prefetch(requests),
            None => limits,
        };
        let config = PageServerConfig {
            store: Arc::clone(&self.store),
            manifest,
            listener,
            runtime: self.runtime.handle().clone(),
            limits,
            anchor: self.anchor.clone(),
        };
        let server = Arc::new(PageServer::start_with(config, Arc::clone(journal))?);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&server));
        if *self.cancelled.borrow() {
            server.cancel();
        }
        report();
        Ok(server.wait())
    }

    /// Until all is over.
    fn heed_signals(&self) {
        let mut over = self.over.subscribe();
        let heeded = self.runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut hangup = signal(SignalKind::hangup())?;
            // One thread that lets them through is enough.
            SIGNALS.into_iter().collect::<SigSet>().thread_unblock()?;
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                    _ = over.changed() => return io::Result::Ok(()),
                }
                self.cancel();
            }
        });
        if let Err(error) = heeded {
            tracing::warn!("signals are not heeded: {error}");
        }
    }

    fn cancel(&self) {
        self.cancelled.send_replace(true);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for server in running {
            server.cancel();
            let missing = server.stats().missing_pages;
            if missing > 0 {
                tracing::warn!(
                    missing,
                    "processes still need pages from here; this ends when they have them"
                );
            }
        }
    }

    /// Waits a moment, or until something happens to whoever guards this server.
    fn watch_guards(&self) {
        let guards = [Role::Guardian, Role::Standby].map(|role| self.state.watch(role));
        let guards: Vec<_> = guards.iter().flatten().map(AsFd::as_fd).collect();
        wait_for(&guards, Some(GUARD_TICK));
        self.keep_guarded();
    }

    /// When guardian and standby are both dead, nobody would notice this process's death: it becomes the guardian itself,
    /// and starts another server. Nothing may be read off a descriptor meanwhile.
    fn keep_guarded(&self) {
        if self.state.watch(Role::Guardian).is_some() || self.state.watch(Role::Standby).is_some() {
            return;
        }
        tracing::error!("the guardian and its standby have died; this page server starts others");
        if let Err(error) = hold(self.state, self.daemon) {
            tracing::error!("pages are lost if this page server is killed now: {error}");
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        running.iter().for_each(|server| server.pause());
        let paused = |server: &Arc<PageServer>| server.is_paused() || server.has_ended();
        let asked = Instant::now();
        while !running.iter().all(paused) && asked.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
        if running.iter().all(paused) {
            let error = revive_alone(self.state, self.daemon);
            tracing::error!("pages are lost if this page server is killed: {error}");
        }
        running.iter().for_each(|server| server.go_on());
        thread::sleep(GUARD_TICK);
    }
}

/// How a restore ended whose server died before it could say so.
fn concluded(journal: &Journal) -> Outcome {
    let stats = ServerStats::of(journal);
    let reason = || "the page server died before it could say why".to_owned();
    match journal.outcome() {
        Some(EXIT_DONE) if stats.resident_ms.is_some() => Outcome::Resident(stats),
        Some(EXIT_DONE) => Outcome::TreeGone(stats),
        Some(EXIT_CANCELLED) => Outcome::Cancelled,
        Some(EXIT_RESTORE_FAILED) => Outcome::RestoreFailed { reason: reason() },
        _ => Outcome::Stopped { reason: reason() },
    }
}

/// How long a store may take to keep the record of a restore.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// How often a server looks for others than those it watches, and whether all is over.
const GUARD_TICK: Duration = Duration::from_millis(50);
