//! The source's side: stopping the tree, giving its pages away, and then ending it or taking it back.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criu_rpc::{DumpOptions, Notification};
use lazy_pages::{
    catalog::{Catalog, CatalogError},
    format::{MAX_MANIFEST, Manifest, ObjectId, Source, Vma, keys},
    handover::Piece,
    ids::{AppId, CheckpointId, PackId},
    record::TakenRecord,
    store::ObjectStore,
    units::PAGE_SIZE,
    writer::{CheckpointMeta, CheckpointWriter, WriterOptions},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    describe::{describe, shared},
    memory::{Content, StoppedMemory},
    saved::{Saved, StoppedTask},
    standstill::Standstill,
};
use crate::{
    agent::Agent,
    arriving::Look,
    cancel::Cancel,
    checkpoint::DEFAULT_MAX_CHAIN_DEPTH,
    container,
    error::AgentError,
    fence::{Claim, Fence, Runner},
    files::{self, FileRules, Listed},
    launcher::{Fate, Leaving},
    progress::{Progress, Stage},
    tree::{self, Tree},
    workdir::parent_directory,
};

/// What ends, ends within this time; see [`Handover::end`].
const END: Duration = Duration::from_secs(10);

/// A target that has asked for pages within this time will ask for more.
const ASKED_LATELY: Duration = Duration::from_millis(100);

/// A checkpoint of a stopped tree waits that long for its target between two pieces of memory, at most.
const LONGEST_BREAK: Duration = Duration::from_millis(20);

/// Which tree to hand over.
#[derive(Clone, Debug)]
pub struct HandoverRequest {
    /// Whose it is.
    pub app: AppId,
    /// Root of the tree.
    pub pid: u32,
    /// The handover's name; a new one if it is not given.
    pub id: Option<CheckpointId>,
    /// Control directory of the launcher in front of the tree, if there is one.
    pub launcher: Option<PathBuf>,
    /// A checkpoint will be made of the stopped tree.
    pub upload: bool,
    /// Which files travel with it.
    pub files: FileRules,
    /// Leave established TCP connections behind. At the source they last until the stopped tree is ended.
    pub tcp_close: bool,
    /// Gives it up, until the tree may be run elsewhere; it runs on then.
    pub cancel: Cancel,
}

impl HandoverRequest {
    /// A new handover, of which no checkpoint is made.
    pub fn new(app: AppId, pid: u32) -> Self {
        let (files, cancel) = (FileRules::default(), Cancel::default());
        Self { app, pid, id: None, launcher: None, upload: false, files, tcp_close: false, cancel }
    }
}

/// A tree that is stopped to be handed over. Dropping it changes nothing: the tree stays stopped, and
/// [`Agent::handovers`] finds it again.
#[derive(Debug)]
pub struct Handover {
    store: Arc<dyn ObjectStore>,
    runtime: tokio::runtime::Handle,
    app: AppId,
    id: CheckpointId,
    directory: PathBuf,
    manifest: Manifest,
    memory: StoppedMemory,
    standstill: Standstill,
    saved: Saved,
    /// From the freeze until it was stopped.
    stopped_in: Option<Duration>,
    uploaded: AtomicBool,
    /// Locked for writing to end the time in which the tree is stopped; `false` afterwards.
    stopped: RwLock<bool>,
    /// When the target last asked for pages.
    asked: Mutex<Option<Instant>>,
}

impl Agent {
    /// Stops a tree and describes it in the store. When this returns, another machine may claim the handover's generation and
    /// run it.
    ///
    /// # Errors
    /// Any; the tree then runs on. Only if the store cannot be asked whether it may does it stay stopped;
    /// [`Self::handovers`] takes it back later. [`AgentError::StillArriving`] when pages of the tree are missing because it is being
    /// restored itself: it can only be checkpointed.
    pub fn hand_over(&self, request: &HandoverRequest, progress: &Progress) -> Result<Handover, AgentError> {
        let started = Instant::now();
        progress.enter(Stage::Preparing);
        let HandoverRequest { app, pid, launcher, upload, files: rules, cancel, .. } = request;
        let criu = self.criu()?;
        let tree = Tree::of(*pid)?;
        let look = Look::at(&tree, app)?;
        if look.served().is_some() {
            return Err(AgentError::StillArriving { pid: *pid });
        }
        let view = files::view_of(launcher.is_some(), *pid)?;
        files::find(&tree, rules, &view)?.within(rules.limit)?;
        let version = criu.version()?;
        let fence = Fence::new(Arc::clone(&self.store), app.clone());
        let (probe, newest) = self.block_on(async { tokio::join!(self.store.probe(), fence.newest()) });
        probe?;
        let id = request.id.unwrap_or_else(CheckpointId::new);
        let about = (*upload, launcher.clone());
        let mut saved = Saved::new(app, id, &tree, Runner::here(newest? + 1), about);
        let directory = Saved::directory(&parent_directory(self.work_parent.as_deref())?, id);
        saved.create(&directory).map_err(AgentError::path("write", &directory))?;

        let (images, pages) = (directory.join("images"), directory.join("pages"));
        let streams = tree.external_streams();
        let options = DumpOptions::new(*pid, &images)
            .memory_stays()
            .tcp_close(request.tcp_close)
            .shell_job(tree.session_is_outside())
            .file_locks(true)
            .link_remap(true);
        let options = match launcher {
            Some(_) => options.place(container::place_of(*pid)?),
            None => options,
        };
        let terminals = streams.iter().filter(|stream| stream.key.starts_with("tty["));
        let options = terminals.fold(options, |options, terminal| options.external(terminal.key.clone()));
        let leaving = launcher.as_deref().map(|launcher| Leaving::begin(launcher, *pid)).transpose();
        let leaving = leaving.inspect_err(|_| forget(&directory))?;
        let mut described = None;
        let mut frozen = Instant::now();
        progress.enter(Stage::Dumping);
        let dumped = criu.dump(options, &mut |notification| {
            cancel.check()?;
            if matches!(notification, Notification::PreDump) {
                frozen = Instant::now();
            }
            if matches!(notification, Notification::PostDump) {
                progress.enter(Stage::Committing);
                // That nothing is missing which a page server still had is only known now.
                look.pending()?;
                let tree = Tree::of(*pid)?;
                let found = files::find(&tree, rules, &view)?;
                saved.frozen(&tree);
                saved.write(&directory).map_err(AgentError::path("write", &directory))?;
                let list = || Listed::of(found, &images, (&view, rules.limit));
                let (manifest, bundle, _) =
                    describe((app, id), (&images, &pages), version, streams.clone(), list)?;
                let memory = memory_of(&manifest, &saved, &directory)
                    .map_err(AgentError::io("cannot read the memory of the stopped tree"))?;
                self.block_on(put(&*self.store, &manifest, bundle))?;
                // From here on CRIU stops the tree whatever is said.
                if !cancel.pass() {
                    return Err(AgentError::Cancelled.into());
                }
                described = Some((manifest, memory));
            }
            Ok(())
        });
        let (manifest, memory) = match (dumped, described) {
            (Ok(()), Some(described)) => described,
            (Err(error), _) => {
                self.give_up(&fence, &saved, &directory)?;
                return Err(crate::checkpoint::unwrap_handler(error));
            }
            (Ok(()), None) => {
                self.give_up(&fence, &saved, &directory)?;
                return Err(AgentError::NoCommit);
            }
        };
        let offered = Standstill::of(saved.root, &saved.tasks, None).and_then(|standstill| {
            (saved.offered, saved.turns) = (true, Some(standstill.turns()));
            saved.write(&directory)?;
            Ok(standstill)
        });
        let standstill = match offered {
            Ok(standstill) => standstill,
            Err(error) => {
                // CRIU has told every task to stop, also one that has not got round to it yet.
                self.block_on(take_back(&fence, &saved))?;
                forget(&directory);
                return Err(AgentError::path("write", &directory)(error));
            }
        };
        let mut handover = self.handover(directory, saved, manifest, (memory, standstill), (app.clone(), id));
        let (stopped, over) = (frozen.elapsed(), Instant::now());
        handover.stopped_in = Some(stopped);
        let facts = TakenRecord {
            frozen_us: u64::try_from(stopped.as_micros()).unwrap_or(u64::MAX),
            handed_over: true,
            ..TakenRecord::default()
        };
        self.keep_taken(app, id, facts, progress, (started, over));
        if let Some(leaving) = leaving {
            leaving.not_decided_yet();
        }
        Ok(handover)
    }

    /// Lets a tree go on that nobody was told of, if it was stopped at all, and forgets it.
    fn give_up(&self, fence: &Fence, saved: &Saved, directory: &Path) -> Result<(), AgentError> {
        wait_for_criu(saved.root);
        if still_stopped(saved) {
            self.block_on(take_back(fence, saved))?;
        }
        forget(directory);
        Ok(())
    }

    /// The trees that are stopped on this machine to be handed over, after a restart of the agent. Those that were never
    /// offered to anybody are taken back first.
    ///
    /// # Errors
    /// When a handover cannot be read, or its tree cannot be taken back for now: nothing of it is changed then.
    pub fn handovers(&self) -> Result<Vec<Handover>, AgentError> {
        let parent = parent_directory(self.work_parent.as_deref())?;
        let mut found = Vec::new();
        for (directory, saved) in Saved::all(&parent).map_err(AgentError::path("read", &parent))? {
            let failed = || AgentError::path("read", &directory);
            let (app, id) = saved.names().map_err(failed())?;
            wait_for_criu(saved.root);
            if !still_stopped(&saved) {
                // CRIU was not done with it when the agent died, and let it run; or it has ended.
                saved.tell(Fate::Stays);
                forget(&directory);
                continue;
            }
            let manifest = match self.block_on(self.store.get(&keys::handover(&app, id), MAX_MANIFEST)) {
                Ok(bytes) => Manifest::decode(&bytes).map_err(|error| AgentError::Io {
                    what: format!("cannot read the description of handover {id}"),
                    source: io::Error::other(error),
                })?,
                Err(error) if saved.offered => return Err(error.into()),
                // Nobody was told.
                Err(_) => {
                    let fence = Fence::new(Arc::clone(&self.store), app);
                    self.give_up(&fence, &saved, &directory)?;
                    continue;
                }
            };
            let memory = memory_of(&manifest, &saved, &directory).map_err(failed())?;
            let standstill = Standstill::of(saved.root, &saved.tasks, saved.turns).map_err(failed())?;
            let handover = self.handover(directory, saved, manifest, (memory, standstill), (app, id));
            if handover.saved.offered {
                found.push(handover);
            } else {
                handover.take_back()?;
            }
        }
        Ok(found)
    }

    fn handover(
        &self,
        directory: PathBuf,
        saved: Saved,
        manifest: Manifest,
        (memory, standstill): (StoppedMemory, Standstill),
        (app, id): (AppId, CheckpointId),
    ) -> Handover {
        Handover {
            store: Arc::clone(&self.store),
            runtime: self.runtime.handle().clone(),
            app,
            id,
            directory,
            manifest,
            memory,
            standstill,
            saved,
            stopped_in: None,
            uploaded: AtomicBool::new(false),
            stopped: RwLock::new(true),
            asked: Mutex::new(None),
        }
    }
}

impl Handover {
    /// Whose it is.
    pub fn app(&self) -> &AppId {
        &self.app
    }

    /// Its name, which will be that of the checkpoint made of it, too.
    pub fn id(&self) -> CheckpointId {
        self.id
    }

    /// The generation that whoever runs it has to claim.
    pub fn generation(&self) -> u64 {
        self.saved.runner.generation
    }

    /// What the target is told.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Root of the stopped tree.
    pub fn root(&self) -> u32 {
        self.saved.root
    }

    /// This machine, as whoever takes the tree back.
    pub fn runner(&self) -> &Runner {
        &self.saved.runner
    }

    /// Milliseconds from the freeze until it could be run elsewhere, if this very agent has stopped it.
    pub fn stopped_ms(&self) -> Option<f64> {
        self.stopped_in.map(|time| time.as_secs_f64() * 1e3)
    }

    /// Whether the tree was taken back or ended.
    pub fn is_over(&self) -> bool {
        !*self.stopped.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a checkpoint was promised.
    pub fn will_be_uploaded(&self) -> bool {
        self.saved.upload
    }

    /// Whether the checkpoint is committed.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded.load(Ordering::Acquire)
    }

    /// Gives the frames that make up these bytes of one of its packs to `sink`, each followed by its hash, until it wants no
    /// more; see [`PageSource`](lazy_pages::handover::PageSource).
    ///
    /// # Errors
    /// When they cannot be read, or the tree is not stopped any more, or has run meanwhile.
    pub fn read_frames(
        &self,
        pack: PackId,
        offset: u64,
        length: u64,
        sink: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), AgentError> {
        let failed = || AgentError::io(format!("cannot read memory of handover {}", self.id));
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        for frame in self.memory.frames(pack, offset, length).map_err(failed())? {
            let bytes = {
                let stopped = self.stopped.read().unwrap_or_else(PoisonError::into_inner);
                self.check(*stopped)?;
                let bytes = self.memory.read_frame(frame).map_err(failed())?;
                self.check_standstill()?;
                bytes
            };
            if !sink(bytes) {
                break;
            }
        }
        Ok(())
    }

    /// Makes a checkpoint of the stopped tree, of the handover's own name. Blocks until it is committed. Others may read
    /// pages meanwhile.
    ///
    /// # Errors
    /// Any; then there is no such checkpoint, and the tree is stopped as before.
    pub fn upload(&self, agent: &Agent, progress: &Progress) -> Result<Manifest, AgentError> {
        let catalog = Catalog::new(Arc::clone(&self.store));
        match self.runtime.block_on(catalog.load_manifest(&self.app, self.id)) {
            Ok(manifest) => {
                self.uploaded.store(true, Ordering::Release);
                return Ok(manifest);
            }
            Err(CatalogError::UnknownCheckpoint { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // What an attempt before this one has left; no manifest refers to it.
        for key in [keys::bundle(&self.app, self.id), keys::hashes(&self.app, self.id)] {
            self.runtime.block_on(self.store.delete(&key))?;
        }
        let parent = agent.block_on(agent.parent(&self.app, DEFAULT_MAX_CHAIN_DEPTH))?;
        let writer = CheckpointWriter::begin(
            Arc::clone(&self.store),
            self.runtime.clone(),
            self.app.clone(),
            self.id,
            parent.clone(),
            WriterOptions { compression: agent.compression, ..WriterOptions::default() },
        )?;
        let committed = self.write_all(writer, progress).and_then(|pages| {
            let bundle = self.runtime.block_on(
                self.store.get(&keys::handover_bundle(&self.app, self.id), self.manifest.bundle.length),
            )?;
            self.check_standstill()?;
            Ok(self.runtime.block_on(pages.commit(self.meta(bundle)))?)
        });
        if let Some(parent) = parent
            && let Err(error) = self.runtime.block_on(parent.lease().release())
        {
            tracing::warn!(%error, "the lease on the previous checkpoint stays until it expires");
        }
        self.uploaded.store(committed.is_ok(), Ordering::Release);
        committed
    }

    fn write_all(
        &self,
        mut writer: CheckpointWriter,
        progress: &Progress,
    ) -> Result<lazy_pages::writer::SealedPages, AgentError> {
        for (object, map) in self.manifest.objects.iter().enumerate() {
            writer.open(map.id, map.pages_id)?;
            for run in &map.runs {
                let Source::Stored { eager, .. } = run.source else { continue };
                let (mut start, mut left) = (run.start, run.pages);
                while left > 0 {
                    let begun = Instant::now();
                    // Taken for each piece anew: whoever takes the tree back does not have to wait for the last one.
                    let stopped = self.stopped.read().unwrap_or_else(PoisonError::into_inner);
                    self.check(*stopped)?;
                    let buffer = writer.buffer(!eager, start, left)?;
                    let pages = (buffer.len() / PAGE_SIZE) as u64;
                    self.memory
                        .read_piece(Piece { object, start, pages }, buffer)
                        .map_err(AgentError::io(format!("cannot read memory of handover {}", self.id)))?;
                    writer.filled()?;
                    drop(stopped);
                    self.give_way(begun.elapsed());
                    progress.add_bytes(pages * PAGE_SIZE as u64);
                    (start, left) = (start.add(pages), left - pages);
                }
            }
        }
        Ok(writer.finish_pages()?)
    }

    /// Leaves most of this machine and its link to a target that still gets its pages from here: a process waits for those.
    fn give_way(&self, worked: Duration) {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_some_and(|asked| asked.elapsed() < ASKED_LATELY) {
            thread::sleep((worked * 3).min(LONGEST_BREAK));
        }
    }

    fn meta(&self, bundle: Bytes) -> CheckpointMeta {
        let vmas: HashMap<ObjectId, Vec<Vma>> =
            self.manifest.objects.iter().map(|map| (map.id, map.vmas.clone())).collect();
        CheckpointMeta {
            vmas,
            tasks: self.manifest.tasks.clone(),
            host: self.manifest.host.clone(),
            streams: self.manifest.streams.clone(),
            bundle,
            files: self.manifest.files.clone(),
            large_images: self.manifest.large_images.clone(),
        }
    }

    /// Lets the stopped tree go on, unless somebody else may run it. It can be repeated after any error.
    ///
    /// # Errors
    /// [`AgentError::RunsElsewhere`]; when the store fails, and it is not known whether somebody else runs it. The tree
    /// stays stopped.
    pub fn take_back(&self) -> Result<(), AgentError> {
        let fence = Fence::new(Arc::clone(&self.store), self.app.clone());
        let mut stopped = self.stopped.write().unwrap_or_else(PoisonError::into_inner);
        self.check(*stopped)?;
        self.runtime.block_on(take_back(&fence, &self.saved))?;
        *stopped = false;
        forget(&self.directory);
        Ok(())
    }

    /// Says for whoever has claimed it that nothing of it runs elsewhere, nor will. Only for who knows that.
    ///
    /// # Errors
    /// When the store fails; it can be repeated.
    pub fn target_has_ended(&self) -> Result<(), AgentError> {
        let fence = Fence::new(Arc::clone(&self.store), self.app.clone());
        self.runtime.block_on(async {
            match fence.runner(self.generation()).await? {
                Some(runner) if runner != self.saved.runner => fence.end(self.generation()).await,
                _ => Ok(()),
            }
        })
    }

    /// Ends the stopped tree, which nobody needs any more; see the rules in the module's description, which whoever calls this
    /// has to keep.
    ///
    /// # Errors
    /// When nobody has claimed its generation: then it has not been handed over. When the store fails.
    pub fn end(&self) -> Result<(), AgentError> {
        let fence = Fence::new(Arc::clone(&self.store), self.app.clone());
        let mut stopped = self.stopped.write().unwrap_or_else(PoisonError::into_inner);
        if !*stopped {
            return Ok(());
        }
        match self.runtime.block_on(fence.runner(self.generation()))? {
            Some(runner) if runner != self.saved.runner => {}
            _ => return Err(AgentError::NotHandedOver { id: self.id }),
        }
        self.saved.tell(Fate::Left);
        let begun = Instant::now();
        while signal(&self.saved.tasks, Signal::SIGKILL) > 0 {
            if begun.elapsed() > END {
                return Err(AgentError::NotEnded { pid: self.saved.root });
            }
            thread::sleep(Duration::from_millis(2));
        }
        *stopped = false;
        forget(&self.directory);
        Ok(())
    }

    /// Whether nothing of the tree has run since it was stopped.
    pub fn stands_still(&self) -> bool {
        self.standstill.is_stopped() && self.standstill.holds()
    }

    /// Stops a tree again that somebody has let run.
    pub fn stop_again(&self) {
        let stopped = self.stopped.read().unwrap_or_else(PoisonError::into_inner);
        if *stopped && !self.standstill.is_stopped() {
            signal(&self.saved.tasks, Signal::SIGSTOP);
        }
    }

    fn check_standstill(&self) -> Result<(), AgentError> {
        match self.standstill.holds() {
            true => Ok(()),
            false => Err(AgentError::HasRun { id: self.id, pid: self.saved.root }),
        }
    }

    fn check(&self, stopped: bool) -> Result<(), AgentError> {
        if stopped { Ok(()) } else { Err(AgentError::HandoverOver { id: self.id }) }
    }
}

/// Rule 2 of the module, on the source's side.
async fn take_back(fence: &Fence, saved: &Saved) -> Result<(), AgentError> {
    let mut runner = saved.runner.clone();
    loop {
        match fence.claim(&runner).await? {
            Claim::Ours => break,
            Claim::Theirs(_) if fence.has_ended(runner.generation).await? => runner.generation += 1,
            Claim::Theirs(other) => {
                let Runner { generation, host, .. } = other;
                return Err(AgentError::RunsElsewhere { host, generation });
            }
        }
    }
    let tasks: Vec<StoppedTask> = saved.tasks.iter().filter(|task| !task.by_another).copied().collect();
    signal(&tasks, Signal::SIGCONT);
    saved.tell(Fate::Stays);
    Ok(())
}

/// Sends a signal to those of the tasks that are still who they were. Returns how many live.
fn signal(tasks: &[StoppedTask], signal: Signal) -> usize {
    let living = tasks.iter().filter(|task| tree::is_alive(task.pid) && is_same(task));
    living.filter(|task| kill(Pid::from_raw(task.pid as i32), signal).is_ok()).count()
}

fn is_same(task: &StoppedTask) -> bool {
    tree::identity(task.pid) == Some(task.identity)
}

/// Where everything is that a stopped tree holds.
fn memory_of(manifest: &Manifest, saved: &Saved, directory: &Path) -> io::Result<StoppedMemory> {
    let view = files::view_of(saved.launcher.is_some(), saved.root).map_err(io::Error::other)?;
    let content = |number| {
        if let Some(image) = manifest.large_images.iter().find(|image| image.content == number) {
            let file = fs::File::open(directory.join("images").join(&image.name))?;
            return Ok(Content { file, size: image.size, modified: None });
        }
        let file = manifest.files.iter().find(|file| file.content() == Some(number));
        let found = file.ok_or_else(|| io::Error::other(format!("no file has content {number}")))?;
        let file = fs::File::open(view.at(&found.path))?;
        let written = found.attributes.modified;
        // Writes that it does not tell of are the tree's own, which is stopped.
        let modified = Some((written.seconds, written.nanoseconds.into()));
        Ok(Content { file, size: found.size, modified })
    };
    StoppedMemory::open(manifest, |id| shared(&directory.join("pages"), id), content)
}

/// Waits until CRIU, whose agent may have died, has let go of the tree: only then it is known whether it stays stopped.
fn wait_for_criu(root: u32) {
    const PAUSE: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    while tree::is_traced(root) && begun.elapsed() < END {
        thread::sleep(PAUSE);
    }
}

/// Whether the tree is stopped as it was left.
fn still_stopped(saved: &Saved) -> bool {
    let root = saved.tasks.iter().find(|task| task.pid == saved.root);
    root.is_some_and(|root| is_same(root) && tree::is_stopped(root.pid))
}

async fn put(store: &dyn ObjectStore, manifest: &Manifest, bundle: Bytes) -> Result<(), AgentError> {
    let (app, id) = (&manifest.app, manifest.id);
    let encoded = manifest.encode().map_err(|error| AgentError::Io {
        what: format!("cannot describe handover {id}"),
        source: io::Error::other(error),
    })?;
    let put = async |key: String, body| store.put_new(&key, body).await;
    tokio::try_join!(put(keys::handover_bundle(app, id), bundle), put(keys::handover(app, id), encoded))?;
    Ok(())
}

fn forget(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        tracing::warn!(directory = %directory.display(), %error, "what was remembered of a handover stays behind");
    }
}
