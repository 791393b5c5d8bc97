//! The first process of an agent's container. The agent is its child, and is started again when it dies.
//!
//! A container ends with its first process, and everything in it is killed then: also the page servers of processes that were
//! restored lazily, and with them those processes. Behind a keeper an agent that crashes, or is chosen by the out-of-memory
//! killer, costs nothing but the calls it had under way, which the next one settles (`recovery`).
//!
//! What an agent leaves behind becomes the keeper's children. If there is nothing, the keeper ends as its agent has: the
//! container is started again then, and whoever looks at it sees why.

use std::{
    ffi::OsString,
    fs, io,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use criu_sys::process::{Isolation, isolate};
use migration_launch::ExitStatus;
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{error::AgentError, supervise};

/// How processes are told from agents, by their parents' names.
const NAME: &str = "agent-keeper";

/// The longest pause before another agent is started. The first one is started at once.
const LONGEST: Duration = Duration::from_secs(10);

/// An agent that has lived for this long does not crash for how it was started.
const STEADY: Duration = Duration::from_secs(60);

/// Runs `program` with `arguments` for as long as anything depends on it, or until a signal asks for its end, which is
/// passed on. Call it before any other thread exists.
///
/// # Errors
/// When signals cannot be waited for, or the program cannot be started.
pub fn keep(program: &Path, arguments: &[OsString]) -> Result<ExitStatus, AgentError> {
    fs::write("/proc/self/comm", NAME).map_err(AgentError::io("cannot name this process"))?;
    supervise::adopt_orphans()?;
    // Blocked before the first child exists, so that none ends unnoticed.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
    signals.thread_block().map_err(|errno| AgentError::io("cannot block signals")(errno.into()))?;
    let mut asked = false;
    let mut pause = Duration::ZERO;
    loop {
        let started = Instant::now();
        let agent = start(program, arguments).map_err(AgentError::path("start", program))?;
        let (status, others) = loop {
            match signals.wait() {
                Ok(Signal::SIGCHLD) => {
                    if let Collected { agent: Some(status), others } = collect(agent) {
                        break (status, others);
                    }
                }
                Ok(signal) => {
                    asked = true;
                    // Nobody has collected it, so it is the agent.
                    let _ = kill(agent, signal);
                }
                Err(_) => {}
            }
        };
        if asked || !others {
            return Ok(status);
        }
        pause = if started.elapsed() >= STEADY { Duration::ZERO } else { pause };
        tracing::error!(
            status = status.0,
            pause_ms = pause.as_millis(),
            "the agent has ended; what it has left goes on, and another one is started"
        );
        thread::sleep(pause);
        pause = (pause * 2).clamp(Duration::from_millis(100), LONGEST);
    }
}

fn start(program: &Path, arguments: &[OsString]) -> io::Result<Pid> {
    let mut command = Command::new(program);
    command.args(arguments);
    let mut isolation = Isolation::new();
    // Two agents must not work on the same processes.
    isolation.parent_death_signal(Signal::SIGTERM as i32);
    isolate(&mut command, isolation);
    Ok(Pid::from_raw(command.spawn()?.id() as i32))
}

/// What [`collect`] has found.
struct Collected {
    /// How the agent has ended, if it has.
    agent: Option<ExitStatus>,
    /// Whether there are any other children that have not.
    others: bool,
}

/// Collects all that has ended. One signal may stand for several.
fn collect(agent: Pid) -> Collected {
    let mut ended = None;
    loop {
        let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus(code as u8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus(128 + signal as u8)),
            Ok(WaitStatus::StillAlive) => return Collected { agent: ended, others: true },
            Err(Errno::EINTR) | Ok(_) => continue,
            Err(_) => return Collected { agent: ended, others: false },
        };
        if pid == agent {
            ended = Some(status);
        }
    }
}
