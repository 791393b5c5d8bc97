//! What is rehearsed.

use std::{thread, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{announce, cluster, get, kubectl, until},
    observer::{self, Observer},
    timeline::Timeline,
};

/// What a cloud gives: AWS announces two minutes ahead.
const NOTICE: i64 = 120;

/// Somebody asks for it with an annotation.
pub fn manual(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("manual", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let mut timeline = Timeline::begin(&format!("annotated, with {mib} MiB on {source}"));
    app.trigger("rehearsal")?;
    let status = app.wait_until_moved("")?;
    expect(status.node() != source, "it has not left its node")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)?;
    end(&mut timeline, &app)?;
    timeline.print();
    Ok(())
}

/// It ends in its new pod as it would have in its first one, says so in that pod's log, and is started again.
fn end(timeline: &mut Timeline, app: &Application) -> Result<(), Failure> {
    let pod = app.status()?.pod().to_owned();
    // Its last act is to hang up.
    _ = app.client()?.command(&[b"SHUTDOWN", b"NOSAVE"]);
    let ended = until(PATIENCE, "its container ends", || {
        let found = get(&["pod", &pod])?;
        let all = found["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let one = all.into_iter().find(|one| one["name"] == "redis").unwrap_or_default();
        let states = [&one["state"]["terminated"], &one["lastState"]["terminated"]];
        Ok(states.into_iter().find(|state| !state.is_null()).cloned())
    })?;
    expect(ended["exitCode"] == 0, "its exit code is another one")?;
    until(PATIENCE, "its last words are in the log", || {
        let logs = [&["logs", &pod, "-c", "redis", "--previous"][..], &["logs", &pod, "-c", "redis"]];
        Ok(logs.iter().any(|words| kubectl(words).is_ok_and(|text| text.contains("bye bye"))).then_some(()))
    })?;
    timeline.note("it was told to end: exit code 0, and its last words in the log");
    until(PATIENCE, "it is started again", || {
        let status = app.status()?;
        Ok((status.pod() != pod && status.phase() == "Running" && status.is("Ready")).then_some(()))
    })?;
    timeline.note("the operator has started it again");
    Ok(())
}

/// The cloud announces that it takes a node back.
pub fn spot(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("spot", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let deadline = Timestamp::now() + Duration::from_secs(NOTICE as u64);
    let mut timeline = Timeline::begin(&format!("the cloud takes {source} back in {NOTICE} s"));
    announce(&source, "POST", &format!("aws/spot?action=terminate&in={NOTICE}"))?;
    let _withdrawn = Withdrawn(&source);
    let status = app.wait_until_moved("")?;
    timeline.note("the application has moved");
    expect(status.node() != source, "it has not left its node")?;
    let moved: Timestamp = status.migration("finishedAt").parse()?;
    expect(moved < deadline, "it was not gone before the machine would have been")?;
    let node = get(&["node", &source])?;
    expect(
        node["spec"]["taints"].to_string().contains("migration.io/interruption"),
        "its node has no taint",
    )?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)?;
    let left = (deadline - moved).total(k8s_openapi::jiff::Unit::Second)?;
    timeline.note(format!("it had moved {left:.0} s before the machine would have ended"));
    timeline.print();
    Ok(())
}

/// A node ends without notice.
pub fn node_vanishes(strategy: &str, mib: u64) -> Result<(), Failure> {
    let app = Application::start("vanish", strategy, "10s", None)?;
    let digest = app.fill(mib)?;
    let observer = Observer::start(&app, true)?;
    let filled = Timestamp::now();
    until(PATIENCE, "a periodic checkpoint with all data", || {
        let status = app.status()?;
        let made = status.checkpointed().and_then(|time| time.parse::<Timestamp>().ok());
        Ok(made.filter(|made| *made > filled + Duration::from_secs(1)))
    })?;
    let source = app.status()?.node().to_owned();
    let mut timeline = Timeline::begin(&format!("{source} ends, with everything on it"));
    cluster(&["kill", &source])?;
    let _back = Back(&source);
    timeline.note("nothing of it is left");
    // What the cloud's controller does about a machine that is no more; without it nobody knows that it will not come back.
    kubectl(&["delete", "node", &source])?;
    timeline.note("its Node is deleted");
    let status = until(PATIENCE, "it runs elsewhere", || {
        let status = app.status()?;
        let runs = status.phase() == "Running" && status.is("Ready") && status.node() != source;
        Ok(runs.then_some(status))
    })?;
    timeline.note(format!("ready on {}", status.node()));
    finish(&mut timeline, &app, observer, &digest)?;
    timeline.print();
    Ok(())
}

/// Ten applications of one node move at once.
pub fn ten_apps(strategy: &str, mib: u64) -> Result<(), Failure> {
    let nodes = get(&["nodes"])?;
    let source = nodes["items"][0]["metadata"]["name"].as_str().ok_or("there is no node")?.to_owned();
    let apps =
        (0..10).map(|number| Application::apply(&format!("ten-{number}"), strategy, "10m", Some(&source)));
    let apps = apps.collect::<Result<Vec<_>, _>>()?;
    let mut watched = Vec::new();
    for app in &apps {
        app.wait_until_migratable()?;
        expect(app.status()?.node() == source, "it has not begun where it was to begin")?;
        let digest = app.fill(mib)?;
        watched.push((app, digest, Observer::start(app, false)?));
    }
    let deadline = Timestamp::now() + Duration::from_secs(NOTICE as u64);
    let mut timeline =
        Timeline::begin(&format!("the cloud takes {source} back in {NOTICE} s, with ten applications"));
    announce(&source, "POST", &format!("aws/spot?action=terminate&in={NOTICE}"))?;
    let _withdrawn = Withdrawn(&source);
    for (app, digest, observer) in watched {
        let status = app.wait_until_moved("")?;
        let moved: Timestamp = status.migration("finishedAt").parse()?;
        expect(moved < deadline, "it was not gone before the machine would have been")?;
        expect(status.node() != source, "it has not left its node")?;
        finish(&mut timeline, app, observer, &digest)?;
    }
    for app in &apps {
        one_pod(app)?;
    }
    timeline.print();
    Ok(())
}

/// The operator is killed in every stage of a migration.
pub fn operator_killed(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("killed", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let mut timeline =
        Timeline::begin("the operator that leads is killed whenever a migration reaches a stage");
    for stage in ["Preparing", "Dumping", "Restoring", "Filling"] {
        let before = app.status()?.migration("id").to_owned();
        app.trigger(stage)?;
        // A stage that is over before it was seen leaves the next one.
        let reached = until(PATIENCE, stage, || {
            let status = app.status()?;
            let begun = status.migration("id") != before;
            Ok((begun && rank(status.migration("stage")) >= rank(stage)).then_some(status))
        })?;
        let leader = kill_operator()?;
        timeline.note(format!("{}: {leader} is killed", reached.migration("stage")));
        let status = app.wait_until_moved(&before)?;
        timeline.note(format!("it has moved to {}", status.node()));
        app.wait_until_migratable()?;
    }
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)?;
    timeline.print();
    Ok(())
}

fn rank(stage: &str) -> usize {
    let stages =
        ["ChoosingTarget", "Preparing", "Dumping", "Restoring", "Filling", "RemovingSource", "Succeeded"];
    stages.iter().position(|one| *one == stage).unwrap_or_default()
}

fn kill_operator() -> Result<String, Failure> {
    let lease = get(&["lease", "migration-operator", "--namespace", "migration-system"])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let pod = holder.rsplit_once('-').ok_or("nobody leads")?.0.to_owned();
    let found = get(&["pod", &pod, "--namespace", "migration-system"])?;
    let node = found["spec"]["nodeName"].as_str().unwrap_or_default();
    let container = found["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let container = container.trim_start_matches("containerd://");
    cluster(&["exec", node, "ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", container])?;
    Ok(pod)
}

fn started(name: &str, strategy: &str, mib: u64) -> Result<(Application, String), Failure> {
    let app = Application::start(name, strategy, "10m", None)?;
    let digest = app.fill(mib)?;
    Ok((app, digest))
}

/// What holds at the end of every scenario: a client that saw nothing wrong, and the same data.
fn finish(
    timeline: &mut Timeline,
    app: &Application,
    observer: Observer,
    digest: &str,
) -> Result<(), Failure> {
    let seen = observer.finish()?;
    observer::forget(app)?;
    app.compare(digest)?;
    timeline.migration(&app.name, &app.status()?);
    timeline.seen(&app.name, &seen);
    Ok(())
}

/// Its containers run in its own pod and in no other. Kubelets take up to a minute to forget a pod that has ended.
fn one_pod(app: &Application) -> Result<(), Failure> {
    until(PATIENCE, "it runs in its own pod only", || {
        let pods = get(&["pods", "-l", &format!("migration.io/app={}", app.name)])?;
        let runs = |pod: &&Value| {
            let all = pod["status"]["containerStatuses"].as_array();
            all.into_iter().flatten().any(|one| !one["state"]["running"].is_null())
        };
        let running = pods["items"].as_array().into_iter().flatten().filter(runs);
        let names: Vec<&str> = running.filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        Ok((names == [app.status()?.pod()]).then_some(()))
    })
}

fn expect(fact: bool, otherwise: &str) -> Result<(), Failure> {
    if fact { Ok(()) } else { Err(otherwise.into()) }
}

/// A notice that is taken back at the end.
struct Withdrawn<'a>(&'a str);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        let clean = || {
            announce(self.0, "DELETE", "aws/spot")?;
            until(Duration::from_secs(60), "the node is free again", || {
                let node = get(&["node", self.0])?;
                Ok((!node["spec"]["taints"].to_string().contains("migration.io")).then_some(()))
            })
        };
        if let Err(error) = clean() {
            eprintln!("scenario: {}: {error}", self.0);
        }
    }
}

/// A node that is brought back at the end.
struct Back<'a>(&'a str);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        // What its Node left behind has to be gone, or its kubelet finds pods of before.
        thread::sleep(Duration::from_secs(1));
        if let Err(error) = cluster(&["start", self.0]) {
            eprintln!("scenario: {}: {error}", self.0);
        }
    }
}
