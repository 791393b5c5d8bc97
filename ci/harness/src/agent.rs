//! Driving the `migration-agent` command, as a user would.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::process;
use crate::store::Store;

/// Longest time a command may take.
const LIMIT: Duration = Duration::from_secs(600);

/// The command, together with the store it is used with.
pub struct Agent<'a> {
    program: PathBuf,
    store: &'a Store,
    folder: TempDir,
}

/// What `checkpoint --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Checkpointed {
    /// Its id.
    pub checkpoint: String,
    /// The checkpoint it builds on.
    pub parent: Option<String>,
    /// Time the process stood still.
    pub frozen_ms: f64,
    /// Time all of it took.
    pub total_ms: f64,
    /// Pages.
    pub pages: Pages,
    /// Bytes.
    pub bytes: Bytes,
    /// `running` or `killed`.
    pub left: String,
}

/// Pages of a checkpoint.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Pages {
    /// All.
    pub total: u64,
    /// Those that are zero.
    pub zero: u64,
    /// Those the parent has.
    pub unchanged: u64,
    /// Those that were stored.
    pub stored: u64,
}

/// Sizes of a checkpoint.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Bytes {
    /// Of the memory.
    pub memory: u64,
    /// Sent to the store.
    pub uploaded: u64,
}

/// What `restore --wait-resident --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Restored {
    /// What was restored.
    pub checkpoint: String,
    /// Process id of the root.
    pub pid: i32,
    /// `lazy-storage` or `full`.
    pub strategy: String,
    /// Time until it ran.
    pub resume_ms: f64,
    /// Time until all its pages were there.
    pub resident_ms: f64,
    /// Page faults that were answered.
    pub faults: u64,
    /// Bytes read from the store.
    pub fetched_bytes: u64,
}

/// A command that has ended well.
pub struct Called<T> {
    /// What it printed.
    pub result: T,
    /// How long it ran.
    pub wall: Duration,
    /// The most memory it had at once, in bytes.
    pub peak_memory: u64,
}

impl<'a> Agent<'a> {
    /// The command that is built beside this program.
    ///
    /// # Errors
    /// When it is not built.
    pub fn new(store: &'a Store) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("agent-").tempdir()?;
        Ok(Agent { program: process::program("migration-agent")?, store, folder })
    }

    /// The words that start a workload under the agent, to be followed by its command line.
    pub fn run(&self, app: &str) -> Vec<OsString> {
        let program = self.program.as_os_str();
        [program, "run".as_ref(), "--app".as_ref(), app.as_ref(), "--".as_ref()].map(OsStr::to_owned).to_vec()
    }

    /// Takes a checkpoint and ends the process.
    ///
    /// # Errors
    /// When it fails; the text is the command's.
    pub fn checkpoint(&self, app: &str, pid: i32) -> io::Result<Called<Checkpointed>> {
        self.call(&["checkpoint", "--app", app, "--pid", &pid.to_string()], |_| {})
    }

    /// Restores the newest checkpoint lazily, and waits until all pages are there. Meanwhile `look` is called again and
    /// again with the time since the start.
    ///
    /// # Errors
    /// When it fails; the text is the command's.
    pub fn restore(&self, app: &str, look: impl FnMut(Duration)) -> io::Result<Called<Restored>> {
        self.call(&["restore", "--app", app, "--wait-resident"], look)
    }

    fn call<T: DeserializeOwned>(
        &self,
        words: &[&str],
        mut look: impl FnMut(Duration),
    ) -> io::Result<Called<T>> {
        // Files rather than pipes: what the command leaves running may keep them open.
        let (out, err) = (self.folder.path().join("out"), self.folder.path().join("err"));
        let mut command = Command::new(&self.program);
        command.args(words).args(["--store", self.store.url(), "--json"]);
        command.envs(self.store.environment().iter().map(|(name, value)| (name, value)));
        command.env("XDG_STATE_HOME", self.folder.path());
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);

        let begin = Instant::now();
        let mut child = command.spawn()?;
        let pid = child.id() as i32;
        let mut peak_memory = 0;
        let mut status = None;
        let in_time = process::wait_until(LIMIT, || {
            peak_memory = peak_memory.max(process::memory(pid, "VmHWM").unwrap_or(0));
            look(begin.elapsed());
            status = child.try_wait().transpose();
            status.is_some()
        });
        let wall = begin.elapsed();
        if !in_time {
            child.kill()?;
            child.wait()?;
        }
        let text = fs::read_to_string(&out)?;
        match status.transpose()? {
            Some(status) if status.success() => {
                let result = serde_json::from_str(&text).map_err(|error| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error} in {text}", words[0]))
                })?;
                Ok(Called { result, wall, peak_memory })
            }
            other => {
                let said = fs::read_to_string(&err)?;
                let how = other.map_or(format!("not done after {LIMIT:?}"), |status| status.to_string());
                Err(io::Error::other(format!("migration-agent {}: {how}\n{}", words[0], said.trim_end())))
            }
        }
    }
}
