//! Staying in front of a workload: signals go to it, its exit status comes back, and it may come and go.
//!
//! What the launcher does is one of the [`State`]s; agents change it over the control socket:
//!
//! ```text
//!   start ──▶ Runs ──leaving──▶ Leaves ──left, root killed──▶ Moved
//!              ▲  ◀───stays────   │                            │ │
//!              │                  └─root killed─▶ Undecided    │ │
//!   restore ─▶ Waits ──runs──┐      stays: ends ◀──┘ │ left    │ │
//!              └─────────────┴─▶ Runs ◀──────runs────┼─────────┘ │
//!                                                    └──▶ Moved ─┘
//! ```
//!
//! - *Runs*: when the root ends, so does the launcher, with its status.
//! - *Leaves*: a checkpoint that will end the tree is under way. Only CRIU's SIGKILL is ambiguous then; a root that ends
//!   in another way ended by itself, and so does the launcher.
//! - *Undecided*: the root was killed and nobody has said whether its checkpoint exists. The launcher must not end: a
//!   container that ends is started again, and the application would run twice, here and where it is restored. It waits
//!   for an agent that knows. An agent that dies says nothing, so its going is no answer.
//! - *Moved*: the tree is, or will be, somewhere else. The launcher does not end here either, for the same reason, and not
//!   with 0, which would tell a Job that its work is done. It waits for the container to be ended, and ends as a program
//!   does that handles no signals: 128 plus the signal.
//! - *Waits*: a tree is to be restored here.
//!
//! *Leaves* and *Moved* are also written down in the control directory: a launcher that is started again there begins
//! *Undecided*, or *Moved*, and starts nothing.
//!
//! A restored root is not the launcher's child. It becomes a child of the nearest subreaper above the CRIU that rebuilt it,
//! and CRIU cannot be started below the launcher: it needs capabilities a container does not have, and there is no way to
//! make a process a child of another later. So the launcher follows a restored root by pidfd, and the agent, whose child it
//! is, tells how it ended. If the agent is gone the launcher reads the status off the zombie when it is in time; otherwise
//! it ends with [`UNKNOWN`], and says so.
//!
//! The launcher and whoever talks to it are in the same pid namespace.
//!
//! While pages of a restored tree are missing, it also holds the descriptors of the tree's memory, and kills the tree should
//! everybody else who held them be gone.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd, siginfo},
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, WaitOptions, pidfd_open, pidfd_send_signal},
};

use crate::{
    Launch,
    control::{Connection, Listener, Received},
    departure::Departure,
    error::LaunchError,
    held::{self, Held},
    pids,
    protocol::{Answer, Request, State},
    start::Pending,
};

/// Exit code for a workload that ended in a way nobody knows.
pub const UNKNOWN: ExitStatus = ExitStatus(255);
/// How long an agent may take to tell how the root ended.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Bit of SIGCHLD in the masks of proc_pid_status(5).
const SIGCHLD_BIT: u64 = 1 << (libc::SIGCHLD - 1);

/// What a workload ended with, in a shell's numbers: its exit code, or 128 plus the signal that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

impl ExitStatus {
    /// That of a process ended by SIGKILL, as CRIU ends what it has dumped.
    const KILLED: Self = Self(128 + libc::SIGKILL as u8);

    fn of_signal(signal: i32) -> Self {
        Self(128 + (signal & 0x7f) as u8)
    }

    /// From a status of wait(2).
    fn from_wait(status: i32) -> Self {
        match status & 0x7f {
            0 => Self((status >> 8 & 0xff) as u8),
            signal => Self::of_signal(signal),
        }
    }
}

/// Launches, and stays until the workload ends, or the container of one that was moved.
///
/// To be called in a program that has no other thread and makes none.
///
/// # Errors
/// When the workload cannot be started, or no longer be followed.
pub fn launch(what: &Launch) -> Result<ExitStatus, LaunchError> {
    if ignores_children() {
        return Err(LaunchError::ChildSignalIgnored);
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(LaunchError::io("cannot become a subreaper"))?;
    let departure = match &what.control {
        Some(control) => {
            Departure::read(control).map_err(LaunchError::io("cannot read the control directory"))?
        }
        None => None,
    };
    let pending = match what.command.is_empty() || departure.is_some() {
        true => None,
        false => {
            if let Some(base) = what.pid_base {
                pids::raise(base);
            }
            let pending = Pending::new(&what.command, what.descriptors)?;
            if let Some(base) = what.pid_base.filter(|&base| pending.pid <= base) {
                what.say(&format!(
                    "pid {} is not above {base}: it may be taken where this is restored",
                    pending.pid
                ));
            }
            Some(pending)
        }
    };
    let all = SigSet::all();
    all.thread_block().map_err(LaunchError::io("cannot block signals"))?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(LaunchError::io("cannot take signals"))?;
    let listener = what.control.as_deref().map(Listener::bind).transpose()?;
    let (state, root) = match pending {
        None => {
            let state = match departure {
                None => State::Waits,
                Some(Departure::Leaves) => State::Undecided,
                Some(Departure::Moved) => State::Moved,
            };
            if departure.is_some() {
                what.say(&format!(
                    "the workload was moved away before this start, or may have been: {state}"
                ));
            }
            (state, Root::None)
        }
        Some(pending) => {
            let pid = pending.pid;
            pending.open()?;
            what.write_pid(pid);
            (State::Runs(pid), Root::Child(pid))
        }
    };
    held::make_room();
    Watch {
        what,
        signals,
        listener,
        connections: Vec::new(),
        state,
        committed: false,
        root,
        held: Held::default(),
    }
    .run()
}

/// The root of the tree.
#[derive(Debug)]
enum Root {
    None,
    Child(u32),
    /// Restored, and somebody else's child.
    Other {
        pid: u32,
        pidfd: OwnedFd,
        /// Until when its status may be told, once it has ended.
        told_until: Option<Instant>,
    },
}

struct Watch<'a> {
    what: &'a Launch,
    signals: SignalFd,
    listener: Option<Listener>,
    connections: Vec<Connection>,
    state: State,
    /// While the state is [`State::Leaves`]: its checkpoint is committed.
    committed: bool,
    root: Root,
    held: Held,
}

/// What the launcher ends with, if it ends.
type End = Option<ExitStatus>;

impl Watch<'_> {
    fn run(mut self) -> Result<ExitStatus, LaunchError> {
        loop {
            let ready = self.wait()?;
            let mut end = if ready.root { self.other_ended() } else { None };
            // In this order: what agents say about a root comes before the news that it has ended.
            if end.is_none() {
                end = self.converse(&ready.connections);
            }
            if let (true, Some(listener)) = (ready.listener, &self.listener) {
                self.connections.extend(listener.accept());
            }
            if end.is_none() && ready.signals {
                end = self.take_signals()?;
            }
            if let Some(status) = end.or_else(|| self.not_told()) {
                return Ok(status);
            }
        }
    }

    fn wait(&self) -> Result<Ready, LaunchError> {
        let mut polled = vec![PollFd::new(&self.signals, PollFlags::IN)];
        polled.extend(self.listener.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN)));
        polled.extend(self.connections.iter().map(|connection| PollFd::new(connection, PollFlags::IN)));
        let mut timeout = None;
        match &self.root {
            Root::Other { pidfd, told_until: None, .. } => polled.push(PollFd::new(pidfd, PollFlags::IN)),
            Root::Other { told_until: Some(until), .. } => {
                let left = until.saturating_duration_since(Instant::now());
                timeout =
                    Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            }
            Root::None | Root::Child(_) => {}
        }
        loop {
            match poll(&mut polled, timeout.as_ref()) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(LaunchError::io("cannot wait for the workload")(errno)),
            }
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        Ok(Ready {
            signals: next(),
            listener: self.listener.is_some() && next(),
            connections: self.connections.iter().map(|_| next()).collect(),
            root: next(),
        })
    }

    fn take_signals(&mut self) -> Result<End, LaunchError> {
        loop {
            match self.signals.read_signal() {
                Ok(Some(signal)) => {
                    let end = match signal.ssi_signo as i32 {
                        libc::SIGCHLD => self.collect(),
                        _ => self.pass_on(&signal),
                    };
                    if end.is_some() {
                        return Ok(end);
                    }
                }
                Ok(None) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(LaunchError::io("cannot read signals")(errno)),
            }
        }
    }

    fn pass_on(&self, signal: &siginfo) -> End {
        // What this process caused itself, by writing to a closed pipe, is no message to anybody.
        if signal.ssi_pid == std::process::id() {
            return None;
        }
        let number = signal.ssi_signo as i32;
        let Some(signal) = rustix::process::Signal::from_named_raw(number) else {
            self.what.say(&format!("signal {number} cannot be passed on"));
            return None;
        };
        // It may be gone already; the news is on its way then.
        match &self.root {
            Root::Child(pid) => {
                if let Some(pid) = rustix::process::Pid::from_raw(*pid as i32) {
                    let _ = rustix::process::kill_process(pid, signal);
                }
                None
            }
            Root::Other { pidfd, .. } => {
                let _ = pidfd_send_signal(pidfd, signal);
                None
            }
            Root::None => {
                let ends = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
                ends.iter().any(|&end| end as i32 == number).then_some(ExitStatus::of_signal(number))
            }
        }
    }

    /// Collects every child that has ended.
    fn collect(&mut self) -> End {
        let mut end = None;
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Err(rustix::io::Errno::INTR) => continue,
                // None has ended, or there is none.
                Ok(None) | Err(_) => return end,
            };
            if matches!(self.root, Root::Child(root) if pid.as_raw_nonzero().get() == root as i32) {
                end = self.root_ended(ExitStatus::from_wait(status.as_raw()));
            }
        }
    }

    fn root_ended(&mut self, status: ExitStatus) -> End {
        self.root = Root::None;
        match self.state {
            State::Leaves(_) if status == ExitStatus::KILLED => {
                self.state = if self.committed { State::Moved } else { State::Undecided };
                if self.committed {
                    self.departs(Departure::Moved);
                }
                None
            }
            State::Leaves(_) => {
                self.is_here();
                Some(status)
            }
            _ => Some(status),
        }
    }

    /// A restored root has ended. Its zombie still tells how, if nobody was faster.
    fn other_ended(&mut self) -> End {
        let Root::Other { pid, told_until, .. } = &mut self.root else { return None };
        if let Some(status) = status_of_zombie(*pid) {
            return self.root_ended(ExitStatus::from_wait(status));
        }
        match self.state {
            // Whoever makes the checkpoint has told everything that is known.
            State::Leaves(_) => self.root_ended(ExitStatus::KILLED),
            _ => {
                *told_until = Some(Instant::now() + TOLD_WITHIN);
                None
            }
        }
    }

    fn not_told(&self) -> End {
        let Root::Other { told_until: Some(until), pid, .. } = &self.root else { return None };
        (Instant::now() >= *until).then(|| {
            self.what.say(&format!("pid {pid} has ended, and nobody knows how"));
            UNKNOWN
        })
    }

    fn converse(&mut self, ready: &[bool]) -> End {
        let (mut end, mut gone) = (None, false);
        let talking = std::mem::take(&mut self.connections);
        for (mut connection, &ready) in talking.into_iter().zip(ready) {
            if ready && end.is_none() {
                match connection.receive() {
                    Received::Closed => {
                        gone |= connection.holds;
                        continue;
                    }
                    Received::NotUnderstood => connection.answer(Answer::Refused(self.state), &[]),
                    Received::Request(Request::Hold(pid), descriptors) => {
                        connection.holds = true;
                        if !self.held.add(pid, descriptors) {
                            self.what.say("there is no room for a descriptor of the workload's memory: if the page server and all its guardians die at once, it may see zeros; raise the limit of open files");
                        }
                    }
                    Received::Request(Request::Release, _) => self.held.release(),
                    Received::Request(request, _) => end = self.serve(request, &connection),
                }
            }
            self.connections.push(connection);
        }
        if gone && !self.held.is_empty() && !self.connections.iter().any(|connection| connection.holds) {
            self.what.say(
                "the page server and its guardians are gone and pages are missing: the workload is killed",
            );
            self.held.kill();
        }
        end
    }

    fn serve(&mut self, request: Request, connection: &Connection) -> End {
        let mut end = None;
        let before = self.state;
        let done = match (request, before) {
            (Request::Status, _) => true,
            (Request::Streams, state) => {
                let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
                let streams = [input.as_fd(), output.as_fd(), error.as_fd()];
                connection.answer(Answer::State(state), &streams);
                return None;
            }
            // Nobody may end it before that would be known after a restart of the container.
            (Request::Leaving, State::Runs(pid) | State::Leaves(pid)) if self.departs(Departure::Leaves) => {
                self.state = State::Leaves(pid);
                self.committed = false;
                true
            }
            // The tree stands still meanwhile: what is written down already will do.
            (Request::Left, State::Leaves(_)) => {
                self.committed = true;
                true
            }
            (Request::Left, State::Undecided | State::Moved) => {
                self.departs(Departure::Moved);
                self.state = State::Moved;
                true
            }
            (Request::Stays, State::Leaves(pid)) => {
                self.is_here();
                self.state = State::Runs(pid);
                true
            }
            (Request::Stays, State::Runs(_)) => true,
            (Request::Stays, State::Undecided) => {
                self.is_here();
                end = Some(ExitStatus::KILLED);
                true
            }
            (Request::Runs(pid), State::Waits | State::Moved) => self.adopt(pid),
            (Request::Ended(status), State::Runs(_)) if matches!(self.root, Root::Other { .. }) => {
                end = Some(ExitStatus(status));
                true
            }
            // Taken care of before, and without an answer.
            (Request::Hold(_) | Request::Release, _) => return None,
            _ => false,
        };
        let answer = if done { Answer::State(self.state) } else { Answer::Refused(self.state) };
        connection.answer(answer, &[]);
        end
    }

    fn adopt(&mut self, pid: u32) -> bool {
        let pidfd = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let Some(Ok(pidfd)) = pidfd.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return false };
        self.root = Root::Other { pid, pidfd, told_until: None };
        self.is_here();
        self.state = State::Runs(pid);
        self.what.write_pid(pid);
        true
    }

    /// Writes down how far the workload has gone; whether that is durable.
    fn departs(&self, departure: Departure) -> bool {
        let written = self.what.control.as_deref().map_or(Ok(()), |control| departure.write(control));
        if let Err(error) = &written {
            self.what.say(&format!("cannot write down that the workload leaves: {error}"));
        }
        written.is_ok()
    }

    fn is_here(&self) {
        if let Some(control) = &self.what.control
            && let Err(error) = Departure::forget(control)
        {
            self.what.say(&format!("cannot write down that the workload is here: {error}"));
        }
    }
}

/// What has something to say.
struct Ready {
    signals: bool,
    listener: bool,
    connections: Vec<bool>,
    root: bool,
}

fn ignores_children() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored & SIGCHLD_BIT != 0
}

/// The status of wait(2) of a process that has ended and was not collected; the last field of proc_pid_stat(5), which is 0
/// for whoever may not see it, so 0 is not believed.
fn status_of_zombie(pid: u32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
    if fields.next()? != "Z" {
        return None;
    }
    fields.next_back()?.parse().ok().filter(|&status| status != 0)
}
