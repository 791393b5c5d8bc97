//! Getting frames and putting them where they are missing: the part of the server that faults and background fill share.
//!
//! Three kinds of threads meet here. The event thread asks for frames ([`Filler::want`]) and never waits. Fetches are
//! tasks on a tokio runtime. Workers unpack, verify and copy; they take what a thread waits for before anything else,
//! also between two frames of a larger unit.
//!
//! What always holds:
//! - Nothing is copied that is not a [`VerifiedFrame`].
//! - Whatever was started for a frame ends with the frame delivered to every address space that misses it, or with the
//!   whole server failed ([`Filler::fail`]); it is never just dropped.
//! - Bytes of the background fill that are on their way or wait for a worker are at most [`Limits::ahead_bytes`], and fewer while
//!   that delays pages that threads wait for ([`Pace`]).

use std::{
    convert::Infallible,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, select};
use tokio::runtime::Handle;

use crate::{
    format::{FrameIndex, Manifest, VerifiedFrame, keys},
    server::{
        frames::{Frames, Layout, REFETCHES, Unit, Want},
        journal::{Journal, Number},
        pace::Pace,
        space::SpaceId,
        spaces::Spaces,
    },
    store::{ObjectStore, StoreError},
};

/// Background work gets a third of the processor time that something else gets which wants it too.
const WORKER_NICENESS: i32 = 5;

/// Longer than the outages object stores have had, with few exceptions. Waiting costs the processes time; giving up costs
/// them their lives.
pub const STORE_PATIENCE: Duration = Duration::from_secs(3600);

/// Bounds on what the server takes of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Threads that unpack, verify and copy, besides the one that does so only for pages that are waited for.
    pub workers: usize,
    /// Bytes of one request of the background fill.
    pub unit_bytes: u64,
    /// Bytes of the background fill that are on their way or wait for a worker; 0 for no such fill.
    pub ahead_bytes: u64,
    /// How long a store that cannot be reached, or refuses, is asked again before the processes are given up. They run
    /// meanwhile, and wait only where they touch a missing page.
    pub store_patience: Duration,
}

impl Limits {
    /// What suits `store`. A local one answers from the page cache, and small units are still in the processor's cache
    /// when they are unpacked; a remote one needs enough in flight to fill the link.
    pub fn for_store(store: &dyn ObjectStore) -> Self {
        let (unit_bytes, ahead_bytes) =
            if store.is_local() { (1 << 20, 4 << 20) } else { (4 << 20, 64 << 20) };
        Self {
            workers: std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16),
            unit_bytes,
            ahead_bytes,
            store_patience: STORE_PATIENCE,
        }
    }

    /// With this many requests of the background fill at a time. With 0 only pages that are waited for are fetched, and the server is
    /// needed as long as the processes live.
    pub fn with_prefetch(self, requests: u32) -> Self {
        const MOST_REQUESTS: u32 = 256;
        /// So many requests of the usual size would take too much memory: each is smaller then.
        const MOST_AHEAD: u64 = 256 << 20;
        let requests = u64::from(requests.min(MOST_REQUESTS));
        let unit_bytes = self.unit_bytes.min(MOST_AHEAD / requests.max(1));
        Self { unit_bytes, ahead_bytes: unit_bytes * requests, ..self }
    }
}

#[derive(Debug)]
enum Job {
    /// One frame somebody waits for.
    Frame(FrameIndex, Bytes),
    /// A unit whose frames wait in [`Frames`], and the bytes it counts for.
    Unit(Vec<FrameIndex>, u64),
}

/// See the module's description.
#[derive(Debug)]
pub struct Filler {
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    limits: Limits,
    /// The manifest by frame.
    pub layout: Layout,
    /// What is being filled.
    pub spaces: Spaces,
    /// Where numbers are kept, and what another server must know.
    pub journal: Arc<Journal>,
    frames: Mutex<Frames>,
    background: AtomicBool,
    pace: Pace,
    ahead: AtomicU64,
    urgent: Sender<Job>,
    bulk: Sender<Job>,
    failure: OnceLock<String>,
    ended: AtomicBool,
    wakeup: OwnedFd,
}

/// Whether the store may answer differently later: it is not reachable, or somebody has to renew credentials or mount a
/// directory. A body may have been cut short on its way, which is tried a few times. An object that is gone stays so.
fn may_pass(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable { .. }
        | StoreError::Denied { .. }
        | StoreError::NoSuchStore { .. }
        | StoreError::Truncated { .. }
        | StoreError::Other { .. } => true,
        StoreError::NotFound { .. }
        | StoreError::AlreadyExists { .. }
        | StoreError::TooLarge { .. }
        | StoreError::NoConditionalCreate { .. }
        | StoreError::InvalidKey { .. }
        | StoreError::InvalidUrl { .. } => false,
    }
}

/// The workers' ends of the queues.
#[derive(Clone, Debug)]
pub struct Queues {
    urgent: Receiver<Job>,
    bulk: Receiver<Job>,
    end: Receiver<Infallible>,
}

/// Keeps the workers going; dropping it ends them after what they are doing.
#[derive(Debug)]
pub struct KeepWorking(#[allow(dead_code, reason = "only its end is observed")] Sender<Infallible>);

impl Filler {
    /// Nothing fetched, nothing to fill. `wakeup` is an eventfd the event thread listens to.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        manifest: Arc<Manifest>,
        runtime: Handle,
        limits: Limits,
        journal: Arc<Journal>,
        wakeup: OwnedFd,
    ) -> (Self, Queues, KeepWorking) {
        let (urgent, urgent_queue) = crossbeam_channel::unbounded();
        let (bulk, bulk_queue) = crossbeam_channel::unbounded();
        let (keep_working, end) = crossbeam_channel::bounded(0);
        let layout = Layout::new(manifest);
        let pace = Pace::new(limits.ahead_bytes, Instant::now());
        let filler = Self {
            store,
            runtime,
            limits,
            frames: Mutex::new(Frames::new(&layout)),
            layout,
            spaces: Spaces::default(),
            journal,
            background: AtomicBool::new(false),
            pace,
            ahead: AtomicU64::new(0),
            urgent,
            bulk,
            failure: OnceLock::new(),
            ended: AtomicBool::new(false),
            wakeup,
        };
        (filler, Queues { urgent: urgent_queue, bulk: bulk_queue, end }, KeepWorking(keep_working))
    }

    /// Adds to a number.
    pub fn count(&self, number: Number, more: u64) {
        self.journal.count(number, more);
    }

    /// Which frames are where.
    pub fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread waits for a page of `frame`. Returns at once.
    pub fn want(self: &Arc<Self>, frame: FrameIndex) {
        let want = self.frames().want(frame, Instant::now());
        match want {
            Want::Coming => {}
            Want::Here(bytes) => self.send(&self.urgent, Job::Frame(frame, bytes)),
            Want::Fetch => self.fetch_frame(frame),
        }
    }

    /// Begins to fetch everything nobody has asked for yet.
    pub fn start_background(self: &Arc<Self>) {
        self.pace.begin(Instant::now());
        self.background.store(true, Ordering::Release);
        self.refill();
    }

    /// Pages can never come. The first reason counts; the event thread does what has to be done.
    pub fn fail(&self, reason: String) {
        if self.failure.set(reason).is_ok() {
            self.wake_event_thread();
        }
    }

    /// Why the server failed, if it has.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Makes the event thread look at the state of things.
    pub fn wake_event_thread(&self) {
        // Fails only when the counter is at its maximum, and then the thread is awake.
        let _ = rustix::io::write(self.wakeup.as_fd(), &1_u64.to_ne_bytes());
    }

    /// Nothing that is still under way matters any more.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Acquire) || self.failure.get().is_some()
    }

    fn send(&self, queue: &Sender<Job>, job: Job) {
        // Nobody receives any more only after the end, when nothing is missing or nobody is there to miss it.
        let _ = queue.send(job);
    }

    fn fetch_frame(self: &Arc<Self>, frame: FrameIndex) {
        let filler = Arc::clone(self);
        self.runtime.spawn(async move {
            let entry = &filler.layout.manifest().frames[frame.0 as usize];
            let key = keys::pack(&filler.layout.manifest().app, entry.pack);
            let asked = Instant::now();
            let got = filler.get(&key, entry.offset, u64::from(entry.stored_length)).await;
            filler.pace.page_came(asked.elapsed(), Instant::now());
            match got {
                Ok(bytes) => filler.send(&filler.urgent, Job::Frame(frame, bytes)),
                Err(error) => filler.fail(format!("a page cannot be fetched: {error}")),
            }
        });
    }

    /// Starts requests of the background fill up to the bound.
    fn refill(self: &Arc<Self>) {
        while self.background.load(Ordering::Acquire) && !self.is_over() {
            let unit = {
                let mut frames = self.frames();
                let ahead = self.ahead.load(Ordering::Acquire);
                let limit = self.pace.unit(self.limits.unit_bytes);
                if ahead > 0 && ahead + limit > self.pace.window() {
                    return;
                }
                let needed = |frame| self.spaces.need(&self.layout, frame);
                let unit = match self.limits.ahead_bytes {
                    0 => None,
                    _ => frames.next_unit(&self.layout, limit, needed),
                };
                let Some(unit) = unit else {
                    if frames.undelivered() == 0 {
                        self.wake_event_thread();
                    }
                    return;
                };
                self.ahead.fetch_add(unit.bytes.end - unit.bytes.start, Ordering::AcqRel);
                unit
            };
            self.fetch_unit(unit);
        }
    }

    fn fetch_unit(self: &Arc<Self>, unit: Unit) {
        let filler = Arc::clone(self);
        self.runtime.spawn(async move {
            let Some(first) = unit.frames.first() else { return };
            let pack = filler.layout.manifest().frames[first.0 as usize].pack;
            let key = keys::pack(&filler.layout.manifest().app, pack);
            let length = unit.bytes.end - unit.bytes.start;
            match filler.get(&key, unit.bytes.start, length).await {
                Ok(bytes) => filler.unit_arrived(unit, &bytes),
                Err(error) => filler.fail(format!("pages cannot be fetched: {error}")),
            }
        });
    }

    fn unit_arrived(self: &Arc<Self>, unit: Unit, bytes: &Bytes) {
        let mut waited_for = Vec::new();
        {
            let mut frames = self.frames();
            for &frame in &unit.frames {
                let entry = &self.layout.manifest().frames[frame.0 as usize];
                let start = (entry.offset - unit.bytes.start) as usize;
                let stored = bytes.slice(start..start + entry.stored_length as usize);
                frames.arrived(frame, stored);
                waited_for.extend(frames.take_wanted(frame).map(|bytes| (frame, bytes)));
            }
        }
        for (frame, bytes) in waited_for {
            self.send(&self.urgent, Job::Frame(frame, bytes));
        }
        self.send(&self.bulk, Job::Unit(unit.frames, unit.bytes.end - unit.bytes.start));
    }

    /// Reads part of an object, patiently while the store cannot be reached.
    async fn get(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        const BETWEEN: Duration = Duration::from_secs(1);
        let started = Instant::now();
        let mut cut_short = 0;
        loop {
            let error = match self.store.get_range(key, offset, length).await {
                Ok(bytes) if bytes.len() as u64 == length => {
                    self.count(Number::FetchedBytes, length);
                    return Ok(bytes);
                }
                Ok(bytes) => {
                    let (store, key, got) = (self.store.describe(), key.to_owned(), bytes.len() as u64);
                    StoreError::Truncated { store, key, got, wanted: length }
                }
                Err(error) => error,
            };
            self.count(Number::StoreErrors, 1);
            self.journal.set_error(&error.to_string());
            cut_short += u32::from(matches!(error, StoreError::Truncated { .. }));
            let patient = started.elapsed() + BETWEEN < self.limits.store_patience;
            if !may_pass(&error) || cut_short > REFETCHES || !patient || self.is_over() {
                return Err(error);
            }
            tracing::warn!(key, "the store will be asked again: {error}");
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// A worker: runs until [`KeepWorking`] is dropped or the server has failed. It does whatever comes, what a thread waits
    /// for first, but yields the processor to everything else: to the restored processes above all.
    pub fn work(self: &Arc<Self>, queues: &Queues) {
        // Only the calling thread's, on Linux. If it fails, faults wait a little longer for a processor.
        let _ = rustix::process::setpriority_process(None, WORKER_NICENESS);
        while !self.is_over() {
            if self.serve_urgent(queues) {
                continue;
            }
            select! {
                recv(queues.urgent) -> job => self.run(job.ok(), queues),
                recv(queues.bulk) -> job => self.run(job.ok(), queues),
                recv(queues.end) -> _ => return,
            }
        }
    }

    /// The worker that does nothing but what a thread waits for.
    pub fn work_urgently(self: &Arc<Self>, queues: &Queues) {
        while !self.is_over() {
            select! {
                recv(queues.urgent) -> job => self.run(job.ok(), queues),
                recv(queues.end) -> _ => return,
            }
        }
    }

    fn serve_urgent(self: &Arc<Self>, queues: &Queues) -> bool {
        let job = queues.urgent.try_recv().ok();
        let found = job.is_some();
        self.run(job, queues);
        found
    }

    fn run(self: &Arc<Self>, job: Option<Job>, queues: &Queues) {
        match job {
            Some(Job::Frame(frame, bytes)) => {
                let mine = self.frames().start_work(frame);
                if mine {
                    self.deliver(frame, bytes);
                }
            }
            Some(Job::Unit(frames, length)) => {
                for frame in frames {
                    while self.serve_urgent(queues) {}
                    if self.is_over() {
                        return;
                    }
                    let bytes = self.frames().take_arrived(frame);
                    if let Some(bytes) = bytes {
                        self.deliver(frame, bytes);
                    }
                }
                self.ahead.fetch_sub(length, Ordering::AcqRel);
                self.pace.filled(length, Instant::now());
                self.refill();
            }
            None => {}
        }
    }

    /// Verifies a frame and puts its pages wherever they are missing.
    fn deliver(self: &Arc<Self>, frame: FrameIndex, stored: Bytes) {
        let entry = &self.layout.manifest().frames[frame.0 as usize];
        let verified = match VerifiedFrame::decode(entry, stored) {
            Ok(verified) => verified,
            Err(error) if self.frames().damaged(frame) => {
                self.count(Number::DamagedFrames, 1);
                tracing::warn!("{error}; it is fetched again");
                return self.fetch_frame(frame);
            }
            Err(error) => {
                return self.fail(format!("{error}, also after it was fetched again, {REFETCHES} times"));
            }
        };
        loop {
            let seen = self.spaces.next_id();
            for (object, run, first) in self.layout.uses_of(frame) {
                let bytes = verified.pages(first, run.pages);
                let mut next = SpaceId(0);
                while let Some(space) = self.spaces.next_of(object, next) {
                    next = SpaceId(space.id.0 + 1);
                    match space.install(run.start, bytes) {
                        Ok(pages) => {
                            self.count(Number::InstalledPages, pages);
                        }
                        Err(error) => return self.fail(error.to_string()),
                    }
                }
            }
            let mut frames = self.frames();
            // An address space that has registered meanwhile needs the frame too; registering makes delivered frames
            // idle again under this lock, so one of the two sees the other.
            if self.spaces.next_id() != seen {
                continue;
            }
            if let Some(wanted) = frames.delivered(frame) {
                let waited = u64::try_from(wanted.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.journal.count_stall(waited, frame);
            }
            if frames.undelivered() == 0 {
                self.wake_event_thread();
            }
            return;
        }
    }
}
