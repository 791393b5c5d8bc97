//! Writing a checkpoint while its process is frozen.
//!
//! ```text
//! sink ──windows──► workers (one a core) ──► packer ──packs──► uploads ──► store
//!  ▲  zero? hash, same as parent?, compress   order, merge       at most 8
//!  └──────────────── pool of empty windows ◄────┘
//! ```
//!
//! What always holds:
//! - The checkpoint exists once [`SealedPages::commit`] has returned `Ok`, and not before its last step: one
//!   conditional put of the manifest, after everything it refers to is durable. An error of that put itself may leave
//!   it done; the checkpoint then exists and is complete.
//! - Memory is bounded: the pool of windows, 32 MiB of pages about which is not decided, the packs being sent, and 16 bytes
//!   of hash and about one run for each stretch of pages.
//! - A checkpoint's frames have at most 1.25 times the pages that it needs of them: of frames of the parent that have
//!   changed too much, the rest is stored again.
//! - Pages that are not in the frozen tree yet can be taken over from the parent ([`SealedPages::inherit`]); what was
//!   received wins.
//! - A slow store makes [`CheckpointWriter::buffer`] wait, hence CRIU, whose tree stays frozen until all is durable
//!   anyway.
//! - The first failure, of an upload say, is remembered; every call after it returns it.
//! - Dropping a writer or [`SealedPages`] stops its threads and uploads. Packs already stored have no manifest that
//!   refers to them and are removed by a later sweep. The same goes for a `commit` that is cancelled.

mod commit;
mod compression;
mod error;
mod inherit;
mod packer;
mod parent;
mod seal;
mod sparse;
mod upload;
mod waiting;
mod window;
mod worker;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::SystemTime,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::runtime::Handle;

pub use self::{
    commit::{CheckpointMeta, SealedPages},
    compression::Compression,
    error::WriteError,
    inherit::{ParentPages, TakenOver},
    parent::{Parent, ParentError},
};
use self::{
    packer::{Packed, Packer},
    sparse::ParentFrames,
    upload::Uploads,
    window::Window,
    worker::{Done, Job},
};
use crate::{
    format::{FRAME_PAGES, ObjectId, invariants::MAX_PAGE},
    ids::{AppId, CheckpointId},
    store::ObjectStore,
    units::{PAGE_SIZE, VirtAddr},
};

/// Windows in the pool beyond those the workers hold: what the sink and the packer may have at once.
const SPARE_WINDOWS: usize = 16;
const WINDOWS_PER_WORKER: usize = 4;

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// How frames are compressed.
    pub compression: Compression,
    /// Store unchanged pages again where too little of their frame in the parent is still needed: a restore then fetches at
    /// most a quarter more than what it needs. Not to be combined with [`SealedPages::inherit`], for then frames look
    /// less needed than they are; it would only cost space.
    pub rewrite_sparse: bool,
    /// Threads that hash and compress.
    pub workers: NonZeroUsize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { compression: Compression::default(), rewrite_sparse: true, workers }
    }
}

/// Takes the pages of a frozen tree. Used by one thread, which may block; not by an async task.
#[derive(Debug)]
pub struct CheckpointWriter {
    target: Target,
    uploads: Arc<Uploads>,
    /// Until the pages are sealed.
    running: Option<Running>,
    jobs: Option<Sender<Job>>,
    done: Sender<Done>,
    free: Receiver<Window>,
    packer: Option<JoinHandle<Result<Packed, WriteError>>>,
    workers: Vec<JoinHandle<()>>,
    objects: Vec<(ObjectId, u32)>,
    /// Where each is among them.
    positions: HashMap<ObjectId, usize>,
    /// The windows being filled: lazy, eager.
    open: [Option<Window>; 2],
    /// What [`Self::buffer`] gave out last: which of `open`, first page, pages.
    given: Option<(usize, u64, usize)>,
    sequence: u64,
}

/// Which checkpoint, where.
#[derive(Debug)]
struct Target {
    store: Arc<dyn ObjectStore>,
    app: AppId,
    id: CheckpointId,
    parent: Option<Arc<Parent>>,
    begun: SystemTime,
}

impl CheckpointWriter {
    /// Starts the threads of the pipeline. Uploads run on `runtime`.
    ///
    /// # Errors
    /// When a thread cannot be started, or `parent` belongs to another application.
    pub fn begin(
        store: Arc<dyn ObjectStore>,
        runtime: Handle,
        app: AppId,
        id: CheckpointId,
        parent: Option<Arc<Parent>>,
        options: WriterOptions,
    ) -> Result<Self, WriteError> {
        if let Some(parent) = parent.as_ref().filter(|parent| parent.manifest().app != app) {
            return Err(WriteError::ForeignParent { app, parent: parent.manifest().app.clone() });
        }
        let uploads = Uploads::new(store.clone(), runtime, options.compression, options.workers.get());
        let (jobs, to_work) = unbounded();
        let (done, to_pack) = unbounded();
        let (to_reuse, free) = unbounded();
        for _ in 0..SPARE_WINDOWS + WINDOWS_PER_WORKER * options.workers.get() {
            // The receiver is right here.
            let _ = to_reuse.send(Window::new());
        }
        let frames = parent.as_ref().filter(|_| options.rewrite_sparse);
        let frames = frames.map(|parent| ParentFrames::of(parent.manifest()));
        let undecided = frames.is_some();
        let packer = Packer::new(app.clone(), uploads.clone(), to_pack, jobs.clone(), to_reuse, frames);
        let target = Target { store, app, id, parent: parent.clone(), begun: SystemTime::now() };
        // From here on dropping it ends the threads started so far.
        let mut writer = Self {
            target,
            running: Some(Running(uploads.clone())),
            uploads: uploads.clone(),
            jobs: Some(jobs),
            done: done.clone(),
            free,
            packer: None,
            workers: Vec::new(),
            objects: Vec::new(),
            positions: HashMap::new(),
            open: [None, None],
            given: None,
            sequence: 0,
        };
        let shared = uploads.clone();
        writer.packer = Some(spawn("packer".into(), uploads.clone(), move || {
            let result = packer.run();
            if let Err(error) = &result {
                shared.fail(error.clone());
            }
            result
        })?);
        for number in 0..options.workers.get() {
            let (jobs, done) = (to_work.clone(), done.clone());
            let (parent, shared) = (parent.clone(), uploads.clone());
            let work = move || worker::run(&jobs, &done, parent, undecided, &shared);
            writer.workers.push(spawn(format!("hasher-{number}"), uploads.clone(), work)?);
        }
        Ok(writer)
    }

    /// The pages that follow are of this object. `pages_id` is the number of the `pages-<n>.img` it will be restored
    /// from; any that is not used twice, and 0 for a file.
    ///
    /// # Errors
    /// When the object was opened before, or the writer has failed.
    pub fn open(&mut self, object: ObjectId, pages_id: u32) -> Result<(), WriteError> {
        self.uploads.check()?;
        self.send_open_windows()?;
        if self.positions.insert(object, self.objects.len()).is_some() {
            return Err(WriteError::ObjectTwice(object));
        }
        self.objects.push((object, pages_id));
        Ok(())
    }

    /// Space for some of the next `pages` pages of the open object, from `address` on: as many as fit, at least one.
    /// Fill all of it, then call [`Self::filled`]. `lazy`: a restore is expected to supply them on demand; pages of
    /// either kind are in packs of their own. What a restore really does is decided by the areas given at the end.
    ///
    /// # Errors
    /// When no object is open, the address is out of range, or the writer has failed.
    pub fn buffer(&mut self, lazy: bool, address: VirtAddr, pages: u64) -> Result<&mut [u8], WriteError> {
        let Some(&(id, _)) = self.objects.last() else { return Err(WriteError::NoObject) };
        let page = address.page();
        if pages == 0 || page.checked_add(pages).is_none_or(|end| end > MAX_PAGE) {
            return Err(WriteError::AddressRange { address, pages });
        }
        let slot = usize::from(!lazy);
        let window = match &mut self.open[slot] {
            Some(window) => window,
            empty => {
                let mut window = self.uploads.wait_for(&self.free)?;
                window.object = self.objects.len() - 1;
                window.id = id;
                window.lazy = lazy;
                empty.insert(window)
            }
        };
        let filled = window.pages.len();
        let count = pages.min((FRAME_PAGES - filled) as u64) as usize;
        self.given = Some((slot, page, count));
        Ok(&mut window.bytes[filled * PAGE_SIZE..(filled + count) * PAGE_SIZE])
    }

    /// The buffer given out last now holds its pages.
    ///
    /// # Errors
    /// When the writer has failed.
    pub fn filled(&mut self) -> Result<(), WriteError> {
        let Some((slot, page, count)) = self.given.take() else { return Ok(()) };
        let full = match &mut self.open[slot] {
            Some(window) => {
                window.pages.extend(page..page + count as u64);
                window.pages.len() == FRAME_PAGES
            }
            None => false,
        };
        if full { self.send(slot) } else { Ok(()) }
    }

    /// Ends the stream of pages, and waits until all of them are packed and their packs handed to the store.
    ///
    /// # Errors
    /// The first failure of any stage.
    pub fn finish_pages(mut self) -> Result<SealedPages, WriteError> {
        self.send_open_windows()?;
        let end = Done::End { windows: self.sequence };
        self.done.send(end).map_err(|_| self.uploads.error())?;
        let packer = self.packer.take().ok_or(WriteError::Stopped)?;
        let packed = packer.join().map_err(|_| self.uploads.error())??;
        let target = Target {
            store: self.target.store.clone(),
            app: self.target.app.clone(),
            id: self.target.id,
            parent: self.target.parent.take(),
            begun: self.target.begun,
        };
        let objects = std::mem::take(&mut self.objects);
        let positions = std::mem::take(&mut self.positions);
        let running = self.running.take().ok_or(WriteError::Stopped)?;
        Ok(SealedPages { target, running, objects, positions, packed })
    }

    /// What gives this checkpoint up from another thread.
    pub fn give_up(&self) -> GiveUp {
        GiveUp(Arc::downgrade(&self.uploads))
    }

    fn send_open_windows(&mut self) -> Result<(), WriteError> {
        (0..self.open.len()).try_for_each(|slot| self.send(slot))
    }

    fn send(&mut self, slot: usize) -> Result<(), WriteError> {
        let Some(mut window) = self.open[slot].take() else { return Ok(()) };
        window.sequence = self.sequence;
        self.sequence += 1;
        let jobs = self.jobs.as_ref().ok_or(WriteError::Stopped)?;
        jobs.send(Job::Sort(window)).map_err(|_| self.uploads.error())
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        self.running = None;
        self.jobs = None;
        // Stopped or at its end, no thread waits for anything any more; how they ended is known or does not matter.
        if let Some(packer) = self.packer.take() {
            let _ = packer.join();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Gives a checkpoint up: whoever waits in its writer returns with [`WriteError::Stopped`], and it is not committed unless
/// its manifest was already being put. Keeps nothing of the writer.
#[derive(Clone, Debug)]
pub struct GiveUp(Weak<Uploads>);

impl GiveUp {
    /// Does so.
    pub fn now(&self) {
        if let Some(uploads) = self.0.upgrade() {
            uploads.fail(WriteError::Stopped);
            uploads.stop();
        }
    }
}

/// A thread whose panic fails the writer instead of making it wait for ever.
fn spawn<T: Send + 'static>(
    name: String,
    uploads: Arc<Uploads>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    struct Alarm(Arc<Uploads>);
    impl Drop for Alarm {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.fail(WriteError::Stopped);
            }
        }
    }
    let work = move || {
        let _alarm = Alarm(uploads);
        work()
    };
    std::thread::Builder::new().name(name).spawn(work).map_err(|error| WriteError::Thread(Arc::new(error)))
}

/// Uploads that stop when this is dropped.
#[derive(Debug)]
struct Running(Arc<Uploads>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
    }
}
