//! The operator is killed in every stage of a migration.

use super::steps::{finish, one_pod, started};
use crate::{Failure, faults::kill_operator, observer::Observer, timeline::Timeline};

pub fn operator_killed(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("killed", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let mut timeline =
        Timeline::begin("the operator that leads is killed whenever a migration reaches a stage");
    for stage in ["Preparing", "Dumping", "Restoring", "Filling"] {
        let before = app.status()?.migration("id").to_owned();
        app.trigger(stage)?;
        // A stage that is over before it was seen leaves the next one.
        let reached = app.wait_for_stage(&before, stage)?;
        let leader = kill_operator()?;
        timeline.note(format!("{}: {leader} is killed", reached.migration("stage")));
        let status = app.wait_until_moved(&before)?;
        timeline.note(format!("it has moved to {}", status.node()));
        app.wait_until_migratable()?;
    }
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)
}
