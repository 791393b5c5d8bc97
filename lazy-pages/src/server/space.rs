//! One address space being filled: its descriptor, what is known of its pages, and the rules of filling them.
//!
//! **The concurrency rule.** Taking a fork, move or removal off the descriptor lets the process go on, and changes what
//! belongs where. It must not happen between another thread's look at the state and its copy, or old bytes land in
//! memory that was just given up, or a forked child is believed to lack a page it has. So copying holds `gate` shared
//! from lookup to mark, and reading events holds it exclusively from read to update. A read returns faults *and*
//! events, and which cannot be told before; therefore every read takes the gate exclusively. That costs a reader at most
//! the few copies under way, which is why a copy is kept to [`COPY_PAGES`].
//!
//! Events are read by one thread only. That thread needs no gate for its own copies.
//!
//! What always holds: a fault that was read is answered by a fill, by a wake, or stays with the caller ([`Answer`]). A
//! state that says "missing" changes only together with a fill or a wake of the page.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use crate::{
    server::{
        page_state::{Content, Missing, PageState},
        sys::uffd::{Filled, Uffd},
    },
    units::{PAGE_SIZE, VirtAddr},
};

/// Pages of one copy: a whole frame. Four times as many calls for the same pages make the fill of 1 GiB a tenth slower; a
/// fault that waits for the gate waits for at most such a copy, about 90 µs.
const COPY_PAGES: u64 = 64;
/// Zero pages mapped around a fault on one; they cost no memory, only page table entries.
const ZERO_PAGES: u64 = 64;
/// How long a process may be out of memory before it is given up.
const NO_MEMORY_PATIENCE: Duration = Duration::from_secs(30);
/// Wakes of one page in a row after which it is certain that it is lost. Each thread that waits for a page can cause
/// one.
const MAX_STALE_FAULTS: u32 = 100_000;

/// Number of an address space, ascending in order of creation: a forked child's is above its parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(pub u64);

/// Why pages cannot be put into a process.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The kernel found no memory for it for [`NO_MEMORY_PATIENCE`].
    #[error("there is no memory left for the process")]
    NoMemory,
    /// A call failed that cannot fail.
    #[error("the kernel refuses to fill a page at {address}: {errno}")]
    Refused {
        /// Where.
        address: VirtAddr,
        /// Its answer.
        errno: Errno,
    },
    /// A page that was filled is missing again, and the process did not give it up.
    #[error("the page at {address} was filled and is missing again")]
    Lost {
        /// Where.
        address: VirtAddr,
    },
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The thread runs on.
    Done {
        /// Pages that were filled with zeros for it.
        zeroed: u64,
    },
    /// An event has to be read first; try again then.
    Later,
    /// Its page is this one of the image, and has to be fetched.
    Fetch(VirtAddr),
}

/// See the module's description.
#[derive(Debug)]
pub struct Space {
    /// Its number.
    pub id: SpaceId,
    /// Position in `Manifest::objects` of the memory it was restored, or forked, from.
    pub object: usize,
    uffd: Uffd,
    gate: RwLock<()>,
    state: Mutex<PageState>,
    gone: AtomicBool,
    stale_page: AtomicU64,
    stale_faults: AtomicU32,
    /// Pages given up because nothing is served at their address, which the journal does not know yet.
    dropped: Mutex<Vec<VirtAddr>>,
    has_dropped: AtomicBool,
}

impl Space {
    /// An address space whose pages are as `state` says.
    pub fn new(id: SpaceId, object: usize, uffd: Uffd, state: PageState) -> Self {
        Self {
            id,
            object,
            uffd,
            gate: RwLock::new(()),
            state: Mutex::new(state),
            gone: AtomicBool::new(false),
            stale_page: AtomicU64::new(0),
            stale_faults: AtomicU32::new(0),
            dropped: Mutex::default(),
            has_dropped: AtomicBool::new(false),
        }
    }

    /// Its descriptor.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// What is known of its pages. Held for look-ups only, never across a system call.
    pub fn state(&self) -> MutexGuard<'_, PageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `read_and_update`, which takes messages off the descriptor and applies what they say to the state, while
    /// nobody copies.
    pub fn exclusively<T>(&self, read_and_update: impl FnOnce(&Self) -> T) -> T {
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        read_and_update(self)
    }

    /// Whether the address space is known to have ended.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Asks the kernel whether the address space has ended.
    pub fn probe_gone(&self) -> bool {
        if !self.is_gone() && !self.uffd.is_alive() {
            self.set_gone();
        }
        self.is_gone()
    }

    fn set_gone(&self) {
        self.state().clear();
        self.gone.store(true, Ordering::Release);
    }

    /// Puts `bytes`, the content of the image from `image` on, wherever those pages are missing. Returns how many were
    /// filled. Waits, for microseconds, while events are pending; the thread that reads them must be another one.
    ///
    /// # Errors
    /// When pages stay missing that the process may need.
    pub fn install(&self, image: VirtAddr, bytes: &[u8]) -> Result<u64, FillError> {
        let pages = (bytes.len() / PAGE_SIZE) as u64;
        let mut step = COPY_PAGES;
        let mut filled = 0;
        let mut backoff = Backoff::default();
        while !self.is_gone() {
            let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let Some(missing) = self.state().missing_in_image(image, pages) else { break };
            let missing = Missing { pages: missing.pages.min(step), ..missing };
            let offset = missing.image.pages_from(image) as usize * PAGE_SIZE;
            let source = &bytes[offset..offset + missing.pages as usize * PAGE_SIZE];
            match self.uffd.copy(missing.start, source) {
                Filled::Pages(done) => {
                    self.state().install(missing.start, done);
                    filled += done;
                    backoff = Backoff::default();
                }
                Filled::Present => {
                    self.state().install(missing.start, 1);
                    self.wake_page(missing.start);
                }
                // The process may have split the area (mprotect is not reported), so page by page.
                Filled::NoArea if missing.pages > 1 => step = 1,
                Filled::NoArea => self.drop_if_no_area(missing.start, source),
                Filled::Gone => self.set_gone(),
                Filled::EventPending => {
                    drop(gate);
                    backoff.wait();
                }
                Filled::NoMemory => {
                    drop(gate);
                    backoff.wait();
                    if backoff.waiting_for() > NO_MEMORY_PATIENCE {
                        return Err(FillError::NoMemory);
                    }
                }
                Filled::Failed(errno) => return Err(FillError::Refused { address: missing.start, errno }),
            }
        }
        Ok(filled)
    }

    /// A single page was refused because nothing is served there. Either the area really is gone, or the process has
    /// moved it and that event is not read yet: then the page still exists, elsewhere. The kernel looks for the area
    /// before it looks for events, but refuses a *new* call first thing while an event is pending. So a second refusal of
    /// the same kind, with no event read in between (the caller holds the gate), proves that the first was not
    /// due to an event.
    fn drop_if_no_area(&self, page: VirtAddr, source: &[u8]) {
        match self.uffd.copy(page, source) {
            Filled::NoArea => {
                self.state().remove(page, page.add(1));
                self.dropped.lock().unwrap_or_else(PoisonError::into_inner).push(page);
                self.has_dropped.store(true, Ordering::Release);
                self.wake_page(page);
            }
            Filled::Pages(_) => self.state().install(page, 1),
            // The caller's next round meets it again and knows what to do.
            _ => {}
        }
    }

    /// Pages given up since the last call. They go into the journal before the next event does: a page believed to be
    /// somewhere would stand in the way of another one that is moved there.
    pub fn take_dropped(&self) -> Vec<VirtAddr> {
        if !self.has_dropped.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.dropped.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers a fault at `page`, if that can be done without fetching. Only for the thread that reads events.
    ///
    /// # Errors
    /// When the page cannot be filled.
    pub fn answer(&self, page: VirtAddr) -> Result<Answer, FillError> {
        let found = self.state().lookup(page);
        match found.map(|extent| (extent, extent.content)) {
            Some((extent, Content::Stored(image))) => {
                Ok(Answer::Fetch(image.add(page.pages_from(extent.start))))
            }
            Some((_, Content::Installed)) => self.wake_stale(page),
            Some((extent, Content::Zero)) => {
                let window = VirtAddr::of_page(page.page() / ZERO_PAGES * ZERO_PAGES);
                let start = window.max(extent.start);
                let end = window.add(ZERO_PAGES).min(extent.start.add(extent.pages));
                match self.uffd.zero(start, end.pages_from(start)) {
                    Filled::Pages(done) if page < start.add(done) => {
                        self.state().install(start, done);
                        Ok(Answer::Done { zeroed: done })
                    }
                    _ => self.zero_page(page),
                }
            }
            None => self.zero_page(page),
        }
    }

    fn zero_page(&self, page: VirtAddr) -> Result<Answer, FillError> {
        match self.uffd.zero(page, 1) {
            Filled::Pages(zeroed) => {
                self.state().install(page, 1);
                Ok(Answer::Done { zeroed })
            }
            Filled::Present => {
                self.state().install(page, 1);
                self.wake_page(page);
                Ok(Answer::Done { zeroed: 0 })
            }
            Filled::EventPending => Ok(Answer::Later),
            // Unmapped or moved since: whoever still looks there shall see for himself.
            Filled::NoArea => {
                self.wake_page(page);
                Ok(Answer::Done { zeroed: 0 })
            }
            Filled::Gone => {
                self.set_gone();
                Ok(Answer::Done { zeroed: 0 })
            }
            // Reclaim may need the process to run; the caller tries again.
            Filled::NoMemory => Ok(Answer::Later),
            Filled::Failed(errno) => Err(FillError::Refused { address: page, errno }),
        }
    }

    /// A fault on a page that was filled: usually one of several threads that waited for it. Zeroing is never the
    /// answer, since nothing says that the process gave the page up.
    fn wake_stale(&self, page: VirtAddr) -> Result<Answer, FillError> {
        if self.stale_page.swap(page.get(), Ordering::Relaxed) != page.get() {
            self.stale_faults.store(0, Ordering::Relaxed);
        }
        if self.stale_faults.fetch_add(1, Ordering::Relaxed) >= MAX_STALE_FAULTS {
            return Err(FillError::Lost { address: page });
        }
        self.wake_page(page);
        Ok(Answer::Done { zeroed: 0 })
    }

    fn wake_page(&self, page: VirtAddr) {
        self.uffd.wake(page, page.add(1));
    }
}

/// Waits that start where a context switch is and end where nobody is hurt by another look.
#[derive(Debug, Default)]
struct Backoff {
    since: Option<Instant>,
    rounds: u32,
}

impl Backoff {
    fn wait(&mut self) {
        self.since.get_or_insert_with(Instant::now);
        if self.rounds < 4 {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(10 << (self.rounds - 4).min(7)));
        }
        self.rounds += 1;
    }

    fn waiting_for(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
