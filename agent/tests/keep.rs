//! Checkpoints worth keeping: taken at intervals of a process that goes on, kept by rule and by name.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Stdio},
};

use common::{Fixture, LIMIT, intact};
use migration_harness::{process, workload::Workload};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// `checkpoint --every` of a workload, and what it prints.
struct Periodic {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Periodic {
    fn start(fixture: &Fixture, workload: &Workload, options: &[&str]) -> Self {
        let pid = workload.pid().to_string();
        let mut command = fixture.agent(&["checkpoint", "--app", "app", "--pid", &pid, "--json"]);
        let mut child = command.args(options).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next object it prints; `None` when it has ended.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let length = self.lines.read_line(&mut line).unwrap();
        (length > 0).then(|| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
    }

    /// Tells it to end; what it printed until then, and its exit code.
    fn stop(mut self) -> (Vec<Value>, Option<i32>) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        self.rest()
    }

    fn rest(&mut self) -> (Vec<Value>, Option<i32>) {
        let rest = std::iter::from_fn(|| self.next()).collect();
        (rest, self.child.wait().unwrap().code())
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        // One that was deleted in between takes nothing.
        meta => meta.map_or(0, |meta| meta.len()),
    };
    entries.map(size).sum()
}

fn listed(fixture: &Fixture) -> Vec<Value> {
    fixture.json(&["list", "--app", "app"])["checkpoints"].as_array().unwrap().clone()
}

fn id(checkpoint: &Value) -> &str {
    checkpoint["checkpoint"].as_str().unwrap()
}

#[test]
fn fifteen_checkpoints_of_a_running_process_take_no_more_than_two() {
    let fixture = Fixture::local();
    let store = fixture.path().join("store");
    let workload = Workload::start("heap", &["--mib", "64"]).unwrap();
    let mut periodic = Periodic::start(&fixture, &workload, &["--every", "300ms", "--keep", "3"]);
    let mut reports = vec![periodic.next().unwrap()];
    let full = size(&store);
    while reports.len() < 15 {
        workload.act("mutate 0.02").unwrap();
        reports.push(periodic.next().unwrap());
    }
    let (rest, code) = periodic.stop();
    assert_eq!(code, Some(0));
    reports.extend(rest);

    for (number, report) in reports.iter().enumerate() {
        assert_eq!(report["left"], "running", "{report}");
        assert_eq!(report["depth"], number as u64 % 11, "{report}");
        let uploaded = report["bytes"]["uploaded"].as_u64().unwrap();
        assert!(number % 11 == 0 || uploaded < full / 2, "{report}");
    }
    let kept: Vec<&str> = reports.iter().rev().take(3).map(id).collect();
    let listed = listed(&fixture);
    assert_eq!(listed.iter().map(id).collect::<Vec<_>>(), kept);
    for checkpoint in &kept {
        fixture.json(&["verify", "--app", "app", "--checkpoint", checkpoint, "--read-data"]);
    }
    let now = size(&store);
    println!("{} checkpoints; the first took {full} bytes, now there are {now}", reports.len());
    assert!(now <= 2 * full, "{now} {full}");

    intact(&workload);
    process::end(workload.pid()).unwrap();
    assert!(process::wait_gone(workload.pid(), LIMIT));
    for checkpoint in kept {
        fixture.json(&["restore", "--app", "app", "--checkpoint", checkpoint, "--wait-resident"]);
        intact(&workload);
        process::end(workload.pid()).unwrap();
        assert!(process::wait_gone(workload.pid(), LIMIT));
    }
}

#[test]
fn periodic_checkpoints_end_with_the_process() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let mut periodic = Periodic::start(&fixture, &workload, &["--every", "1h"]);
    let first = periodic.next().unwrap();
    process::end(workload.pid()).unwrap();
    assert_eq!(periodic.rest(), (Vec::new(), Some(0)));
    assert!(process::wait_gone(workload.pid(), LIMIT));
    fixture.restore("app", "full");
    intact(&workload);
    assert_eq!(id(&listed(&fixture)[0]), id(&first));
}

#[test]
fn a_checkpoint_under_way_is_finished_when_told_to_end() {
    let fixture = Fixture::s3();
    let faults = &fixture.server.as_ref().unwrap().faults;
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    let mut periodic = Periodic::start(&fixture, &workload, &["--every", "100ms"]);
    let mut reports = vec![periodic.next().unwrap()];
    // Every one of its steps takes a while now, so it is in the middle of one.
    faults.delay_answers(std::time::Duration::from_millis(100));
    workload.act("mutate 0.3").unwrap();
    let (rest, code) = periodic.stop();
    assert_eq!(code, Some(0));
    reports.extend(rest);
    faults.delay_answers(std::time::Duration::ZERO);
    assert_eq!(listed(&fixture).len(), reports.len(), "what was committed was reported");
    assert!(workload.is_running());
    intact(&workload);
}

#[test]
fn a_failing_checkpoint_is_reported_and_tried_again() {
    let fixture = Fixture::local();
    let store = fixture.path().join("store");
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    // A file where the store's directory should be.
    fs::write(&store, "").unwrap();
    let mut periodic = Periodic::start(&fixture, &workload, &["--every", "100ms"]);
    for _ in 0..2 {
        let failed = periodic.next().unwrap();
        assert!(failed["error"]["left"].as_str().unwrap().contains("trying again"), "{failed}");
        assert!(workload.is_running());
    }
    fs::remove_file(&store).unwrap();
    let report = std::iter::from_fn(|| periodic.next()).find(|object| object["error"].is_null()).unwrap();
    assert_eq!(report["left"], "running");
    let (_, code) = periodic.stop();
    assert_eq!(code, Some(0), "the last one succeeded");
    fixture.json(&["verify", "--app", "app", "--read-data"]);
    intact(&workload);
}

#[test]
fn reading_the_newest_never_fails_while_it_is_replaced() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    let mut periodic = Periodic::start(&fixture, &workload, &["--every", "50ms", "--keep", "1"]);
    let first = periodic.next().unwrap();
    fixture.server.as_ref().unwrap().faults.delay_answers(std::time::Duration::from_millis(5));
    let verified: Vec<String> = (0..12)
        .map(|_| {
            workload.act("mutate 0.05").unwrap();
            // Each of them fails if it does not find every page as it was stored.
            id(&fixture.json(&["verify", "--app", "app", "--read-data"])).to_owned()
        })
        .collect();
    let (reports, code) = periodic.stop();
    assert_eq!(code, Some(0));
    let taken = 1 + reports.len();
    assert!(verified.iter().any(|checkpoint| checkpoint != id(&first)) && taken > 3, "{taken} {verified:?}");
    intact(&workload);
}

#[test]
fn a_chain_ends_in_a_full_checkpoint_and_not_while_pages_are_missing() {
    let fixture = Fixture::s3();
    let faults = &fixture.server.as_ref().unwrap().faults;
    let workload = Workload::start("heap", &["--mib", "96"]).unwrap();
    let pid = workload.pid().to_string();
    let checkpoint = |more: &[&str]| {
        let arguments = ["checkpoint", "--app", "app", "--pid", &pid, "--max-chain-depth", "1"];
        fixture.json(&[&arguments, more].concat())
    };
    let depth = |report: &Value| report["depth"].as_u64().unwrap();
    let depths: Vec<u64> = (0..3).map(|_| depth(&checkpoint(&["--leave-running"]))).collect();
    assert_eq!(depths, [0, 1, 0]);
    assert_eq!(depth(&checkpoint(&[])), 1);
    assert!(process::wait_gone(workload.pid(), LIMIT));
    common::collect_orphans();

    faults.delay_large_ranges(0, std::time::Duration::from_millis(1500));
    fixture.restore("app", "lazy-storage");
    let missing = checkpoint(&["--leave-running"]);
    assert!(missing["pages"]["pending"].as_u64().unwrap() > 1000, "{missing}");
    assert_eq!(depth(&missing), 2, "longer than asked for: its pages are nowhere else");
    faults.delay_large_ranges(0, std::time::Duration::ZERO);
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    let full = checkpoint(&["--leave-running"]);
    assert_eq!((depth(&full), &full["parent"]), (0, &Value::Null));
    intact(&workload);
    fixture.json(&["verify", "--app", "app", "--read-data"]);
}

#[test]
fn pins_and_rules_say_what_is_kept() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let pid = workload.pid().to_string();
    let arguments = ["checkpoint", "--app", "app", "--pid", &pid, "--leave-running"];
    let ids: Vec<String> = (0..4).map(|_| id(&fixture.json(&arguments)).to_owned()).collect();

    fixture.json(&["pin", "--app", "app", "--checkpoint", &ids[0], "--name", "first"]);
    let pinned: Vec<Value> = listed(&fixture).iter().map(|checkpoint| checkpoint["pins"].clone()).collect();
    assert_eq!(
        pinned,
        [serde_json::json!([]), serde_json::json!([]), serde_json::json!([]), serde_json::json!(["first"])]
    );
    let refused = fixture.refused(&["delete", "--app", "app", "--checkpoint", &ids[0]]);
    assert!(
        refused["hint"].as_str().unwrap().contains("unpin --app local/default/app --name first"),
        "{refused}"
    );
    let refused = fixture.refused(&["pin", "--app", "app", "--name", "first"]);
    assert!(refused["message"].as_str().unwrap().contains("another checkpoint"), "{refused}");

    let before = fixture.objects();
    let gc = |more: &[&str]| fixture.json(&[&["gc", "--app", "app"], more].concat())["apps"][0].clone();
    let planned = gc(&["--keep", "2", "--dry-run"]);
    assert_eq!(planned["deleted"], serde_json::json!([ids[1]]));
    assert_eq!(fixture.objects(), before);
    assert_eq!(gc(&["--keep", "1", "--keep-for", "1h"])["deleted"], serde_json::json!([]));
    let done = gc(&["--keep", "2"]);
    assert_eq!((&done["deleted"], &done["kept"]), (&planned["deleted"], &planned["kept"]));
    assert_eq!(listed(&fixture).iter().map(id).collect::<Vec<_>>(), [&ids[3], &ids[2], &ids[0]]);

    fixture.json(&["unpin", "--app", "app", "--name", "first"]);
    fixture.refused(&["unpin", "--app", "app", "--name", "first"]);
    // Every application.
    assert_eq!(
        fixture.json(&["gc", "--keep", "1"])["apps"][0]["deleted"],
        serde_json::json!([ids[2], ids[0]])
    );
    fixture.json(&["verify", "--app", "app", "--read-data"]);
    process::end(workload.pid()).unwrap();
    assert!(process::wait_gone(workload.pid(), LIMIT));
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}
