//! Somebody asks for it with `kubectl mapp`, and then for what was done.

use serde_json::Value;

use super::steps::{expect, finish, one_pod, started};
use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{get, kubectl, mapp, until},
    manifest::CONTAINER,
    observer::Observer,
    redis,
    timeline::Timeline,
};

pub fn manual(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("manual", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let mut timeline = Timeline::begin(&format!("kubectl mapp migrate, with {mib} MiB on {source}"));
    mapp(&["migrate", &app.name, "--reason", "rehearsal", "--wait"])?;
    let status = app.status()?;
    expect(status.migration("stage") == "Succeeded" && status.node() != source, "it has not left its node")?;
    finish(&mut timeline, &app, observer, &digest)?;
    asked(&mut timeline, &app, &source)?;
    one_pod(&app)?;
    end(&mut timeline, &app)
}

/// What the plugin tells of it, which the agent beside the application reads out of the store.
fn asked(timeline: &mut Timeline, app: &Application, source: &str) -> Result<(), Failure> {
    let object = |words: &[&str]| -> Result<Value, Failure> {
        Ok(serde_json::from_str(&mapp(&[&[words[0], &app.name, "--json"], &words[1..]].concat())?)?)
    };
    expect(object(&["status"])?["currentNode"] == app.status()?.node(), "status tells another node")?;
    let listed = object(&["checkpoints"])?["checkpoints"].as_array().map_or(0, Vec::len);
    expect(listed > 0, "no checkpoint is listed")?;
    let report = object(&["report"])?;
    expect(
        report["run"]["pid"].is_u64() && report["taken"]["machine"]["name"].is_string(),
        "the report lacks a side",
    )?;
    let Some(blackout) = report["blackout"]["total_us"].as_u64() else {
        return Err(format!("the report knows no blackout: {}", report["unknown"]).into());
    };
    let page = mapp(&["report", &app.name, "--html", "/dev/stdout"])?;
    expect(page.starts_with("<!") && page.contains("</html>"), "the report is no page")?;
    timeline.note(format!(
        "it left {source}; {listed} checkpoints are listed, and by the report nothing of it ran for {} ms",
        blackout / 1000
    ));
    Ok(())
}

/// It ends in its new pod as it would have in its first one, says so in that pod's log, and is started again.
fn end(timeline: &mut Timeline, app: &Application) -> Result<(), Failure> {
    let pod = app.status()?.pod().to_owned();
    // Its last act is to hang up.
    _ = redis::client(app)?.command(&[b"SHUTDOWN", b"NOSAVE"]);
    let ended = until(PATIENCE, "its container ends", || {
        let found = get(&["pod", &pod])?;
        let all = found["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let one = all.into_iter().find(|one| one["name"] == CONTAINER).unwrap_or_default();
        let states = [&one["state"]["terminated"], &one["lastState"]["terminated"]];
        Ok(states.into_iter().find(|state| !state.is_null()).cloned())
    })?;
    expect(ended["exitCode"] == 0, "its exit code is another one")?;
    until(PATIENCE, "its last words are in the log", || {
        let logs = [&["logs", &pod, "-c", CONTAINER, "--previous"][..], &["logs", &pod, "-c", CONTAINER]];
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
