//! The target's node dies while the application is restored there.

use super::steps::{expect, finish, one_pod, other_node, started};
use crate::{
    Failure,
    cluster::kubectl,
    faults::{Killed, Slow},
    observer::Observer,
    timeline::Timeline,
};

/// So slow that a restore takes long enough to be interrupted.
const RATE: &str = "20mbit";

pub fn target_dies(mib: u64) -> Result<(), Failure> {
    // With this strategy nothing runs before all of its memory has come.
    let (app, digest) = started("dies", "full", mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let target = other_node(&source)?;
    let mut timeline = Timeline::begin(&format!("annotated on {source}; the link of {target} has {RATE}"));
    let slow = Slow::link(&target, RATE)?;
    app.trigger("rehearsal")?;
    let status = app.wait_for_stage("", "Restoring")?;
    expect(status.migration("stage") == "Restoring", "it was restored too quickly for this scenario")?;
    timeline.note(format!("it is restored on {target}"));
    drop(slow);
    let killed = Killed::kill(&target)?;
    timeline.note(format!("{target} ends, with everything on it"));
    kubectl(&["delete", "node", &target])?;
    timeline.note("its Node is deleted");
    let status = app.wait_until_over("")?;
    timeline.note(format!("{}: {}", status.migration("stage"), status.migration("message")));
    expect(status.node() == source, "it does not run where it was")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)?;
    drop(killed);
    Ok(())
}
