//! The restore pipeline: a committed checkpoint becomes a running tree.
//!
//! The strategies share everything but where the pages come from:
//! - *lazy-storage*: a page server process listens before CRIU starts; the tree runs as soon as CRIU has rebuilt it, and
//!   its pages arrive on demand and in the background.
//! - *lazy-direct* and *lazy-hybrid*: the same, but the pages come out of the stopped tree on another machine, and who may
//!   run is decided before any task does; see [`handover`](crate::handover).
//! - *full*: all pages are fetched into CRIU's images on tmpfs first; no userfaultfd, no page server, twice the memory
//!   for the time of the restore.
//!
//! Files that travel with the checkpoint are put back before CRIU starts; the source of the module `files` has the rules.
//!
//! Each restore is a run of the application with a number of its own ([`fence`](crate::fence)), which is claimed before any
//! task runs: of restores that are to be the same run one succeeds, and a tree that is stopped to be handed over does not go
//! on beside it.
//!
//! A restore never changes the checkpoint. If it fails, whatever CRIU had built is ended and files are as they were: a tree
//! either runs with all of its memory and files, or not at all.

use std::{
    fmt, fs,
    io::{BufWriter, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{Criu, ImageDir, Notification, PageObject, RestoreOptions, images::PagemapEntry};
use lazy_pages::{
    catalog::{Catalog, CatalogError},
    format::{Manifest, MemoryMap, ObjectId, Task},
    ids::{AppId, CheckpointId},
    materialize::large_images,
    reader::{Checkpoint, Pages, ReadError},
    record::RestoreName,
    server::{STORE_PATIENCE, ServerStats, daemon::Origin},
    units::PAGE_SIZE,
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::{
    agent::Agent,
    cancel::Cancel,
    checkpoint::unwrap_handler,
    container,
    error::AgentError,
    fence::{Claim, Fence, Runner},
    files::{ExistingFiles, PutBackReport, View},
    handover::{HandedOver, Remote},
    hook::{Hook, HookEvent, HookFacts},
    host,
    launcher::Waiting,
    output,
    page_server::{Log, PageServerProcess, Served},
    progress::{Progress, Stage},
    tree,
    workdir::WorkDir,
};

/// How long the page server may take to fetch a checkpoint's metadata and the pages that cannot be lazy.
const PAGE_SERVER_START: Duration = Duration::from_secs(300);

/// A task that was just ended still owns its pid until its parent collects it; init may take more than a second.
const COLLECT: Duration = Duration::from_secs(5);

/// Large enough that a full restore makes few system calls.
const WRITE_BUFFER: usize = 1 << 20;

/// Where the pages of a restored tree come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Storage, all of them before the process runs.
    Full,
    /// Storage, on demand.
    LazyStorage,
    /// The stopped tree on the source machine, on demand.
    LazyDirect,
    /// The same, and storage as soon as a checkpoint of the stopped tree is committed there.
    LazyHybrid,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::LazyStorage => "lazy-storage",
            Self::LazyDirect => "lazy-direct",
            Self::LazyHybrid => "lazy-hybrid",
        })
    }
}

impl FromStr for Strategy {
    type Err = AgentError;

    fn from_str(text: &str) -> Result<Self, AgentError> {
        match text {
            "full" => Ok(Self::Full),
            "lazy-storage" => Ok(Self::LazyStorage),
            "lazy-direct" => Ok(Self::LazyDirect),
            "lazy-hybrid" => Ok(Self::LazyHybrid),
            _ => Err(AgentError::Usage(format!(
                "`{text}` is no strategy: full, lazy-storage, lazy-direct or lazy-hybrid"
            ))),
        }
    }
}

/// What to restore, and how.
#[derive(Debug)]
pub struct RestoreRequest {
    /// Whose checkpoint.
    pub app: AppId,
    /// Which one; the newest if `None`.
    pub checkpoint: Option<CheckpointId>,
    /// Where the pages come from.
    pub strategy: Strategy,
    /// What takes the place of pipes and terminals at standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// A program whose `page-server` subcommand serves pages, as `migration-agent`'s does.
    pub page_server: PathBuf,
    /// How long the processes wait for a store that cannot be reached before they are killed.
    pub patience: Duration,
    /// How many requests at a time fetch pages that nobody waits for yet; what suits the store when `None`. With 0 a page comes
    /// when it is touched, and the processes need the store as long as they live. Pages of a tree that is stopped elsewhere are always fetched.
    pub prefetch: Option<u32>,
    /// Where the page server's log goes; to standard error if `None`.
    pub page_server_log: Option<PathBuf>,
    /// Restore established TCP connections.
    pub tcp_established: bool,
    /// Which run of the application this is to be, if somebody has decided; else the next one. Only one restore gets a
    /// generation, see [`Fence`].
    pub generation: Option<u64>,
    /// A tree that is stopped on another machine: the checkpoint is a handover, whose pages come from there.
    pub handover: Option<HandedOver>,
    /// Called when the tree runs.
    pub after_restore: Option<Hook>,
    /// Restore into the container of this launcher, which gets the tree; where this process is if `None`.
    pub launcher: Option<Arc<Waiting>>,
    /// Gives it up, until the tree is about to run; nothing of it is left then.
    pub cancel: Cancel,
    /// What becomes of files that differ from those of the checkpoint.
    pub existing_files: ExistingFiles,
}

impl RestoreRequest {
    /// The newest checkpoint of `app`, on demand from storage.
    pub fn new(app: AppId, stdio: [OwnedFd; 3], page_server: PathBuf) -> Self {
        Self {
            app,
            checkpoint: None,
            strategy: Strategy::LazyStorage,
            stdio,
            page_server,
            patience: STORE_PATIENCE,
            prefetch: None,
            page_server_log: None,
            tcp_established: false,
            generation: None,
            handover: None,
            after_restore: None,
            launcher: None,
            cancel: Cancel::default(),
            existing_files: ExistingFiles::SetAside,
        }
    }
}

/// A tree that runs.
#[derive(Debug)]
pub struct Restored {
    /// The checkpoint it came from.
    pub checkpoint: CheckpointId,
    /// Its root.
    pub pid: u32,
    /// Where its pages come from.
    pub strategy: Strategy,
    /// From the start of the restore until the tree ran.
    pub resume: Duration,
    /// What became of the files it had open.
    pub files: PutBackReport,
    /// Why the hook after the restore failed, if it did; the tree runs all the same.
    pub hook_failure: Option<String>,
    started: Instant,
    fetched_bytes: u64,
    page_server: Option<PageServerProcess>,
}

/// A restore all of whose pages are in memory.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Residency {
    /// From the start of the restore until the last page was there, in milliseconds.
    pub resident_ms: f64,
    /// Page faults that waited for the page server.
    pub faults: u64,
    /// Bytes of page data fetched from the store.
    pub fetched_bytes: u64,
}

impl Restored {
    /// Waits until every page is in memory.
    ///
    /// # Errors
    /// When pages could not be had; the tree is dead then.
    pub fn wait_resident(&mut self) -> Result<Residency, AgentError> {
        self.follow().map(|(residency, _)| residency)
    }

    /// The same, with what its page server has counted, if it has one.
    ///
    /// # Errors
    /// Those of [`Self::wait_resident`].
    pub fn follow(&mut self) -> Result<(Residency, Option<ServerStats>), AgentError> {
        let Some(page_server) = &self.page_server else {
            let resident_ms = self.resume.as_secs_f64() * 1e3;
            return Ok((Residency { resident_ms, faults: 0, fetched_bytes: self.fetched_bytes }, None));
        };
        let stats = page_server.resident()?;
        let residency = Residency {
            resident_ms: self.started.elapsed().as_secs_f64() * 1e3,
            faults: stats.faults,
            fetched_bytes: stats.fetched_bytes,
        };
        Ok((residency, Some(stats)))
    }
}

impl Restored {
    /// Collects its page server, which has to be over.
    pub fn collect(self) {
        if let Some(page_server) = self.page_server {
            page_server.collect();
        }
    }
}

impl Agent {
    /// Restores a checkpoint. The tree's root becomes a child of the nearest subreaper, this process if it is one.
    ///
    /// # Errors
    /// Any; then nothing of the tree runs, and the checkpoint and all files are as they were.
    pub fn restore(&self, request: RestoreRequest, progress: &Progress) -> Result<Restored, AgentError> {
        let cancel = request.cancel.clone();
        self.bring_back(request, progress).map_err(|error| match cancel.is_cancelled() {
            // What broke off because of that says less.
            true => AgentError::Cancelled,
            false => error,
        })
    }

    fn bring_back(&self, request: RestoreRequest, progress: &Progress) -> Result<Restored, AgentError> {
        let started = Instant::now();
        progress.enter(Stage::Preparing);
        let criu = self.criu()?;
        let work = WorkDir::create(self.work_parent.as_deref())?;
        let images = work.images();
        let server = |checkpoint| self.serve(&request, checkpoint, &images, &criu);
        // A page server prepares while the rest is looked at here.
        let (checkpoint, server) = match (&request.handover, request.checkpoint) {
            (Some(told), _) => {
                let _context = self.runtime.enter();
                let remote = Remote::open(told, Arc::clone(&self.store))?;
                let server = server(remote.id())?;
                (self.block_on(Checkpoint::open(remote.store(), &request.app, remote.id()))?, server)
            }
            (None, Some(id)) => {
                let server = server(id)?;
                (self.open(&request.app, Some(id))?, server)
            }
            (None, None) => {
                let checkpoint = self.open(&request.app, None)?;
                let server = server(checkpoint.manifest().id)?;
                (checkpoint, server)
            }
        };
        let restored = request
            .cancel
            .check()
            .and_then(|()| self.restore_from(&checkpoint, &images, server, request, progress, started));
        // A page server that is still reading has a lease of its own.
        self.release(&checkpoint);
        restored
    }

    /// The page server of a restore, unless it needs none. It begins to prepare.
    fn serve(
        &self,
        request: &RestoreRequest,
        checkpoint: CheckpointId,
        images: &Path,
        criu: &Criu,
    ) -> Result<Unused, AgentError> {
        match request.strategy {
            Strategy::Full => return Ok(Unused(None)),
            Strategy::LazyStorage | Strategy::LazyDirect | Strategy::LazyHybrid => {}
        }
        if !criu.features()?.lazy_pages {
            return Err(AgentError::NoUserfaultfd);
        }
        let served = Served {
            store: &self.store_url,
            app: &request.app,
            checkpoint,
            images,
            patience: request.patience,
            prefetch: request.prefetch.filter(|requests| *requests > 0 || request.handover.is_none()),
            origin: request.handover.as_ref().map(HandedOver::to_text),
            anchor: request.launcher.as_ref().map(|launcher| launcher.directory().to_owned()),
        };
        let log = request.page_server_log.as_deref().map_or(Log::Inherit, Log::File);
        Ok(Unused(Some(PageServerProcess::start(&request.page_server, &served, &log)?)))
    }

    fn restore_from(
        &self,
        checkpoint: &Checkpoint,
        images: &Path,
        mut server: Unused,
        request: RestoreRequest,
        progress: &Progress,
        started: Instant,
    ) -> Result<Restored, AgentError> {
        let criu = self.criu()?;
        let manifest = checkpoint.manifest();
        let id = manifest.id;
        host::refuse_other(&manifest.host, &host::facts(criu.version()?))?;
        refuse_taken_pids(manifest)?;

        progress.enter(Stage::Fetching);
        let view = match &request.launcher {
            Some(launcher) => View::of(launcher.pid())?,
            None => View::own(),
        };
        let files = self.put_files_back(checkpoint, request.existing_files, view)?;
        let claim = self.claim(&request)?;
        let mut fetched_bytes = 0;
        let mut lease = checkpoint.lease().id();
        match &server.0 {
            Some(server) => lease = server.ready(PAGE_SERVER_START, &request.cancel)?.unwrap_or(lease),
            None => {
                progress.expect_bytes(manifest.stored_pages() * PAGE_SIZE as u64);
                fetched_bytes = self.fetch_everything(checkpoint, images, progress, &request.cancel)?;
            }
        }

        progress.enter(Stage::Restoring);
        let mut options = RestoreOptions::new(images)
            .lazy_pages(server.0.is_some())
            .tcp_established(request.tcp_established)
            .tcp_close(ImageDir::open(images)?.inventory()?.tcp_close)
            .shell_job(session_is_outside(images)?)
            .file_locks(true)
            .link_remap(true);
        if let Some(launcher) = &request.launcher {
            options = options.place(container::place_in_groups_of(launcher.pid())?);
        }
        for stream in &manifest.streams {
            if let Some(fd) = request.stdio.get(stream.stdio as usize) {
                let fd = fd.try_clone().map_err(AgentError::io("cannot duplicate a standard stream"))?;
                options = options.inherit_fd(stream.key.clone(), fd);
            }
        }
        // A CRIU that hangs sends no notification at which it could be told.
        let (told, tells) = std::io::pipe().map_err(AgentError::io("cannot make a pipe"))?;
        request.cancel.on_cancel(move || drop(tells));
        let options = options.give_up_with(told.into());
        // All tasks have their pids.
        let mut built = false;
        let restored = match criu.restore(options, &mut |notification| {
            match notification {
                // Asked for while CRIU works, and known before any task runs.
                Notification::PreRestore => claim.begin(),
                Notification::PostRestore { pid } => {
                    built = true;
                    claim.granted()?;
                    if !manifest.streams.is_empty() {
                        output::append(&manifest.tasks, &request.stdio)?;
                    }
                    // Later than this, CRIU lets the tree run whatever the answer is.
                    if !request.cancel.pass() {
                        return Err(AgentError::Cancelled.into());
                    }
                    // Last, because it ends with a tree it has been given.
                    if let Some(launcher) = &request.launcher {
                        launcher.hand_over(*pid)?;
                    }
                }
                _ => {}
            }
            Ok(request.cancel.check()?)
        }) {
            Ok(restored) => restored,
            Err(error) => {
                let cause = server.end();
                match end_leftovers(manifest, built) {
                    true => claim.end(),
                    // Not knowing means waiting.
                    false => tracing::error!(
                        "a part of the tree cannot be ended, so nobody is told that it does not run"
                    ),
                }
                return Err(cause.unwrap_or_else(|| unwrap_handler(error)));
            }
        };
        let resume = started.elapsed();
        if request.handover.is_some() {
            claim.ran();
        }
        let files = files.keep();
        progress.enter(Stage::Filling);
        let strategy = request.strategy;
        let name = RestoreName { lease, checkpoint: id, handover: request.handover.is_some() };
        let told = (restored.pid, strategy, files.written, fetched_bytes);
        self.keep_restore(&request.app, name, told, progress, (started, resume));
        let hook_failure = request.after_restore.as_ref().and_then(|hook| {
            let event = HookEvent::AfterRestore;
            let facts = HookFacts { event, app: &request.app, pid: restored.pid, checkpoint: id };
            // The tree runs: nothing is given up any more.
            self.call(hook, &facts, &Cancel::default()).err().map(|error| error.to_string())
        });
        if let Some(reason) = &hook_failure {
            tracing::warn!(reason, pid = restored.pid, "the tree runs on");
        }
        Ok(Restored {
            checkpoint: id,
            pid: restored.pid,
            strategy,
            resume,
            files,
            hook_failure,
            started,
            fetched_bytes,
            page_server: server.0.take(),
        })
    }

    /// The newest checkpoint of an application.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn newest(&self, app: &AppId) -> Result<CheckpointId, AgentError> {
        let newest = self.block_on(Catalog::new(Arc::clone(&self.store)).newest(app));
        newest.map_err(|error| self.name(error))
    }

    /// Opens a checkpoint for reading, the newest if none is named. Release its lease when done.
    ///
    /// # Errors
    /// When there is no such checkpoint, or it cannot be used.
    pub fn open(&self, app: &AppId, named: Option<CheckpointId>) -> Result<Checkpoint, AgentError> {
        let store = Arc::clone(&self.store);
        let opened = match named {
            Some(id) => self.block_on(Checkpoint::open(store, app, id)),
            None => self.block_on(Checkpoint::open_newest(store, app)),
        };
        opened.map_err(|error| match error {
            ReadError::Catalog(error) => self.name(error),
            error => error.into(),
        })
    }

    /// Gives up the claim on a checkpoint's data.
    pub fn release(&self, checkpoint: &Checkpoint) {
        if let Err(error) = self.block_on(checkpoint.lease().release()) {
            tracing::warn!(%error, "the lease on the checkpoint stays until it expires");
        }
    }

    /// An error of the catalog, with the store it happened in.
    pub(crate) fn name(&self, error: CatalogError) -> AgentError {
        let store = self.store.describe();
        match error {
            CatalogError::NoCheckpoint { app } => AgentError::NoCheckpoint { app, store },
            CatalogError::UnknownCheckpoint { app, id } => AgentError::UnknownCheckpoint { app, id, store },
            other => other.into(),
        }
    }

    /// The generation that this restore will be. A tree that is stopped elsewhere to be handed over as that generation stays
    /// stopped then.
    fn claim(&self, request: &RestoreRequest) -> Result<Claiming, AgentError> {
        let fence = Fence::new(Arc::clone(&self.store), request.app.clone());
        let runner = match (&request.handover, request.generation) {
            (Some(told), _) => told.runner.clone(),
            (None, Some(generation)) => Runner::here(generation),
            (None, None) => Runner::here(self.block_on(fence.newest())? + 1),
        };
        let runtime = self.runtime.handle().clone();
        Ok(Claiming { fence, runner, runtime, under_way: Mutex::default() })
    }

    /// Puts a complete set of CRIU images into `images`; gives the bytes fetched.
    fn fetch_everything(
        &self,
        checkpoint: &Checkpoint,
        images: &Path,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<u64, AgentError> {
        for file in self.block_on(checkpoint.bundle())? {
            // These page maps are made for a lazy restore.
            if !file.name.starts_with("pagemap-") {
                let path = images.join(&file.name);
                fs::write(&path, &file.content).map_err(AgentError::path("write", path))?;
            }
        }
        let directory = ImageDir::open(images)?;
        self.block_on(large_images(checkpoint, images))?;
        for object in &checkpoint.manifest().objects {
            let Some(page_object) = page_object(object.id) else { continue };
            directory.write_pagemap(page_object, object.pages_id, &complete_pagemap(object))?;
            let file = directory.create_pages(object.pages_id)?;
            let mut file = BufWriter::with_capacity(WRITE_BUFFER, file);
            let read = checkpoint.read_object(object.id, Pages::All, |_, bytes| {
                progress.add_bytes(bytes.len() as u64);
                file.write_all(bytes)
            });
            self.block_on(cancel.or_run(read))?;
            file.flush().map_err(AgentError::path("write", directory.pages_path(object.pages_id)))?;
        }
        Ok(checkpoint.fetched_bytes())
    }
}

/// The page map of a complete set of images: everything stored, and zero pages of areas that would otherwise show a file.
fn complete_pagemap(object: &MemoryMap) -> Vec<PagemapEntry> {
    let mut entries: Vec<PagemapEntry> = Vec::new();
    for run in object.runs.iter().filter(|run| Pages::All.include(object, run)) {
        match entries.last_mut() {
            Some(last) if last.vaddr + last.pages * PAGE_SIZE as u64 == run.start.get() => {
                last.pages += run.pages
            }
            _ => entries.push(PagemapEntry {
                vaddr: run.start.get(),
                pages: run.pages,
                lazy: false,
                present: true,
            }),
        }
    }
    entries
}

/// CRIU's name of a memory object; it knows nothing of files' contents.
fn page_object(id: ObjectId) -> Option<PageObject> {
    match id {
        ObjectId::Task(pid) => Some(PageObject::Task(pid)),
        ObjectId::Shared(id) => Some(PageObject::Shared(id)),
        ObjectId::File(_) => None,
    }
}

/// Whether the root's session leader is not part of the tree, as with a job of a shell.
fn session_is_outside(images: &Path) -> Result<bool, AgentError> {
    let tasks = ImageDir::open(images)?.tasks()?;
    Ok(tasks.first().is_some_and(|root| tasks.iter().all(|task| task.pid != root.session)))
}

/// Every pid of the tree must be free: CRIU gives each task its old one.
fn refuse_taken_pids(manifest: &Manifest) -> Result<(), AgentError> {
    let deadline = Instant::now() + COLLECT;
    for task in &manifest.tasks {
        while let Some(by) = tree::describe(task.pid) {
            let only_uncollected = !tree::is_alive(task.pid);
            if !only_uncollected || Instant::now() > deadline {
                return Err(AgentError::PidTaken { pid: task.pid, by });
            }
            // It may be a child of this very process.
            let _ = waitpid(Pid::from_raw(task.pid as i32), Some(WaitPidFlag::WNOHANG));
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Ends what a restore that failed has left, also one that failed after its tree had begun to run, and all that was forked there
/// since. If it is not certain that all of it was `built`, another restore may have been faster with a pid. Whether nothing is
/// left.
fn end_leftovers(manifest: &Manifest, built: bool) -> bool {
    let ours = std::process::id();
    let is_left = |task: &&Task| {
        let parent = tree::parent(task.pid);
        let name = tree::command(task.pid);
        let is_criu = |name: Option<String>| name.as_deref() == Some("criu");
        // A task that is not finished has CRIU's name; its CRIU was killed if that is not its parent any more.
        let orphaned = || is_criu(name.clone()) && !is_criu(parent.and_then(tree::command));
        parent == Some(ours) || orphaned() || built && name.as_deref() == Some(task.command.as_str())
    };
    let mut left: Vec<u32> = manifest.tasks.iter().filter(is_left).map(|task| task.pid).collect();
    // Stopped first, so that none forks away meanwhile.
    let mut seen = 0;
    while seen < left.len() {
        for pid in &left[seen..] {
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGSTOP);
        }
        seen = left.len();
        let below = |pid: &u32| tree::parent(*pid).is_some_and(|parent| left.contains(&parent));
        let found: Vec<u32> = tree::all_pids().filter(|pid| !left.contains(pid)).filter(below).collect();
        left.extend(found);
    }
    for pid in &left {
        let pid = Pid::from_raw(*pid as i32);
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
    let begun = Instant::now();
    while left.iter().any(|pid| tree::is_alive(*pid)) && begun.elapsed() < COLLECT {
        thread::sleep(Duration::from_millis(2));
    }
    for pid in &left {
        let _ = waitpid(Pid::from_raw(*pid as i32), Some(WaitPidFlag::WNOHANG));
    }
    !left.iter().any(|pid| tree::is_alive(*pid))
}

/// The page server of a restore that has not succeeded yet: it ends with that.
struct Unused(Option<PageServerProcess>);

impl Unused {
    /// Why pages could not be had, if that is why the restore failed.
    fn end(&mut self) -> Option<AgentError> {
        self.0.take().and_then(PageServerProcess::end_of_failed_restore)
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        // Whoever failed has said why.
        self.end();
    }
}

/// A generation being claimed while CRIU rebuilds the tree.
struct Claiming {
    fence: Fence,
    runner: Runner,
    runtime: tokio::runtime::Handle,
    under_way: Mutex<Option<JoinHandle<Result<Claim, AgentError>>>>,
}

impl Claiming {
    fn begin(&self) {
        let (fence, runner) = (self.fence.clone(), self.runner.clone());
        let claim = self.runtime.spawn(async move { fence.claim(&runner).await });
        *self.under_way.lock().unwrap_or_else(PoisonError::into_inner) = Some(claim);
    }

    /// Waits for the answer; the tree may run if this does not fail.
    fn granted(&self) -> Result<(), AgentError> {
        let claim = self.under_way.lock().unwrap_or_else(PoisonError::into_inner).take();
        let answer = claim.map(|claim| self.runtime.block_on(claim));
        match answer {
            Some(Ok(Ok(Claim::Ours))) => Ok(()),
            Some(Ok(Ok(Claim::Theirs(Runner { host, generation, .. })))) => {
                Err(AgentError::RunsElsewhere { host, generation })
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) | None => Err(AgentError::NoCommit),
        }
    }

    /// The tree runs.
    fn ran(&self) {
        if let Err(error) = self.runtime.block_on(self.fence.ran(self.runner.generation)) {
            let generation = self.runner.generation;
            tracing::error!(generation, %error, "the source keeps the stopped tree: it does not know that this one runs");
        }
    }

    /// Nothing of the tree runs, nor will.
    fn end(&self) {
        // One that is still on its way could be granted after it was said that it is over.
        let _ = self.granted();
        if let Err(error) = self.runtime.block_on(self.fence.end_if_ours(&self.runner)) {
            let generation = self.runner.generation;
            tracing::error!(generation, %error, "the source does not know yet that nothing runs here");
        }
    }
}
