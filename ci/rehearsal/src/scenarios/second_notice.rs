//! An application that has just moved is interrupted again: its new node is taken back while pages still arrive there.
//!
//! The first move is asked for: a notice would keep the first node out of use until it is over, and there are two nodes.

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

/// So slow that pages take most of a minute.
const RATE: &str = "8mbit";

pub fn second_notice(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("second", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let target = other_node(&source)?;
    let mut timeline = Timeline::begin(&format!("it leaves {source}; the link of {target} has {RATE}"));
    let slow = Slow::link(&target, RATE)?;
    app.trigger("rehearsal")?;
    let status = app.wait_for_stage("", "Filling")?;
    let id = status.migration("id").to_owned();
    timeline.note(format!("it runs on {target}, and pages arrive"));
    let _notice = Notice::spot(&target, NOTICE)?;
    timeline.note(format!("the cloud takes {target} back in {} s", NOTICE));
    let status = app.status()?;
    expect(status.migration("residentAt").is_empty(), "all pages were there before the notice")?;
    let status = app.wait_until_moved(&id)?;
    drop(slow);
    expect(status.node() == source, "it has not left the second node")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)
}
