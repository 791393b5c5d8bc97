//! One look at an application that is somebody else's pod and is not being moved: its beginning, and its end.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::events::EventType,
};

use super::{
    is_released,
    owner::{Wants, wants},
    replacement::is_lost,
    target::{give_back, is_overrated, pods_of, rate_like_others},
    waits,
};
use crate::{
    act::{delete_exactly, tell_restored},
    api::{
        MigratableApp, MigratableAppStatus, Phase, PodOwner,
        migration::{Migration, Place},
    },
    context::Context,
    error::{Error, is},
    idle::{self, ended_by_itself},
    migrate::{fresh, persist},
    migration::PodSeen,
    observe::{self, Found, current_place, now, place_of},
    pods::TEMPLATE_ANNOTATION,
    secrets::{self, Missing},
    start::{next_round, start},
    status::{condition, has_checkpoint, set},
    trigger::{self, RETRY_ANNOTATION},
    webhook::CONTAINER_ANNOTATION,
};
use serde_json::{Value, json};

/// A pod that its controller makes is there a moment later.
const SOON: Duration = Duration::from_secs(1);
/// Somebody has to do something.
const LATER: Duration = Duration::from_secs(10);

/// No pod is written down: it was only just made, or its processes are a checkpoint.
///
/// # Errors
/// When the API server does not answer.
pub async fn without_pod(ctx: &Context, app: MigratableApp) -> Result<Duration, Error> {
    let status = app.status.clone().unwrap_or_default();
    let Some(last) = status.migration.clone().filter(Migration::source_has_stopped) else {
        return Box::pin(begin(ctx, app)).await;
    };
    if !has_checkpoint(&status) {
        return end(
            ctx,
            &app,
            "nothing of it runs and there is no checkpoint; its controller starts another",
        )
        .await;
    }
    let retry = trigger::is_set(app.annotations(), RETRY_ANNOTATION);
    let pods = pods_of(ctx, &app).await?;
    if let Some(next) =
        pods.iter().find(|pod| observe::supersedes(&app, pod) && pod.metadata.deletion_timestamp.is_none())
    {
        let note = "another version was rolled out while this one was a checkpoint; it has started anew, and the checkpoint stays in the store";
        ctx.event(&app, EventType::Warning, "Superseded", note).await;
        return Box::pin(goes_on_in(ctx, &app, next)).await;
    }
    let awaited = pods.iter().any(|pod| waits(pod) && pod.metadata.deletion_timestamp.is_none());
    if !retry && !awaited {
        match room(ctx, &app, &last.source).await? {
            Room::Comes => {}
            Room::Never => {
                return end(
                    ctx,
                    &app,
                    "nothing of it runs, and no pod will be made that it could be restored into",
                )
                .await;
            }
            Room::Taken(why) => return blocked(ctx, &app, "StartedAnew", &why).await,
        }
    }
    Box::pin(idle::recover(ctx, app, last.source)).await
}

/// Whether a pod can come to restore an application into.
enum Room {
    Comes,
    Never,
    Taken(String),
}

async fn room(ctx: &Context, app: &MigratableApp, source: &Place) -> Result<Room, Error> {
    if super::owner(app) == Some(PodOwner::StatefulSet) {
        let there = ctx.pods_of(app).get_opt(&source.pod).await.map_err(Error::kube("read a pod"))?;
        let anew = |pod: &Pod| {
            !observe::is_at(source, pod) && pod.metadata.deletion_timestamp.is_none() && !waits(pod)
        };
        if there.is_some_and(|pod| anew(&pod)) {
            return Ok(Room::Taken(format!(
                "pod {} was started anew while this application is a checkpoint; annotate this object {RETRY_ANNOTATION}=requested to have \
                 the pod replaced by what was saved",
                source.pod
            )));
        }
    }
    Ok(match wants(ctx, app, &source.pod).await? {
        Wants::More => Room::Comes,
        _ if super::owner(app) == Some(PodOwner::Pod) => Room::Comes,
        Wants::Nothing => Room::Never,
        Wants::Enough => Room::Taken(
            "a pod was started anew in its stead while this application is a checkpoint; the next pod that its ReplicaSet makes will be \
             restored from it: delete one that started anew, or scale up"
                .to_owned(),
        ),
    })
}

/// The pod for which the object was made is written down.
async fn begin(ctx: &Context, app: MigratableApp) -> Result<Duration, Error> {
    let pods = pods_of(ctx, &app).await?;
    let live = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none() && !waits(pod);
    match pods.iter().filter(live).max_by_key(|pod| pod.creation_timestamp()) {
        Some(pod) => Box::pin(goes_on_in(ctx, &app, pod)).await,
        None => end(ctx, &app, "its pod is gone").await,
    }
}

/// The application runs in this pod, which somebody has started.
async fn goes_on_in(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<Duration, Error> {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    ctx.memory.update(&uid, |remembered| *remembered = crate::context::Remembered::default());
    // From now on they go with the application, and not with a pod.
    match secrets::ensure(ctx, app).await {
        Ok(()) => {}
        Err(Missing::Error(error)) => return Err(error),
        Err(Missing::Because(reason, message)) => return blocked(ctx, app, reason, &message).await,
    }
    let place = place_of(app, pod);
    let app = &Box::pin(with_template(ctx, app, pod)).await?;
    let mut status = app.status.clone().unwrap_or_default();
    status.observed_generation = app.metadata.generation;
    status.current_pod_name = Some(place.pod.clone());
    status.current_pod_mark = place.mark;
    status.current_node = Some(place.node).filter(|node| !node.is_empty());
    // What was saved of a run before this one must not come back in its stead.
    status.checkpoint_status = None;
    status.phase = Some(Phase::Pending);
    set(&mut status, condition::READY, Some(false), "Starting", "its pod does not run yet", now());
    set(&mut status, condition::MIGRATING, Some(false), "Idle", "", now());
    persist(ctx, app, status).await?;
    ctx.event(app, EventType::Normal, "Started", &format!("runs in pod {}", place.pod)).await;
    Ok(ctx.settings.limits.look)
}

/// The object tells of the pod that runs, which may be of another version than the one before.
async fn with_template(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<MigratableApp, Error> {
    let told = pod.annotations().get(TEMPLATE_ANNOTATION);
    let template = told.and_then(|told| serde_json::from_str::<serde_json::Value>(told).ok());
    let container = pod.annotations().get(CONTAINER_ANNOTATION);
    let known = serde_json::to_value(&app.spec.template).unwrap_or_default();
    let another = |new: &Value| *new != known || container != app.spec.container.as_ref();
    let Some(template) = template.filter(another) else { return Ok(app.clone()) };
    ctx.must_lead()?;
    let patch = json!({
        "metadata": {"uid": app.metadata.uid, "resourceVersion": app.metadata.resource_version},
        "spec": {"template": difference(&known, &template), "container": container},
    });
    let apps = ctx.apps(&app.namespace().unwrap_or_default());
    apps.patch(&app.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(Error::kube("write an application's template"))
}

/// What makes one of the other when it is merged into it: what is not there any more is null.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let gone = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = to.iter().filter(|(key, value)| from.get(*key) != Some(value));
    changed
        .map(|(key, value)| (key.clone(), difference(from.get(key).unwrap_or(&Value::Null), value)))
        .chain(gone)
        .collect()
}

/// The pod that is written down is gone, or nothing of it runs.
///
/// # Errors
/// When the API server does not answer.
pub async fn gone(ctx: &Context, app: MigratableApp, place: Place, found: Found) -> Result<Duration, Error> {
    let owner = super::owner(&app);
    let status = app.status.clone().unwrap_or_default();
    let pods = pods_of(ctx, &app).await?;
    let awaited = pods.iter().any(|pod| waits(pod) && pod.metadata.deletion_timestamp.is_none());
    if owner == Some(PodOwner::StatefulSet)
        && let Some(next) = ctx.pods_of(&app).get_opt(&place.pod).await.map_err(Error::kube("read a pod"))?
        && !observe::is_at(&place, &next)
        && !waits(&next)
    {
        return match (next.metadata.deletion_timestamp.is_some(), observe::is_of(&app, &next)) {
            (true, _) => Ok(SOON),
            (false, true) => Box::pin(goes_on_in(ctx, &app, &next)).await,
            (false, false) => {
                let why = "its pod was made anew while the webhook was not asked; delete the pod to have it made again";
                blocked(ctx, &app, "NotInjected", why).await
            }
        };
    }
    let lost = awaited || found.seen == PodSeen::Killed || is_lost(ctx, &app, &place).await?;
    if lost && has_checkpoint(&status) {
        return Box::pin(idle::recover(ctx, app, place)).await;
    }
    if let Some(pod) = found.pod.filter(|pod| found.seen == PodSeen::Ended && ended_by_itself(pod)) {
        let note = "the restored processes have ended by themselves; the application is started again";
        ctx.event(&app, EventType::Warning, "Ended", note).await;
        if owner == Some(PodOwner::Pod) {
            // Nobody else would start it again.
            let again = Box::pin(start(ctx, app.clone(), next_round(&app, &place.pod))).await?;
            delete_exactly(ctx, &app, pod).await?;
            return Ok(again);
        }
        delete_exactly(ctx, &app, pod).await?;
        return Ok(SOON);
    }
    match owner {
        Some(PodOwner::StatefulSet) if wants(ctx, &app, &place.pod).await? == Wants::More => Ok(SOON),
        _ => end(ctx, &app, "its pod is gone for good").await,
    }
}

/// The pod that is written down is being deleted. Gives when to look again.
///
/// # Errors
/// When the API server does not answer.
pub async fn leaving(ctx: &Context, app: &MigratableApp, place: &Place) -> Result<Duration, Error> {
    // It may come back from its last checkpoint.
    if is_lost(ctx, app, place).await? {
        return Ok(LATER / 5);
    }
    match super::owner(app) {
        // The next one of that name goes on with the object.
        Some(PodOwner::StatefulSet) if wants(ctx, app, &place.pod).await? == Wants::More => Ok(SOON),
        // As long as its agent answers, it can delete the checkpoints.
        _ => end(ctx, app, "its pod is being deleted").await,
    }
}

/// What a pod that was put back, or that waited in vain, has left behind. Nothing is being moved.
///
/// # Errors
/// When the API server does not answer.
pub async fn settled(ctx: &Context, app: &MigratableApp, current: &Pod) -> Result<(), Error> {
    if is_overrated(current, now()) {
        rate_like_others(ctx, app, current).await?;
    }
    let taken_back = !is_released(current);
    let in_vain = |pod: &Pod| {
        observe::is_of(app, pod)
            && waits(pod)
            && pod.name_any() != current.name_any()
            && pod.metadata.deletion_timestamp.is_none()
    };
    if !taken_back || !ctx.pods.of(app).iter().any(|pod| in_vain(pod)) {
        return Ok(());
    }
    let known = app.status.as_ref().map(|status| (&status.current_pod_name, &status.migration));
    let app = fresh(ctx, app).await?;
    if app.status.as_ref().map(|status| (&status.current_pod_name, &status.migration)) != known {
        return Ok(());
    }
    for pod in pods_of(ctx, &app).await?.into_iter().filter(|pod| in_vain(pod)) {
        tracing::info!(app = ctx.full_name(&app), pod = pod.name_any(), "a pod waits in vain");
        delete_exactly(ctx, &app, pod).await?;
    }
    Ok(())
}

/// The object goes: the pod that the application runs in is its maker's again, and those in which nothing runs go.
///
/// # Errors
/// When the API server does not answer.
pub async fn release_pods(ctx: &Context, app: &MigratableApp) -> Result<(), Error> {
    let status: MigratableAppStatus = app.status.clone().unwrap_or_default();
    let runs_in = match &status.migration {
        Some(last) if current_place(&status).is_none() => last.may_run_in().cloned(),
        _ => current_place(&status),
    };
    for pod in pods_of(ctx, app).await? {
        let runs = runs_in.as_ref().is_some_and(|place| observe::is_at(place, &pod));
        if runs && super::owner(app) == Some(PodOwner::ReplicaSet) {
            tell_restored(ctx, app, &pod).await?;
            give_back(ctx, app, pod).await?;
        } else if runs {
            tell_restored(ctx, app, &pod).await?;
        } else if waits(&pod) || is_released(&pod) {
            delete_exactly(ctx, app, pod).await?;
        }
    }
    Ok(())
}

/// The object is deleted, as it was when that was decided.
async fn end(ctx: &Context, app: &MigratableApp, why: &str) -> Result<Duration, Error> {
    ctx.must_lead()?;
    ctx.event(app, EventType::Normal, "Ended", why).await;
    let preconditions = Preconditions {
        uid: app.metadata.uid.clone(),
        resource_version: app.metadata.resource_version.clone(),
    };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let apps = ctx.apps(&app.namespace().unwrap_or_default());
    match apps.delete(&app.name_any(), &params).await {
        Ok(_) => Ok(ctx.settings.resync),
        Err(error) if is(&error, 404) => Ok(ctx.settings.resync),
        Err(error) => Err(Error::kube("end an application")(error)),
    }
}

/// Says why it does not go on.
async fn blocked(
    ctx: &Context,
    app: &MigratableApp,
    reason: &'static str,
    why: &str,
) -> Result<Duration, Error> {
    let mut status = app.status.clone().unwrap_or_default();
    status.observed_generation = app.metadata.generation;
    set(&mut status, condition::READY, Some(false), reason, why, now());
    set(&mut status, condition::MIGRATABLE, Some(false), reason, why, now());
    if app.status.as_ref() != Some(&status) {
        ctx.event(app, EventType::Warning, reason, why).await;
        persist(ctx, app, status).await?;
    }
    Ok(LATER)
}
