//! The cloud announces that it takes a node back.

use k8s_openapi::jiff::{Timestamp, Unit};
use std::time::Duration;

use super::steps::{expect, finish, one_pod, started};
use crate::{Failure, cluster::get, faults::Notice, observer::Observer, timeline::Timeline};

/// What a cloud gives: AWS announces two minutes ahead.
pub const NOTICE: u64 = 120;

pub fn spot(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("spot", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let deadline = Timestamp::now() + Duration::from_secs(NOTICE);
    let mut timeline = Timeline::begin(&format!("the cloud takes {source} back in {NOTICE} s"));
    let _notice = Notice::spot(&source, NOTICE)?;
    let status = app.wait_until_moved("")?;
    timeline.note("the application has moved");
    expect(status.node() != source, "it has not left its node")?;
    let moved: Timestamp = status.migration("finishedAt").parse()?;
    expect(moved < deadline, "it was not gone before the machine would have been")?;
    let node = get(&["node", &source])?;
    let tainted = node["spec"]["taints"].to_string().contains("migration.io/interruption");
    expect(tainted, "its node has no taint")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)?;
    let left = (deadline - moved).total(Unit::Second)?;
    timeline.note(format!("it had moved {left:.0} s before the machine would have ended"));
    Ok(())
}
