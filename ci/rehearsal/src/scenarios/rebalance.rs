//! The cloud recommends to leave a node: a checkpoint is made, or the application moves, whatever the monitors were told.

use super::steps::{expect, finish, one_pod, started};
use crate::{
    Failure,
    application::PATIENCE,
    cluster::{get, kubectl, until},
    faults::Notice,
    observer::Observer,
    timeline::Timeline,
};

const MONITOR: &str = "daemonset/migration-monitor";

pub fn rebalance(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("rebalance", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let mut timeline = Timeline::begin(&format!("the cloud recommends to leave {source}"));
    let before = app.status()?.checkpointed().map(str::to_owned);
    let notice = Notice::rebalance(&source)?;
    until(PATIENCE, "a checkpoint is made", || {
        let status = app.status()?;
        Ok((status.checkpointed().map(str::to_owned) != before).then_some(()))
    })?;
    expect(app.status()?.migration("id").is_empty(), "it moves, though a checkpoint was enough")?;
    let node = get(&["node", &source])?;
    expect(!node["spec"]["taints"].to_string().contains("migration.io"), "its node has a taint")?;
    timeline.note("a checkpoint was made, and it runs where it was");
    drop(notice);

    let _policy = Policy::migrate()?;
    timeline.note("monitors are told to migrate in such a case; once more");
    let _notice = Notice::rebalance(&source)?;
    let status = app.wait_until_moved("")?;
    expect(status.node() != source, "it has not left its node")?;
    expect(status.migration("triggeredBy") == "Monitor", "somebody else has asked for it")?;
    expect(status.migration("deadline").is_empty(), "it has a deadline")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)
}

/// Monitors that migrate on advice until this is dropped.
struct Policy(());

impl Policy {
    fn migrate() -> Result<Self, Failure> {
        let policy = Self(());
        tell("MIGRATION_MONITOR_REBALANCE=migrate")?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Err(error) = tell("MIGRATION_MONITOR_REBALANCE-") {
            eprintln!("scenario: monitors still migrate on advice: {error}");
        }
    }
}

fn tell(setting: &str) -> Result<(), Failure> {
    kubectl(&["set", "env", "--namespace", "migration-system", MONITOR, setting])?;
    kubectl(&["rollout", "status", "--namespace", "migration-system", MONITOR, "--timeout=300s"])?;
    Ok(())
}
