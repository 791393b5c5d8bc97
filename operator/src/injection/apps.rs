//! A MigratableApp for each pod that was treated and has none.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    ResourceExt,
    api::PostParams,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::owner_of;
use crate::{
    api::{APP_LABEL, MigratableApp, MigratableAppSpec, PodOwner},
    context::Context,
    error::is,
    pods::{INJECTED_ANNOTATION, TEMPLATE_ANNOTATION},
    webhook::{CONTAINER_ANNOTATION, defaults},
};

/// How often all pods are looked at, whatever is heard of them.
const LOOK: Duration = Duration::from_secs(5);
/// And no more often than that, however many of them change.
const PAUSE: Duration = Duration::from_millis(100);
/// When it is tried again to make what could not be made.
const REST: Duration = Duration::from_secs(15);
/// How many are made at once.
const AT_ONCE: usize = 16;

/// Makes the objects of treated pods while this operator leads. `changed` says that there may be such a pod. Never ends.
pub async fn keep(ctx: Arc<Context>, apps: Store<MigratableApp>, changed: Arc<Notify>) {
    let mut rests: HashMap<String, Instant> = HashMap::new();
    loop {
        if ctx.must_lead().is_ok() {
            rests.retain(|_, until| *until > Instant::now());
            let without = |pod: &Arc<Pod>| {
                is_treated(pod) && !rests.contains_key(&key(pod)) && apps.get(&reference(pod)).is_none()
            };
            let pods: Vec<Arc<Pod>> = ctx.pods.all().into_iter().filter(without).collect();
            let ctx = &ctx;
            let made = stream::iter(pods)
                .map(|pod| async move { (key(&pod), Box::pin(make(ctx, &pod)).await) })
                .buffer_unordered(AT_ONCE);
            let made: Vec<(String, Result<(), String>)> = made.collect().await;
            for (pod, result) in made {
                // One that was made is in the cache in a moment.
                let rest = if result.is_ok() { LOOK } else { REST };
                if let Err(why) = result {
                    tracing::warn!(pod, why, "a pod that asks to be migratable has no MigratableApp");
                }
                rests.insert(pod, Instant::now() + rest);
            }
        }
        let _ = timeout(LOOK, changed.notified()).await;
        sleep(PAUSE).await;
    }
}

fn key(pod: &Pod) -> String {
    format!("{}/{} {}", pod.namespace().unwrap_or_default(), pod.name_any(), pod.uid().unwrap_or_default())
}

fn reference(pod: &Pod) -> ObjectRef<MigratableApp> {
    let name = pod.labels().get(APP_LABEL).map(String::as_str).unwrap_or_default();
    ObjectRef::new(name).within(&pod.namespace().unwrap_or_default())
}

/// Whether a pod was treated by the webhook and will go on.
pub fn is_treated(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.annotations().contains_key(INJECTED_ANNOTATION)
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Makes the object of one pod. Who has made it already is as good.
async fn make(ctx: &Context, pod: &Pod) -> Result<(), String> {
    let name = pod.labels().get(APP_LABEL).cloned().unwrap_or_default();
    let namespace = pod.namespace().unwrap_or_default();
    let injection = owner_of(pod).map_err(|error| error.to_string())?;
    let template =
        pod.annotations().get(TEMPLATE_ANNOTATION).ok_or("it says nothing of what it was before")?;
    let template: PodTemplateSpec = serde_json::from_str(template).map_err(|error| error.to_string())?;
    let defaults = defaults(ctx).await?;
    let spec = MigratableAppSpec {
        template,
        container: pod.annotations().get(CONTAINER_ANNOTATION).cloned(),
        checkpoint_policy: defaults.checkpoint_policy,
        migration_policy: defaults.migration_policy,
        storage: defaults.storage,
        deletion_policy: defaults.deletion_policy,
        injection: Some(injection.clone()),
    };
    let mut app = MigratableApp::new(&name, spec);
    app.metadata.namespace = Some(namespace.clone());
    app.metadata.labels = Some(BTreeMap::from([(super::OWNER_LABEL.to_owned(), injection.uid.clone())]));
    // It goes when that goes, and what it holds up by its finalizer does not hold that up.
    let kind = match injection.owner {
        PodOwner::ReplicaSet => Some("ReplicaSet"),
        PodOwner::StatefulSet => Some("StatefulSet"),
        PodOwner::Pod => None,
    };
    app.metadata.owner_references = kind.map(|kind| {
        vec![OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: kind.to_owned(),
            name: injection.name.clone(),
            uid: injection.uid.clone(),
            ..Default::default()
        }]
    });
    ctx.must_lead().map_err(|error| error.to_string())?;
    match ctx.apps(&namespace).create(&PostParams::default(), &app).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 409) => {
            let there = ctx.apps(&namespace).get_opt(&name).await.map_err(|error| error.to_string())?;
            match there {
                Some(there) if there.spec.injection != app.spec.injection => Err(format!(
                    "there is another MigratableApp called {namespace}/{name}; it takes its place when that is gone"
                )),
                _ => Ok(()),
            }
        }
        Err(error) if is(&error, 403) => Err(format!(
            "the operator may not make MigratableApps in namespace {namespace}; an administrator has to allow this namespace"
        )),
        Err(error) => Err(error.to_string()),
    }
}
