//! What became of an operation whose agent has died, told by what is there: the checkpoint, which was named before it was
//! begun, and the processes.
//!
//! | | checkpoint complete | no checkpoint |
//! |---|---|---|
//! | dump, tree runs on | pre-checkpoint: done. Final dump: interrupted, and the tree has changed since | interrupted |
//! | dump, tree gone | done | interrupted, and the tree ended by itself |
//!
//! A final dump that has committed and has not ended its tree is not finished here: what the tree has done since would be
//! lost. Repeated under a new id it uploads only that.
//!
//! A final dump that was to stop its tree is done if the tree is stopped: the handovers know. A restore of a handover that
//! is not done says that its generation is over, unless a part of the tree runs.
//!
//! A restore is done if all tasks of its checkpoint run, younger than the operation. What CRIU had under way when its
//! agent died it undoes by itself, so that is waited for.

use std::{fs, path::Path, sync::Arc, thread, time::Duration};

use lazy_pages::{
    catalog::{Catalog, CatalogError},
    format::{FilePolicy, MAX_MANIFEST, Manifest, Task, keys},
    ids::{AppId, CheckpointId},
    store::StoreError,
    units::PAGE_SIZE,
};
use migration_proto::agent::{CheckpointResult, Reason, RestoreResult, Source, Strategy as WireStrategy};

use super::{
    error,
    handovers::Handovers,
    journal::{self, Kind, OperationId, Outcome, ProcessName, Record},
    operations::handover_result,
};
use crate::{
    Agent, AgentError,
    fence::{Fence, Runner},
    launcher::{self, Fate},
    settings, tree,
};

/// How long CRIU may take to undo what it was doing; it takes milliseconds.
const UNDO: Duration = Duration::from_secs(15);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// How an operation without an end has ended.
///
/// # Errors
/// When that cannot be known yet, because the store does not answer.
pub fn settle(
    agent: &Agent,
    handovers: &Handovers,
    logs: &Path,
    record: &Record,
) -> Result<Outcome, AgentError> {
    let app: AppId = record.spec.app.parse().map_err(|error| AgentError::Usage(format!("{error}")))?;
    let checkpoint = record.checkpoint.as_deref().and_then(|id| id.parse::<CheckpointId>().ok());
    wait_for_criu(record);
    if record.spec.kind == Kind::FinalDump && record.spec.hands_over() {
        let kept = checkpoint.and_then(|id| handovers.find(id));
        return Ok(match kept {
            Some(handover) => Outcome::Handover(handover_result(&handover, None)),
            None => {
                tell_launcher(record, Fate::Stays);
                dump(record, None)
            }
        });
    }
    if let Some(source) = &record.spec.source {
        let manifest = checkpoint.map(|id| find_handover(agent, &app, id)).transpose()?.flatten();
        let runs = |task: &Task| !task.dead && runs_since(record, task.pid, &task.command);
        let part_left = manifest.as_ref().is_some_and(|manifest| manifest.tasks.iter().any(runs));
        let outcome = restore(logs, record, &app, manifest);
        let fence = Fence::new(Arc::clone(agent.store()), app);
        agent.block_on(async {
            match outcome {
                // Not knowing means waiting: the source must not go on beside a part of it.
                Outcome::Failed(_) if part_left => Ok(()),
                Outcome::Failed(_) => fence.end_if_ours(&runner(source, &record.id)).await,
                _ => fence.ran(source.generation).await,
            }
        })?;
        return Ok(outcome);
    }
    let manifest = match checkpoint {
        Some(id) => find(agent, &app, id)?,
        None => None,
    };
    Ok(match record.spec.kind {
        Kind::PreCheckpoint => dump(record, manifest),
        Kind::FinalDump => {
            let runs = record.tree.as_ref().is_some_and(ProcessName::is_alive);
            let left = manifest.is_some() && !runs;
            tell_launcher(record, if left { Fate::Left } else { Fate::Stays });
            dump(record, manifest)
        }
        Kind::Restore => restore(logs, record, &app, manifest),
    })
}

/// A launcher that was told that its tree leaves does not end before it knows.
fn tell_launcher(record: &Record, fate: Fate) {
    if !record.spec.launcher.is_empty() {
        launcher::tell(Path::new(&record.spec.launcher), fate);
    }
}

fn find(agent: &Agent, app: &AppId, id: CheckpointId) -> Result<Option<Manifest>, AgentError> {
    match agent.block_on(Catalog::new(Arc::clone(agent.store())).load_manifest(app, id)) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(CatalogError::UnknownCheckpoint { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Who this machine is to the fence when it restores a handover as this operation.
pub fn runner(source: &Source, operation: &OperationId) -> Runner {
    Runner { token: operation.to_string(), ..Runner::here(source.generation) }
}

fn find_handover(agent: &Agent, app: &AppId, id: CheckpointId) -> Result<Option<Manifest>, AgentError> {
    match agent.block_on(agent.store().get(&keys::handover(app, id), MAX_MANIFEST)) {
        Ok(bytes) => Ok(Manifest::decode(&bytes).ok()),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn dump(record: &Record, manifest: Option<Manifest>) -> Outcome {
    let pid = record.pid();
    let runs = record.tree.as_ref().is_some_and(|tree| tree.is_alive());
    match manifest {
        Some(manifest) if runs && record.spec.kind == Kind::FinalDump => {
            let mut detail = interrupted(
                format!("process {pid} runs on, and has changed since checkpoint {} of it", manifest.id),
                "ask for another final dump, with a new operation id",
            );
            detail.checkpoint = manifest.id.to_string();
            Outcome::Failed(detail)
        }
        Some(manifest) => {
            let left = match (runs, record.spec.kind) {
                (true, _) => "running",
                (false, Kind::FinalDump) => "killed",
                // After its checkpoint it was left running, and has ended for reasons of its own.
                (false, _) => "ended",
            };
            Outcome::Checkpoint(result_of(&manifest, left))
        }
        None if runs => Outcome::Failed(interrupted(
            format!("process {pid} runs on; no checkpoint was made"),
            "ask again, with a new operation id",
        )),
        None => Outcome::Failed(interrupted(
            format!("no checkpoint was made, and process {pid} does not run any more"),
            "restore the application's last checkpoint",
        )),
    }
}

fn restore(logs: &Path, record: &Record, app: &AppId, manifest: Option<Manifest>) -> Outcome {
    let again = "ask again, with a new operation id";
    let Some(manifest) = manifest.filter(|_| record.boot == journal::boot()) else {
        return Outcome::Failed(interrupted("nothing of the application runs".to_owned(), again));
    };
    let root = match root_of_all(record, &manifest.tasks) {
        Ok(root) => root,
        Err(left) => return Outcome::Failed(interrupted(left, again)),
    };
    let strategy = match record.spec.strategy.as_str() {
        "full" => WireStrategy::Full,
        "lazy-direct" => WireStrategy::LazyDirect,
        "lazy-hybrid" => WireStrategy::LazyHybrid,
        _ => WireStrategy::LazyStorage,
    };
    Outcome::Restore(RestoreResult {
        checkpoint: manifest.id.to_string(),
        app: app.to_string(),
        pid: root.pid,
        strategy: strategy.into(),
        resume_ms: None,
        output: match record.spec.launcher.is_empty() {
            true => settings::log_file(logs, app, "log").display().to_string(),
            false => String::new(),
        },
        hook_failure: String::new(),
        ..RestoreResult::default()
    })
}

/// The root of a tree all of whose tasks run; what is left, if they do not.
fn root_of_all<'t>(record: &Record, tasks: &'t [Task]) -> Result<&'t Task, String> {
    let expected = tasks.iter().filter(|task| !task.dead);
    let (running, missing): (Vec<_>, Vec<_>) =
        expected.partition(|task| runs_since(record, task.pid, &task.command));
    match tasks.first() {
        Some(root) if missing.is_empty() => Ok(root),
        _ if running.is_empty() => Err("nothing of the application runs".to_owned()),
        _ => {
            let pids: Vec<String> = running.iter().map(|task| task.pid.to_string()).collect();
            Err(format!("a part of its processes is left: {}", pids.join(" ")))
        }
    }
}

fn interrupted(left: String, hint: &str) -> migration_proto::agent::ErrorDetail {
    error::detail(Reason::Interrupted, "the agent died during this operation", &left, hint)
}

fn result_of(manifest: &Manifest, left: &str) -> CheckpointResult {
    let statistics = manifest.statistics;
    CheckpointResult {
        depth: manifest.depth,
        files_carried: manifest.files.iter().filter(|file| file.policy == FilePolicy::Carry).count() as u64,
        checkpoint: manifest.id.to_string(),
        app: manifest.app.to_string(),
        parent: manifest.parent.map(|id| id.to_string()).unwrap_or_default(),
        frozen_ms: None,
        total_ms: None,
        pages_total: statistics.pages_total,
        pages_zero: statistics.pages_zero,
        pages_unchanged: statistics.pages_unchanged,
        // Not told apart from the unchanged ones in a manifest.
        pages_pending: 0,
        pages_stored: statistics.pages_stored,
        bytes_memory: statistics.pages_total * PAGE_SIZE as u64,
        bytes_uploaded: statistics.bytes_uploaded,
        left: left.to_owned(),
        // Not known any more.
        ..CheckpointResult::default()
    }
}

/// Waits until CRIU has let go of the tree.
fn wait_for_criu(record: &Record) {
    let busy = || match record.spec.kind {
        Kind::PreCheckpoint | Kind::FinalDump => tree::is_traced(record.pid()),
        Kind::Restore => tree::all_pids().any(is_orphaned_criu),
    };
    let mut quiet = 0;
    let mut waited = Duration::ZERO;
    // Twice in a row: between two steps of its it may look as if it was not there.
    while quiet < 2 && waited < UNDO {
        quiet = if busy() { 0 } else { quiet + 1 };
        thread::sleep(LOOK);
        waited += LOOK;
    }
}

/// Whether this is a CRIU whose agent has died. One that works for another agent is that one's child, and tasks that it
/// builds, which it names like itself until it is done with them, are its own or that agent's.
fn is_orphaned_criu(pid: u32) -> bool {
    let criu = Some("criu".to_owned());
    let parent = || tree::parent(pid).and_then(tree::command);
    // One that has ended and was not collected does nothing any more.
    tree::is_alive(pid)
        && tree::command(pid) == criu
        && ![criu, tree::command(std::process::id())].contains(&parent())
}

/// Whether a task with this pid and command runs that was made after the operation had begun.
fn runs_since(record: &Record, pid: u32, command: &str) -> bool {
    let age = || {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
        let tick = rustix::param::clock_ticks_per_second() as f64;
        Some(uptime - tree::started(pid)? as f64 / tick)
    };
    let operation = journal::unix_ms().saturating_sub(record.started_unix_ms) as f64 / 1e3;
    // The two clocks are read one after the other.
    let young = age().is_some_and(|age| age <= operation + 0.1);
    young && tree::is_alive(pid) && tree::command(pid).as_deref() == Some(command)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::service::journal::Spec;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn begins_now() -> Record {
        let spec = Spec::new(Kind::Restore, "c/n/app".to_owned());
        Record::new("01JD0000000000000000000000".parse().unwrap(), spec, true)
    }

    fn task(pid: u32) -> Task {
        Task { pid, parent_pid: 1, threads: 1, dead: false, command: "sleep".to_owned() }
    }

    #[test]
    fn a_part_of_a_tree_is_neither_all_of_it_nor_nothing() {
        let record = begins_now();
        let (mut root, mut child) = (sleeper(), sleeper());
        let tasks = [task(root.id()), task(child.id())];
        let name = |task: &Task| tree::command(task.pid);
        while tasks.iter().any(|task| name(task).as_deref() != Some("sleep")) {
            thread::sleep(LOOK);
        }
        assert_eq!(root_of_all(&record, &tasks).unwrap().pid, root.id());

        child.kill().unwrap();
        child.wait().unwrap();
        let left = root_of_all(&record, &tasks).unwrap_err();
        assert_eq!(left, format!("a part of its processes is left: {}", root.id()));

        root.kill().unwrap();
        root.wait().unwrap();
        assert_eq!(root_of_all(&record, &tasks).unwrap_err(), "nothing of the application runs");
    }

    #[test]
    fn what_ran_before_the_restore_is_not_taken_for_it() {
        let mut other = sleeper();
        while tree::command(other.id()).as_deref() != Some("sleep") {
            thread::sleep(LOOK);
        }
        thread::sleep(Duration::from_millis(500));
        let record = begins_now();
        let left = root_of_all(&record, &[task(other.id())]).unwrap_err();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(left, "nothing of the application runs");
    }
}
