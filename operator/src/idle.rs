//! One look at an application that is not being moved: it is started, watched, checkpointed, and asked whether it is to move.
//!
//! | its pod | what happens |
//! |---|---|
//! | there has been none | one is created, which starts its command |
//! | is gone, or ended because of its machine | its last checkpoint is restored elsewhere; without one it is started anew |
//! | was restored, and its processes ended by themselves | it is started anew, as Kubernetes does |
//! | was restored, and its processes were killed, or nobody knows how they ended | as if its pod were gone |
//! | has completed | nothing more |
//! | runs | triggers are obeyed, checkpoints made, conditions computed |

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::events::EventType};

use crate::{
    act::{delete_exactly, delete_pod},
    api::{
        MigratableApp, MigratableAppStatus, MigrationPolicy, Phase, PodOwner,
        migration::{Migration, Place, TargetLost, TriggeredBy},
    },
    checkpoints,
    context::Context,
    error::Error,
    injection, migratable,
    migrate::{answer_trigger, fresh, migrate, persist, record, remove_annotation},
    migration::{PodSeen, since},
    network,
    observe::{self, Found, Look, current_place, now, place_of},
    pods::ROLE_ANNOTATION,
    restart,
    start::{created, next_round, start},
    status::{beginning, condition, failures_in_a_row, has_checkpoint, next_id, set},
    trigger::{self, CANCEL_ANNOTATION, PRESERVE_ANNOTATION, RETRY_ANNOTATION, Trigger},
};

/// How long after a failed restore the next one begins by itself: this, doubled each time.
const RECOVERY_REST: Duration = Duration::from_secs(10);
/// And at most this.
const LONGEST_RECOVERY_REST: Duration = Duration::from_secs(300);

/// When what is written down is newer than the cache, which will be told in a moment and is looked at then; this is for when it is not.
const BEHIND: Duration = Duration::from_millis(500);

/// Looks at an application, and says when to look again.
///
/// # Errors
/// When the API server does not answer.
pub async fn idle(ctx: &Context, app: MigratableApp) -> Result<Duration, Error> {
    let status = app.status.clone().unwrap_or_default();
    if trigger::is_set(app.annotations(), CANCEL_ANNOTATION) {
        remove_annotation(ctx, &app, CANCEL_ANNOTATION).await?;
    }
    let Some(place) = current_place(&status) else { return Box::pin(without_pod(ctx, app)).await };
    let injected = app.spec.injection.is_some();
    let found = observe::find(ctx, &app, &place, Look::Cached).await?;
    match found.seen {
        PodSeen::Gone | PodSeen::Ended | PodSeen::Killed => Box::pin(gone(ctx, app, &place)).await,
        PodSeen::Leaving if injected => Box::pin(left(ctx, app, &place)).await,
        seen => {
            let again = Box::pin(present(ctx, &app, &found, seen)).await?;
            match &found.pod {
                Some(pod) if injected && seen == PodSeen::Ready => {
                    Box::pin(injection::settled(ctx, &app, pod)).await?
                }
                _ if injected => {}
                _ => remove_strays(ctx, &app).await?,
            }
            Ok(again)
        }
    }
}

/// No pod is written down: there has never been one, or its processes are a checkpoint.
async fn without_pod(ctx: &Context, app: MigratableApp) -> Result<Duration, Error> {
    let app = fresh(ctx, &app).await?;
    let status = app.status.clone().unwrap_or_default();
    if status.current_pod_name.is_some() {
        return Ok(BEHIND);
    }
    match &status.migration {
        _ if app.spec.injection.is_some() => Box::pin(injection::without_pod(ctx, app)).await,
        Some(last) if restart::is_wanted(&app) => {
            let round = next_round(&app, &last.source.pod);
            Box::pin(restart::start_over(ctx, app, round)).await
        }
        Some(last) if last.source_has_stopped() => {
            let lost = last.source.clone();
            Box::pin(recover(ctx, app, lost)).await
        }
        _ => Box::pin(start(ctx, app, 0)).await,
    }
}

/// Somebody else's pod is being deleted.
async fn left(ctx: &Context, app: MigratableApp, place: &Place) -> Result<Duration, Error> {
    let app = fresh(ctx, &app).await?;
    let found = observe::find(ctx, &app, place, Look::Fresh).await?;
    let still = app.status.as_ref().and_then(current_place).as_ref() == Some(place);
    let moves = app
        .status
        .as_ref()
        .and_then(|status| status.migration.as_ref())
        .is_some_and(|one| !one.stage.is_over());
    match found.seen {
        PodSeen::Leaving if still && !moves => Box::pin(injection::leaving(ctx, &app, place)).await,
        _ => Ok(BEHIND),
    }
}

/// The pod that is written down is gone, or nothing of it runs.
async fn gone(ctx: &Context, app: MigratableApp, place: &Place) -> Result<Duration, Error> {
    let name = place.pod.as_str();
    let app = fresh(ctx, &app).await?;
    let status = app.status.clone().unwrap_or_default();
    let found = observe::find(ctx, &app, place, Look::Fresh).await?;
    if current_place(&status).as_ref() != Some(place) || !found.seen.is_over() {
        return Ok(BEHIND);
    }
    // What is stopped at its source is settled first: it may be what goes on.
    if status.migration.as_ref().is_some_and(Migration::keeps_source) {
        return Ok(BEHIND);
    }
    let completed_pod = found.pod.as_ref().is_some_and(completed);
    let made_here =
        app.spec.injection.as_ref().is_none_or(|one| one.owner == PodOwner::Pod && one.name != name);
    let not_made_yet = made_here
        && found.pod.is_none()
        && status.phase == Some(Phase::Pending)
        && status.current_node.is_none();
    if app.spec.injection.is_some() && !completed_pod && !not_made_yet {
        return Box::pin(injection::gone(ctx, app, place.clone(), found)).await;
    }
    match found.pod {
        // It was written down and not created yet.
        None if not_made_yet => Box::pin(created(ctx, app, name)).await,
        // No memory is lost by it: it was to end, has ended by itself, or there is none to go on with.
        pod if restart::is_under_way(&app)
            || restart::is_wanted(&app)
                && (pod.as_ref().is_some_and(|pod| {
                    completed(pod) || found.seen != PodSeen::Killed && ended_by_itself(pod)
                }) || !has_checkpoint(&status)) =>
        {
            if pod.is_some() {
                delete_pod(ctx, &app, place).await?;
            }
            let round = next_round(&app, name);
            Box::pin(restart::start_over(ctx, app, round)).await
        }
        Some(pod) if completed(&pod) => complete(ctx, &app).await,
        Some(pod) if found.seen != PodSeen::Killed && ended_by_itself(&pod) => {
            let note = "the restored processes have ended by themselves; the application is started again";
            ctx.event(&app, EventType::Warning, "Ended", note).await;
            delete_pod(ctx, &app, place).await?;
            Box::pin(start(ctx, app.clone(), next_round(&app, name))).await
        }
        pod => {
            if has_checkpoint(&status) {
                return Box::pin(recover(ctx, app, place.clone())).await;
            }
            let note = "its pod is gone and it has no checkpoint; it is started again";
            ctx.event(&app, EventType::Warning, "Lost", note).await;
            if pod.is_some() {
                delete_pod(ctx, &app, place).await?;
            }
            Box::pin(start(ctx, app.clone(), next_round(&app, name))).await
        }
    }
}

fn completed(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded")
}

/// The pod is there and its launcher waits again; or its containers have failed for good without its machine being at fault.
pub(crate) fn ended_by_itself(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let failed = status.and_then(|status| status.phase.as_deref()) == Some("Failed");
    // Evictions and shutdowns of nodes have a reason.
    let by_machine = failed && status.is_some_and(|status| status.reason.is_some());
    let restored = pod.annotations().get(ROLE_ANNOTATION).is_some_and(|role| role == "restored");
    (failed || restored) && !by_machine && pod.metadata.deletion_timestamp.is_none() && node_is_there(pod)
}

fn node_is_there(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| {
        status.phase.as_deref() == Some("Failed")
            || status.container_statuses.iter().flatten().any(|one| one.restart_count > 0)
    })
}

async fn complete(ctx: &Context, app: &MigratableApp) -> Result<Duration, Error> {
    let mut status = app.status.clone().unwrap_or_default();
    set(&mut status, condition::READY, Some(false), "Completed", "its processes have done their work", now());
    set(&mut status, condition::MIGRATABLE, Some(false), "Completed", "nothing runs any more", now());
    if app.status.as_ref() != Some(&status) {
        persist(ctx, app, status).await?;
    }
    Ok(ctx.settings.resync)
}

/// Restores the last checkpoint, if it is time to.
pub(crate) async fn recover(ctx: &Context, app: MigratableApp, lost: Place) -> Result<Duration, Error> {
    let status = app.status.clone().unwrap_or_default();
    let retry = trigger::is_set(app.annotations(), RETRY_ANNOTATION);
    let failed = failures_in_a_row(&status);
    if failed > 0 && !retry {
        let rest = RECOVERY_REST.saturating_mul(1 << (failed - 1).min(10)).min(LONGEST_RECOVERY_REST);
        let last = status.migration.as_ref().and_then(|last| last.finished_at.as_ref());
        if let Some(left) =
            last.and_then(|last| rest.checked_sub(since(last.0, now()))).filter(|left| !left.is_zero())
        {
            return Ok(left);
        }
    }
    let trigger = Trigger {
        reason: "recovery".to_owned(),
        by: TriggeredBy::Recovery,
        deadline: None,
        notice: None,
        checkpoint_only: false,
    };
    ctx.event(&app, EventType::Warning, "Lost", "its pod is gone; its last checkpoint is restored").await;
    Box::pin(begin(ctx, app, &trigger, lost, retry)).await
}

/// Begins a migration: writes it down, and does as much of it as can be done now.
async fn begin(
    ctx: &Context,
    app: MigratableApp,
    trigger: &Trigger,
    source: Place,
    retry: bool,
) -> Result<Duration, Error> {
    let begun = now();
    let none = MigrationPolicy::default();
    let policy = app.spec.migration_policy.as_ref().unwrap_or(&none);
    let next = beginning(next_id(&app), trigger, source, policy, injection::maker(&app), begun);
    let app = record(ctx, &app, &next).await?;
    if next.target_takes_name() && policy.strategy().hands_over() {
        let note = "lazy-storage is used: a StatefulSet makes the target only when the source is gone, and nothing can be handed over then";
        ctx.event(&app, EventType::Normal, "StrategyReplaced", note).await;
    }
    if retry {
        remove_annotation(ctx, &app, RETRY_ANNOTATION).await?;
    }
    let app = fresh(ctx, &app).await?;
    Ok(migrate(ctx, app).await?.1.unwrap_or(ctx.settings.limits.look))
}

/// The pod is there.
async fn present(
    ctx: &Context,
    app: &MigratableApp,
    found: &Found,
    seen: PodSeen,
) -> Result<Duration, Error> {
    let Some(pod) = &found.pod else { return Ok(ctx.settings.limits.look) };
    let mut again = ctx.settings.resync;
    if matches!(seen, PodSeen::Ready | PodSeen::Leaving)
        && let Some(rest) = asked(ctx, app, pod).await?
    {
        return Ok(rest);
    }
    if seen == PodSeen::Ready
        && let Some(rest) = Box::pin(restart::asked(ctx, app, pod)).await?
    {
        return Ok(rest);
    }
    let mut status = app.status.clone().unwrap_or_default();
    status.observed_generation = app.metadata.generation;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    status.current_node = node.or(status.current_node);
    run_state(&mut status, pod, seen);
    Box::pin(restart::tell(ctx, app, &mut status)).await;
    if seen == PodSeen::Ready {
        let checkpoint = checkpoints::look(ctx, app, pod, &mut status).await;
        if let Some(settled) = nothing_runs(ctx, app) {
            record(ctx, app, &settled).await?;
            return Ok(ctx.settings.limits.look);
        }
        let moved = migratable::look(ctx, app, pod, &mut status).await?;
        again = again.min(checkpoint).min(moved);
        refresh_certificate(ctx, app).await;
        Box::pin(network::keep(ctx, app)).await;
    } else {
        let message = "its pod is not ready";
        set(&mut status, condition::MIGRATABLE, Some(false), "NotReady", message, now());
        again = again.min(Duration::from_secs(2));
    }
    if app.status.as_ref() != Some(&status) {
        persist(ctx, app, status).await?;
    }
    Ok(again)
}

/// A target that was lost left open whether what was stopped here goes on. A checkpoint has told that it does not.
fn nothing_runs(ctx: &Context, app: &MigratableApp) -> Option<Migration> {
    let uid = app.metadata.uid.as_deref().unwrap_or_default();
    let last = app.status.as_ref()?.migration.as_ref()?;
    let open = last.stage.is_over()
        && last.target_lost == Some(TargetLost::MayHaveRun)
        && !last.source_has_stopped();
    if !open || !ctx.memory.get(uid).no_processes {
        return None;
    }
    Some(Migration { source_stopped: Some(true), target_lost: Some(TargetLost::HadRun), ..last.clone() })
}

async fn refresh_certificate(ctx: &Context, app: &MigratableApp) {
    if let Err(missing) = crate::secrets::ensure_certificate(ctx, app).await {
        tracing::warn!(app = ctx.full_name(app), ?missing, "the agents' certificate is not renewed");
    }
}

fn run_state(status: &mut MigratableAppStatus, pod: &Pod, seen: PodSeen) {
    let ready = pod.status.as_ref().is_some_and(|status| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    match seen {
        PodSeen::Ready if ready => {
            status.phase = Some(Phase::Running);
            set(status, condition::READY, Some(true), "Running", "", now());
        }
        PodSeen::Ready => {
            status.phase = Some(Phase::Running);
            set(
                status,
                condition::READY,
                Some(false),
                "NotReady",
                "its containers run and are not ready",
                now(),
            );
        }
        PodSeen::Leaving => {
            set(status, condition::READY, Some(false), "Leaving", "its pod is being deleted", now())
        }
        _ => {
            let waits = pod.status.as_ref().and_then(|status| status.message.clone());
            set(status, condition::READY, Some(false), "Starting", &waits.unwrap_or_default(), now());
        }
    }
    if !status.conditions.iter().any(|condition| condition.type_ == condition::MIGRATING) {
        set(status, condition::MIGRATING, Some(false), "Idle", "", now());
    }
}

/// Obeys a trigger. Gives when to look again if there was one.
async fn asked(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<Option<Duration>, Error> {
    let retry = trigger::is_set(app.annotations(), RETRY_ANNOTATION);
    let asked = match trigger::of(pod.annotations()) {
        Some(asked) => asked,
        None if retry => {
            let last = app.status.as_ref().and_then(|status| status.migration.as_ref());
            Trigger {
                reason: last.map_or_else(|| "retry".to_owned(), |last| last.reason.clone()),
                by: TriggeredBy::Person,
                deadline: None,
                notice: None,
                checkpoint_only: false,
            }
        }
        None => return Ok(None),
    };
    let app = fresh(ctx, app).await?;
    let status = app.status.clone().unwrap_or_default();
    let name = pod.name_any();
    let moves = status.migration.as_ref().is_some_and(|one: &Migration| !one.stage.is_over());
    if status.current_pod_name.as_deref() != Some(&name) || moves {
        return Ok(Some(BEHIND));
    }
    let known =
        asked.notice.is_some() && status.migration.as_ref().is_some_and(|last| last.notice == asked.notice);
    if known {
        answer_trigger(ctx, &app, &name).await?;
        return Ok(Some(ctx.settings.limits.look));
    }
    let none = MigrationPolicy::default();
    let automatic = app.spec.migration_policy.as_ref().unwrap_or(&none).auto_migrate();
    if asked.checkpoint_only || (asked.by == TriggeredBy::Monitor && !automatic) {
        let why = match asked.checkpoint_only {
            true => format!("{}: a checkpoint is advised", asked.reason),
            false => format!(
                "{}: spec.migrationPolicy.autoMigrate is false, so that it stays; a checkpoint is made",
                asked.reason
            ),
        };
        ctx.event(&app, EventType::Warning, "NotMigrated", &why).await;
        let mut status = status;
        set(&mut status, condition::MIGRATING, Some(false), "NotMigrated", &why, now());
        let app = persist(ctx, &app, status).await?;
        checkpoints::make_due(ctx, &app);
        answer_trigger(ctx, &app, &name).await?;
        return Ok(Some(Duration::from_millis(50)));
    }
    let source = place_of(&app, pod);
    Box::pin(begin(ctx, app, &asked, source, retry)).await.map(Some)
}

/// Pods of this application that nobody needs: targets of tries that failed.
async fn remove_strays(ctx: &Context, app: &MigratableApp) -> Result<(), Error> {
    let Some(status) = &app.status else { return Ok(()) };
    let last = status.migration.as_ref();
    // What is not settled may run.
    if last.is_some_and(|last| !last.stage.is_over() || last.operation.is_some()) {
        return Ok(());
    }
    let preserved = trigger::is_set(app.annotations(), PRESERVE_ANNOTATION);
    for pod in ctx.pods.of(app) {
        let ours = pod.owner_references().iter().any(|owner| Some(&owner.uid) == app.metadata.uid.as_ref());
        let name = pod.name_any();
        // A source is the migration's to delete: it may still be needed.
        let source = last.is_some_and(|last| last.source.pod == name);
        let current = status.current_pod_name.as_deref() == Some(&name);
        if !ours || current || source || preserved || pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let now_current = fresh(ctx, app).await?.status.unwrap_or_default();
        let still = now_current.current_pod_name == status.current_pod_name
            && now_current.migration == status.migration;
        if still {
            tracing::info!(app = ctx.full_name(app), pod = name, "a pod is not needed any more");
            delete_exactly(ctx, app, (*pod).clone()).await?;
        }
    }
    Ok(())
}
