//! An agent that serves, for tests: started, asked, ended and killed.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use migration_agent::client;
use migration_harness::{process, workload::Workload};
use migration_proto::agent::{
    ErrorDetail, ListOperationsRequest, Operation, Stage, agent_client::AgentClient, operation::Outcome,
};
use serde_json::Value;
use tonic::transport::Channel;

use super::{Fixture, LIMIT, collect_orphans};

/// A running `migration-agent serve`.
pub struct Service {
    pub child: Child,
    /// What it said when it was ready.
    pub reached: Value,
    pub socket: PathBuf,
}

impl Service {
    /// Starts one with the fixture's store and state; a second one takes the place of the first.
    #[track_caller]
    pub fn start(fixture: &Fixture, arguments: &[&str]) -> Self {
        let socket = fixture.path().join("run/agent.sock");
        let mut command = fixture.agent(&["serve", "--json", "--socket"]);
        command.arg(&socket).arg("--state-dir").arg(fixture.path().join("state")).args(arguments);
        Self::spawn(command, socket)
    }

    #[track_caller]
    pub fn spawn(mut command: Command, socket: PathBuf) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let line = receiver.recv_timeout(LIMIT).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("the service did not begin")
        });
        let reached = serde_json::from_str(&line).unwrap();
        Self { child, reached, socket }
    }

    pub fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// Ends it the hard way.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it by SIGTERM, and gives its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal();
        assert!(process::wait_until(LIMIT, || self.child.try_wait().unwrap().is_some()), "it does not end");
        self.child.wait().unwrap().code()
    }

    pub fn signal(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// Asks it.
    pub fn ask<T>(&self, call: impl AsyncFnOnce(AgentClient<Channel>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = self.address().parse().unwrap();
        runtime.block_on(async { call(client::connect(&address, None).await.unwrap()).await })
    }

    /// An operation as it is now.
    pub fn operation(&self, id: &str) -> Option<Operation> {
        let listed =
            self.ask(async |mut agent| agent.list_operations(ListOperationsRequest::default()).await);
        listed.unwrap().into_inner().operations.into_iter().find(|operation| operation.id == id)
    }

    /// Waits until an operation has failed, and gives why.
    #[track_caller]
    pub fn failure(&self, id: &str) -> ErrorDetail {
        let mut found = None;
        process::wait_until(LIMIT, || {
            found = self.operation(id).and_then(|operation| operation.outcome);
            found.is_some()
        });
        match found {
            Some(Outcome::Error(detail)) => detail,
            other => panic!("{id} did not fail: {other:?}"),
        }
    }

    /// Waits until an operation has reached a stage.
    #[track_caller]
    pub fn wait_for_stage(&self, id: &str, stages: &[Stage]) {
        let reached = || self.operation(id).is_some_and(|operation| stages.contains(&operation.stage()));
        assert!(process::wait_until(LIMIT, reached), "{id} never reached {stages:?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Enough for what should be at once.
pub const SOON: Duration = Duration::from_secs(10);

/// What the service at this address counts, as it says it.
pub fn scrape(service: &Service) -> String {
    let mut stream = TcpStream::connect(service.reached["metrics"].as_str().unwrap()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    assert!(body.trim_end().ends_with("# EOF"), "{body}");
    body.to_owned()
}

/// The sum of all values with this name whose labels contain `labels`.
pub fn value(text: &str, name: &str, labels: &str) -> f64 {
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(labels)
    });
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// Waits until every task is gone and collected.
#[track_caller]
pub fn wait_gone(workload: &Workload) {
    for task in workload.tasks().iter().rev() {
        assert!(process::wait_gone(task.pid, LIMIT), "{} (pid {}) is still there", task.name, task.pid);
    }
    collect_orphans();
}

/// Whether the process runs and CRIU has let go of it.
pub fn runs_free(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let traced = status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
    process::is_running(pid) && !traced && !matches!(process::state(pid), Some('t' | 'T'))
}
