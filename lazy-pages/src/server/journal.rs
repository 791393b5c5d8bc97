//! What must be known of a restore when its page server has died: a journal in memory that outlives it.
//!
//! The journal lists the address spaces and processes that registered, and every event that changed what belongs where:
//! forks, moves, removals. Which pages have been filled is not in it. The kernel knows that, and refuses to fill a page
//! that is there (`EEXIST`); so whoever replays the journal can only take too many pages for missing, never too few, and
//! filling those is refused. See [`replay`](super::replay).
//!
//! What always holds:
//! - **No event is lost by a death.** Reading an event off a descriptor lets the process go on, so it must be known from
//!   then on. The kernel writes it into the journal's own memory ([`Writer::read`]), where it stays until it has been
//!   applied and recorded. One store of one word ([`COMMIT`]) publishes the records and gives up the messages.
//! - One thread writes; who reads sees a consistent journal at any moment, or notices that it changed meanwhile
//!   ([`Journal::snapshot`]).
//! - A journal that has run full says so for ever after. It cannot be replayed, and a death then ends the tree.
//!
//! Descriptors are in it by number; they mean something only in the table of descriptors of the server that wrote them.

use std::{
    io,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use crate::{
    format::FrameIndex,
    ids::{CheckpointId, LeaseId},
    server::{
        events::now,
        space::SpaceId,
        sys::{
            shared::SharedWords,
            uffd::{BATCH, Event, MESSAGE_WORDS, Uffd},
        },
        trace::{Column, TRACE_WORDS, Trace},
    },
    units::{PAGE_SIZE, VirtAddr},
};

/// Words of a journal: a page of header and messages, then the records, then the [trace](super::trace).
pub const JOURNAL_WORDS: usize = FIRST_TRACE + TRACE_WORDS;

const FIRST_TRACE: usize = HEADER_WORDS + RECORDS * RECORD_WORDS;

const HEADER_WORDS: usize = 512;
/// Enough for half a million forks, moves and removals; they take memory only when they come.
const RECORDS: usize = 1 << 19;
const RECORD_WORDS: usize = 4;

const PHASE: usize = 0;
const OUTCOME: usize = 1;
const MANIFEST_FD: usize = 2;
const LISTENER_FD: usize = 3;
const CHECKPOINT: usize = 4;
const LEASE: usize = 6;
/// See [`Commit`].
const COMMIT: usize = 8;
const STAGED_SPACE: usize = 9;
const FULL: usize = 10;
const OWNER_FD: usize = 11;
const FINISHED: usize = 12;
const FIRST_NUMBER: usize = 16;
const ERROR_LENGTH: usize = 40;
const ERROR: usize = 41;
const ERROR_WORDS: usize = 64;
const CONNECTIONS: usize = 112;
/// Connections kept open at a time. CRIU needs one; whoever opens more than this loses the oldest.
pub const MAX_CONNECTIONS: usize = 32;
const STAGE: usize = 256;
const STAGE_WORDS: usize = BATCH * MESSAGE_WORDS;

/// The word that says what counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Commit {
    /// How often messages were read; no two moments with different messages look the same.
    reads: u64,
    /// How many records there are.
    records: u64,
    /// Messages are staged that are not among the records.
    staged: bool,
}

impl Commit {
    const RECORDS: u32 = 1;
    const READS: u32 = 24;

    fn encode(self) -> u64 {
        self.reads << Self::READS | self.records << Self::RECORDS | u64::from(self.staged)
    }

    fn decode(word: u64) -> Self {
        let records = word >> Self::RECORDS & ((1 << (Self::READS - Self::RECORDS)) - 1);
        Self { reads: word >> Self::READS, records, staged: word & 1 != 0 }
    }
}

/// How far a restore has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No server has begun with it.
    New,
    /// The images are being written; nothing depends on the server.
    Preparing,
    /// CRIU may restore; nothing depends on the server.
    Listening,
    /// Tasks have registered, but do not run yet.
    Restoring,
    /// The processes run and depend on the server.
    Running,
    /// Nothing depends on the server any more.
    Over,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::New, Self::Preparing, Self::Listening, Self::Restoring, Self::Running, Self::Over];
}

/// Numbers a server keeps in the journal, so that its successor goes on counting and others can look. Times are in
/// microseconds of the monotonic clock; 0 is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Number {
    /// Page faults read.
    Faults = FIRST_NUMBER,
    /// Bytes that came from the store.
    FetchedBytes,
    /// Pages copied.
    InstalledPages,
    /// Pages filled with zeros.
    ZeroedPages,
    /// Stored pages that some process still lacks.
    MissingPages,
    /// The longest a thread has waited for a page that had to be fetched, in microseconds.
    LongestFault,
    /// Frames some thread waits for now.
    Waiting,
    /// How long the longest of those waits has been, in microseconds.
    LongestWait,
    /// Requests to the store that failed.
    StoreErrors,
    /// How often a new server has taken over.
    Takeovers,
    /// When the first task registered.
    Registered,
    /// When CRIU let the processes run.
    Restored,
    /// When the first fault was read.
    FirstFault,
    /// When all stored pages were in memory.
    Resident,
    /// Frames that came damaged.
    DamagedFrames,
    /// How long frames were waited for in all, in microseconds.
    Stalled,
    /// Frames that were waited for, by how long: the first of [`STALL_BUCKETS`] numbers, which follow.
    Stalls,
}

/// The waits that are counted together: up to a tenth of a millisecond, one, ten, a hundred, a second, and longer.
pub const STALL_BUCKETS: usize = STALL_LIMITS_US.len() + 1;

/// Upper ends of all of them but the last, in microseconds.
pub const STALL_LIMITS_US: [u64; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];

// They end before the next field begins.
const _: () = assert!(Number::Stalls as usize + STALL_BUCKETS <= ERROR_LENGTH);

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A task has registered.
    Task {
        /// Number of its address space.
        space: SpaceId,
        /// Position of its memory in the manifest.
        object: usize,
        /// Its userfaultfd.
        uffd: RawFd,
        /// Its pid in the image.
        image_pid: u32,
        /// Its pid here.
        pid: u32,
    },
    /// A process has forked.
    Fork {
        /// Whose address space was copied.
        parent: SpaceId,
        /// Number of the copy.
        space: SpaceId,
        /// Its userfaultfd.
        uffd: RawFd,
    },
    /// Pages have moved.
    Remap {
        /// In which address space.
        space: SpaceId,
        /// From here,
        from: VirtAddr,
        /// to here,
        to: VirtAddr,
        /// this many.
        pages: u64,
    },
    /// A process has given up what it had in a range.
    Remove {
        /// In which address space.
        space: SpaceId,
        /// First address.
        start: VirtAddr,
        /// First address after it.
        end: VirtAddr,
    },
    /// An address space has ended; its descriptor is closed after this.
    Closed {
        /// Which.
        space: SpaceId,
    },
    /// A process belongs to the tree.
    Process {
        /// Its pid.
        pid: u32,
        /// Its pidfd.
        pidfd: RawFd,
    },
    /// A task that does not belong to this restore has handed over its descriptor.
    Foreign {
        /// Its userfaultfd.
        uffd: RawFd,
    },
}

const KIND: u32 = 56;

impl Record {
    fn encode(self) -> [u64; RECORD_WORDS] {
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let kind = |kind: u64, space: SpaceId| kind << KIND | space.0;
        match self {
            Self::Task { space, object, uffd, image_pid, pid } => {
                [kind(1, space), object as u64, uffd as u64, pair(image_pid, pid)]
            }
            Self::Fork { parent, space, uffd } => [kind(2, parent), space.0, uffd as u64, 0],
            Self::Remap { space, from, to, pages } => [kind(3, space), from.get(), to.get(), pages],
            Self::Remove { space, start, end } => [kind(4, space), start.get(), end.get(), 0],
            Self::Closed { space } => [kind(5, space), 0, 0, 0],
            Self::Process { pid, pidfd } => [kind(6, SpaceId(0)), u64::from(pid), pidfd as u64, 0],
            Self::Foreign { uffd } => [kind(7, SpaceId(0)), 0, uffd as u64, 0],
        }
    }

    /// `None` when it is none, or of addresses that cannot be.
    fn decode(words: [u64; RECORD_WORDS]) -> Option<Self> {
        const ADDRESSES: u64 = 1 << 57;
        let [head, first, second, third] = words;
        let fits = |start: u64, pages: u64| {
            pages
                .checked_mul(PAGE_SIZE as u64)
                .and_then(|bytes| bytes.checked_add(start))
                .is_some_and(|end| end <= ADDRESSES)
        };
        match head >> KIND {
            3 if !fits(first, third) || !fits(second, third) => return None,
            4 if first > second || second > ADDRESSES => return None,
            _ => {}
        }
        let space = SpaceId(head & ((1 << KIND) - 1));
        let uffd = second as RawFd;
        let address = VirtAddr::containing;
        Some(match head >> KIND {
            1 => {
                let (image_pid, pid) = ((third >> 32) as u32, third as u32);
                Self::Task { space, object: first as usize, uffd, image_pid, pid }
            }
            2 => Self::Fork { parent: space, space: SpaceId(first), uffd },
            3 => Self::Remap { space, from: address(first), to: address(second), pages: third },
            4 => Self::Remove { space, start: address(first), end: address(second) },
            5 => Self::Closed { space },
            6 => Self::Process { pid: first as u32, pidfd: second as RawFd },
            7 => Self::Foreign { uffd },
            _ => return None,
        })
    }
}

/// A journal as it was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What was recorded.
    pub records: Vec<Record>,
    /// What was read off the descriptor of this address space but not recorded yet.
    pub staged: Vec<(SpaceId, Event)>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<SharedWords>,
    first: usize,
}

impl Journal {
    /// The journal that starts with the word `first`.
    pub fn at(shared: Arc<SharedWords>, first: usize) -> io::Result<Self> {
        if shared.words().len() < first + JOURNAL_WORDS {
            return Err(io::Error::other("it is too short for a journal"));
        }
        Ok(Self { shared, first })
    }

    /// A journal of its own, which ends with this process.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn create() -> io::Result<Self> {
        Self::at(Arc::new(SharedWords::create("lazy-pages-journal", JOURNAL_WORDS)?), 0)
    }

    fn words(&self) -> &[AtomicU64] {
        &self.shared.words()[self.first..self.first + JOURNAL_WORDS]
    }

    fn get(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Acquire)
    }

    fn set(&self, at: usize, value: u64) {
        self.words()[at].store(value, Ordering::Release);
    }

    /// How far the restore has come.
    pub fn phase(&self) -> Phase {
        Phase::ALL.get(self.get(PHASE) as usize).copied().unwrap_or(Phase::Over)
    }

    /// Says how far the restore has come.
    pub fn enter(&self, phase: Phase) {
        self.set(PHASE, phase as u64);
    }

    /// The exit code that tells how it ended, when that is known.
    pub fn outcome(&self) -> Option<u8> {
        self.get(OUTCOME).checked_sub(1).map(|code| code as u8)
    }

    /// Nothing depends on a server any more, and this is how it ended.
    pub fn conclude(&self, code: u8) {
        self.set(OUTCOME, u64::from(code) + 1);
        self.enter(Phase::Over);
    }

    /// The end was reported, and all that was held for it is released: no server is needed any more.
    pub fn finish(&self, code: u8) {
        self.conclude(code);
        self.set(FINISHED, 1);
    }

    /// Whether no server is needed any more.
    pub fn is_finished(&self) -> bool {
        self.get(FINISHED) != 0
    }

    /// The descriptor of the encoded manifest.
    pub fn manifest(&self) -> Option<RawFd> {
        self.get(MANIFEST_FD).checked_sub(1).map(|fd| fd as RawFd)
    }

    /// The socket CRIU connects to.
    pub fn listener(&self) -> Option<RawFd> {
        self.get(LISTENER_FD).checked_sub(1).map(|fd| fd as RawFd)
    }

    /// What is restored, under which lease.
    pub fn checkpoint(&self) -> Option<(CheckpointId, LeaseId)> {
        let bytes = |at| (u128::from(self.get(at)) << 64 | u128::from(self.get(at + 1))).to_be_bytes();
        self.manifest()?;
        let id = CheckpointId::from_bytes(&bytes(CHECKPOINT)).ok()?;
        Some((id, LeaseId::from_bytes(&bytes(LEASE)).ok()?))
    }

    /// Says what is restored, under which lease, and where its manifest is.
    pub fn set_checkpoint(&self, id: CheckpointId, lease: LeaseId, manifest: RawFd) {
        for (at, bytes) in [(CHECKPOINT, id.to_bytes()), (LEASE, lease.to_bytes())] {
            let bits = u128::from_be_bytes(bytes);
            self.set(at, (bits >> 64) as u64);
            self.set(at + 1, bits as u64);
        }
        self.set(MANIFEST_FD, manifest as u64 + 1);
    }

    /// The connection over which tasks have registered.
    pub fn owner(&self) -> Option<RawFd> {
        self.get(OWNER_FD).checked_sub(1).map(|fd| fd as RawFd)
    }

    /// Says over which connection tasks register.
    pub fn set_owner(&self, connection: RawFd) {
        self.set(OWNER_FD, connection as u64 + 1);
    }

    /// Says where CRIU connects.
    pub fn set_listener(&self, listener: RawFd) {
        self.set(LISTENER_FD, listener as u64 + 1);
    }

    /// Sockets that are connected.
    pub fn connections(&self) -> Vec<RawFd> {
        let slots = CONNECTIONS..CONNECTIONS + MAX_CONNECTIONS;
        slots.filter_map(|at| self.get(at).checked_sub(1)).map(|fd| fd as RawFd).collect()
    }

    /// Somebody, CRIU perhaps, has connected.
    pub fn add_connection(&self, socket: RawFd) {
        self.replace_connection(0, socket as u64 + 1);
    }

    /// A connection is about to be closed.
    pub fn remove_connection(&self, socket: RawFd) {
        self.replace_connection(socket as u64 + 1, 0);
    }

    fn replace_connection(&self, old: u64, new: u64) {
        let mut slots = CONNECTIONS..CONNECTIONS + MAX_CONNECTIONS;
        if let Some(slot) = slots.find(|&at| self.get(at) == old) {
            self.set(slot, new);
        }
    }

    /// A number.
    pub fn number(&self, which: Number) -> &AtomicU64 {
        &self.words()[which as usize]
    }

    /// The value of a number.
    pub fn value(&self, which: Number) -> u64 {
        self.number(which).load(Ordering::Relaxed)
    }

    /// Adds to a number, and to the same of this moment.
    pub fn count(&self, which: Number, more: u64) {
        self.number(which).fetch_add(more, Ordering::Relaxed);
        let column = match which {
            Number::Faults => Column::Faults,
            Number::InstalledPages => Column::Installed,
            Number::FetchedBytes => Column::Fetched,
            _ => return,
        };
        self.trace().count(column, more, self.age());
    }

    /// What happened when.
    pub fn trace(&self) -> Trace<'_> {
        Trace(&self.words()[FIRST_TRACE..])
    }

    /// Microseconds since the first task registered.
    pub fn age(&self) -> u64 {
        match self.value(Number::Registered) {
            0 => 0,
            registered => now().saturating_sub(registered),
        }
    }

    /// A frame was waited for, that many microseconds.
    pub fn count_stall(&self, waited: u64, frame: FrameIndex) {
        self.trace().count_wait(waited, self.age(), frame);
        self.number(Number::LongestFault).fetch_max(waited, Ordering::Relaxed);
        self.number(Number::Stalled).fetch_add(waited, Ordering::Relaxed);
        let bucket = STALL_LIMITS_US.partition_point(|limit| *limit < waited);
        self.words()[Number::Stalls as usize + bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// How many frames were waited for, by how long.
    pub fn stalls(&self) -> [u64; STALL_BUCKETS] {
        std::array::from_fn(|bucket| self.words()[Number::Stalls as usize + bucket].load(Ordering::Relaxed))
    }

    /// Keeps the last error, as far as there is room.
    pub fn set_error(&self, text: &str) {
        let bytes = &text.as_bytes()[..text.len().min(ERROR_WORDS * 8)];
        self.set(ERROR_LENGTH, 0);
        for (at, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.set(ERROR + at, u64::from_ne_bytes(word));
        }
        self.set(ERROR_LENGTH, bytes.len() as u64);
    }

    /// The last error. One that is being written may come out mixed with the one before.
    pub fn error(&self) -> Option<String> {
        let length = usize::try_from(self.get(ERROR_LENGTH)).ok().filter(|&length| length > 0)?;
        let words = (0..ERROR_WORDS).flat_map(|at| self.get(ERROR + at).to_ne_bytes());
        let bytes: Vec<u8> = words.take(length).collect();
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether it has run full.
    pub fn is_full(&self) -> bool {
        self.get(FULL) != 0
    }

    /// Keeps the memory the kernel writes messages to from being swapped out.
    pub fn lock(&self) {
        let stage = self.first + STAGE..self.first + STAGE + STAGE_WORDS;
        if let Err(error) = self.shared.lock(stage) {
            tracing::debug!("the journal may be swapped out: {error}");
        }
    }

    /// The only one who writes. After another one's death, what that one had staged still is.
    pub fn writer(self: &Arc<Self>) -> Writer {
        Writer { journal: Arc::clone(self), commit: Commit::decode(self.get(COMMIT)) }
    }

    /// What is in it, at one moment. Waits while it changes.
    ///
    /// # Errors
    /// When it has run full, or was not written by this program.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        loop {
            let word = self.get(COMMIT);
            let commit = Commit::decode(word);
            let records: Option<Vec<_>> = (0..commit.records).map(|at| self.record(at)).collect();
            let space = SpaceId(self.get(STAGED_SPACE));
            let staged = match commit.staged {
                false => Vec::new(),
                true => self.staged().map(|event| (space, event)).collect(),
            };
            fence(Ordering::Acquire);
            if self.get(COMMIT) != word {
                continue;
            }
            if self.is_full() {
                return Err(io::Error::other("the journal has run full"));
            }
            let records = records.ok_or_else(|| io::Error::other("the journal is damaged"))?;
            return Ok(Snapshot { records, staged });
        }
    }

    /// The records there are now, also of a journal that has run full.
    pub fn records_so_far(&self) -> impl Iterator<Item = Record> + '_ {
        let records = Commit::decode(self.get(COMMIT)).records;
        (0..records).filter_map(|at| self.record(at))
    }

    fn record(&self, at: u64) -> Option<Record> {
        let first = HEADER_WORDS + usize::try_from(at).ok()?.checked_mul(RECORD_WORDS)?;
        let words = self.words()[..FIRST_TRACE].get(first..first + RECORD_WORDS)?;
        Record::decode(std::array::from_fn(|word| words[word].load(Ordering::Relaxed)))
    }

    fn stage(&self) -> &[AtomicU64] {
        &self.words()[STAGE..STAGE + STAGE_WORDS]
    }

    /// Descriptors of forked children that are not among the records yet.
    pub fn staged_forks(&self) -> Vec<RawFd> {
        let fork = |event| match event {
            Event::Fork(uffd) => Some(uffd),
            _ => None,
        };
        match Commit::decode(self.get(COMMIT)).staged {
            true => self.staged().filter_map(fork).collect(),
            false => Vec::new(),
        }
    }

    /// The messages the kernel has written, as far as they are understood.
    fn staged(&self) -> impl Iterator<Item = Event> + '_ {
        self.stage().chunks_exact(MESSAGE_WORDS).map_while(Event::of)
    }
}

/// The one who writes; see the module's description.
#[derive(Debug)]
pub struct Writer {
    journal: Arc<Journal>,
    commit: Commit,
}

impl Writer {
    /// Takes messages off a descriptor. Until [`Self::commit`], they are in the journal as they are. Returns how many.
    ///
    /// # Errors
    /// When the kernel cannot deliver.
    pub fn read(&mut self, space: SpaceId, uffd: &Uffd) -> io::Result<usize> {
        self.journal.set(STAGED_SPACE, space.0);
        self.commit.reads += 1;
        self.commit.staged = true;
        self.publish();
        uffd.read(self.journal.stage())
    }

    /// The message with this position among those read.
    pub fn message(&self, at: usize) -> Option<Event> {
        Event::of(&self.journal.stage()[at * MESSAGE_WORDS..(at + 1) * MESSAGE_WORDS])
    }

    /// Everything that the messages meant has been recorded.
    pub fn commit(&mut self) {
        self.commit.staged = false;
        self.publish();
        // Only the first word of each counts.
        for message in self.journal.stage().chunks_exact(MESSAGE_WORDS) {
            if message[0].load(Ordering::Relaxed) == 0 {
                break;
            }
            message[0].store(0, Ordering::Relaxed);
        }
    }

    /// Adds a record. It counts at once, or, after [`Self::read`], with [`Self::commit`].
    pub fn append(&mut self, record: Record) {
        let first = HEADER_WORDS + self.commit.records as usize * RECORD_WORDS;
        let Some(words) = self.journal.words()[..FIRST_TRACE].get(first..first + RECORD_WORDS) else {
            if !self.journal.is_full() {
                tracing::warn!("too much has happened to this tree: if its page server dies, it is ended");
            }
            self.journal.set(FULL, 1);
            return;
        };
        for (word, value) in words.iter().zip(record.encode()) {
            word.store(value, Ordering::Relaxed);
        }
        self.commit.records += 1;
        if !self.commit.staged {
            self.publish();
        }
    }

    fn publish(&self) {
        self.journal.set(COMMIT, self.commit.encode());
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
