//! The checkpoint pipeline: a running tree becomes a committed checkpoint, or goes on running as if nothing had happened.
//!
//! Order of events, and what a crash of this process (or the machine's power) at each point leaves behind:
//!
//! | step | after a crash here |
//! |---|---|
//! | look at the tree, probe the store, load the previous checkpoint | tree runs, nothing written |
//! | CRIU freezes the tree and streams its pages to the sink thread | CRIU loses its peer and lets the tree go on; packs that no manifest names |
//! | pages are packed and uploaded while they arrive | the same |
//! | `post-dump`: tree still frozen, all images written; files are read | the same |
//! | bundle and page hashes are put | the same |
//! | the manifest is put: **the commit** | tree runs on *and* the checkpoint is complete |
//! | CRIU is told to go on: it kills the tree, or resumes it | as asked for |
//!
//! A tree that is still being restored lazily is dumped as it is: its missing pages are taken over from the checkpoint it
//! is being restored from, which is the parent then; the source of the module `arriving` tells why none is lost.
//!
//! A checkpoint that would build on more than [`CheckpointRequest::max_chain_depth`] others is made as if there were none:
//! it has no parent and uploads everything. While pages of the tree still arrive that is impossible, for they are nowhere
//! but in the parent; such a checkpoint is made longer than the limit, and the first one after the last page is full.
//!
//! Files are read at `post-dump`, when nothing of the tree can write to them; the source of the module `files` has the rules.
//!
//! So the tree is killed only after its checkpoint exists, and every failure before that leaves it running. Back-pressure
//! from the store reaches CRIU through its page socket: memory here stays bounded, and holding CRIU back costs nothing
//! because the tree has to stay frozen until its last page is durable anyway.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{Criu, CriuError, DumpOptions, ImageDir, Notification, PageStreamError, Version};
use lazy_pages::{
    catalog::Catalog,
    format::{ExternalStream, Manifest},
    ids::{AppId, CheckpointId},
    record::TakenRecord,
    writer::{CheckpointMeta, CheckpointWriter, Parent, WriterOptions},
};
use serde::Serialize;

use crate::{
    agent::Agent,
    arriving::Look,
    cancel::Cancel,
    container,
    dumped_images::DumpedImages,
    error::AgentError,
    files::{self, Captured, FileCounts, FileRules, FilesError},
    hook::{Hook, HookEvent, HookFacts},
    host,
    launcher::Leaving,
    page_sink::{Received, receive_pages, widen},
    progress::{Progress, Stage},
    tree::Tree,
    workdir::WorkDir,
};

/// What to checkpoint, and how.
#[derive(Debug, Clone)]
pub struct CheckpointRequest {
    /// Whose checkpoint it will be.
    pub app: AppId,
    /// Root of the tree.
    pub pid: u32,
    /// Let the tree go on afterwards instead of ending it.
    pub leave_running: bool,
    /// Carry established TCP connections; they can be restored only where their local address exists.
    pub tcp_established: bool,
    /// Leave established TCP connections behind: the restored process finds them closed, as if the other end had gone. For a
    /// process that moves to another address. It is for whoever can connect again.
    pub tcp_close: bool,
    /// Control directory of the launcher in front of the tree, if there is one.
    pub launcher: Option<PathBuf>,
    /// The id it will have, for whoever must know it before the commit; a new one if `None`.
    pub id: Option<CheckpointId>,
    /// Called before the tree is frozen; and once more if that does not lead to a checkpoint.
    pub before_freeze: Option<Hook>,
    /// Gives it up, until its manifest is put; the tree goes on then.
    pub cancel: Cancel,
    /// How many checkpoints this one may build on, one on the other; where it would be more, a full one is made. See
    /// [`DEFAULT_MAX_CHAIN_DEPTH`].
    pub max_chain_depth: u32,
    /// Which files travel with it.
    pub files: FileRules,
}

/// A checkpoint refers to packs of this many earlier ones at most, unless told otherwise.
pub const DEFAULT_MAX_CHAIN_DEPTH: u32 = 10;

impl CheckpointRequest {
    /// A checkpoint after which the tree has ended.
    pub fn new(app: AppId, pid: u32) -> Self {
        Self {
            app,
            pid,
            leave_running: false,
            tcp_established: false,
            tcp_close: false,
            launcher: None,
            id: None,
            before_freeze: None,
            cancel: Cancel::default(),
            max_chain_depth: DEFAULT_MAX_CHAIN_DEPTH,
            files: FileRules::default(),
        }
    }
}

/// What a committed checkpoint cost and holds.
#[derive(Debug, Clone, Serialize)]
pub struct CheckpointReport {
    /// Its id.
    pub checkpoint: String,
    /// The application.
    pub app: String,
    /// The checkpoint it was compared with.
    pub parent: Option<String>,
    /// How many checkpoints it builds on, one on the other; 0 for a full one.
    pub depth: u32,
    /// How long the tree did not run, in milliseconds, by CRIU's clock.
    pub frozen_ms: f64,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Pages by what became of them.
    pub pages: PageCounts,
    /// Sizes.
    pub bytes: ByteCounts,
    /// Files that travel with it.
    pub files: FileCounts,
    /// What the tree is doing now: `running` or `killed`.
    pub left: &'static str,
}

/// Pages of 4 KiB.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PageCounts {
    /// All that CRIU found in memory, those that were still on their way into it, and those of files that were read.
    pub total: u64,
    /// Zero ones, of which nothing is stored.
    pub zero: u64,
    /// Those found in the previous checkpoint, and those that were still on their way.
    pub unchanged: u64,
    /// Those that had not arrived when the tree was frozen, because it was still being restored lazily: taken over, unread,
    /// from the checkpoint it was being restored from.
    pub pending: u64,
    /// Those stored now.
    pub stored: u64,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ByteCounts {
    /// Memory CRIU read from the tree.
    pub memory: u64,
    /// Sent to the store.
    pub uploaded: u64,
}

impl Agent {
    /// Takes a checkpoint of a tree and ends it, or lets it go on if asked to.
    ///
    /// # Errors
    /// Any; the tree then runs on, and no checkpoint exists. The one exception is [`AgentError::AfterCommit`]: when CRIU
    /// itself fails after the commit, the checkpoint is complete whatever became of the tree.
    pub fn checkpoint(
        &self,
        request: &CheckpointRequest,
        progress: &Progress,
    ) -> Result<CheckpointReport, AgentError> {
        self.take(request, progress).map_err(|error| match request.cancel.is_cancelled() {
            // What broke off because of that says less.
            true => AgentError::Cancelled,
            false => error,
        })
    }

    fn take(&self, request: &CheckpointRequest, progress: &Progress) -> Result<CheckpointReport, AgentError> {
        let started = Instant::now();
        progress.enter(Stage::Preparing);
        let criu = self.criu()?;
        let tree = Tree::of(request.pid)?;
        let look = Look::at(&tree, &request.app)?;
        let view = files::view_of(request.launcher.is_some(), request.pid)?;
        let found = files::find(&tree, &request.files, &view)?;
        found.within(request.files.limit)?;
        let version = criu.version()?;
        self.block_on(request.cancel.or_run(self.store.probe()))?;
        let work = WorkDir::create(self.work_parent.as_deref())?;
        if found.deleted_bytes() > work.room()? {
            return Err(FilesError::NoRoom { needed: found.deleted_bytes(), room: work.room()? }.into());
        }
        let parent = match look.served() {
            Some(served) => Some(self.block_on(request.cancel.or_run(self.served(&request.app, served)))?),
            None => {
                let parent = self.parent(&request.app, request.max_chain_depth);
                self.block_on(request.cancel.or_run(parent))?
            }
        };
        let id = request.id.unwrap_or_else(CheckpointId::new);
        let dump = Dump {
            agent: self,
            id,
            criu: &criu,
            version,
            request,
            tree: &tree,
            look: &look,
            work: &work,
            progress,
        };
        let (committed, dumped) = self.prepared(request, id, || {
            let dumping = Instant::now();
            (dump.run(parent.clone()), dumping.elapsed())
        });
        let over = Instant::now();
        if let Some(parent) = &parent
            && let Err(error) = self.block_on(parent.lease().release())
        {
            tracing::warn!(%error, "the lease on the previous checkpoint stays until it expires");
        }
        let Committed { manifest, pending, files } = committed?;
        // The checkpoint exists now, whatever CRIU says of its own time: then the whole dump is the bound.
        let frozen = frozen_time(&work.images()).unwrap_or_else(|error| {
            tracing::warn!(%error, "how long the tree was frozen is not known exactly");
            dumped
        });
        let statistics = manifest.statistics;
        let report = CheckpointReport {
            checkpoint: manifest.id.to_string(),
            app: request.app.to_string(),
            parent: manifest.parent.map(|id| id.to_string()),
            depth: manifest.depth,
            frozen_ms: frozen.as_secs_f64() * 1e3,
            total_ms: started.elapsed().as_secs_f64() * 1e3,
            pages: PageCounts {
                total: statistics.pages_total,
                zero: statistics.pages_zero,
                unchanged: statistics.pages_unchanged,
                pending,
                stored: statistics.pages_stored,
            },
            bytes: ByteCounts { memory: progress.now().1, uploaded: statistics.bytes_uploaded },
            files,
            left: if request.leave_running { "running" } else { "killed" },
        };
        let facts = TakenRecord {
            frozen_us: (report.frozen_ms * 1e3) as u64,
            upload_us: statistics.elapsed_ms * 1000,
            left_running: request.leave_running,
            memory_bytes: report.bytes.memory,
            uploaded_bytes: report.bytes.uploaded,
            pending_pages: report.pages.pending,
            ..TakenRecord::default()
        };
        self.keep_taken(&request.app, manifest.id, facts, progress, (started, over));
        Ok(report)
    }

    /// Runs `dump` between the hooks: one before it, and one if nothing comes of it.
    fn prepared(
        &self,
        request: &CheckpointRequest,
        checkpoint: CheckpointId,
        dump: impl FnOnce() -> (Result<Committed, AgentError>, Duration),
    ) -> (Result<Committed, AgentError>, Duration) {
        let Some(hook) = &request.before_freeze else { return dump() };
        let facts = |event| HookFacts { event, app: &request.app, pid: request.pid, checkpoint };
        let (committed, dumped) = match self.call(hook, &facts(HookEvent::BeforeFreeze), &request.cancel) {
            Ok(()) => dump(),
            Err(error) => (Err(error), Duration::ZERO),
        };
        let failed = matches!(&committed, Err(error) if !matches!(error, AgentError::AfterCommit { .. }));
        if failed && let Err(error) = self.call(hook, &facts(HookEvent::NotFrozen), &Cancel::default()) {
            tracing::warn!(%error, "what was prepared for the freeze may not have been undone");
        }
        (committed, dumped)
    }

    /// The checkpoint that pages of the tree still arrive from. Without it there is no new one.
    async fn served(&self, app: &AppId, id: CheckpointId) -> Result<Arc<Parent>, AgentError> {
        let parent = Parent::load(Arc::clone(&self.store), app, id).await;
        parent.map_err(|source| AgentError::Served {
            checkpoint: id,
            store: self.store.describe(),
            source: Box::new(source),
        })
    }

    /// The newest checkpoint of the application to compare with; `None` if there is none, it cannot be compared with, or
    /// the chain would become longer than `max_depth`, which makes this checkpoint a full one.
    pub(crate) async fn parent(
        &self,
        app: &AppId,
        max_depth: u32,
    ) -> Result<Option<Arc<Parent>>, AgentError> {
        let Some(id) = Catalog::new(Arc::clone(&self.store)).list(app).await?.first().copied() else {
            return Ok(None);
        };
        match Parent::load(Arc::clone(&self.store), app, id).await {
            Ok(parent) if parent.manifest().depth < max_depth => Ok(Some(parent)),
            Ok(parent) => {
                let depth = parent.manifest().depth;
                tracing::info!(checkpoint = %id, depth, "writing a full checkpoint: the last one is the end of its chain");
                if let Err(error) = parent.lease().release().await {
                    tracing::warn!(%error, "the lease on the previous checkpoint stays until it expires");
                }
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(checkpoint = %id, %error, "writing a full checkpoint: the last one cannot be compared with");
                Ok(None)
            }
        }
    }
}

/// Bytes up to which CRIU takes a deleted file into its images unless told otherwise.
const GHOST_LIMIT: u64 = 1 << 20;

/// A checkpoint that exists.
struct Committed {
    manifest: Manifest,
    /// Pages taken over because they had not arrived.
    pending: u64,
    files: FileCounts,
}

/// One dump, from the freeze to the commit.
struct Dump<'a> {
    agent: &'a Agent,
    id: CheckpointId,
    criu: &'a Criu,
    version: Version,
    request: &'a CheckpointRequest,
    tree: &'a Tree,
    look: &'a Look<'a>,
    work: &'a WorkDir,
    progress: &'a Progress,
}

impl Dump<'_> {
    fn run(&self, parent: Option<Arc<Parent>>) -> Result<Committed, AgentError> {
        let agent = self.agent;
        let writer = CheckpointWriter::begin(
            Arc::clone(&agent.store),
            agent.runtime.handle().clone(),
            self.request.app.clone(),
            self.id,
            parent.clone(),
            // Pages that have not arrived refer to the same frames as those that have.
            WriterOptions {
                compression: agent.compression,
                rewrite_sparse: self.look.served().is_none(),
                ..WriterOptions::default()
            },
        )?;
        let streams = self.tree.external_streams();
        let (ours, theirs) = UnixStream::pair().map_err(AgentError::io("cannot make a socket pair"))?;
        let open = self.give_up_when_cancelled(&ours, &writer)?;
        let options = self.options(theirs, &streams)?;
        let launcher = self.request.launcher.as_deref().filter(|_| !self.request.leave_running);
        let mut leaving = launcher.map(|launcher| Leaving::begin(launcher, self.request.pid)).transpose()?;
        thread::scope(|scope| {
            let (version, progress, look) = (self.version, self.progress, self.look);
            let sink = thread::Builder::new()
                .name("page-sink".to_owned())
                .spawn_scoped(scope, move || {
                    let received = receive_pages(ours, version, writer, progress, || look.pending());
                    drop(open);
                    received
                })
                .map_err(AgentError::io("cannot start a thread"))?;
            let mut sink = Some(sink);
            let mut committed = None;
            progress.enter(Stage::Dumping);
            let dumped = self.criu.dump(options, &mut |notification| {
                if committed.is_none() {
                    self.request.cancel.check()?;
                }
                if matches!(notification, Notification::PostDump) {
                    let received = sink.take().map_or(Err(AgentError::NoCommit), join)?;
                    progress.enter(Stage::Committing);
                    committed = Some(self.commit(received, &streams, parent.as_deref())?);
                    // Before CRIU ends the tree.
                    if let Some(leaving) = &mut leaving {
                        leaving.committed();
                    }
                }
                Ok(())
            });
            match (dumped, committed) {
                (Ok(()), Some(committed)) => Ok(committed),
                (Ok(()), None) => Err(AgentError::NoCommit),
                (Err(error), Some(Committed { manifest, .. })) => {
                    Err(AgentError::AfterCommit { checkpoint: manifest.id, reason: error.to_string() })
                }
                // A sink that failed has closed CRIU's socket; its reason says more than CRIU's broken pipe.
                (Err(error), None) => match sink.map(join) {
                    Some(Err(AgentError::PageStream(PageStreamError::ClosedEarly))) | Some(Ok(_)) | None => {
                        Err(unwrap_handler(error))
                    }
                    Some(Err(cause)) => Err(cause),
                },
            }
        })
    }

    /// Cancelling ends CRIU's page stream, whoever waits for it or for the store: CRIU gives up then. The stream stays open
    /// as long as what is returned, which has to be dropped when the sink has ended.
    fn give_up_when_cancelled(
        &self,
        stream: &UnixStream,
        writer: &CheckpointWriter,
    ) -> Result<Arc<UnixStream>, AgentError> {
        let stream = Arc::new(stream.try_clone().map_err(AgentError::io("cannot duplicate a socket"))?);
        let (open, writer) = (Arc::downgrade(&stream), writer.give_up());
        self.request.cancel.on_cancel(move || {
            writer.now();
            if let Some(stream) = open.upgrade() {
                // CRIU may have closed its end already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Ok(stream)
    }

    fn options(
        &self,
        page_server: UnixStream,
        streams: &[ExternalStream],
    ) -> Result<DumpOptions, AgentError> {
        widen(&page_server);
        let options = DumpOptions::new(self.request.pid, &self.work.images())
            .page_server(page_server)
            .leave_running(self.request.leave_running)
            .tcp_established(self.request.tcp_established)
            .tcp_close(self.request.tcp_close)
            .shell_job(self.tree.session_is_outside())
            .file_locks(true)
            .link_remap(true)
            .ghost_limit(self.request.files.limit.clamp(GHOST_LIMIT, u32::MAX.into()) as u32);
        // A container's namespaces are there where it is restored. Those a tree has made for itself are CRIU's to carry.
        let options = match self.request.launcher {
            Some(_) => options.place(container::place_of(self.request.pid)?),
            None => options,
        };
        // Only where packets have to be held back: to prepare the lock takes more of the kernel than not to have one.
        let options = match self.request.tcp_established {
            true => options.network_lock(host::network_lock()),
            false => options,
        };
        let terminals = streams.iter().filter(|stream| stream.key.starts_with("tty["));
        Ok(terminals.fold(options, |options, terminal| options.external(terminal.key.clone())))
    }

    /// Called while the tree is frozen and all images are written. Returns when the checkpoint exists.
    fn commit(
        &self,
        mut received: Received,
        streams: &[ExternalStream],
        parent: Option<&Parent>,
    ) -> Result<Committed, AgentError> {
        let rules = &self.request.files;
        // As it is now, with every task that was started since.
        let view = files::view_of(self.request.launcher.is_some(), self.request.pid)?;
        let found = files::find(&Tree::of(self.request.pid)?, rules, &view)?;
        let parent = parent.map(Parent::manifest);
        let images = self.work.images();
        let files = Captured::read(&mut received.writer, found, &images, parent, (&view, rules.limit))?;
        let mut received = received.seal()?;
        files.take_over(&mut received.pages)?;
        let pending = received.taken_pages();
        let counts = files.counts;
        let images = DumpedImages::read(&self.work.images(), &received.entries, &received.taken)?;
        let meta = CheckpointMeta {
            vmas: images.vmas,
            tasks: images.tasks,
            host: host::facts(self.version),
            streams: streams.to_vec(),
            bundle: images.bundle,
            files: files.files,
            large_images: files.large_images,
        };
        let cancel = &self.request.cancel;
        let commit = received.pages.commit_if(meta, || cancel.pass());
        let manifest = self.agent.block_on(cancel.or_run(commit))?;
        self.progress.leave();
        Ok(Committed { manifest, pending, files: counts })
    }
}

/// How long the tree did not run, by CRIU's clock: from the first task stopped until the last one ended or resumed.
fn frozen_time(images: &Path) -> Result<Duration, AgentError> {
    let statistics = ImageDir::open(images).and_then(|directory| directory.dump_statistics());
    let statistics = statistics?;
    Ok(statistics.freezing + statistics.frozen)
}

/// The reason our own handler gave, if it was the handler that stopped CRIU.
pub(crate) fn unwrap_handler(error: CriuError) -> AgentError {
    match error {
        CriuError::Handler(cause) => match cause.downcast::<AgentError>() {
            Ok(cause) => *cause,
            Err(cause) => CriuError::Handler(cause).into(),
        },
        error => error.into(),
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T, AgentError>>) -> Result<T, AgentError> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
