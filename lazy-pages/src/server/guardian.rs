//! The processes that make sure that restored processes never lose their page server, or end with it.
//!
//! When the last descriptor of a userfaultfd closes, the kernel turns every page that is still missing into zeros. So a
//! page server is never alone:
//!
//! ```text
//!   guardian ──starts──► server     serves pages
//!       └────starts────► standby    does nothing
//! ```
//!
//! All three are copies of one small process and have the *same* table of descriptors, so each of them keeps everything
//! open that the server ever had, from the moment the kernel gave it to the server: there is no instant in which only one
//! process holds a descriptor. What the server knew is in the [`State`] they share. Who takes whose place is told in
//! [`daemon`].
//!
//! A role is filled again within about a millisecond, and only then is another death harmless. The server is the one that
//! cannot be copied, because it has threads. So when it finds itself alone, it first makes a holder, which has the same
//! descriptors too and runs nothing but a loop without a lock or an allocation; then it executes this program again as the
//! guardian. The holder leaves when all roles are filled, and if the server dies before, becomes the guardian itself.
//!
//! The guardian and the standby wait and do nothing else: no thread, no network, no signal handler, and no capability in
//! force but the one to kill. (They keep the others as permitted, because the servers they start need them.)

use std::{
    cell::Cell,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{self, Command},
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal as UnixSignal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Signal, WaitId, WaitIdOptions, parent_process_death_signal, pidfd_send_signal,
        set_parent_process_death_signal, waitid,
    },
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};

use crate::server::{
    daemon,
    journal::Phase,
    kill::end_tree,
    state::{Role, State},
    sys::{
        process::{clone_holder, clone_sharing_descriptors, keep_at_exec, open_descriptors},
        uffd::USERFAULTFD,
    },
    tree,
};

/// Deaths in a row, each sooner than `QUICK` after the start, after which no server is started any more.
const QUICK_DEATHS: u32 = 5;
const QUICK: Duration = Duration::from_secs(2);
/// How often requests and roles are looked at. What has ended is noticed at once.
const TICK: Duration = Duration::from_millis(100);
/// Least chance to be chosen when memory runs out.
const SPARE_ME: &str = "-900";

/// Blocked in all of these processes; a server lets them through when it knows what to do about them.
pub(super) const SIGNALS: [UnixSignal; 3] = [UnixSignal::SIGTERM, UnixSignal::SIGINT, UnixSignal::SIGHUP];

/// What the processes around a page server do for each restore; called in a process that has no other thread.
pub trait Work {
    /// Serves until every journal is over.
    fn serve(&self, state: &State);

    /// Says that a tree was ended because nothing could serve it.
    fn killed(&self, restore: usize, reason: &str);

    /// How long processes may wait for a server to be attached.
    fn patience(&self) -> Duration;

    /// The arguments with which this program becomes the guardian of a state that it finds at a descriptor.
    fn revival(&self, state: BorrowedFd<'_>) -> Vec<std::ffi::OsString>;
}

/// Guards until all restores are over, and returns the exit code that tells how they ended. The calling process is the
/// guardian.
///
/// # Errors
/// When it cannot begin: another thread exists, or a process cannot be made. Nothing depends on it then.
pub fn guard(state: &State, work: &dyn Work) -> io::Result<u8> {
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block()?;
    let guardian = Guardian {
        state,
        work,
        signals: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        asked: Cell::new(None),
        adjustment: std::fs::read_to_string(ADJUSTMENT).ok(),
        at_parent_death: parent_process_death_signal().ok().flatten(),
    };
    guardian.run()
}

const ADJUSTMENT: &str = "/proc/self/oom_score_adj";

struct Guardian<'s> {
    state: &'s State,
    work: &'s dyn Work,
    signals: SignalFd,
    /// What this process was asked to do last; every new server is told too.
    asked: Cell<Option<Signal>>,
    /// What a server goes back to.
    adjustment: Option<String>,
    /// The signal whoever started this wants it to get when he dies. A copy does not have it.
    at_parent_death: Option<Signal>,
}

/// What has happened to the servers so far.
#[derive(Debug, Default)]
struct Deaths {
    started: Option<Instant>,
    in_a_row: u32,
    vacant: Option<Instant>,
}

impl Guardian<'_> {
    /// A guardian's life. It ends when all is over, or when another one is in charge.
    fn run(&self) -> io::Result<u8> {
        loop {
            let turn = self.state.call(Role::Guardian);
            if self.state.announce(Role::Guardian, turn).or_else(|error| self.bear(error))? {
                break;
            }
        }
        // Only now, so that there is no moment in which a server would think itself alone.
        if self.state.holder(Role::Standby) == Some(process::id()) {
            self.state.call(Role::Standby);
        }
        become_small(c"lazy-guardian");
        let mut deaths = Deaths::default();
        loop {
            if let Some(code) = self.state.outcome() {
                self.collect(code);
                return Ok(code);
            }
            if self.state.holder(Role::Guardian) != Some(process::id()) {
                tracing::info!("another guardian is in charge");
                return Ok(0);
            }
            let server = match self.state.watch(Role::Server) {
                Some(server) => Some(server),
                None => self.replace_server(&mut deaths).or_else(|error| self.bear(error))?,
            };
            let standby = match self.state.watch(Role::Standby) {
                Some(standby) => Some(standby),
                None => self.start(Role::Standby).or_else(|error| self.bear(error))?,
            };
            self.wait(server.as_ref(), standby.as_ref());
            self.pass_signals_on(server.as_ref());
            reap();
            if let Some(program) = self.state.take_request() {
                if server.is_some() {
                    tracing::info!("there is a server; the request to attach one is not needed");
                } else {
                    let error = revive(self.state, self.work, &program, standby.as_ref());
                    tracing::error!("{} cannot be started: {error}", program.display());
                }
            }
        }
    }

    /// What could not be done is tried again a moment later, unless nothing depends on it yet: then it is the end.
    fn bear<T: Default>(&self, error: io::Error) -> io::Result<T> {
        if self.state.journals().iter().all(|journal| journal.phase() == Phase::New) {
            return Err(error);
        }
        tracing::error!("the page server is not fully guarded: {error}");
        std::thread::sleep(TICK);
        Ok(T::default())
    }

    /// There is no server: it has died, or was never started.
    fn replace_server(&self, deaths: &mut Deaths) -> io::Result<Option<OwnedFd>> {
        if let Some(since) = deaths.vacant {
            if since.elapsed() > self.work.patience() {
                self.give_up("its page server died again and again, and nobody attached another one")?;
            }
            return Ok(None);
        }
        if let Some(started) = deaths.started {
            let seconds = started.elapsed().as_secs();
            tracing::error!(after_s = seconds, "the page server has died; another one takes over");
            deaths.in_a_row = if started.elapsed() < QUICK { deaths.in_a_row + 1 } else { 1 };
            if deaths.in_a_row >= QUICK_DEATHS {
                tracing::error!("no further page server is started; `attach` does so");
                self.state.set_vacant(true);
                deaths.vacant = Some(Instant::now());
                return Ok(None);
            }
        }
        self.state.set_vacant(false);
        deaths.started = Some(Instant::now());
        let server = self.start(Role::Server)?;
        self.pass_on(self.asked.get(), server.as_ref());
        Ok(server)
    }

    /// Starts a process for a role. It never returns in that process.
    fn start(&self, role: Role) -> io::Result<Option<OwnedFd>> {
        let turn = self.state.call(role);
        if clone_sharing_descriptors()?.is_none() {
            process::exit(match self.state.announce(role, turn) {
                Ok(true) if role == Role::Server => self.serve(),
                Ok(true) => self.stand_by(),
                // Another one was called for meanwhile.
                Ok(false) => 0,
                Err(error) => {
                    tracing::error!("a process that cannot be found by others gives up: {error}");
                    1
                }
            });
        }
        // It announces itself in a moment; until then there is nothing to watch.
        let started = Instant::now();
        while started.elapsed() < TICK {
            if let Some(pidfd) = self.state.watch(role) {
                return Ok(Some(pidfd));
            }
            if self.state.holder(role).is_some() {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(None)
    }

    /// A server's life.
    fn serve(&self) -> i32 {
        let _ = rustix::thread::set_name(c"lazy-pages");
        raise_capabilities();
        if let Some(adjustment) = &self.adjustment {
            let _ = std::fs::write(ADJUSTMENT, adjustment);
        }
        self.work.serve(self.state);
        0
    }

    /// A standby's life: waits for the guardian's end, and becomes the guardian.
    fn stand_by(&self) -> i32 {
        let _ = rustix::thread::set_name(c"lazy-standby");
        while let Some(guardian) = self.state.watch(Role::Guardian) {
            wait_for(&[guardian.as_fd()], None);
        }
        if self.state.outcome().is_some() {
            return 0;
        }
        tracing::error!("the guardian has died; its standby takes its place");
        let _ = set_parent_process_death_signal(self.at_parent_death);
        match self.run() {
            Ok(code) => code.into(),
            Err(error) => {
                tracing::error!("nobody guards this page server: {error}");
                1
            }
        }
    }

    /// Waits until something happens that has to be seen to.
    fn wait(&self, server: Option<&OwnedFd>, standby: Option<&OwnedFd>) {
        let fds: Vec<_> = [Some(self.signals.as_fd()), server.map(AsFd::as_fd), standby.map(AsFd::as_fd)]
            .into_iter()
            .flatten()
            .collect();
        wait_for(&fds, Some(TICK));
    }

    fn pass_signals_on(&self, server: Option<&OwnedFd>) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = Signal::from_named_raw(info.ssi_signo as i32);
            self.asked.set(signal);
            self.pass_on(signal, server);
        }
    }

    fn pass_on(&self, signal: Option<Signal>, server: Option<&OwnedFd>) {
        if let (Some(server), Some(signal)) = (server, signal) {
            let _ = pidfd_send_signal(server, signal);
        }
    }

    /// Ends the trees nobody serves. A copy of this process does it, so that this one stays what it is.
    fn give_up(&self, reason: &str) -> io::Result<()> {
        tracing::error!("the restored processes are killed: {reason}");
        if let Some(killer) = clone_sharing_descriptors()? {
            // If it is killed, the next round starts another one.
            let _ = wait_child(killer);
            return Ok(());
        }
        for (restore, journal) in self.state.journals().iter().enumerate() {
            if journal.is_finished() {
                continue;
            }
            if journal.phase() != Phase::Over {
                end_tree(self.state, restore);
                journal.conclude(daemon::EXIT_KILLED);
            }
            self.work.killed(restore, reason);
            journal.finish(journal.outcome().unwrap_or(daemon::EXIT_KILLED));
        }
        process::exit(0);
    }

    /// Everything is over: leaves no process behind.
    fn collect(&self, code: u8) {
        if let Some(standby) = self.state.watch(Role::Standby) {
            let _ = pidfd_send_signal(&standby, Signal::KILL);
            let _ = waitid(WaitId::PidFd(standby.as_fd()), WaitIdOptions::EXITED);
        }
        // It has said what there was to say, and only gives up its threads and its lease.
        if let Some(server) = self.state.watch(Role::Server) {
            wait_for(&[server.as_fd()], Some(Duration::from_secs(30)));
        }
        reap();
        tracing::debug!(code, "the restore is over");
    }
}

/// Called by a server whose guardian and standby have both died: another process has its descriptors from now on.
///
/// # Errors
/// When it cannot be made.
pub fn hold(state: &State, work: &dyn Work) -> io::Result<()> {
    state.call(Role::Guardian);
    state.call(Role::Standby);
    keep_descriptors(state);
    let pidfd = tree::open(process::id())?;
    let arguments = work.revival(state.as_fd());
    clone_holder(&pidfd, state.role_word(Role::Standby), OWN_PROGRAM, &arguments)
}

/// Called by a server after [`hold`], when no thread of it reads events any more: becomes the guardian, as a new program in
/// this process. Returns only when that fails.
pub fn revive_alone(state: &State, work: &dyn Work) -> io::Error {
    revive(state, work, OWN_PROGRAM.as_ref(), None)
}

/// This very program, even if its file has been replaced since.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Goes on as `program`, with every descriptor that matters.
fn revive(state: &State, work: &dyn Work, program: &Path, standby: Option<&OwnedFd>) -> io::Error {
    raise_capabilities();
    keep_descriptors(state);
    let mut command = Command::new(program);
    command.args(work.revival(state.as_fd()));
    if let Some(standby) = standby {
        // The new guardian starts its own, and must not find this one alive. If the start fails, so does this one.
        let _ = pidfd_send_signal(standby, Signal::KILL);
        wait_for(&[standby.as_fd()], Some(QUICK));
    }
    command.exec()
}

/// Lets all descriptors that matter survive the execution of another program; what else belonged to a server goes.
fn keep_descriptors(state: &State) {
    let kept = |target: &str| {
        target == USERFAULTFD
            || target.starts_with("anon_inode:[pidfd]")
            || target.starts_with("pidfd:")
            || target.starts_with("/memfd:lazy-pages")
    };
    let journals = state.journals().iter();
    let sockets: Vec<_> =
        journals.flat_map(|journal| journal.listener().into_iter().chain(journal.connections())).collect();
    for (number, target) in open_descriptors().unwrap_or_default() {
        if kept(&target) || sockets.contains(&number) {
            let _ = keep_at_exec(number);
        }
    }
}

fn become_small(name: &std::ffi::CStr) {
    let _ = rustix::thread::set_name(name);
    // Only some may; it matters only when memory runs out.
    let _ = std::fs::write(ADJUSTMENT, SPARE_ME);
    if let Ok(sets) = capabilities(None) {
        let effective = sets.permitted & CapabilitySet::KILL;
        let _ = set_capabilities(None, CapabilitySets { effective, ..sets });
    }
}

fn raise_capabilities() {
    if let Ok(sets) = capabilities(None) {
        let _ = set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets });
    }
}

/// Waits until one of the descriptors is readable, at most for `limit`.
pub(super) fn wait_for(fds: &[BorrowedFd<'_>], limit: Option<Duration>) {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let limit = limit
        .map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) });
    // Interrupted or not, the caller looks at what is the case.
    let _ = poll(&mut fds, limit.as_ref());
}

/// Collects children that have ended.
fn reap() {
    while let Ok(Some(_)) = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {}
}

fn wait_child(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)?;
    Ok(())
}
