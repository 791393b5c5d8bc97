//! One look at a migration that is under way, or that has left something to be settled.
//!
//! Looks are cheap: they ask caches and agents. When something is to be written or done, everything is looked at again at the
//! API server itself, and decided again; what is written carries the version it was decided by, so that a decision by an old
//! state is refused by the API server.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::EventType,
};
use serde_json::json;

use crate::{
    act::{self, Outcome},
    api::{
        MigratableApp, MigratableAppStatus,
        migration::{Migration, MigrationStage},
    },
    context::{Context, FIELD_MANAGER},
    error::{Error, is},
    injection,
    migration::{Decision, Effect, FailureKind, OperationSeen, PodSeen, decide, since},
    observe::{self, Look, now},
    status::with_migration,
    trigger::{self, CANCEL_ANNOTATION},
};

/// How many things are done in a row before others get their turn.
const IN_A_ROW: usize = 12;

/// Takes a migration as far as it goes now. Gives the application as it is then, and when to look again; `None` when nothing
/// is left to be done.
///
/// # Errors
/// When the API server or an agent does not answer. It goes on where it was.
pub async fn migrate(ctx: &Context, app: MigratableApp) -> Result<(MigratableApp, Option<Duration>), Error> {
    let mut app = merge_trigger(ctx, app).await?;
    tell_where_it_runs(ctx, &app).await?;
    for _ in 0..IN_A_ROW {
        let Some(written) = migration_of(&app) else { return Ok((app, None)) };
        let limits = &ctx.settings.limits;
        let seen = Box::pin(observe::see(ctx, &app, written, Look::Cached)).await?;
        match decide(written, &seen, limits, now()) {
            Decision::Over => return Ok((app, None)),
            Decision::Wait(time) => return Ok((app, Some(time))),
            Decision::Record(_) | Decision::Do(_) => {}
        }
        app = fresh(ctx, &app).await?;
        let Some(written) = migration_of(&app) else { return Ok((app, None)) };
        let mut seen = Box::pin(observe::see(ctx, &app, written, Look::Fresh)).await?;
        let mut decision = decide(written, &seen, limits, now());
        if let Decision::Do(effect) = decision {
            match Box::pin(act::act(ctx, &app, written, effect)).await? {
                Outcome::Done => return Ok((app, Some(limits.look / 10))),
                Outcome::Refused(failure) if effect == Effect::CreateTarget => {
                    seen.target = PodSeen::Ended;
                    seen.superseded = failure.kind == FailureKind::Refused;
                    seen.refused = Some(failure.message);
                    decision = decide(written, &seen, limits, now());
                }
                Outcome::Refused(failure) => {
                    seen.operation = OperationSeen::Failed(failure);
                    decision = decide(written, &seen, limits, now());
                }
            }
        }
        match decision {
            Decision::Record(next) => app = record(ctx, &app, &next).await?,
            Decision::Over => return Ok((app, None)),
            Decision::Wait(time) => return Ok((app, Some(time))),
            Decision::Do(_) => return Ok((app, Some(limits.look))),
        }
    }
    Ok((app, Some(Duration::ZERO)))
}

/// Where the application runs, its pod counts, and no other.
async fn tell_where_it_runs(ctx: &Context, app: &MigratableApp) -> Result<(), Error> {
    let runs = migration_of(app).filter(|written| written.resumed_at.is_some());
    if let Some(written) = migration_of(app) {
        Box::pin(injection::hide_source(ctx, app, written)).await?;
    }
    let Some(target) = runs.and_then(|written| written.target.as_ref()) else { return Ok(()) };
    match observe::find(ctx, app, target, Look::Cached).await?.pod {
        Some(pod) => act::tell_restored(ctx, app, &pod).await,
        None => Ok(()),
    }
}

fn migration_of(app: &MigratableApp) -> Option<&Migration> {
    app.status.as_ref()?.migration.as_ref()
}

/// The application as the API server has it.
///
/// # Errors
/// When it does not answer, or the application is gone.
pub async fn fresh(ctx: &Context, app: &MigratableApp) -> Result<MigratableApp, Error> {
    let apps = ctx.apps(&app.namespace().unwrap_or_default());
    apps.get(&app.name_any()).await.map_err(Error::kube("read the application"))
}

/// Writes the next state of a migration down, and tells of it.
///
/// # Errors
/// When somebody else has written meanwhile, or the API server does not answer.
pub async fn record(ctx: &Context, app: &MigratableApp, next: &Migration) -> Result<MigratableApp, Error> {
    let before = migration_of(app).filter(|before| before.id == next.id);
    let status = with_migration(&app.status.clone().unwrap_or_default(), next, now());
    let stage_before = before.map(|before| before.stage);
    let failed = before.is_none_or(|before| before.message != next.message);
    let written = persist(ctx, app, status).await?;
    tracing::info!(
        app = ctx.full_name(app),
        migration = next.id,
        stage = ?next.stage,
        attempt = next.attempt,
        operation = next.operation,
        message = next.message,
        "migration"
    );
    if stage_before != Some(next.stage) {
        tell(ctx, app, next, failed).await;
    }
    if next.stage.is_over() && !stage_before.is_some_and(MigrationStage::is_over) {
        ctx.metrics.migrated(next, since(next.started_at.0, now()));
        if next.cancel_requested == Some(true) {
            remove_annotation(ctx, app, CANCEL_ANNOTATION).await?;
        }
    }
    Ok(written)
}

async fn tell(ctx: &Context, app: &MigratableApp, next: &Migration, failed: bool) {
    // A node that the scheduler has yet to choose has no name.
    let target = next.target.as_ref().map(|target| target.node.as_str()).filter(|node| !node.is_empty());
    let target = target.unwrap_or("another node");
    let source = &next.source.node;
    let message = next.message.clone().unwrap_or_default();
    let (type_, reason, note) = match next.stage {
        MigrationStage::ChoosingTarget if failed && !message.is_empty() => {
            (EventType::Warning, "MigrationRetried", format!("{message}; another try"))
        }
        MigrationStage::ChoosingTarget => return,
        MigrationStage::Preparing => {
            (EventType::Normal, "TargetChosen", format!("moves from {source} to {target}: {}", next.reason))
        }
        MigrationStage::Dumping => (EventType::Normal, "FinalDump", format!("frozen on {source}")),
        MigrationStage::Restoring => {
            let what = next.checkpoint_id.as_deref().or(next.handover_id.as_deref()).unwrap_or("the newest");
            (EventType::Normal, "Restoring", format!("restores checkpoint {what} on {target}"))
        }
        MigrationStage::TakingBack => {
            (EventType::Warning, "TakingBack", format!("{message}; goes on on {source}"))
        }
        MigrationStage::Filling => {
            let blackout = next.blackout_ms.map_or_else(String::new, |ms| format!(" after {ms} ms"));
            (EventType::Normal, "Restored", format!("runs on {target}{blackout}"))
        }
        MigrationStage::RemovingSource => return,
        MigrationStage::Succeeded => {
            (EventType::Normal, "Migrated", format!("moved from {source} to {target}"))
        }
        MigrationStage::Failed => (EventType::Warning, "MigrationFailed", message),
        MigrationStage::Cancelled => (EventType::Normal, "MigrationCancelled", message),
    };
    ctx.event(app, type_, reason, &note).await;
}

/// Writes a status down as a whole, over the one that `app` has. Whoever writes something else at the same time is not in
/// the way.
///
/// # Errors
/// When somebody else has written a status meanwhile, or the API server does not answer.
pub async fn persist(
    ctx: &Context,
    app: &MigratableApp,
    status: MigratableAppStatus,
) -> Result<MigratableApp, Error> {
    // With somebody who writes all the time, one of so many is between two of theirs.
    const TRIES: u32 = 20;
    let apps = ctx.apps(&app.namespace().unwrap_or_default());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut version = app.metadata.resource_version.clone();
    for _ in 1..TRIES {
        ctx.must_lead()?;
        let patch = json!({
            "apiVersion": "migration.io/v1alpha1",
            "kind": "MigratableApp",
            "metadata": {"name": app.name_any(), "resourceVersion": version},
            "status": status,
        });
        match apps.patch_status(&app.name_any(), &params, &Patch::Apply(&patch)).await {
            Err(error) if is(&error, 409) => {
                let now = fresh(ctx, app).await?;
                if now.status != app.status || now.metadata.uid != app.metadata.uid {
                    return Err(Error::kube("write the status")(error));
                }
                version = now.metadata.resource_version;
            }
            Ok(written) => {
                ctx.memory.wrote(&written.metadata);
                return Ok(written);
            }
            Err(error) => return Err(Error::kube("write the status")(error)),
        }
    }
    Err(Error::TooLong)
}

/// A trigger on the pod that is being left says nothing new, except that there is less time than was known.
async fn merge_trigger(ctx: &Context, app: MigratableApp) -> Result<MigratableApp, Error> {
    let Some(written) = migration_of(&app).filter(|written| !written.stage.is_over()) else { return Ok(app) };
    let found = observe::find(ctx, &app, &written.source, Look::Cached).await?;
    let Some(pod) = found.pod else { return Ok(app) };
    let Some(asked) = trigger::of(pod.annotations()) else { return Ok(app) };
    let sooner =
        |known: &Option<MicroTime>, asked: Timestamp| known.as_ref().is_none_or(|known| asked < known.0);
    let mut next = written.clone();
    if let Some(deadline) = asked.deadline.filter(|deadline| sooner(&written.deadline, *deadline)) {
        next.deadline = Some(MicroTime(deadline));
        next.notice = asked.notice.or(next.notice);
    }
    let app = if next == *written { app } else { record(ctx, &app, &next).await? };
    answer_trigger(ctx, &app, &pod.name_any()).await?;
    Ok(app)
}

/// Takes a trigger off a pod: it is written down.
///
/// # Errors
/// When the API server does not answer.
pub async fn answer_trigger(ctx: &Context, app: &MigratableApp, pod: &str) -> Result<(), Error> {
    ctx.must_lead()?;
    let nothing: serde_json::Map<_, _> =
        trigger::ANNOTATIONS.iter().map(|name| ((*name).to_owned(), serde_json::Value::Null)).collect();
    let patch = json!({"metadata": {"annotations": nothing}});
    match ctx.pods_of(app).patch_metadata(pod, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(Error::kube("take a trigger off a pod")(error)),
    }
}

/// Takes an annotation off the application.
///
/// # Errors
/// When the API server does not answer.
pub async fn remove_annotation(ctx: &Context, app: &MigratableApp, name: &str) -> Result<(), Error> {
    annotate(ctx, app, name, None).await
}

/// Puts an annotation on the application, or takes it off.
///
/// # Errors
/// When the API server does not answer.
pub async fn annotate(
    ctx: &Context,
    app: &MigratableApp,
    name: &str,
    value: Option<&str>,
) -> Result<(), Error> {
    ctx.must_lead()?;
    let patch = json!({"metadata": {"annotations": {name: value}}});
    let apps = ctx.apps(&app.namespace().unwrap_or_default());
    let done = apps.patch_metadata(&app.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    done.map(drop).map_err(Error::kube("change an annotation of the application"))
}
