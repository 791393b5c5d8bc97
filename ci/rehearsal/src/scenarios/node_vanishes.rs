//! A node ends without notice.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::steps::finish;
use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{kubectl, until},
    faults::Killed,
    manifest::Manifest,
    observer::Observer,
    redis,
    timeline::Timeline,
};

pub fn node_vanishes(strategy: &str, mib: u64) -> Result<(), Failure> {
    let app = Application::start(&Manifest { strategy, interval: "10s", ..Manifest::redis("vanish") })?;
    let digest = redis::fill(&app, mib)?;
    let observer = Observer::start(&app, true)?;
    let filled = Timestamp::now();
    until(PATIENCE, "a periodic checkpoint with all data", || {
        let status = app.status()?;
        let made = status.checkpointed().and_then(|time| time.parse::<Timestamp>().ok());
        Ok(made.filter(|made| *made > filled + Duration::from_secs(1)))
    })?;
    let source = app.status()?.node().to_owned();
    let mut timeline = Timeline::begin(&format!("{source} ends, with everything on it"));
    let _killed = Killed::kill(&source)?;
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
    finish(&mut timeline, &app, observer, &digest)
}
