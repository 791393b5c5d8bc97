//! Somebody asks for it with an annotation.

use super::steps::{expect, finish, one_pod, started};
use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{get, kubectl, until},
    manifest::CONTAINER,
    observer::Observer,
    redis,
    timeline::Timeline,
};

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
    end(&mut timeline, &app)
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
