//! A workload, a store, and the commands that move one through the other.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use migration_harness::process;
use migration_harness::s3::{Faults, S3Options, S3Server};
use migration_harness::workload::Workload;
use serde_json::Value;
use tempfile::TempDir;

use crate::random::Random;
use crate::tally::{Failure, Tally};

/// Nothing takes longer, unless it hangs.
const LIMIT: Duration = Duration::from_secs(120);
const APP: &str = "soak";

/// A workload and its store.
pub struct World {
    /// The processes that are moved.
    pub workload: Workload,
    scenario: &'static str,
    server: Option<S3Server>,
    store: String,
    place: TempDir,
    agent: PathBuf,
    lazy_pages: PathBuf,
}

/// How a command ended, and what it said.
pub struct Said {
    /// What it printed.
    pub result: Option<Value>,
    /// What went wrong, in its own words.
    pub error: String,
}

/// The processes of a page server.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageServer {
    /// Serves.
    pub server: Option<i32>,
    /// Starts servers.
    pub guardian: Option<i32>,
    /// Becomes the guardian.
    pub standby: Option<i32>,
}

impl World {
    /// A scenario and a store, as chance has it.
    pub fn new(random: &mut Random, mib: usize) -> Result<Self, Failure> {
        let scenario = *random.pick(&["heap", "tree", "threads", "churn", "areas"]);
        let place = tempfile::Builder::new().prefix("soak-").tempdir()?;
        let (server, store) = if random.percent(50) {
            (None, format!("file://{}/store", place.path().display()))
        } else {
            let objects = place.path().join("objects");
            fs::create_dir(&objects)?;
            let server = S3Server::start(&objects, S3Options::default())?;
            let store = server.url("checkpoints");
            (Some(server), store)
        };
        let workload = Workload::start(scenario, &["--mib", &mib.to_string()])
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let (agent, lazy_pages) = (process::program("migration-agent")?, process::program("lazy-pages")?);
        Ok(World { workload, scenario, server, store, place, agent, lazy_pages })
    }

    /// Which.
    pub fn describe(&self) -> String {
        format!("{} / {}", self.scenario, if self.server.is_some() { "s3" } else { "local" })
    }

    /// How the S3 server can misbehave, if that is the store.
    pub fn s3(&self) -> Option<&Faults> {
        self.server.as_ref().map(|server| &*server.faults)
    }

    /// Lets the workload do something to its memory.
    pub fn disturb(&self, random: &mut Random) -> Result<(), Failure> {
        let verb = match self.scenario {
            "heap" => "mutate 0.2",
            "tree" => "mutate",
            "churn" => "churn 2",
            _ => return Ok(()),
        };
        if !random.percent(80) {
            return Ok(());
        }
        let seen = self.workload.act(verb).map_err(|error| Failure::Lost(format!("{verb}: {error}")))?;
        match seen.bad {
            0 => Ok(()),
            bad => Err(Failure::Corrupt(format!("{verb}: {bad} bad: {:?}", seen.examples))),
        }
    }

    /// Compares all memory.
    pub fn check(&self, tally: &mut Tally) -> Result<(), Failure> {
        let report = self.workload.check().map_err(|error| Failure::Lost(format!("check: {error}")))?;
        tally.pages += report.pages;
        match report.bad {
            0 => Ok(()),
            bad => Err(Failure::Corrupt(format!("{bad} of {} pages: {:?}", report.pages, report.examples))),
        }
    }

    /// Root of the tree.
    pub fn pid(&self) -> i32 {
        self.workload.pid()
    }

    /// Whether its root runs.
    pub fn is_running(&self) -> bool {
        process::is_running(self.pid())
    }

    /// Starts `migration-agent`.
    pub fn start(&self, words: &[&str], store_faults: Option<&str>) -> io::Result<Child> {
        let (out, err) = self.outputs();
        let mut command = Command::new(&self.agent);
        command
            .args(words)
            .args(["--app", APP, "--store", &self.store, "--json"])
            .env("MIGRATION_WORK_DIR", self.place.path().join("work"))
            .env("XDG_STATE_HOME", self.place.path())
            .env("HOME", self.place.path())
            .stdin(Stdio::null())
            .stdout(fs::File::create(out)?)
            .stderr(fs::File::create(err)?);
        if let Some(plan) = store_faults {
            command.env("MIGRATION_STORE_FAULTS", plan);
        }
        if let Some(server) = &self.server {
            command
                .env("AWS_ACCESS_KEY_ID", &server.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
        }
        command.spawn()
    }

    /// Waits for its end.
    pub fn finish(&self, mut child: Child) -> Result<Said, Failure> {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if begin.elapsed() > LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Failure::Broken(format!("a command hangs: {}", self.error())));
            }
            sleep(process::POLL);
        };
        let result = status
            .success()
            .then(|| fs::read(self.outputs().0).ok())
            .flatten()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let error = if result.is_some() { String::new() } else { format!("{status}: {}", self.error()) };
        Ok(Said { result, error })
    }

    /// Runs it to its end.
    pub fn call(&self, words: &[&str], store_faults: Option<&str>) -> Result<Said, Failure> {
        let child = self.start(words, store_faults)?;
        self.finish(child)
    }

    fn outputs(&self) -> (PathBuf, PathBuf) {
        (self.place.path().join("out"), self.place.path().join("err"))
    }

    fn error(&self) -> String {
        let (out, err) = self.outputs();
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        format!("{} {}", read(out).trim(), read(err).trim())
    }

    /// How many checkpoints are committed.
    pub fn checkpoints(&self) -> Result<usize, Failure> {
        let listed = self.call(&["list"], None)?;
        let listed = listed.result.ok_or_else(|| Failure::Broken(format!("list: {}", listed.error)))?;
        Ok(listed["checkpoints"].as_array().map_or(0, Vec::len))
    }

    /// Attaches a server if the guardian waits for that. Whether it did.
    pub fn attach(&self) -> Result<bool, Failure> {
        let Some(status) = self.status().filter(|status| status["needs_attach"] == true) else {
            return Ok(false);
        };
        let guardian = status["guardian"].to_string();
        let attached = Command::new(&self.lazy_pages).args(["attach", "--guardian", &guardian]).output()?;
        match attached.status.success() {
            true => Ok(true),
            false => Err(Failure::Broken(format!("attach: {}", String::from_utf8_lossy(&attached.stderr)))),
        }
    }

    /// The page server of this world's processes.
    pub fn page_server(&self) -> Option<PageServer> {
        let ours = self.status()?;
        let pid = |role: &str| ours[role].as_i64().map(|pid| pid as i32);
        Some(PageServer { server: pid("server"), guardian: pid("guardian"), standby: pid("standby") })
    }

    /// What `lazy-pages status` says of it.
    fn status(&self) -> Option<Value> {
        let output = Command::new(&self.lazy_pages).args(["status", "--json"]).output().ok()?;
        let found: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
        let work = self.place.path().to_string_lossy().into_owned();
        found.into_iter().find(|daemon| {
            let directory = daemon["restores"][0]["directory"].as_str();
            directory.is_some_and(|directory| directory.starts_with(&work))
        })
    }

    /// Waits until nobody holds the tree frozen.
    pub fn settle(&self) {
        let pid = self.pid();
        let mut free_since = Instant::now();
        process::wait_until(Duration::from_secs(30), || {
            if process::is_running(pid) && is_held(pid) {
                free_since = Instant::now();
            }
            free_since.elapsed() > Duration::from_millis(150)
        });
    }

    /// Ends the tree, as a machine that vanishes does, and waits until its pids are free.
    pub fn end_tree(&self) -> Result<(), Failure> {
        for task in self.workload.tasks() {
            let _ = process::end(task.pid);
        }
        self.wait_gone()
    }

    /// Waits until the tree's pids are free.
    pub fn wait_gone(&self) -> Result<(), Failure> {
        for task in self.workload.tasks().iter().rev() {
            if !process::wait_gone(task.pid, Duration::from_secs(30)) {
                return Err(Failure::Broken(format!("{} (pid {}) does not end", task.name, task.pid)));
            }
        }
        self.collect();
        Ok(())
    }

    /// Collects what has ended: processes of the tree that were nobody's, and page servers.
    pub fn collect(&self) {
        for child in process::children(std::process::id() as i32) {
            if process::state(child) == Some('Z') {
                process::reap(child);
            }
        }
    }
}

/// Whether CRIU still holds a process: stopped, or traced.
fn is_held(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let traced = status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
    traced || matches!(process::state(pid), Some('t' | 'T'))
}

impl Drop for World {
    fn drop(&mut self) {
        self.collect();
    }
}
