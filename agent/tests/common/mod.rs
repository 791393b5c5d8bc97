//! What the agent's tests share: a store, the command line, and the way from a workload to its restored self.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod container;
pub mod programs;
pub mod service;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use migration_harness::{
    process,
    s3::{S3Options, S3Server},
    workload::Workload,
};
use serde_json::Value;
use tempfile::TempDir;

/// Long enough for a busy machine, short enough to end a hanging test.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const STRATEGIES: [&str; 2] = ["lazy-storage", "full"];

/// A store of its own, and everything else a test leaves on disk.
pub struct Fixture {
    pub directory: TempDir,
    pub server: Option<S3Server>,
    pub store: String,
}

impl Fixture {
    /// Checkpoints go to a directory.
    pub fn local() -> Self {
        let directory = prepare();
        let store = format!("file://{}/store", directory.path().display());
        Self { directory, server: None, store }
    }

    /// Checkpoints go to an S3 server over a socket.
    pub fn s3() -> Self {
        let directory = prepare();
        let objects = directory.path().join("objects");
        std::fs::create_dir(&objects).unwrap();
        let server = S3Server::start(&objects, S3Options::default()).unwrap();
        let store = server.url("checkpoints");
        Self { directory, server: Some(server), store }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// `migration-agent` with these arguments, this store, and a home of its own.
    pub fn agent(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_migration-agent"));
        command
            .args(arguments)
            .env("MIGRATION_STORE", &self.store)
            .env("MIGRATION_WORK_DIR", self.path().join("work"))
            .env("HOME", self.path())
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_DATA_HOME")
            .stdin(Stdio::null());
        if std::env::var_os("MIGRATION_CRIU").is_none() && Path::new("/opt/criu/bin/criu").exists() {
            command.env("MIGRATION_CRIU", "/opt/criu/bin/criu");
        }
        if let Some(server) = &self.server {
            command
                .env("AWS_ACCESS_KEY_ID", &server.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
        }
        command
    }

    /// Runs it with `--json`; the object it printed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.agent(arguments).arg("--json").output().unwrap();
        assert!(output.status.success(), "{arguments:?} failed: {}", text(&output));
        object(&output)
    }

    /// Runs it with `--json` and expects it to fail; the error it printed.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> Value {
        let output = self.agent(arguments).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?} should have failed: {}", text(&output));
        object(&output)["error"].clone()
    }

    /// Takes a checkpoint that ends the workload, and waits until its pids are free.
    #[track_caller]
    pub fn checkpoint(&self, app: &str, workload: &Workload) -> Value {
        let report = self.json(&["checkpoint", "--app", app, "--pid", &workload.pid().to_string()]);
        assert_eq!(report["left"], "killed");
        for task in workload.tasks().iter().rev() {
            assert!(process::wait_gone(task.pid, LIMIT), "{} (pid {}) is still there", task.name, task.pid);
        }
        collect_orphans();
        report
    }

    /// Restores the newest checkpoint and returns as soon as it runs.
    #[track_caller]
    pub fn restore(&self, app: &str, strategy: &str) -> Value {
        self.json(&["restore", "--app", app, "--strategy", strategy, "--detach"])
    }

    /// Every object of the store, if it is a directory.
    pub fn objects(&self) -> Vec<String> {
        fn walk(directory: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    walk(&entry.path(), found);
                } else {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.path().join("store"), &mut found);
        found
    }

    pub fn manifests(&self) -> Vec<String> {
        self.objects().into_iter().filter(|path| path.ends_with("/manifest")).collect()
    }
}

/// Collects what ended workloads have left: children of theirs that became this process's when they ended.
pub fn collect_orphans() {
    for child in process::children(std::process::id() as i32) {
        if process::state(child) == Some('Z')
            && matches!(process::name(child).as_deref(), Some("workload" | "sleep"))
        {
            process::reap(child);
        }
    }
}

fn prepare() -> TempDir {
    // Restored trees become children of this test, which collects them at once; init here may take seconds.
    process::become_subreaper().unwrap();
    tempfile::tempdir().unwrap()
}

#[track_caller]
fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

pub fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\nstdout: {out}\nstderr: {err}", output.status)
}

/// Every byte of the workload is what it should be.
#[track_caller]
pub fn intact(workload: &Workload) {
    let report = workload.check().unwrap();
    assert!(report.pages > 0);
    assert_eq!(report.bad, 0, "{report:?}");
}
