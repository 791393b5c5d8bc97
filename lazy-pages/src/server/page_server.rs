//! A page server as its users see it.

use std::{
    fmt, io,
    os::unix::net::UnixListener,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
        events::{End, EventLoop, Times},
        filler::{Filler, Limits},
        guardian::GuardianCommand,
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
    /// The process that outlives this one if need be.
    pub guardian: GuardianCommand,
    /// Where fetches run; it must be running on its own threads.
    pub runtime: Handle,
    /// What may be used of the machine.
    pub limits: Limits,
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
}

/// Why a page server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refused something it needs, or the guardian did not start.
    #[error("the page server cannot start: {0}")]
    System(#[from] io::Error),
}

/// A running page server. It goes on when this handle is dropped; what ends it is the end of its work.
pub struct PageServer {
    filler: Arc<Filler>,
    times: Arc<Times>,
    end: Arc<Ending>,
    cancel: Arc<AtomicBool>,
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

/// Whoever waits for the end is told, also of one by a panic: the guardian has lost its server then, and kills the tree.
struct Announce(Arc<Ending>);

impl Drop for Announce {
    fn drop(&mut self) {
        self.0
            .lock()
            .get_or_insert_with(|| End::Stopped("the page server has a defect and gave up".to_owned()));
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
    /// Starts its threads and its guardian. CRIU may connect at once, also before this returns.
    ///
    /// # Errors
    /// When threads, descriptors or the guardian cannot be had.
    pub fn start(config: PageServerConfig) -> Result<Self, StartError> {
        raise_descriptor_limit();
        let wakeup = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let listen = wakeup.try_clone()?;
        let workers = config.limits.workers.max(1);
        let (filler, queues, keep_working) =
            Filler::new(config.store, config.manifest, config.runtime, config.limits, wakeup);
        let filler = Arc::new(filler);
        let times = Arc::new(Times::default());
        let cancel = Arc::new(AtomicBool::new(false));
        let end = Arc::new(Ending::default());
        let events = EventLoop::new(
            Arc::clone(&filler),
            Arc::clone(&times),
            config.listener,
            listen,
            config.guardian,
            Arc::clone(&cancel),
        )?;
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
        Ok(Self { filler, times, end, cancel })
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
        let counters = &self.filler.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let registered = get(&self.times.registered);
        let since = |time: &AtomicU64| match get(time) {
            0 => None,
            time => Some(time.saturating_sub(registered) / 1000),
        };
        ServerStats {
            faults: get(&counters.faults),
            fetched_bytes: get(&counters.fetched_bytes),
            installed_pages: get(&counters.installed_pages),
            zeroed_pages: get(&counters.zeroed_pages),
            missing_pages: self.filler.spaces.missing_pages(),
            restored_ms: since(&self.times.restored),
            first_fault_ms: since(&self.times.first_fault),
            resident_ms: since(&self.times.resident),
            longest_fault_us: get(&counters.longest_fault_us),
        }
    }

    /// Whether CRIU has finished the restore, so that the processes run.
    pub fn is_restored(&self) -> bool {
        self.times.restored.load(Ordering::Acquire) != 0
    }

    /// Stops the server if no task has registered yet. Once one has, its memory depends on this server, and it goes on:
    /// ending it then could only mean killing the tree.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
        self.filler.wake_event_thread();
    }
}
