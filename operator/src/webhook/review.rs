//! The API server's question and our answer.

use k8s_openapi::{ByteString, api::core::v1::Pod};
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    defaults::defaults,
    inject::{As, Injected, NotInjected, app_name, asks, inject, maker_of, own_name},
    secrets,
};
use crate::{
    api::{Injection, MigratableApp, PodOwner},
    context::Context,
    error::Error,
    injection,
    secrets::Missing,
};

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    dry_run: Option<bool>,
    object: Value,
}

/// Answers a review; `None` if it is none.
pub async fn answer(context: &Context, body: &[u8]) -> Option<Value> {
    let Request { uid, namespace, dry_run, object } = serde_json::from_slice::<Review>(body).ok()?.request;
    let mut response = json!({"uid": uid, "allowed": true});
    // What it reads is kept off the stack.
    match Box::pin(treat(context, &namespace, &uid, dry_run.unwrap_or(false), object)).await {
        Ok(patch) if patch.is_empty() => {}
        Ok(patch) => {
            response["patchType"] = json!("JSONPatch");
            let patch = serde_json::to_vec(&patch).ok()?;
            response["patch"] = serde_json::to_value(ByteString(patch)).ok()?;
        }
        Err(warning) => {
            tracing::warn!(namespace, warning, "a pod runs without being migratable");
            response["warnings"] = json!([warning]);
        }
    }
    Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

/// The patch of a pod, or why it runs without one.
async fn treat(
    context: &Context,
    namespace: &str,
    request: &str,
    dry_run: bool,
    object: Value,
) -> Result<Vec<Value>, String> {
    let pod: Pod = serde_json::from_value(object)
        .map_err(|error| format!("migration.io: this pod is not understood and runs as it is: {error}"))?;
    if !asks(&pod) {
        return Ok(Vec::new());
    }
    let defaults = defaults(context).await.map_err(|why| format!("migration.io: {why}"))?;
    let settings = &context.settings;
    let owner = match maker_of(&pod) {
        Ok(owner) => owner,
        Err(error) => return Err(format!("migration.io: {error}")),
    };
    let replacement = match injection::awaited(context, namespace, &pod, &owner).await {
        Ok(replacement) => replacement,
        Err(error) => {
            tracing::warn!(namespace, owner = owner.name, %error, "a pod starts anew, whatever waits for it");
            None
        }
    };
    let new = match &replacement {
        Some(_) => String::new(),
        None => name_for(context, namespace, &pod, &owner, request)
            .await
            .map_err(|error| format!("migration.io: this pod runs, but cannot be moved: {error}"))?,
    };
    let becomes = replacement.as_ref().map_or(As::New(&new), As::Target);
    let Injected { app, patch } =
        match inject(&pod, namespace, becomes, &defaults, &settings.agent, &settings.cluster) {
            Ok(injected) => injected,
            Err(NotInjected::Nothing) => return Ok(Vec::new()),
            Err(error) => return Err(format!("migration.io: {error}")),
        };
    // Those of an application that there is are there.
    if !dry_run && replacement.is_none() {
        secrets::ensure(context, &app).await.map_err(|missing| {
            let why = match missing {
                Missing::Because(_, message) => message,
                Missing::Error(error) => error.to_string(),
            };
            format!("migration.io: this pod runs, but cannot be moved: {why}")
        })?;
    }
    Ok(patch)
}

/// The name of the application that a pod begins to be: that of the object that goes on with it, if there is one, else one that no
/// other object has.
async fn name_for(
    context: &Context,
    namespace: &str,
    pod: &Pod,
    owner: &Injection,
    request: &str,
) -> Result<String, Error> {
    let Some(own) = own_name(pod) else { return Ok(app_name(pod, request, false)) };
    if owner.owner == PodOwner::StatefulSet {
        let of_pod = |app: &MigratableApp| {
            let status = app.status.as_ref();
            let last = status.and_then(|status| status.migration.as_ref()).map(|last| &last.source.pod);
            let current = status.and_then(|status| status.current_pod_name.as_ref()).or(last);
            app.metadata.deletion_timestamp.is_none()
                && current.map_or(app.name_any() == *own, |pod| pod == own)
        };
        let known = injection::of_owner(context, namespace, owner).await?;
        if let Some(app) = known.iter().find(|app| of_pod(app)) {
            return Ok(app.name_any());
        }
    }
    let name = app_name(pod, request, false);
    let there = context.apps(namespace).get_opt(&name).await.map_err(Error::kube("read an application"))?;
    Ok(app_name(pod, request, there.is_some()))
}
