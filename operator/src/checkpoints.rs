//! Periodic checkpoints: begun when they are due, looked at when they end, deleted when they are too many.
//!
//! What is remembered about them is not written down: an operator that takes over asks the agent, and begins the same
//! operation again under the same name at most.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{ResourceExt, runtime::events::EventType};
use migration_proto::agent::{
    CollectRequest, ListCheckpointsResponse, Operation, OperationKind, OperationState, PreCheckpointRequest,
    Reason, operation::Outcome,
};

use crate::{
    act::file_rules,
    agents::{self, Agent, AgentError},
    api::{CheckpointPolicy, CheckpointStatus, MigratableApp, MigratableAppStatus},
    context::{Context, Remembered},
    error::Error,
    migration::{FailureKind, since},
    observe::now,
    pods::{ROLE_ANNOTATION, RUN_PATH},
    schedule::{self, Due, Facts, Verdict},
    status::{condition, set},
};

/// Old checkpoints are deleted no more often than that.
const COLLECT: Duration = Duration::from_secs(300);

/// A checkpoint may take that long.
const LONGEST: Duration = Duration::from_secs(3600);

/// How often a checkpoint that is under way is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Looks at the checkpoints of an application that runs; begins one if it is due. Gives when to look again.
pub async fn look(
    ctx: &Context,
    app: &MigratableApp,
    pod: &Pod,
    status: &mut MigratableAppStatus,
) -> Duration {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let now = now();
    let none = CheckpointPolicy::default();
    let policy = app.spec.checkpoint_policy.as_ref().unwrap_or(&none);
    let known = ctx.memory.update(&uid, |remembered| {
        remembered.since.get_or_insert(now);
        remembered.clone()
    });
    if known.checkpoint_runs || known.listed.is_none() {
        return match refresh(ctx, app, pod, status, &known, now).await {
            Ok(runs) if runs => LOOK,
            Ok(_) => Duration::from_millis(100),
            Err(error) => {
                failed(ctx, app, status, &error.to_string(), now);
                LOOK * 2
            }
        };
    }
    let last = known.checkpoint.as_ref().map(|(_, at)| *at).or(known.since).unwrap_or(now);
    let facts = Facts {
        uid: &uid,
        last,
        upload: known.upload,
        frozen: known.frozen,
        bandwidth: known.bandwidth,
        failures: known.failures,
    };
    if let Some(scheduler) = policy.deadline_scheduler.as_ref().filter(|scheduler| scheduler.dry_run())
        && schedule::verdict(scheduler, &facts) != Verdict::Fits
    {
        let note = "a final dump would soon not fit into the deadline; without dryRun a checkpoint would be made now";
        ctx.event(app, EventType::Normal, "CheckpointAdvised", note).await;
    }
    match schedule::next(policy, &facts, now) {
        Due::Now => begin(ctx, app, pod, policy, now, status).await,
        Due::At(at) => since(now, at).max(Duration::from_millis(100)),
        Due::CannotFit(at) => {
            let note = "a final dump does not fit into checkpointPolicy.deadlineScheduler.deadlineSeconds";
            ctx.event(app, EventType::Warning, "DeadlineCannotBeMet", note).await;
            since(now, at).max(Duration::from_millis(100))
        }
    }
}

/// Has the next one made at once.
pub fn make_due(ctx: &Context, app: &MigratableApp) {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    ctx.memory.update(&uid, |remembered| {
        let long_ago = Timestamp::UNIX_EPOCH;
        remembered.since = Some(long_ago);
        remembered.failures = 0;
        if let Some((_, at)) = &mut remembered.checkpoint {
            *at = long_ago;
        }
    });
}

async fn begin(
    ctx: &Context,
    app: &MigratableApp,
    pod: &Pod,
    policy: &CheckpointPolicy,
    now: Timestamp,
    status: &mut MigratableAppStatus,
) -> Duration {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    // Within a second it is the same one, whoever asks.
    let id = format!("{}-c{}", uid.replace('-', ""), now.as_second());
    let request = request(ctx, app, policy, id.clone());
    if ctx.must_lead().is_err() {
        return LOOK;
    }
    let asked = async { ctx.agent(app, pod).await?.pre_checkpoint(request).await }.await;
    match asked {
        Ok(_) => {
            ctx.memory.update(&uid, |remembered| {
                remembered.checkpoint = Some((id, now));
                remembered.checkpoint_runs = true;
            });
            LOOK / 4
        }
        // Another one is under way: it will be seen.
        Err(AgentError::Refused(detail)) if detail.reason() == Reason::Busy => {
            ctx.memory.update(&uid, |remembered| remembered.listed = None);
            LOOK
        }
        Err(error) => {
            failed(ctx, app, status, &error.to_string(), now);
            LOOK
        }
    }
}

/// What an agent is asked for.
pub fn request(
    ctx: &Context,
    app: &MigratableApp,
    policy: &CheckpointPolicy,
    operation_id: String,
) -> PreCheckpointRequest {
    PreCheckpointRequest {
        operation_id,
        app: ctx.full_name(app),
        detach: true,
        deadline_ms: u64::try_from(LONGEST.as_millis()).unwrap_or(u64::MAX),
        launcher: RUN_PATH.to_owned(),
        files: file_rules(app),
        // They go on here; where this is restored they are not.
        tcp_close: true,
        max_chain_depth: Some(policy.max_checkpoint_chain_depth()),
        ..Default::default()
    }
}

/// Asks the agent what has become of the last one, and what there is. Gives whether one is under way.
async fn refresh(
    ctx: &Context,
    app: &MigratableApp,
    pod: &Pod,
    status: &mut MigratableAppStatus,
    known: &Remembered,
    now: Timestamp,
) -> Result<bool, Error> {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let name = ctx.full_name(app);
    let agent = ctx.agent(app, pod).await.map_err(Error::agent("reach the agent"))?;
    let operations = agent.operations(&name).await.map_err(Error::agent("ask for operations"))?;
    let newest = operations.iter().find(|one| one.kind() == OperationKind::PreCheckpoint);
    let Some(operation) = newest else {
        // None yet, or an agent without memory of it.
        let list = of_this_run(app, pod, agent.checkpoints(&name).await)?;
        listed(status, &list, now);
        ctx.memory.update(&uid, |remembered| {
            remembered.listed = Some(now);
            remembered.checkpoint_runs = false;
        });
        return Ok(false);
    };
    let begun = millisecond(operation.started_unix_ms).unwrap_or(now);
    let running = operation.state() == OperationState::Running;
    let same = known.checkpoint.as_ref().is_some_and(|(id, _)| *id == operation.id);
    ctx.memory.update(&uid, |remembered| {
        if !same {
            remembered.checkpoint = Some((operation.id.clone(), begun));
        }
        remembered.checkpoint_runs = running;
    });
    if running {
        return Ok(true);
    }
    match &operation.outcome {
        Some(Outcome::Error(detail)) => {
            let no_processes = agents::failure(detail).kind == FailureKind::NoProcesses;
            ctx.memory.update(&uid, |remembered| remembered.no_processes = no_processes);
            failed(ctx, app, status, &detail.message, now);
        }
        _ => {
            let list = of_this_run(app, pod, agent.checkpoints(&name).await)?;
            succeeded(ctx, app, status, operation, &list, now);
            let volume = agent.dirty_volume(&name).await.ok().filter(|volume| volume.checkpoints > 0);
            ctx.memory
                .update(&uid, |remembered| remembered.upload = volume.map(|volume| volume.upload_bytes));
            collect(ctx, app, &agent, &list, known, now).await;
        }
    }
    ctx.memory.update(&uid, |remembered| remembered.listed = Some(now));
    Ok(false)
}

/// What somebody has started anew under a name that has been used before must not be taken for what was saved of the run before.
fn of_this_run(
    app: &MigratableApp,
    pod: &Pod,
    answer: Result<ListCheckpointsResponse, AgentError>,
) -> Result<ListCheckpointsResponse, Error> {
    let mut list = answer.map_err(Error::agent("ask for checkpoints"))?;
    let anew = pod.annotations().get(ROLE_ANNOTATION).is_some_and(|role| role == "launched");
    let restarted = app.status.as_ref().is_some_and(|status| status.restarted == Some(true));
    let by_others = app.spec.injection.is_some();
    if let Some(created) = pod.creation_timestamp().filter(|_| anew && (by_others || restarted)) {
        let since = u64::try_from(created.0.as_millisecond()).unwrap_or(0);
        list.checkpoints.retain(|one| one.created_unix_ms >= since);
    }
    Ok(list)
}

fn succeeded(
    ctx: &Context,
    app: &MigratableApp,
    status: &mut MigratableAppStatus,
    operation: &Operation,
    list: &ListCheckpointsResponse,
    now: Timestamp,
) {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    listed(status, list, now);
    set(status, condition::CHECKPOINTED, Some(true), "CheckpointCompleted", "", now);
    ctx.metrics.checkpointed(true);
    ctx.memory.update(&uid, |remembered| {
        remembered.failures = 0;
        remembered.no_processes = false;
        let Some(Outcome::Checkpoint(result)) = &operation.outcome else { return };
        remembered.frozen = result.frozen_ms.map(|ms| Duration::from_secs_f64(ms.max(0.0) / 1e3));
        // What little was sent tells nothing about how fast the store is.
        const ENOUGH: u64 = 4 << 20;
        let took = result.total_ms.filter(|ms| *ms > 1.0);
        if let Some(ms) = took.filter(|_| result.bytes_uploaded >= ENOUGH) {
            remembered.bandwidth = Some((result.bytes_uploaded as f64 / (ms / 1e3)) as u64);
        }
    });
}

fn failed(ctx: &Context, app: &MigratableApp, status: &mut MigratableAppStatus, why: &str, now: Timestamp) {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    tracing::warn!(app = ctx.full_name(app), why, "a checkpoint failed");
    ctx.metrics.checkpointed(false);
    ctx.memory.update(&uid, |remembered| {
        remembered.failures = remembered.failures.saturating_add(1);
        remembered.checkpoint_runs = false;
        // The next one is due some time from now.
        let id = remembered.checkpoint.take().map(|(id, _)| id).unwrap_or_default();
        remembered.checkpoint = Some((id, now));
    });
    let message = format!("the last checkpoint failed, and the application runs on: {why}");
    set(status, condition::CHECKPOINTED, Some(false), "CheckpointFailed", &message, now);
}

/// What is in the store.
fn listed(status: &mut MigratableAppStatus, list: &ListCheckpointsResponse, now: Timestamp) {
    let Some(last) = list.checkpoints.last() else {
        set(status, condition::CHECKPOINTED, Some(false), "NoCheckpoint", "there is none yet", now);
        return;
    };
    // A checkpoint that builds on none is where its chain begins.
    let root = list.checkpoints.iter().rev().find(|one| one.depth == 0 || one.parent.is_empty());
    status.checkpoint_status = Some(CheckpointStatus {
        last_checkpoint_id: Some(last.checkpoint.clone()),
        last_checkpoint_time: millisecond(last.created_unix_ms)
            .and_then(|at| Timestamp::from_second(at.as_second()).ok())
            .map(Time),
        checkpoint_chain_depth: Some(last.depth),
        checkpoint_chain_root: root.map(|root| root.checkpoint.clone()),
        total_checkpoint_size: i64::try_from(list.stored_bytes).ok(),
    });
    if !status
        .conditions
        .iter()
        .any(|one| one.type_ == condition::CHECKPOINTED && one.reason == "CheckpointFailed")
    {
        set(status, condition::CHECKPOINTED, Some(true), "CheckpointCompleted", "", now);
    }
}

/// Deletes what the policy does not keep, from time to time.
async fn collect(
    ctx: &Context,
    app: &MigratableApp,
    agent: &Agent,
    list: &ListCheckpointsResponse,
    known: &Remembered,
    now: Timestamp,
) {
    let none = CheckpointPolicy::default();
    let keep = app.spec.checkpoint_policy.as_ref().unwrap_or(&none).keep();
    let many = list.checkpoints.iter().filter(|one| !one.pinned).count() > keep as usize;
    let recently = known.collected.is_some_and(|at| since(at, now) < COLLECT);
    if !many || recently || ctx.must_lead().is_err() {
        return;
    }
    let uid = app.metadata.uid.clone().unwrap_or_default();
    ctx.memory.update(&uid, |remembered| remembered.collected = Some(now));
    let request = CollectRequest { app: ctx.full_name(app), keep, ..Default::default() };
    match agent.collect(request).await {
        Ok(done) => {
            tracing::info!(app = app.name_any(), deleted = done.deleted.len(), "old checkpoints are deleted")
        }
        Err(error) => tracing::warn!(app = app.name_any(), %error, "old checkpoints are not deleted"),
    }
}

fn millisecond(unix_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()
}
