//! The process that serves the pages of one lazy restore.
//!
//! It is a process of its own, started from this same program, because it has to outlive the command that restored: the
//! restored tree depends on it until its last page is there. It reports on a pipe, one JSON object a line; the pipe's end
//! means it is gone. What it does and what happens when it dies is told in [`lazy_pages::server`].

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use criu_sys::process::{Isolation, isolate};
use lazy_pages::{
    ids::{AppId, CheckpointId, LeaseId},
    server::{
        ServerStats,
        daemon::{self, Report},
    },
    store::StoreUrl,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{cancel::Cancel, error::AgentError};

/// How long it may take to notice that CRIU has given up, and to end what had been restored.
const END: Duration = Duration::from_secs(10);

/// How often a restore that waits looks whether it was given up.
const LOOK: Duration = Duration::from_millis(50);

/// A running page server.
#[derive(Debug)]
pub struct PageServerProcess {
    child: Child,
    events: Receiver<Report>,
}

/// Where its log goes.
#[derive(Debug)]
pub enum Log<'a> {
    /// To this process's standard error.
    Inherit,
    /// To the end of a file.
    File(&'a Path),
}

/// What one serves.
#[derive(Debug)]
pub struct Served<'a> {
    /// Where the checkpoint is.
    pub store: &'a StoreUrl,
    /// Whose.
    pub app: &'a AppId,
    /// Which.
    pub checkpoint: CheckpointId,
    /// Where its images are put, and the socket.
    pub images: &'a Path,
    /// How long processes wait for what does not come.
    pub patience: Duration,
    /// How many requests at a time fetch what nobody waits for yet; what suits the store when `None`.
    pub prefetch: Option<u32>,
    /// Where pages come from that are not in the store.
    pub origin: Option<String>,
    /// Control directory of the launcher that holds the descriptors too.
    pub anchor: Option<String>,
}

impl PageServerProcess {
    /// Starts one, as the `page-server` subcommand of `program`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, served: &Served<'_>, log: &Log<'_>) -> Result<Self, AgentError> {
        let Served { store, app, checkpoint, images, patience, prefetch, origin, anchor } = served;
        let stderr = match log {
            Log::Inherit => Stdio::inherit(),
            Log::File(path) => Stdio::from(
                fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(AgentError::path("open", *path))?,
            ),
        };
        let mut command = Command::new(program);
        command
            .arg("page-server")
            .arg(format!("--store={store}"))
            .arg(format!("--app={app}"))
            .arg(format!("--checkpoint={checkpoint}"))
            .arg("--dir")
            .arg(images)
            .arg(format!("--patience={}", patience.as_secs()))
            .args(prefetch.map(|requests| format!("--prefetch-workers={requests}")))
            .args(origin.as_ref().map(|origin| format!("--origin={origin}")))
            .args(anchor.as_ref().map(|directory| format!("--anchor={directory}")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        // A page server to which no task has come yet ends on SIGTERM, so a restore that dies early leaves none behind; once
        // tasks depend on it, it goes on whoever ends.
        let mut isolation = Isolation::new();
        isolation.parent_death_signal(libc::SIGTERM);
        isolate(&mut command, isolation);
        let mut child = command.spawn().map_err(AgentError::path("start", program))?;
        let events = child.stdout.take().map(follow).ok_or_else(|| failed("it has no output"))?;
        Ok(Self { child, events })
    }

    /// Waits until it listens and the images are in place. Gives the lease it reads under.
    ///
    /// # Errors
    /// When it ends before, takes longer than `limit`, or the restore is given up.
    pub fn ready(&self, limit: Duration, cancel: &Cancel) -> Result<Option<LeaseId>, AgentError> {
        let deadline = Instant::now() + limit;
        let first = loop {
            match self.events.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => cancel.check()?,
                first => break first,
            }
        };
        match first {
            Ok(Report::Ready { lease, .. }) => Ok(lease.and_then(|lease| lease.parse().ok())),
            Ok(Report::Failed { reason }) => Err(AgentError::PageServer { reason }),
            Ok(other) => Err(failed(&format!("it said {other:?} before it was ready"))),
            Err(RecvTimeoutError::Timeout) => {
                Err(failed(&format!("it was not ready after {} s", limit.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(failed("it ended before it was ready")),
        }
    }

    /// Waits until every page is in the restored tree.
    ///
    /// # Errors
    /// When pages can never come; the tree is dead then.
    pub fn resident(&self) -> Result<ServerStats, AgentError> {
        let last = loop {
            match self.events.recv() {
                Ok(Report::TakenOver { pid, missing_pages }) => {
                    tracing::warn!(pid, missing_pages, "the page server died, and another one goes on");
                }
                last => break last,
            }
        };
        match last {
            Ok(Report::Resident(stats)) => Ok(stats),
            Ok(Report::Gone(_)) => Err(failed("the tree ended before its last page had arrived")),
            Ok(Report::Failed { reason }) => Err(AgentError::PageServer { reason }),
            Ok(other) => Err(failed(&format!("it said {other:?} out of turn"))),
            Err(_) => Err(failed("all of its processes were killed at once")),
        }
    }

    /// Collects it after it has reported its end.
    pub fn collect(mut self) {
        // Its last report is its last act.
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "the page server was not collected");
        }
    }

    /// Collects it after CRIU has given up, which it notices by itself. If it was the cause, because pages could not be
    /// had, that is returned.
    pub fn end_of_failed_restore(mut self) -> Option<AgentError> {
        // Should CRIU never have come, it would wait on; otherwise this changes nothing.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + END;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(Some(status)) => break Some(status),
                Ok(None) | Err(_) => break None,
            }
        };
        if status.is_none() {
            // It goes on ending whatever is left of the tree, and must not be stopped in that.
            tracing::warn!("the page server still ends what had been restored");
        }
        if status.and_then(|status| status.code()) != Some(daemon::EXIT_KILLED.into()) {
            return None;
        }
        self.events.iter().find_map(|report| match report {
            Report::Failed { reason } => Some(AgentError::PageServer { reason }),
            _ => None,
        })
    }
}

fn failed(reason: &str) -> AgentError {
    AgentError::PageServer { reason: reason.to_owned() }
}

/// Reads its reports on a thread, so that waiting for one can have a limit.
fn follow(output: ChildStdout) -> Receiver<Report> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(event) => drop(sender.send(event)),
                Err(error) => tracing::warn!(line, %error, "the page server said something unknown"),
            }
        }
    });
    receiver
}
