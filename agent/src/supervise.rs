//! Staying in front of a workload: signals go to it, its exit status comes back.
//!
//! A program that calls [`Signals::take`] before it starts other threads decides what the signals meant for the workload
//! do: until [`Signals::forward_to`] they end this program, as they would any other; afterwards they are passed on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use migration_launch::ExitStatus;

use crate::{error::AgentError, periodic::Stop};

const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGALRM,
];

/// Nobody to forward to yet.
const NOBODY: i32 = 0;

/// The signals this program receives on behalf of a workload.
#[derive(Debug, Clone)]
pub struct Signals {
    target: Arc<AtomicI32>,
}

impl Signals {
    /// Takes the signals over. Call it before any other thread exists, so that all threads inherit the mask.
    ///
    /// # Errors
    /// When the mask cannot be set or the thread not started.
    pub fn take() -> Result<Self, AgentError> {
        let set: SigSet = FORWARDED.into_iter().collect();
        set.thread_block().map_err(|errno| AgentError::io("cannot block signals")(errno.into()))?;
        let target = Arc::new(AtomicI32::new(NOBODY));
        let shared = Arc::clone(&target);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || deliver(&set, &shared))
            .map_err(AgentError::io("cannot start a thread"))?;
        Ok(Self { target })
    }

    /// From now on signals go to `pid`.
    pub fn forward_to(&self, pid: u32) {
        self.target.store(pid as i32, Ordering::SeqCst);
    }
}

fn deliver(set: &SigSet, target: &AtomicI32) {
    loop {
        let Ok(signal) = set.wait() else { continue };
        match target.load(Ordering::SeqCst) {
            NOBODY => match signal {
                // Whatever was under way is undone by those who watch this process: CRIU ends with it and the tree it had
                // frozen goes on, the page server ends a half-restored one.
                Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM => {
                    std::process::exit(128 + signal as i32)
                }
                _ => {}
            },
            // The workload may be gone already; its exit status is on its way then.
            pid => drop(kill(Pid::from_raw(pid), signal)),
        }
    }
}

/// Lets the signals that end a program stop periodic checkpoints instead, after the one under way. A second one ends this
/// program at once, which lets CRIU give that checkpoint up. Call it before any other thread exists.
///
/// # Errors
/// When the mask cannot be set or the thread not started.
pub fn stop_on_signals(stop: Stop) -> Result<(), AgentError> {
    let set: SigSet =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().collect();
    set.thread_block().map_err(|errno| AgentError::io("cannot block signals")(errno.into()))?;
    let wait = move || {
        for seen in 0.. {
            match set.wait() {
                Ok(_) if seen == 0 => stop.stop(),
                Ok(signal) => std::process::exit(128 + signal as i32),
                Err(_) => {}
            }
        }
    };
    let started = thread::Builder::new().name("signals".to_owned()).spawn(wait);
    started.map(drop).map_err(AgentError::io("cannot start a thread"))
}

/// Makes orphans below this process its own children, so that it can collect them.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt_orphans() -> Result<(), AgentError> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|errno| AgentError::io("cannot become a subreaper")(errno.into()))
}

/// Waits until `pid`, a child of this process, ends; collects every other child that ends meanwhile.
///
/// # Errors
/// When `pid` is no child of this process.
pub fn wait_for(pid: u32) -> Result<ExitStatus, AgentError> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(ended, code)) if ended.as_raw() as u32 == pid => {
                collect_ended();
                return Ok(ExitStatus(code as u8));
            }
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended.as_raw() as u32 == pid => {
                collect_ended();
                return Ok(ExitStatus(128 + signal as u8));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(AgentError::io(format!("cannot wait for pid {pid}"))(errno.into())),
        }
    }
}

/// Collects what ended together with the workload. A tree that was moved away must not leave zombies: they own the pids
/// it needs if it comes back here.
fn collect_ended() {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
    {
    }
}
