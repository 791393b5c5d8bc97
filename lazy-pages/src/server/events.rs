//! The event thread: accepts registrations, reads every userfaultfd, answers what needs no fetch, and decides when it is
//! over.
//!
//! What always holds:
//! - It never waits for the network, for a worker's queue or for a fetch; only for copies under way (see `space`), and
//!   for the guardian to take a descriptor.
//! - The guardian has a descriptor before the first fault on it is answered.
//! - A descriptor is closed when nothing stored is missing anywhere, or when its address space has ended; there is no
//!   third way. When pages can never come, the tree is killed first.
//!
//! Completion means *stored* pages. Zero pages nobody has touched are left to the kernel: once the descriptors are
//! closed, it maps zeros there by itself, which is what the checkpoint says is there.

mod admission;

use std::{
    collections::{HashMap, HashSet},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
        filler::{Filler, KeepWorking},
        guardian::{Guardian, GuardianCommand, until_gone},
        registration::Connection,
        space::{Answer, FillError, Space, SpaceId},
        tree::Tree,
        uffd::{BATCH, Event, Uffd},
    },
    units::VirtAddr,
};

/// How often the thread looks for what nothing reports: address spaces that have ended, new descendants.
const TICK: Duration = Duration::from_millis(200);
/// Pause before faults that had to be put off are tried again.
const DEFERRED_PAUSE: Duration = Duration::from_micros(20);
/// How long a fault may be put off; it is microseconds unless the process is out of memory.
const DEFERRED_LIMIT: Duration = Duration::from_secs(30);
/// How often a guardian that dies is replaced.
const GUARDIAN_RESTARTS: u32 = 3;
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

/// When things happened, in microseconds since the server started; 0 is never.
#[derive(Debug, Default)]
pub struct Times {
    /// The first task registered.
    pub registered: AtomicU64,
    /// CRIU let the processes run.
    pub restored: AtomicU64,
    /// The first fault was read.
    pub first_fault: AtomicU64,
    /// All stored pages were in memory.
    pub resident: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Wakeup,
    Listener,
    Guardian,
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
            Self::Guardian => (2, 0),
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
            2 => Self::Guardian,
            3 => Self::Connection(id),
            4 => Self::Space(SpaceId(id)),
            _ => Self::Process(id),
        }
    }
}

struct Deferred {
    space: Arc<Space>,
    page: VirtAddr,
    since: Instant,
}

/// See the module's description.
pub struct EventLoop {
    filler: Arc<Filler>,
    times: Arc<Times>,
    started: Instant,
    epoll: OwnedFd,
    wakeup: OwnedFd,
    listener: UnixListener,
    cancel: Arc<AtomicBool>,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    /// The connection that restores; the first that registers a task.
    owner: Option<u64>,
    registered: HashSet<u32>,
    pidfds: HashMap<u64, OwnedFd>,
    restored: bool,
    restore_failure: Option<String>,
    guardian: Option<Guardian>,
    guardian_command: GuardianCommand,
    guardian_restarts: u32,
    tree: Tree,
    /// Descriptors of tasks that do not belong here; held until those tasks have ended.
    foreign: Vec<Uffd>,
    forked: bool,
    deferred: Vec<Deferred>,
    events: Vec<Event>,
}

impl EventLoop {
    /// Nothing registered yet. `listener` is where CRIU will connect.
    ///
    /// # Errors
    /// When descriptors cannot be set up or the guardian cannot be started.
    pub fn new(
        filler: Arc<Filler>,
        times: Arc<Times>,
        listener: UnixListener,
        wakeup: OwnedFd,
        guardian_command: GuardianCommand,
        cancel: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_passcred(&listener, true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let guardian = Guardian::start(&guardian_command)?;
        let add = |fd: BorrowedFd<'_>, source: Source| {
            epoll::add(&epoll, fd, source.token(), epoll::EventFlags::IN)
        };
        add(wakeup.as_fd(), Source::Wakeup)?;
        add(listener.as_fd(), Source::Listener)?;
        add(guardian.as_fd(), Source::Guardian)?;
        Ok(Self {
            filler,
            times,
            started: Instant::now(),
            epoll,
            wakeup,
            listener,
            cancel,
            connections: HashMap::new(),
            next_connection: 0,
            owner: None,
            registered: HashSet::new(),
            pidfds: HashMap::new(),
            restored: false,
            restore_failure: None,
            guardian: Some(guardian),
            guardian_command,
            guardian_restarts: 0,
            tree: Tree::default(),
            foreign: Vec::new(),
            forked: false,
            deferred: Vec::new(),
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Serves until the end, which is the workers' end too.
    pub fn run(mut self, keep_working: KeepWorking) -> End {
        let mut events = Vec::with_capacity(64);
        let mut ticked = Instant::now();
        let end = loop {
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
        self.filler.end();
        drop(keep_working);
        if let End::RestoreFailed(reason) | End::Stopped(reason) = &end {
            tracing::error!("the restored processes are killed: {reason}");
            self.kill_tree();
        }
        // Nothing is missing, or nobody is there to miss it.
        self.filler.spaces.close();
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
        end
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
            Source::Guardian => self.replace_guardian(),
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
                self.filler.spaces.reap();
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
        let mut events = std::mem::take(&mut self.events);
        loop {
            let read = space.exclusively(|space| {
                let read = space.uffd().read(&mut events);
                events.retain_mut(|event| self.is_fault_or_apply(space, event));
                read
            });
            if !events.is_empty() {
                mark(&self.times.first_fault, self.started);
                self.filler.counters.faults.fetch_add(events.len() as u64, Ordering::Relaxed);
            }
            let since = Instant::now();
            for event in events.drain(..) {
                if let Event::Fault(page) = event {
                    self.answer(Deferred { space: Arc::clone(space), page, since });
                }
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
        self.events = events;
    }

    /// Applies an event that changes the map. Called while nobody copies.
    fn is_fault_or_apply(&mut self, space: &Space, event: &mut Event) -> bool {
        match event {
            Event::Fault(_) => return true,
            Event::Fork(child) => {
                if let Some(child) = child.take() {
                    self.fork(space, child);
                }
            }
            &mut Event::Remap { from, to, pages } => {
                space.state().remap(from, to, pages);
                space.uffd().wake(from, from.add(pages));
            }
            &mut Event::Remove { start, end } => {
                space.state().remove(start, end);
                space.uffd().wake(start, end);
            }
        }
        false
    }

    /// Called while nobody copies to the parent.
    fn fork(&mut self, parent: &Space, child: Uffd) {
        if let Some(guardian) = &self.guardian {
            let _ = guardian.hold(&child);
        }
        let state = parent.state().forked();
        let space = self.filler.spaces.add(parent.object, child, state);
        self.watch(space.uffd().as_fd(), Source::Space(space.id));
        self.forked = true;
    }

    fn answer(&mut self, fault: Deferred) {
        let Deferred { space, page, since } = &fault;
        match space.answer(*page) {
            Ok(Answer::Done { zeroed }) => {
                self.filler.counters.zeroed_pages.fetch_add(zeroed, Ordering::Relaxed);
            }
            Ok(Answer::Later) if since.elapsed() > DEFERRED_LIMIT => {
                self.filler.fail(FillError::NoMemory.to_string());
            }
            Ok(Answer::Later) => self.deferred.push(fault),
            Ok(Answer::Fetch(image)) => match self.filler.layout.frame_of(space.object, image) {
                Some(frame) => self.filler.want(frame),
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
        self.filler.spaces.reap();
        if std::mem::take(&mut self.forked) {
            for pid in self.tree.scan() {
                let found = self.tree.processes().find(|(known, _)| *known == pid);
                if let (Some(guardian), Some((_, pidfd))) = (&self.guardian, found) {
                    let _ = guardian.watch(pid, pidfd);
                }
            }
        }
    }

    /// The guardian has ended, which it never does by itself before it is dismissed.
    fn replace_guardian(&mut self) {
        let Some(guardian) = self.guardian.take() else { return };
        let _ = epoll::delete(&self.epoll, guardian.as_fd());
        tracing::error!("the guardian has ended: {}", guardian.bury());
        if self.guardian_restarts == GUARDIAN_RESTARTS {
            tracing::error!("no guardian is started any more: if this server is killed now, pages are lost");
            return;
        }
        self.guardian_restarts += 1;
        match self.start_guardian() {
            Ok(guardian) => {
                self.watch(guardian.as_fd(), Source::Guardian);
                self.guardian = Some(guardian);
            }
            Err(error) => {
                tracing::error!("there is no guardian, pages are lost if this server is killed: {error}")
            }
        }
    }

    fn start_guardian(&self) -> io::Result<Guardian> {
        let guardian = Guardian::start(&self.guardian_command)?;
        for space in self.filler.spaces.all() {
            guardian.hold(space.uffd())?;
        }
        for uffd in &self.foreign {
            guardian.hold(uffd)?;
        }
        for (pid, pidfd) in self.tree.processes() {
            guardian.watch(pid, pidfd)?;
        }
        Ok(guardian)
    }

    /// Whether it is over, and how.
    fn settle(&mut self) -> Option<End> {
        if let Some(reason) = self.restore_failure.take() {
            return Some(End::RestoreFailed(reason));
        }
        if let Some(reason) = self.filler.failure() {
            return Some(End::Stopped(reason.to_owned()));
        }
        if self.cancel.load(Ordering::Acquire) && self.owner.is_none() {
            return Some(End::Cancelled);
        }
        if !self.restored {
            return None;
        }
        if self.filler.frames().undelivered() == 0 {
            // What has ended needs nothing; that is not the same as having got everything.
            self.filler.spaces.reap();
            if !self.filler.spaces.is_empty() && self.nothing_is_missing() {
                mark(&self.times.resident, self.started);
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
            self.filler.spaces.reap();
            self.foreign.retain(Uffd::is_alive);
            let criu =
                self.owner.is_some_and(|owner| self.connections.contains_key(&owner)) && !self.restored;
            let waiting = usize::from(criu && asked.elapsed() < CRIU_PATIENCE);
            self.filler.spaces.all().len() + self.foreign.len() + waiting
        });
    }
}

fn mark(time: &AtomicU64, started: Instant) {
    let now = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    // Only the first time counts.
    let _ = time.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
}
