//! The checkpoint pipeline: a running tree becomes a committed checkpoint, or goes on running as if nothing had happened.
//!
//! Order of events, and what a crash of this process (or the machine's power) at each point leaves behind:
//!
//! | step | after a crash here |
//! |---|---|
//! | look at the tree, probe the store, load the previous checkpoint | tree runs, nothing written |
//! | CRIU freezes the tree and streams its pages to the sink thread | CRIU loses its peer and lets the tree go on; packs that no manifest names |
//! | pages are packed and uploaded while they arrive | the same |
//! | `post-dump`: tree still frozen, all images written; bundle and page hashes are put | the same |
//! | the manifest is put: **the commit** | tree runs on *and* the checkpoint is complete |
//! | CRIU is told to go on: it kills the tree, or resumes it | as asked for |
//!
//! So the tree is killed only after its checkpoint exists, and every failure before that leaves it running. Back-pressure
//! from the store reaches CRIU through its page socket: memory here stays bounded, and holding CRIU back costs nothing
//! because the tree has to stay frozen until its last page is durable anyway.

use std::{
    collections::HashMap,
    fs,
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criu_rpc::{
    Criu, CriuError, DumpOptions, ImageDir, Notification, PageObject, PageStream, PageStreamError, Record,
    Version, images::PagemapEntry,
};
use lazy_pages::{
    catalog::Catalog,
    format::{ExternalStream, Manifest, ObjectId, Task, Vma, bundle},
    ids::{AppId, CheckpointId},
    units::{PAGE_SIZE, VirtAddr},
    writer::{CheckpointMeta, CheckpointWriter, Parent, SealedPages, WriterOptions},
};
use serde::Serialize;

use crate::{
    agent::Agent,
    error::AgentError,
    host,
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
    /// How long the tree did not run, in milliseconds, by CRIU's clock.
    pub frozen_ms: f64,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Pages by what became of them.
    pub pages: PageCounts,
    /// Sizes.
    pub bytes: ByteCounts,
    /// What the tree is doing now: `running` or `killed`.
    pub left: &'static str,
}

/// Pages of 4 KiB.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PageCounts {
    /// All that CRIU found in memory.
    pub total: u64,
    /// Zero ones, of which nothing is stored.
    pub zero: u64,
    /// Those found in the previous checkpoint.
    pub unchanged: u64,
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
        let started = Instant::now();
        progress.enter(Stage::Preparing);
        let criu = self.criu()?;
        let tree = Tree::of(request.pid)?;
        tree.refuse_while_lazy()?;
        let version = criu.version()?;
        self.block_on(self.store.probe())?;
        let work = WorkDir::create(self.work_parent.as_deref())?;
        let parent = self.block_on(self.parent(&request.app))?;
        let dump = Dump { agent: self, criu: &criu, version, request, tree: &tree, work: &work, progress };
        let manifest = dump.run(parent.clone());
        if let Some(parent) = &parent
            && let Err(error) = self.block_on(parent.lease().release())
        {
            tracing::warn!(%error, "the lease on the previous checkpoint stays until it expires");
        }
        let manifest = manifest?;
        let statistics = manifest.statistics;
        Ok(CheckpointReport {
            checkpoint: manifest.id.to_string(),
            app: request.app.to_string(),
            parent: manifest.parent.map(|id| id.to_string()),
            frozen_ms: frozen_time(&work.images())?.as_secs_f64() * 1e3,
            total_ms: started.elapsed().as_secs_f64() * 1e3,
            pages: PageCounts {
                total: statistics.pages_total,
                zero: statistics.pages_zero,
                unchanged: statistics.pages_unchanged,
                stored: statistics.pages_stored,
            },
            bytes: ByteCounts { memory: progress.now().1, uploaded: statistics.bytes_uploaded },
            left: if request.leave_running { "running" } else { "killed" },
        })
    }

    /// The newest checkpoint of the application to compare with; `None` if there is none or it cannot be compared with,
    /// which makes this checkpoint a full one.
    async fn parent(&self, app: &AppId) -> Result<Option<Arc<Parent>>, AgentError> {
        let Some(id) = Catalog::new(Arc::clone(&self.store)).list(app).await?.first().copied() else {
            return Ok(None);
        };
        match Parent::load(Arc::clone(&self.store), app, id).await {
            Ok(parent) => Ok(Some(parent)),
            Err(error) => {
                tracing::warn!(checkpoint = %id, %error, "writing a full checkpoint: the last one cannot be compared with");
                Ok(None)
            }
        }
    }
}

/// One dump, from the freeze to the commit.
struct Dump<'a> {
    agent: &'a Agent,
    criu: &'a Criu,
    version: Version,
    request: &'a CheckpointRequest,
    tree: &'a Tree,
    work: &'a WorkDir,
    progress: &'a Progress,
}

impl Dump<'_> {
    fn run(&self, parent: Option<Arc<Parent>>) -> Result<Manifest, AgentError> {
        let agent = self.agent;
        let writer = CheckpointWriter::begin(
            Arc::clone(&agent.store),
            agent.runtime.handle().clone(),
            self.request.app.clone(),
            CheckpointId::new(),
            parent,
            WriterOptions::default(),
        )?;
        let streams = self.tree.external_streams();
        let (ours, theirs) = UnixStream::pair().map_err(AgentError::io("cannot make a socket pair"))?;
        let options = self.options(theirs, &streams);
        thread::scope(|scope| {
            let (version, progress) = (self.version, self.progress);
            let sink = thread::Builder::new()
                .name("page-sink".to_owned())
                .spawn_scoped(scope, move || receive_pages(ours, version, writer, progress))
                .map_err(AgentError::io("cannot start a thread"))?;
            let mut sink = Some(sink);
            let mut committed = None;
            progress.enter(Stage::Dumping);
            let dumped = self.criu.dump(options, &mut |notification| {
                if matches!(notification, Notification::PostDump) {
                    let received = sink.take().map_or(Err(AgentError::NoCommit), join)?;
                    progress.enter(Stage::Committing);
                    committed = Some(self.commit(received, &streams)?);
                }
                Ok(())
            });
            match (dumped, committed) {
                (Ok(()), Some(manifest)) => Ok(manifest),
                (Ok(()), None) => Err(AgentError::NoCommit),
                (Err(error), Some(manifest)) => {
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

    fn options(&self, page_server: UnixStream, streams: &[ExternalStream]) -> DumpOptions {
        widen(&page_server);
        let options = DumpOptions::new(self.request.pid, &self.work.images())
            .page_server(page_server)
            .leave_running(self.request.leave_running)
            .tcp_established(self.request.tcp_established)
            .shell_job(self.tree.session_is_outside())
            .file_locks(true)
            .link_remap(true);
        let terminals = streams.iter().filter(|stream| stream.key.starts_with("tty["));
        terminals.fold(options, |options, terminal| options.external(terminal.key.clone()))
    }

    /// Called while the tree is frozen and all images are written. Returns when the checkpoint exists.
    fn commit(&self, received: ReceivedPages, streams: &[ExternalStream]) -> Result<Manifest, AgentError> {
        let images = DumpedImages::read(&self.work.images(), &received.entries)?;
        let meta = CheckpointMeta {
            vmas: images.vmas,
            tasks: images.tasks,
            host: host::facts(self.version),
            streams: streams.to_vec(),
            bundle: images.bundle,
        };
        Ok(self.agent.block_on(received.pages.commit(meta))?)
    }
}

/// What the sink has when CRIU has sent its last page.
struct ReceivedPages {
    pages: SealedPages,
    entries: HashMap<PageObject, (u32, Vec<PagemapEntry>)>,
}

/// Gives CRIU's end of the page socket a larger buffer, so that it and the sink seldom wait for each other. A kernel that
/// grants less only costs some speed.
fn widen(socket: &UnixStream) {
    const BUFFER: usize = 4 << 20;
    if nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::SndBuf, &BUFFER);
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T, AgentError>>) -> Result<T, AgentError> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Takes CRIU's page stream into the writer, at memory speed. When it fails it returns, which closes the socket: CRIU
/// then gives up the dump and lets the tree go on.
fn receive_pages(
    socket: UnixStream,
    version: Version,
    mut writer: CheckpointWriter,
    progress: &Progress,
) -> Result<ReceivedPages, AgentError> {
    let mut stream = PageStream::new(socket, version);
    let mut entries: HashMap<PageObject, (u32, Vec<PagemapEntry>)> = HashMap::new();
    let mut current = None;
    // Numbers of pages files are free to choose as long as they differ.
    let mut pages_id = 0;
    loop {
        match stream.next()? {
            Record::Open(object) => {
                pages_id += 1;
                writer.open(object_id(object), pages_id)?;
                current = Some(object);
                entries.insert(object, (pages_id, Vec::new()));
            }
            Record::Pages { vaddr, pages, lazy } => {
                let mut address = VirtAddr::containing(vaddr);
                let mut left = pages;
                while left > 0 {
                    let buffer = writer.buffer(lazy, address, left)?;
                    let filled = (buffer.len() / PAGE_SIZE) as u64;
                    stream.read_pages(buffer)?;
                    writer.filled()?;
                    address = address.add(filled);
                    left -= filled;
                    progress.add_bytes(filled * PAGE_SIZE as u64);
                }
                if let Some((_, known)) = current.and_then(|object| entries.get_mut(&object)) {
                    note(known, PagemapEntry { vaddr, pages, lazy, present: !lazy });
                }
            }
            Record::End => return Err(AgentError::NoCommit),
            Record::Close => {
                // This only ends the transfer: the dump is committed or given up in answer to `post-dump`.
                stream.finish(0)?;
                let pages = writer.finish_pages()?;
                return Ok(ReceivedPages { pages, entries });
            }
        }
    }
}

/// Adds an entry, joined to the previous one where they touch.
fn note(entries: &mut Vec<PagemapEntry>, next: PagemapEntry) {
    if let Some(last) = entries.last_mut()
        && last.lazy == next.lazy
        && last.vaddr + last.pages * PAGE_SIZE as u64 == next.vaddr
    {
        last.pages += next.pages;
        return;
    }
    entries.push(next);
}

/// What CRIU wrote beside the pages, read while the tree is frozen.
struct DumpedImages {
    tasks: Vec<Task>,
    vmas: HashMap<ObjectId, Vec<Vma>>,
    bundle: Bytes,
}

impl DumpedImages {
    /// Reads the images and completes them with the page maps of a lazy restore: CRIU leaves those to its page server.
    fn read(
        path: &Path,
        entries: &HashMap<PageObject, (u32, Vec<PagemapEntry>)>,
    ) -> Result<Self, AgentError> {
        let directory = ImageDir::open(path)?;
        let mut tasks = Vec::new();
        let mut vmas = HashMap::new();
        for task in directory.tasks()? {
            if !task.dead {
                let mm = directory.mm(task.pid)?;
                let lazy = mm.vmas.iter().filter(|vma| vma.is_lazy()).map(|vma| Vma {
                    start: VirtAddr::containing(vma.start),
                    end: VirtAddr::containing(vma.end),
                    wipe_on_fork: vma.wipe_on_fork(),
                    dont_fork: vma.dont_fork(),
                    grows_down: vma.grows_down(),
                });
                vmas.insert(ObjectId::Task(task.pid), lazy.collect());
            }
            tasks.push(Task {
                pid: task.pid,
                parent_pid: task.parent.unwrap_or(0),
                threads: task.threads.len() as u32,
                dead: task.dead,
                command: task.command,
            });
        }
        for (object, (pages_id, entries)) in entries {
            agree(*object, entries, vmas.get(&object_id(*object)).map_or(&[], Vec::as_slice))?;
            directory.write_pagemap(*object, *pages_id, entries)?;
        }
        let files = fs::read_dir(path).map_err(AgentError::path("read", path))?;
        let mut archive = Vec::new();
        for file in files.flatten() {
            let Ok(name) = file.file_name().into_string() else { continue };
            // The pages of every object are in packs; statistics describe this dump, not the process.
            if !name.ends_with(".img") {
                continue;
            }
            let content = fs::read(file.path()).map_err(AgentError::path("read", file.path()))?;
            archive.push(bundle::File { name, content: content.into() });
        }
        Ok(Self { tasks, vmas, bundle: bundle::pack(archive)? })
    }
}

/// CRIU decides twice what is lazy: when it dumps a page, and when it restores the area. A page dumped as lazy outside every
/// such area, or the reverse, would come back as zeros; that no dump of such a kind is ever committed is checked here.
fn agree(object: PageObject, entries: &[PagemapEntry], vmas: &[Vma]) -> Result<(), AgentError> {
    for entry in entries {
        let (start, end) = (entry.vaddr, entry.vaddr + entry.pages * PAGE_SIZE as u64);
        let first = vmas.partition_point(|vma| vma.end.get() <= start);
        let mut covered = start;
        for vma in vmas[first..].iter().take_while(|vma| vma.start.get() < end) {
            if vma.start.get() > covered || !entry.lazy {
                break;
            }
            covered = vma.end.get();
        }
        let touched = vmas.get(first).is_some_and(|vma| vma.start.get() < end);
        if (entry.lazy && covered < end) || (!entry.lazy && touched) {
            return Err(AgentError::LazyDisagreement { object: format!("{object:?}"), address: start });
        }
    }
    Ok(())
}

fn object_id(object: PageObject) -> ObjectId {
    match object {
        PageObject::Task(pid) => ObjectId::Task(pid),
        PageObject::Shared(id) => ObjectId::Shared(id),
    }
}

/// How long the tree did not run, by CRIU's clock: from the first task stopped until the last one ended or resumed.
fn frozen_time(images: &Path) -> Result<Duration, AgentError> {
    let statistics = ImageDir::open(images).and_then(|directory| directory.dump_statistics());
    let statistics = statistics?;
    Ok(statistics.freezing + statistics.frozen)
}

/// The reason our own handler gave, if it was the handler that stopped CRIU.
fn unwrap_handler(error: CriuError) -> AgentError {
    match error {
        CriuError::Handler(cause) => match cause.downcast::<AgentError>() {
            Ok(cause) => *cause,
            Err(cause) => CriuError::Handler(cause).into(),
        },
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    fn vma(start: u64, end: u64) -> Vma {
        Vma {
            start: VirtAddr::of_page(start),
            end: VirtAddr::of_page(end),
            wipe_on_fork: false,
            dont_fork: false,
            grows_down: false,
        }
    }

    fn agrees(page: u64, pages: u64, lazy: bool) -> bool {
        let entry = PagemapEntry { vaddr: page * PAGE, pages, lazy, present: !lazy };
        agree(PageObject::Task(1), &[entry], &[vma(10, 20), vma(20, 30), vma(40, 50)]).is_ok()
    }

    #[test]
    fn a_lazy_page_must_lie_in_a_lazy_area_and_an_eager_one_outside() {
        assert!(agrees(10, 10, true));
        assert!(agrees(15, 10, true), "across two areas that touch");
        assert!(!agrees(9, 2, true));
        assert!(!agrees(29, 2, true));
        assert!(!agrees(29, 12, true), "across a gap");
        assert!(agrees(30, 10, false));
        assert!(!agrees(30, 11, false));
        assert!(!agrees(12, 1, false));
        assert!(agrees(60, 1, false));
        assert!(!agrees(60, 1, true));
    }

    #[test]
    fn entries_that_touch_are_joined_only_if_both_are_lazy_or_both_are_not() {
        let entry = |page, pages, lazy| PagemapEntry { vaddr: page * PAGE, pages, lazy, present: !lazy };
        let mut known = Vec::new();
        for next in [entry(1, 2, true), entry(3, 1, true), entry(4, 1, false), entry(6, 1, false)] {
            note(&mut known, next);
        }
        assert_eq!(known, [entry(1, 3, true), entry(4, 1, false), entry(6, 1, false)]);
    }
}
