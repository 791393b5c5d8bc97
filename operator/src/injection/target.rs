//! Targets that a controller makes: it is given reason to, and taken that reason away again.
//!
//! What always holds: a pod is released, put back or deleted as it was read from the API server in that moment, or not at all.

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use super::{
    HASH_LABEL, RELEASED_ANNOTATION,
    owner::{Wants, controller_of, wants},
    waits,
};
use crate::{
    act::{Outcome, delete_exactly, remove_exactly},
    api::{
        APP_LABEL, MigratableApp,
        migration::{Migration, Place, TargetMadeBy},
    },
    context::Context,
    error::{Error, is},
    migration::{Failure, FailureKind, PodSeen},
    observe::{self, Look},
    pods::MIGRATION_ANNOTATION,
    secrets::{self, Missing},
};

/// Which pod a ReplicaSet ends first when it has too many: not the one with this.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// The highest there is.
const HIGHEST_COST: &str = "2147483647";
/// Annotation: since when a pod has that cost because of us.
const PUT_BACK_ANNOTATION: &str = "migration.io/put-back";

/// Annotation: the application runs elsewhere, and the labels by which Services find it are off.
const HIDDEN_ANNOTATION: &str = "migration.io/hidden";

/// Whether a pod was released from its ReplicaSet.
pub fn is_released(pod: &Pod) -> bool {
    pod.annotations().contains_key(RELEASED_ANNOTATION) && !pod.labels().contains_key(HASH_LABEL)
}

/// Gives whoever makes the target's pod reason to make it. It is there when it is seen.
///
/// # Errors
/// When the API server does not answer.
pub async fn make_way(
    ctx: &Context,
    app: &MigratableApp,
    written: &Migration,
    target: &Place,
    maker: TargetMadeBy,
) -> Result<Outcome, Error> {
    match secrets::ensure(ctx, app).await {
        Ok(()) => {}
        Err(Missing::Error(error)) => return Err(error),
        Err(Missing::Because(_, message)) => return Ok(refused(message)),
    }
    match maker {
        TargetMadeBy::ReplicaSet => beside(ctx, app, written, target).await,
        TargetMadeBy::StatefulSet => instead(ctx, app, written, target).await,
    }
}

/// The source is let go, and what waits in vain is ended: the ReplicaSet has one too few.
async fn beside(
    ctx: &Context,
    app: &MigratableApp,
    written: &Migration,
    target: &Place,
) -> Result<Outcome, Error> {
    for pod in pods_of(ctx, app).await? {
        let name = pod.name_any();
        if name == target.pod {
            return Ok(Outcome::Done);
        }
        if name == written.source.pod {
            release(ctx, app, &pod).await?;
        } else if waits(&pod) {
            delete_exactly(ctx, app, pod).await?;
        }
    }
    let set = app.spec.injection.as_ref().map_or("", |injection| &injection.name);
    match wants(ctx, app, &target.pod).await? {
        Wants::More => Ok(Outcome::Done),
        Wants::Enough => {
            // It was made while this was looked at.
            match observe::find(ctx, app, target, Look::Fresh).await?.pod {
                Some(_) => Ok(Outcome::Done),
                None => Ok(refused(format!(
                    "ReplicaSet {set} has all the pods it wants and none of them is the target: one was made while the webhook was not \
                     asked, or it was scaled down; see whether the operator can be reached on its webhook's port"
                ))),
            }
        }
        Wants::Nothing => Ok(refused(format!("ReplicaSet {set} is gone, or was scaled to none"))),
    }
}

/// What has the target's name and is not the target is ended.
async fn instead(
    ctx: &Context,
    app: &MigratableApp,
    written: &Migration,
    target: &Place,
) -> Result<Outcome, Error> {
    let found = ctx.pods_of(app).get_opt(&target.pod).await.map_err(Error::kube("read a pod"))?;
    let set = app.spec.injection.as_ref();
    let name = set.map_or("", |injection| &injection.name);
    let Some(pod) = found else {
        return match wants(ctx, app, &target.pod).await? {
            Wants::Nothing => Ok(refused(format!("StatefulSet {name} wants no pod {} any more", target.pod))),
            _ => Ok(Outcome::Done),
        };
    };
    let source = observe::find(ctx, app, &written.source, Look::Fresh).await?;
    if let (Some(lost), PodSeen::Gone) = (source.pod, source.seen) {
        // Its machine is gone, and nobody else can have its name while it is there.
        remove_exactly(ctx, app, lost).await?;
        return Ok(Outcome::Done);
    }
    if pod.metadata.deletion_timestamp.is_some()
        || (observe::is_of(app, &pod) && observe::is_at(target, &pod))
    {
        return Ok(Outcome::Done);
    }
    let of_set = controller_of(&pod).is_some_and(|owner| set.is_some_and(|set| set.uid == owner.uid));
    if !of_set {
        return Ok(refused(format!("pod {} is not one of StatefulSet {name}'s", target.pod)));
    }
    let of_a_try_before = pod
        .annotations()
        .get(MIGRATION_ANNOTATION)
        .is_some_and(|mark| mark.strip_prefix(&written.id).is_some_and(|rest| rest.starts_with('-')));
    if observe::supersedes(app, &pod) {
        let message = format!("another version was rolled out, and has started anew in pod {}", target.pod);
        return Ok(Outcome::Refused(Failure { kind: FailureKind::Refused, message, checkpoint: None }));
    }
    let ours = of_a_try_before || observe::is_at(&written.source, &pod);
    delete_exactly(ctx, app, pod).await?;
    if ours {
        return Ok(Outcome::Done);
    }
    Ok(refused(format!(
        "pod {} was made anew without waiting for the application, because the webhook was not asked; it is deleted; see whether the \
         operator can be reached on its webhook's port",
        target.pod
    )))
}

fn refused(message: String) -> Outcome {
    Outcome::Refused(Failure { kind: FailureKind::Passing, message, checkpoint: None })
}

/// An application's pods, by the API server itself.
///
/// # Errors
/// When it does not answer.
pub async fn pods_of(ctx: &Context, app: &MigratableApp) -> Result<Vec<Pod>, Error> {
    let labelled = ListParams::default().labels(&format!("{APP_LABEL}={}", app.name_any()));
    let mut pods =
        ctx.pods_of(app).list(&labelled).await.map_err(Error::kube("list an application's pods"))?.items;
    pods.retain(|pod| observe::is_of(app, pod));
    Ok(pods)
}

/// Releases a pod from its ReplicaSet, which then makes another. The Services' labels stay.
async fn release(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<(), Error> {
    let Some(hash) = pod.labels().get(HASH_LABEL).filter(|_| pod.metadata.deletion_timestamp.is_none())
    else {
        return Ok(());
    };
    let metadata = json!({"labels": {HASH_LABEL: null}, "annotations": {RELEASED_ANNOTATION: hash}});
    change(ctx, app, pod, metadata, "release a pod from its ReplicaSet").await
}

/// Gives a pod back to the ReplicaSet it was released from, which then ends the one that replaced it: that is not ready, or is of less
/// worth. Where that ReplicaSet is gone or wants no pods, it is deleted, which nobody else would do.
///
/// # Errors
/// When the API server does not answer, or somebody else has changed the pod meanwhile.
pub async fn put_back(ctx: &Context, app: &MigratableApp, source: &Place) -> Result<(), Error> {
    match observe::find(ctx, app, source, Look::Fresh).await?.pod {
        Some(pod) => give_back(ctx, app, pod).await,
        None => Ok(()),
    }
}

/// As [`put_back`], with the pod as it was read; one that belongs to somebody stays as it is.
///
/// # Errors
/// As [`put_back`].
pub async fn give_back(ctx: &Context, app: &MigratableApp, pod: Pod) -> Result<(), Error> {
    if controller_of(&pod).is_some() && !is_released(&pod) {
        return Ok(());
    }
    match wants(ctx, app, &pod.name_any()).await? {
        Wants::Nothing => delete_exactly(ctx, app, pod).await,
        Wants::Enough | Wants::More => label_back(ctx, app, &pod).await,
    }
}

async fn label_back(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<(), Error> {
    let Some(hash) = pod.annotations().get(RELEASED_ANNOTATION).filter(|_| is_released(pod)) else {
        return Ok(());
    };
    let mut annotations = json!({RELEASED_ANNOTATION: null, HIDDEN_ANNOTATION: null});
    let mut labels = Map::new();
    if pod.annotations().contains_key(HIDDEN_ANNOTATION) {
        labels = template_labels(app, &|value| json!(value));
    }
    labels.insert(HASH_LABEL.to_owned(), json!(hash));
    if !pod.annotations().contains_key(DELETION_COST) {
        annotations[DELETION_COST] = json!(HIGHEST_COST);
        annotations[PUT_BACK_ANNOTATION] = json!(Timestamp::now().to_string());
    }
    let metadata = json!({"labels": labels, "annotations": annotations});
    change(ctx, app, pod, metadata, "give a pod back to its ReplicaSet").await
}

/// Whether a pod that was put back is of more worth than others although its ReplicaSet has had the time to end one.
pub fn is_overrated(pod: &Pod, now: Timestamp) -> bool {
    const LONG_ENOUGH_S: i64 = 60;
    let at = pod.annotations().get(PUT_BACK_ANNOTATION).and_then(|at| at.parse::<Timestamp>().ok());
    at.is_some_and(|at| now.as_second() - at.as_second() > LONG_ENOUGH_S)
}

/// Has such a pod be like any other.
///
/// # Errors
/// As [`put_back`].
pub async fn rate_like_others(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<(), Error> {
    let metadata = json!({"annotations": {DELETION_COST: null, PUT_BACK_ANNOTATION: null}});
    change(ctx, app, pod, metadata, "take a pod's deletion cost back").await
}

/// Where the application has been is found by Services only as long as nothing else is it: a source that is kept until its last page
/// is there would be asked for what it does not do any more.
///
/// # Errors
/// As [`put_back`].
pub async fn hide_source(ctx: &Context, app: &MigratableApp, written: &Migration) -> Result<(), Error> {
    let elsewhere = written.resumed_at.is_some() && !written.returns();
    let runs_there = !elsewhere && written.may_run_in() == Some(&written.source);
    let Some(pod) = observe::find(ctx, app, &written.source, Look::Cached).await?.pod else { return Ok(()) };
    let hidden = pod.annotations().contains_key(HIDDEN_ANNOTATION);
    let ours = app.spec.injection.is_none() || is_released(&pod) || controller_of(&pod).is_none();
    let metadata = if elsewhere && !hidden && ours {
        json!({"labels": template_labels(app, &|_| Value::Null), "annotations": {HIDDEN_ANNOTATION: "true"}})
    } else if runs_there && hidden {
        json!({"labels": template_labels(app, &|value| json!(value)), "annotations": {HIDDEN_ANNOTATION: null}})
    } else {
        return Ok(());
    };
    change(ctx, app, &pod, metadata, "have Services find the application where it runs").await
}

/// The labels of an application's pods that its maker has chosen.
fn template_labels(app: &MigratableApp, value: &dyn Fn(&str) -> Value) -> Map<String, Value> {
    let labels = app.spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    let own = labels.into_iter().flatten().filter(|(name, _)| *name != HASH_LABEL && *name != APP_LABEL);
    own.map(|(name, label)| (name.clone(), value(label))).collect()
}

/// Changes the pod that was read, if nobody else has changed it meanwhile.
async fn change(
    ctx: &Context,
    app: &MigratableApp,
    pod: &Pod,
    mut metadata: Value,
    what: &'static str,
) -> Result<(), Error> {
    ctx.must_lead()?;
    metadata["resourceVersion"] = json!(pod.metadata.resource_version);
    let patch = Patch::Merge(json!({"metadata": metadata}));
    match ctx.pods_of(app).patch_metadata(&pod.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(Error::kube(what)(error)),
    }
}
