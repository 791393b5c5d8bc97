//! A second notice comes while pages of the first migration still arrive.

use super::{
    spot::NOTICE,
    steps::{expect, finish, one_pod, other_node, started},
};
use crate::{
    Failure,
    faults::{Notice, Slow},
    observer::Observer,
    timeline::Timeline,
};

/// So slow that pages take minutes.
const RATE: &str = "3mbit";

pub fn second_notice(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("second", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let target = other_node(&source)?;
    let mut timeline =
        Timeline::begin(&format!("the cloud takes {source} back; the link of {target} has {RATE}"));
    let slow = Slow::link(&target, RATE)?;
    let first = Notice::spot(&source, NOTICE)?;
    let status = app.wait_for_stage("", "Filling")?;
    let id = status.migration("id").to_owned();
    expect(status.migration("stage") == "Filling", "its pages came too quickly for this scenario")?;
    timeline.note("it runs on the other node, and pages arrive");
    drop(first);
    let _second = Notice::spot(&target, NOTICE)?;
    timeline.note(format!("the cloud takes {target} back, too; {source} has been replaced"));
    let status = app.status()?;
    expect(status.migration("residentAt").is_empty(), "all pages were there before the second notice")?;
    let status = app.wait_until_moved(&id)?;
    drop(slow);
    expect(status.node() == source, "it has not left the second node")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)
}
