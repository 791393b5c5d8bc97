//! The program: what it logs and serves, and how it ends.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use agent::{Journal, Scripted};
use hyper::{Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use migration_metadata::Fault;
use migration_monitor::http::Endpoint;
use serde_json::Value;
use support::{LIMIT, metadata, until};

/// The program, and what it has logged so far.
struct Program {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_migration-monitor"));
        command.args(arguments).args(["--log-format", "json", "--interval-ms", "200"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (log, lines) =
            (Arc::<Mutex<Vec<Value>>>::default(), BufReader::new(child.stderr.take().unwrap()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let object = serde_json::from_str(&line).unwrap_or(Value::String(line));
                kept.lock().unwrap().push(object);
            }
        });
        Self { child, log }
    }

    /// The first logged object whose message begins so.
    fn said(&self, begin: &str) -> Option<Value> {
        let log = self.log.lock().unwrap();
        let is = |object: &&Value| {
            object["fields"]["message"].as_str().is_some_and(|text| text.starts_with(begin))
        };
        log.iter().find(is).cloned()
    }

    async fn says(&self, begin: &str) -> Value {
        until(&format!("it logs `{begin}`"), async || self.said(begin).is_some()).await;
        self.said(begin).unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn ends(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None if begun.elapsed() > LIMIT => panic!("it does not end"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn get(endpoint: &Endpoint, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(http_body_util::Full::default()).unwrap();
    let answer = endpoint.ask(request, LIMIT).await.unwrap();
    (answer.status, String::from_utf8(answer.body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_it_hears_its_cloud_and_alive_all_the_time() {
    let directory = tempfile::tempdir().unwrap();
    let agent =
        Scripted::start(&directory.path().join("agent.sock"), Arc::new(Mutex::new(Journal::default())));
    let server = metadata().await;
    server.serve_only(migration_metadata::Cloud::Aws);
    server.fault(Fault::Status(StatusCode::SERVICE_UNAVAILABLE));
    let (url, socket) = (server.url(), agent.socket.display().to_string());
    let mut program = Program::start(&[
        "standalone",
        "--app",
        "cache=4711",
        "--agent",
        &socket,
        "--metadata",
        &url,
        "--listen",
        "127.0.0.1:0",
    ]);
    let address = program.says("serving").await["fields"]["address"].as_str().unwrap().to_owned();
    let endpoint: Endpoint = format!("http://{address}").parse().unwrap();
    assert_eq!(get(&endpoint, "/livez").await.0, StatusCode::OK);
    let (status, why) = get(&endpoint, "/readyz").await;
    assert_eq!(
        (status, why.trim()),
        (StatusCode::SERVICE_UNAVAILABLE, "it is not known yet which cloud this is")
    );
    program.says("it is not known whether").await;
    server.fault(None);
    until("it is ready", async || get(&endpoint, "/readyz").await.0 == StatusCode::OK).await;
    let found = program.says("asking the metadata service").await;
    assert_eq!(found["fields"]["cloud"], "aws");

    server.aws_spot(Some(("terminate", Timestamp::now() + SignedDuration::from_secs(120))));
    until("there is a checkpoint", async || agent.done().get("cache") == Some(&true)).await;
    program.says("the checkpoint is durable").await;
    let (_, numbers) = get(&endpoint, "/metrics").await;
    for line in [
        "migration_monitor_notices_total{source=\"aws-spot\",kind=\"terminate\"} 1",
        "migration_monitor_detection_seconds_count{source=\"aws-spot\"} 1",
        "migration_monitor_trigger_seconds_count{source=\"aws-spot\"} 1",
        "migration_monitor_actions_total{action=\"checkpoint\"} 1",
        "migration_monitor_announced{source=\"aws-spot\"} 1",
        "# EOF",
    ] {
        assert!(numbers.lines().any(|one| one == line), "{line} is not in {numbers}");
    }
    assert!(numbers.contains("migration_monitor_failures_total{part=\"metadata\""), "{numbers}");
    assert_eq!(get(&endpoint, "/").await.0, StatusCode::NOT_FOUND);
    assert!(program.log.lock().unwrap().iter().all(Value::is_object), "every line is an object");

    program.signal("TERM");
    assert_eq!(program.ends(), Some(0));
    assert!(program.said("asked to end").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_is_wrong_when_the_cloud_cannot_be_heard() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock").display().to_string();
    let server = metadata().await;
    let url = server.url();
    server.fault(Fault::Garbage);
    let mut program = Program::start(&[
        "standalone",
        "--app",
        "a=100",
        "--agent",
        &socket,
        "--metadata",
        &url,
        "--cloud",
        "azure",
    ]);
    let said = program.says("it is not known whether the machine will be interrupted").await;
    assert_eq!(said["level"], "WARN");
    assert_eq!(said["fields"]["source"], "azure-scheduled-events");
    server.fault(None);
    program.says("the metadata service answers again").await;
    program.signal("INT");
    assert_eq!(program.ends(), Some(0));
}

#[test]
fn what_was_typed_wrong_is_refused_before_anything_begins() {
    for arguments in [
        &["standalone"][..],
        &["standalone", "--app", "cache"],
        &["standalone", "--app", "cache=4711", "--interval-ms", "5000"],
        &["standalone", "--app", "cache=4711", "--metadata", "https://169.254.169.254"],
        &["standalone", "--app", "cache=4711", "--rebalance", "panic"],
        &["kubernetes", "--cloud", "mainframe", "--node-name", "a"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_migration-monitor"));
        let ended = command.args(arguments).env_clear().output().unwrap();
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}");
        assert!(!ended.stderr.is_empty());
    }
}
