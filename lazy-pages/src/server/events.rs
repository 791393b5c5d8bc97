//! The event thread: accepts registrations, reads every userfaultfd, answers what needs no fetch, and decides when it is
//! over.
//!
//! What always holds:
//! - It never waits for the network, for a worker's queue or for a fetch; only for copies under way (see `space`).
//! - Whatever it reads or decides is in the journal before it has an effect, so that another server can go on from there.
//! - A descriptor is closed when nothing stored is missing anywhere, or when its address space has ended; there is no
//!   third way. When pages can never come, the tree is killed first.
//!
//! Completion means *stored* pages. Zero pages nobody has touched are left to the kernel: once the descriptors are
//! closed, it maps zeros there by itself, which is what the checkpoint says is there.

mod admission;
mod takeover;

use std::{
    collections::{HashMap, HashSet},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
};

use crate::{
    server::{
        anchor::Anchor,
        daemon::{EXIT_CANCELLED, EXIT_DONE, EXIT_KILLED, EXIT_RESTORE_FAILED},
        filler::{Filler, KeepWorking},
        journal::{Journal, Number, Record, Writer},
        kill::until_gone,
        registration::Connection,
        space::{Answer, FillError, Space, SpaceId},
        sys::uffd::{BATCH, Event, Uffd},
        trace::Rows,
        tree::{Tree, has_ended},
    },
    units::VirtAddr,
};

/// How often the thread looks for what nothing reports: address spaces that have ended, new descendants.
const TICK: Duration = Duration::from_millis(200);
/// Pause before faults that had to be put off are tried again.
const DEFERRED_PAUSE: Duration = Duration::from_micros(20);
/// How long a fault may be put off; it is microseconds unless the process is out of memory.
const DEFERRED_LIMIT: Duration = Duration::from_secs(30);
/// How long CRIU may take to notice that its tasks were killed.
const CRIU_PATIENCE: Duration = Duration::from_secs(10);

/// How serving ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every stored page is in memory.
    Resident,
    /// All processes ended by themselves before that.
    TreeGone,
    /// CRIU gave up, or was not restoring this checkpoint. Its tasks were killed.
    RestoreFailed(String),
    /// Pages can never come. The tree was killed.
    Stopped(String),
    /// Asked to stop before any task had registered.
    Cancelled,
}

impl End {
    /// The exit code that tells it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Resident | Self::TreeGone => EXIT_DONE,
            Self::RestoreFailed(_) => EXIT_RESTORE_FAILED,
            Self::Stopped(_) => EXIT_KILLED,
            Self::Cancelled => EXIT_CANCELLED,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Wakeup,
    Listener,
    Connection(u64),
    Space(SpaceId),
    Process(u64),
}

impl Source {
    const KIND: u32 = 60;

    fn token(self) -> epoll::EventData {
        let (kind, id) = match self {
            Self::Wakeup => (0, 0),
            Self::Listener => (1, 0),
            Self::Connection(id) => (3, id),
            Self::Space(id) => (4, id.0),
            Self::Process(id) => (5, id),
        };
        epoll::EventData::new_u64(kind << Self::KIND | id)
    }

    fn of(data: epoll::EventData) -> Self {
        let id = data.u64() & ((1 << Self::KIND) - 1);
        match data.u64() >> Self::KIND {
            0 => Self::Wakeup,
            1 => Self::Listener,
            3 => Self::Connection(id),
            4 => Self::Space(SpaceId(id)),
            _ => Self::Process(id),
        }
    }
}

/// A task that was killed because nobody serves its memory, and its descriptor. It is closed when the task has ended: any
/// earlier, its missing pages would be zeros.
struct Refused {
    pidfd: OwnedFd,
    _uffd: OwnedFd,
}

struct Deferred {
    space: Arc<Space>,
    page: VirtAddr,
    since: Instant,
}

/// See the module's description.
pub struct EventLoop {
    filler: Arc<Filler>,
    journal: Arc<Journal>,
    writer: Writer,
    pause: Arc<Pause>,
    epoll: OwnedFd,
    wakeup: OwnedFd,
    listener: UnixListener,
    cancel: Arc<AtomicBool>,
    anchor: Option<Arc<dyn Anchor>>,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    /// The connection that restores; the first that registers a task.
    owner: Option<u64>,
    registered: HashSet<u32>,
    pidfds: HashMap<u64, OwnedFd>,
    restored: bool,
    restore_failure: Option<String>,
    tree: Tree,
    /// Descriptors of tasks that do not belong here; held until those tasks have ended.
    foreign: Vec<Uffd>,
    refused: Vec<Refused>,
    forked: bool,
    deferred: Vec<Deferred>,
    faults: Vec<VirtAddr>,
    rows: Rows,
}

/// Stops event threads where they read nothing, so that this process can become another program without losing what
/// was read.
#[derive(Debug, Default)]
pub struct Pause {
    wanted: AtomicBool,
    reached: AtomicBool,
}

impl Pause {
    /// Asks for it. The thread that does not stop is one that has ended.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether it has stopped.
    pub fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// Lets it go on.
    pub fn end(&self) {
        self.wanted.store(false, Ordering::Release);
    }

    fn heed(&self) {
        while self.wanted.load(Ordering::Acquire) {
            self.reached.store(true, Ordering::Release);
            thread::sleep(Duration::from_millis(1));
        }
        self.reached.store(false, Ordering::Release);
    }
}

impl EventLoop {
    /// Nothing registered yet. `listener` is where CRIU will connect.
    ///
    /// # Errors
    /// When descriptors cannot be set up.
    pub fn new(
        filler: Arc<Filler>,
        listener: UnixListener,
        wakeup: OwnedFd,
        (pause, cancel): (Arc<Pause>, Arc<AtomicBool>),
        anchor: Option<Arc<dyn Anchor>>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_passcred(&listener, true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, source: Source| {
            epoll::add(&epoll, fd, source.token(), epoll::EventFlags::IN)
        };
        add(wakeup.as_fd(), Source::Wakeup)?;
        add(listener.as_fd(), Source::Listener)?;
        let journal = Arc::clone(&filler.journal);
        journal.lock();
        let rows = Rows::of(filler.layout.manifest());
        Ok(Self {
            writer: journal.writer(),
            journal,
            filler,
            pause,
            epoll,
            wakeup,
            listener,
            cancel,
            anchor,
            connections: HashMap::new(),
            next_connection: 0,
            owner: None,
            registered: HashSet::new(),
            pidfds: HashMap::new(),
            restored: false,
            restore_failure: None,
            tree: Tree::default(),
            foreign: Vec::new(),
            refused: Vec::new(),
            forked: false,
            deferred: Vec::new(),
            faults: Vec::with_capacity(BATCH),
            rows,
        })
    }

    /// Serves until the end, which is the workers' end too.
    pub fn run(mut self, keep_working: KeepWorking) -> End {
        let mut events = Vec::with_capacity(64);
        let mut ticked = Instant::now();
        let end = loop {
            self.pause.heed();
            self.wait(&mut events);
            for event in events.drain(..) {
                self.handle(Source::of(event.data));
            }
            self.retry_deferred();
            if ticked.elapsed() >= TICK {
                self.tick();
                ticked = Instant::now();
            }
            if let Some(end) = self.settle() {
                break end;
            }
        };
        self.close_admission();
        self.filler.end();
        drop(keep_working);
        if let End::RestoreFailed(reason) | End::Stopped(reason) = &end {
            tracing::error!("the restored processes are killed: {reason}");
            self.kill_tree();
        }
        until_gone(|| {
            self.refused.retain(|task| !has_ended(task.pidfd.as_fd()));
            self.refused.len()
        });
        // Nothing is missing, or nobody is there to miss it. Said before anything is closed: whoever takes over must not
        // look for descriptors any more.
        self.publish();
        self.journal.conclude(end.exit_code());
        self.filler.spaces.close();
        if let Some(anchor) = &self.anchor {
            anchor.release();
        }
        end
    }

    /// From now on somebody else holds the descriptor too.
    fn anchor(&self, space: &Space, process: Option<u32>) {
        if let Some(anchor) = &self.anchor {
            let process = process.and_then(|pid| Some((pid, self.tree.pidfd(pid)?)));
            anchor.hold(space.uffd().as_fd(), process);
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) {
        let timeout = if self.deferred.is_empty() {
            TICK
        } else {
            thread::sleep(DEFERRED_PAUSE);
            Duration::ZERO
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.as_nanos() as i64 };
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => self.filler.fail(format!("the kernel reports no events any more: {error}")),
        }
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Wakeup => {
                // Only resets the counter.
                let _ = rustix::io::read(&self.wakeup, &mut [0_u8; 8]);
            }
            Source::Listener => self.accept(),
            Source::Connection(id) => self.read_connection(id),
            Source::Space(id) => {
                if let Some(space) = self.filler.spaces.get(id) {
                    self.read_events(&space);
                }
            }
            Source::Process(id) => {
                if let Some(pidfd) = self.pidfds.remove(&id) {
                    let _ = epoll::delete(&self.epoll, &pidfd);
                }
                self.reap();
            }
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: Source) {
        if let Err(error) = epoll::add(&self.epoll, fd, source.token(), epoll::EventFlags::IN) {
            self.filler.fail(format!("a descriptor cannot be watched: {error}"));
        }
    }

    /// Reads what a descriptor has to say: first all of it that changes the map, then answers the faults.
    fn read_events(&mut self, space: &Arc<Space>) {
        let mut faults = std::mem::take(&mut self.faults);
        loop {
            let read = space.exclusively(|space| {
                self.record_dropped(space);
                let read = self.writer.read(space.id, space.uffd());
                for at in 0..*read.as_ref().unwrap_or(&0) {
                    match self.writer.message(at) {
                        Some(Event::Fault(page)) => faults.push(page),
                        Some(event) => self.apply(space, event),
                        None => {}
                    }
                }
                self.writer.commit();
                read
            });
            if !faults.is_empty() {
                mark(&self.journal, Number::FirstFault);
                self.filler.count(Number::Faults, faults.len() as u64);
            }
            let since = Instant::now();
            for page in faults.drain(..) {
                self.answer(Deferred { space: Arc::clone(space), page, since });
            }
            match read {
                Ok(BATCH) => {}
                Ok(_) => break,
                Err(error) => {
                    // Without the message the process waits for ever; without the child's descriptor there is no child.
                    self.filler.fail(format!("page faults cannot be read: {error}"));
                    break;
                }
            }
        }
        self.faults = faults;
    }

    /// What a copying thread has found out goes into the journal before the next event does.
    fn record_dropped(&mut self, space: &Space) {
        for page in space.take_dropped() {
            self.writer.append(Record::Remove { space: space.id, start: page, end: page.add(1) });
        }
    }

    /// Applies an event that changes the map, and records it if it did. Called while nobody copies.
    fn apply(&mut self, space: &Space, event: Event) {
        match event {
            Event::Fault(_) => {}
            Event::Fork(child) => self.fork(space, child),
            Event::Remap { from, to, pages } => {
                if space.state().remap(from, to, pages) {
                    self.writer.append(Record::Remap { space: space.id, from, to, pages });
                }
                space.uffd().wake(from, from.add(pages));
            }
            Event::Remove { start, end } => {
                if space.state().remove(start, end) {
                    self.writer.append(Record::Remove { space: space.id, start, end });
                }
                space.uffd().wake(start, end);
            }
        }
    }

    /// Called while nobody copies to the parent.
    fn fork(&mut self, parent: &Space, child: RawFd) {
        let uffd = match Uffd::take_over(child) {
            Ok(uffd) => uffd,
            Err(error) => return self.filler.fail(format!("a forked child cannot be served: {error}")),
        };
        let id = self.filler.spaces.next_id();
        self.writer.append(Record::Fork { parent: parent.id, space: id, uffd: child });
        let state = parent.state().forked();
        let space = self.filler.spaces.add(Space::new(id, parent.object, uffd, state));
        self.watch(space.uffd().as_fd(), Source::Space(space.id));
        self.anchor(&space, None);
        self.forked = true;
    }

    fn answer(&mut self, fault: Deferred) {
        let Deferred { space, page, since } = &fault;
        match space.answer(*page) {
            Ok(Answer::Done { zeroed }) => {
                self.filler.count(Number::ZeroedPages, zeroed);
            }
            Ok(Answer::Later) if since.elapsed() > DEFERRED_LIMIT => {
                self.filler.fail(FillError::NoMemory.to_string());
            }
            Ok(Answer::Later) => self.deferred.push(fault),
            Ok(Answer::Fetch(image)) => match self.filler.layout.frame_of(space.object, image) {
                Some(frame) => {
                    self.filler.want(frame);
                    // The page is on its way: what is counted does not delay it.
                    self.journal
                        .trace()
                        .count_touch(self.rows.row_of(space.object, image), self.journal.age());
                }
                None => self.filler.fail(format!("the manifest does not say where the page of {image} is")),
            },
            Err(error) => self.filler.fail(error.to_string()),
        }
    }

    fn retry_deferred(&mut self) {
        for fault in std::mem::take(&mut self.deferred) {
            if !fault.space.is_gone() {
                self.answer(fault);
            }
        }
    }

    fn tick(&mut self) {
        self.journal.trace().make_room(self.journal.age());
        self.reap();
        if std::mem::take(&mut self.forked) {
            for pid in self.tree.scan() {
                if let Some(pidfd) = self.tree.pidfd(pid) {
                    self.writer.append(Record::Process { pid, pidfd: pidfd.as_raw_fd() });
                }
            }
        }
        self.publish();
    }

    /// Lets go of address spaces that have ended.
    fn reap(&mut self) {
        for space in self.filler.spaces.reap() {
            // Before its descriptor is closed and its number means something else.
            self.writer.append(Record::Closed { space: space.id });
        }
        self.refused.retain(|task| !has_ended(task.pidfd.as_fd()));
    }

    /// Puts where things stand where others can see it.
    fn publish(&self) {
        let (waiting, since) = self.filler.frames().waiting();
        let longest = since.map_or(0, |since| since.elapsed().as_micros() as u64);
        let missing = self.filler.spaces.missing_pages();
        for (number, value) in
            [(Number::Waiting, waiting), (Number::LongestWait, longest), (Number::MissingPages, missing)]
        {
            self.journal.number(number).store(value, Ordering::Relaxed);
        }
    }

    /// Whether it is over, and how.
    fn settle(&mut self) -> Option<End> {
        if self.cancel.load(Ordering::Acquire) && self.nobody_depends() {
            // Not before it has been seen that nobody has asked in the meantime.
            self.close_admission();
            if self.nobody_depends() {
                return Some(End::Cancelled);
            }
        }
        if let Some(reason) = self.restore_failure.take() {
            return Some(End::RestoreFailed(reason));
        }
        if let Some(reason) = self.filler.failure() {
            return Some(End::Stopped(reason.to_owned()));
        }
        if !self.restored {
            return None;
        }
        if self.filler.frames().undelivered() == 0 {
            // What has ended needs nothing; that is not the same as having got everything.
            self.reap();
            if !self.filler.spaces.is_empty() && self.nothing_is_missing() {
                mark(&self.journal, Number::Resident);
                return Some(End::Resident);
            }
            self.filler.start_background();
        }
        if !self.filler.spaces.is_empty() {
            return None;
        }
        // A tree of zombies only has no memory.
        Some(if self.registered.is_empty() { End::Resident } else { End::TreeGone })
    }

    fn nobody_depends(&self) -> bool {
        self.owner.is_none() && !self.restored && self.filler.spaces.is_empty()
    }

    /// The last look before descriptors are closed. Only this thread adds address spaces and applies events, so what it
    /// sees here stays true. A fork it has not read yet hides nothing: a child has what its parent had, and no page
    /// can have been copied to the parent since.
    fn nothing_is_missing(&self) -> bool {
        let mut nothing = true;
        for space in self.filler.spaces.all() {
            let missing: Vec<_> = space.state().missing().collect();
            for piece in missing {
                nothing = false;
                for page in 0..piece.pages {
                    if let Some(frame) = self.filler.layout.frame_of(space.object, piece.image.add(page)) {
                        self.filler.frames().expect_frame_again(frame);
                    }
                }
            }
        }
        nothing
    }

    /// Ends every process that could see a page that will never come, and holds their descriptors until they have ended.
    fn kill_tree(&mut self) {
        let asked = Instant::now();
        until_gone(|| {
            // CRIU may still be handing over tasks.
            if let Some(owner) = self.owner {
                self.read_connection(owner);
            }
            self.tree.kill();
            self.reap();
            self.foreign.retain(Uffd::is_alive);
            let criu =
                self.owner.is_some_and(|owner| self.connections.contains_key(&owner)) && !self.restored;
            let waiting = usize::from(criu && asked.elapsed() < CRIU_PATIENCE);
            self.filler.spaces.all().len() + self.foreign.len() + waiting
        });
    }
}

fn mark(journal: &Journal, event: Number) {
    // Only the first time counts.
    let _ = journal.number(event).compare_exchange(0, now(), Ordering::AcqRel, Ordering::Acquire);
}

/// Microseconds of the monotonic clock; never 0.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000).max(1)
}
