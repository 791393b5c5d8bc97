//! A page server as its users see it.

use std::{
    fmt, io,
    os::unix::net::UnixListener,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::{
    format::Manifest,
    server::{
        anchor::Anchor,
        events::{End, EventLoop, Pause},
        filler::{Filler, Limits},
        journal::{Journal, Number, Phase, STALL_BUCKETS},
        limits::raise_descriptor_limit,
    },
    store::ObjectStore,
};

/// What a page server serves, and how.
#[derive(Debug)]
pub struct PageServerConfig {
    /// Where the packs are.
    pub store: Arc<dyn ObjectStore>,
    /// The checkpoint that is restored.
    pub manifest: Arc<Manifest>,
    /// `lazy-pages.socket` in CRIU's working directory.
    pub listener: UnixListener,
    /// Where fetches run; it must be running on its own threads.
    pub runtime: Handle,
    /// What may be used of the machine.
    pub limits: Limits,
    /// Who holds the descriptors too.
    pub anchor: Option<Arc<dyn Anchor>>,
}

/// How serving ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every stored page is in the memory of the restored processes; they need nobody any more.
    Resident(ServerStats),
    /// All restored processes ended by themselves before all their pages had come.
    TreeGone(ServerStats),
    /// The restore failed, or was not one of this checkpoint. Tasks that had registered were killed.
    RestoreFailed {
        /// Why.
        reason: String,
    },
    /// Pages can never come. The restored processes were killed, so that none of them saw a wrong byte.
    Stopped {
        /// Why.
        reason: String,
    },
    /// [`PageServer::cancel`] was called before a restore had begun.
    Cancelled,
}

/// Numbers about a restore. Times count from the registration of its first task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStats {
    /// Page faults read, one for each waiting thread.
    pub faults: u64,
    /// Bytes that came from the store.
    pub fetched_bytes: u64,
    /// Pages copied into processes; a forked child's count too.
    pub installed_pages: u64,
    /// Pages filled with zeros because they belong there.
    pub zeroed_pages: u64,
    /// Stored pages that some process still lacks.
    pub missing_pages: u64,
    /// When CRIU let the processes run.
    pub restored_ms: Option<u64>,
    /// When the first page fault was read; during the restore itself, usually.
    pub first_fault_ms: Option<u64>,
    /// When all stored pages were in memory.
    pub resident_ms: Option<u64>,
    /// The longest a thread waited for a page that had to be fetched.
    pub longest_fault_us: u64,
    /// Frames some thread waits for now.
    pub waiting: u64,
    /// How long the longest of these waits has been.
    pub longest_wait_us: u64,
    /// Requests to the store that failed, after its own retries.
    pub store_errors: u64,
    /// What the store said last when a request failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How often another page server has taken over.
    pub takeovers: u64,
    /// Frames that came damaged, and were fetched again.
    #[serde(default)]
    pub damaged_frames: u64,
    /// Frames that were waited for, by how long: up to each of [`STALL_LIMITS_US`](super::STALL_LIMITS_US), and longer.
    #[serde(default)]
    pub stalls: [u64; STALL_BUCKETS],
    /// How long frames were waited for in all.
    #[serde(default)]
    pub stalled_us: u64,
}

impl ServerStats {
    /// The numbers of a journal.
    pub(super) fn of(journal: &Journal) -> Self {
        let registered = journal.value(Number::Registered);
        let since = |event| match journal.value(event) {
            0 => None,
            time => Some(time.saturating_sub(registered) / 1000),
        };
        Self {
            faults: journal.value(Number::Faults),
            fetched_bytes: journal.value(Number::FetchedBytes),
            installed_pages: journal.value(Number::InstalledPages),
            zeroed_pages: journal.value(Number::ZeroedPages),
            missing_pages: journal.value(Number::MissingPages),
            restored_ms: since(Number::Restored),
            first_fault_ms: since(Number::FirstFault),
            resident_ms: since(Number::Resident),
            longest_fault_us: journal.value(Number::LongestFault),
            waiting: journal.value(Number::Waiting),
            longest_wait_us: journal.value(Number::LongestWait),
            store_errors: journal.value(Number::StoreErrors),
            last_error: journal.error(),
            takeovers: journal.value(Number::Takeovers),
            damaged_frames: journal.value(Number::DamagedFrames),
            stalls: journal.stalls(),
            stalled_us: journal.value(Number::Stalled),
        }
    }
}

/// Why a page server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refused something it needs, or another server's work could not be taken over.
    #[error("the page server cannot start: {0}")]
    System(#[from] io::Error),
}

/// A running page server. It goes on when this handle is dropped; what ends it is the end of its work.
///
/// It is as safe as the process it runs in: if that dies, the restored processes see zeros. [`super::daemon`] runs it in
/// a process of its own with a guardian at its side.
pub struct PageServer {
    filler: Arc<Filler>,
    end: Arc<Ending>,
    cancel: Arc<AtomicBool>,
    pause: Arc<Pause>,
}

impl fmt::Debug for PageServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageServer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Ending {
    end: Mutex<Option<End>>,
    reached: Condvar,
}

impl Ending {
    fn lock(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever waits for the end is told. Without the event thread nothing can be ended in order: the process ends at once,
/// for a successor to go on.
struct Announce(Arc<Ending>);

impl Drop for Announce {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
        self.0.reached.notify_all();
    }
}

/// A frame a worker had in hand when it panicked would never be delivered.
struct FailOnPanic<'f>(&'f Filler);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail("the page server has a defect: a worker gave up".to_owned());
        }
    }
}

impl PageServer {
    /// Starts its threads. CRIU may connect at once, also before this returns.
    ///
    /// # Errors
    /// When threads or descriptors cannot be had.
    pub fn start(config: PageServerConfig) -> Result<Self, StartError> {
        Self::start_with(config, Arc::new(Journal::create()?))
    }

    /// Starts one that keeps what it knows in `journal`, and goes on with what is in it.
    ///
    /// # Errors
    /// When threads or descriptors cannot be had, or the journal cannot be replayed.
    pub(super) fn start_with(config: PageServerConfig, journal: Arc<Journal>) -> Result<Self, StartError> {
        raise_descriptor_limit();
        let wakeup = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let listen = wakeup.try_clone()?;
        let workers = config.limits.workers.max(1);
        let (filler, queues, keep_working) =
            Filler::new(config.store, config.manifest, config.runtime, config.limits, journal, wakeup);
        let filler = Arc::new(filler);
        let pause = Arc::new(Pause::default());
        let cancel = Arc::new(AtomicBool::new(false));
        let end = Arc::new(Ending::default());
        let mut events = EventLoop::new(
            Arc::clone(&filler),
            config.listener,
            listen,
            (Arc::clone(&pause), Arc::clone(&cancel)),
            config.anchor,
        )?;
        match filler.journal.phase() {
            Phase::New | Phase::Preparing => filler.journal.enter(Phase::Listening),
            Phase::Listening | Phase::Restoring | Phase::Running | Phase::Over => events.take_over()?,
        }
        for number in 0..=workers {
            let (filler, queues) = (Arc::clone(&filler), queues.clone());
            let thread = thread::Builder::new().name(format!("page-copy-{number}"));
            thread.spawn(move || {
                let _watch = FailOnPanic(&filler);
                match number {
                    0 => filler.work_urgently(&queues),
                    _ => filler.work(&queues),
                }
            })?;
        }
        let ending = Arc::clone(&end);
        thread::Builder::new().name("page-events".to_owned()).spawn(move || {
            let announce = Announce(ending);
            let end = events.run(keep_working);
            *announce.0.lock() = Some(end);
        })?;
        Ok(Self { filler, end, cancel, pause })
    }

    /// Waits until serving has ended. Blocks the thread.
    pub fn wait(&self) -> Outcome {
        let mut end = self.end.lock();
        loop {
            match &*end {
                Some(end) => return self.outcome(end),
                None => end = self.end.reached.wait(end).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Waits until serving has ended, but not longer than `limit`.
    pub fn wait_timeout(&self, limit: Duration) -> Option<Outcome> {
        let until = Instant::now() + limit;
        let mut end = self.end.lock();
        loop {
            if let Some(end) = &*end {
                return Some(self.outcome(end));
            }
            let left = until.checked_duration_since(Instant::now())?;
            end = self.end.reached.wait_timeout(end, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn outcome(&self, end: &End) -> Outcome {
        match end {
            End::Resident => Outcome::Resident(self.stats()),
            End::TreeGone => Outcome::TreeGone(self.stats()),
            End::RestoreFailed(reason) => Outcome::RestoreFailed { reason: reason.clone() },
            End::Stopped(reason) => Outcome::Stopped { reason: reason.clone() },
            End::Cancelled => Outcome::Cancelled,
        }
    }

    /// Numbers so far.
    pub fn stats(&self) -> ServerStats {
        let missing_pages = self.filler.spaces.missing_pages();
        ServerStats { missing_pages, ..ServerStats::of(&self.filler.journal) }
    }

    /// Whether CRIU has finished the restore, so that the processes run.
    pub fn is_restored(&self) -> bool {
        self.filler.journal.value(Number::Restored) != 0
    }

    /// Stops the server if no task has registered yet. Once one has, its memory depends on this server, and it goes on:
    /// ending it then could only mean killing the tree.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
        self.filler.wake_event_thread();
    }

    /// Whether serving has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.end.lock().is_some()
    }

    /// Stops its event thread where nothing that was read is left undone, until [`Self::go_on`].
    pub(super) fn pause(&self) {
        self.pause.want();
        self.filler.wake_event_thread();
    }

    /// Whether it has stopped.
    pub(super) fn is_paused(&self) -> bool {
        self.pause.is_reached()
    }

    /// Lets it go on.
    pub(super) fn go_on(&self) {
        self.pause.end();
    }
}
