//! What the processes around a page server share: who they are, and a journal for each restore.
//!
//! Three roles, each a process: the *server* does the work, the *guardian* sees to it that there is a server, the
//! *standby* sees to it that there is a guardian. All have the same table of descriptors and map this memory, so whichever
//! is left has everything the others had.
//!
//! What always holds: a role is held by at most one process. Whoever wants one filled calls for it, which begins a new
//! turn; a process that was started for an earlier turn finds its turn over and gives up. A holder is known by a pidfd it
//! opened itself before it announced itself, so its number can never mean another process.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::server::{
    journal::{JOURNAL_WORDS, Journal},
    sys::{
        process::{duplicate, pid_of},
        shared::SharedWords,
    },
    tree,
};

/// The name of the memory in `/proc/PID/fd`.
pub const STATE_NAME: &str = "lazy-pages-state";

const MAGIC: u64 = u64::from_le_bytes(*b"lzypgs-2");
const CONTROL_WORDS: usize = 512;

const MAGIC_AT: usize = 0;
const CONFIG_FD: usize = 1;
const FIRST_ROLE: usize = 2;
const VACANT: usize = 8;
const PROGRAM_LENGTH: usize = 9;
const PROGRAM: usize = 10;
const PROGRAM_WORDS: usize = 256;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Role {
    /// Serves pages.
    Server = FIRST_ROLE,
    /// Starts a server when there is none.
    Guardian,
    /// Becomes the guardian when there is none.
    Standby,
}

/// A word of a role: whose turn it is, and who has it. A pid has 22 bits, a descriptor's number fewer than 24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    turn: u64,
    pid: u32,
    pidfd: RawFd,
}

impl Holder {
    const FIELD: u64 = (1 << 24) - 1;

    fn encode(self) -> u64 {
        self.turn << 48 | u64::from(self.pid) << 24 | (self.pidfd + 1) as u64
    }

    fn decode(word: u64) -> Self {
        let field = |shift| (word >> shift & Self::FIELD) as u32;
        Self { turn: word >> 48, pid: field(24), pidfd: field(0) as RawFd - 1 }
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct State {
    shared: Arc<SharedWords>,
    journals: Vec<Arc<Journal>>,
}

impl State {
    /// With a journal for each of `restores` restores. `config` is the descriptor of what else a successor must know.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn create(restores: usize, config: OwnedFd) -> io::Result<Self> {
        let shared = SharedWords::create(STATE_NAME, CONTROL_WORDS + restores * JOURNAL_WORDS)?;
        let state = Self::of(shared)?;
        state.set(MAGIC_AT, MAGIC);
        // It is found by its number from now on, and belongs to all.
        state.set(CONFIG_FD, config.into_raw_fd() as u64 + 1);
        Ok(state)
    }

    /// The one another process has made.
    ///
    /// # Errors
    /// When it is none of this version of the program.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        let state = Self::of(SharedWords::open(file)?)?;
        match state.get(MAGIC_AT) {
            MAGIC => Ok(state),
            _ => Err(io::Error::other("it was made by another version of this program")),
        }
    }

    fn of(shared: SharedWords) -> io::Result<Self> {
        let rest = shared.words().len().checked_sub(CONTROL_WORDS);
        let journals =
            rest.filter(|rest| rest.is_multiple_of(JOURNAL_WORDS)).map(|rest| rest / JOURNAL_WORDS);
        let journals =
            journals.ok_or_else(|| io::Error::other("it has not the length of a page server's state"))?;
        let shared = Arc::new(shared);
        let journal = |at| Journal::at(Arc::clone(&shared), CONTROL_WORDS + at * JOURNAL_WORDS).map(Arc::new);
        let journals = (0..journals).map(journal).collect::<io::Result<_>>()?;
        Ok(Self { shared, journals })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.shared.words()[at]
    }

    fn get(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    fn set(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    /// The memory itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
    }

    /// Number of the descriptor of what else a successor must know.
    pub fn config(&self) -> RawFd {
        self.get(CONFIG_FD) as RawFd - 1
    }

    /// One for each restore.
    pub fn journals(&self) -> &[Arc<Journal>] {
        &self.journals
    }

    /// When all restores are finished: the exit code that tells how the worst of them ended.
    pub fn outcome(&self) -> Option<u8> {
        let mut worst = 0;
        for journal in &self.journals {
            if !journal.is_finished() {
                return None;
            }
            worst = worst.max(journal.outcome()?);
        }
        Some(worst)
    }

    /// Begins a new turn of a role, for a process that is going to announce itself.
    pub fn call(&self, role: Role) -> u64 {
        let next = |word| (Holder::decode(word).turn + 1) & 0xffff;
        let called = |word| Some(Holder { turn: next(word), pid: 0, pidfd: -1 }.encode());
        // The closure never declines.
        let before = self.word(role as usize).fetch_update(Ordering::AcqRel, Ordering::Acquire, called);
        before.map_or(0, next)
    }

    /// The word of a role, and the bits of which one is set when somebody has it.
    pub fn role_word(&self, role: Role) -> (&AtomicU64, u64) {
        (self.word(role as usize), Holder::FIELD << 24)
    }

    /// This process holds the role from now on; `false` if its turn has passed.
    ///
    /// # Errors
    /// When it cannot be identified.
    pub fn announce(&self, role: Role, turn: u64) -> io::Result<bool> {
        let pidfd = tree::open(process::id())?;
        let called = Holder { turn, pid: 0, pidfd: -1 }.encode();
        let holder = Holder { turn, pid: process::id(), pidfd: pidfd.as_raw_fd() }.encode();
        let word = self.word(role as usize);
        let done = word.compare_exchange(called, holder, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if done {
            // It belongs to whoever looks it up from now on.
            let _ = pidfd.into_raw_fd();
        }
        Ok(done)
    }

    /// The process that holds a role, whether or not it has ended since.
    pub fn holder(&self, role: Role) -> Option<u32> {
        Some(Holder::decode(self.get(role as usize)).pid).filter(|&pid| pid != 0)
    }

    /// A pidfd of the process that holds a role, if it lives. Only for processes that share this table.
    pub fn watch(&self, role: Role) -> Option<OwnedFd> {
        let holder = Holder::decode(self.get(role as usize));
        let pidfd = duplicate(holder.pidfd).ok()?;
        (pid_of(&pidfd) == Some(holder.pid) && !tree::has_ended(pidfd.as_fd())).then_some(pidfd)
    }

    /// Whether the guardian has given up starting servers by itself, and waits for somebody to attach one.
    pub fn is_vacant(&self) -> bool {
        self.get(VACANT) != 0
    }

    /// Says whether it has.
    pub fn set_vacant(&self, vacant: bool) {
        self.set(VACANT, u64::from(vacant));
    }

    /// Asks the guardian to go on as this program.
    ///
    /// # Errors
    /// When the path is too long.
    pub fn request(&self, program: &Path) -> io::Result<()> {
        let bytes = program.as_os_str().as_encoded_bytes();
        if bytes.len() > PROGRAM_WORDS * 8 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (at, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.set(PROGRAM + at, u64::from_ne_bytes(word));
        }
        self.set(PROGRAM_LENGTH, bytes.len() as u64);
        Ok(())
    }

    /// Takes what was asked for.
    pub fn take_request(&self) -> Option<PathBuf> {
        let length = self.word(PROGRAM_LENGTH).swap(0, Ordering::AcqRel) as usize;
        let bytes: Vec<u8> =
            (0..PROGRAM_WORDS).flat_map(|at| self.get(PROGRAM + at).to_ne_bytes()).take(length).collect();
        (length > 0).then(|| PathBuf::from(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::sys::shared::memory_file;

    fn state(restores: usize) -> State {
        State::create(restores, memory_file("config", b"{}").unwrap()).unwrap()
    }

    #[test]
    fn a_role_has_one_holder_and_a_turn_that_has_passed_is_refused() {
        let state = state(1);
        assert!(state.holder(Role::Server).is_none() && state.watch(Role::Server).is_none());
        let first = state.call(Role::Server);
        let second = state.call(Role::Server);
        assert!(!state.announce(Role::Server, first).unwrap());
        assert!(state.announce(Role::Server, second).unwrap());
        assert!(!state.announce(Role::Server, second).unwrap(), "it is taken");
        assert_eq!(state.holder(Role::Server), Some(process::id()));
        assert!(state.watch(Role::Server).is_some(), "this process lives");
        assert!(state.watch(Role::Guardian).is_none());
        state.call(Role::Server);
        assert!(state.watch(Role::Server).is_none());
    }

    #[test]
    fn what_one_process_makes_another_opens() {
        let state = state(2);
        let other = State::open(state.as_fd().try_clone_to_owned().unwrap()).unwrap();
        other.journals()[1].finish(3);
        assert_eq!(state.outcome(), None);
        state.journals()[0].finish(0);
        assert_eq!(state.outcome(), Some(3));
        assert_eq!(state.config(), other.config());
        let path = Path::new("/usr/bin/lazy-pages");
        other.request(path).unwrap();
        assert_eq!(state.take_request().as_deref(), Some(path));
        assert_eq!(state.take_request(), None);
    }

    #[test]
    fn something_else_is_refused() {
        for words in [0, CONTROL_WORDS, CONTROL_WORDS + 1, CONTROL_WORDS + JOURNAL_WORDS] {
            let shared = SharedWords::create("else", words.max(1)).unwrap();
            assert!(State::open(shared.as_fd().try_clone_to_owned().unwrap()).is_err(), "{words}");
        }
    }
}
