//! The API server's question and our answer.

use k8s_openapi::{ByteString, api::core::v1::Pod};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    defaults::defaults,
    inject::{Injected, NotInjected, asks, inject},
    secrets,
};
use crate::{context::Context, secrets::Missing};

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
    match treat(context, &namespace, &uid, dry_run.unwrap_or(false), object).await {
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
    let Injected { app, patch } =
        match inject(&pod, namespace, request, &defaults, &settings.agent, &settings.cluster) {
            Ok(injected) => injected,
            Err(NotInjected::Nothing) => return Ok(Vec::new()),
            Err(error) => return Err(format!("migration.io: {error}")),
        };
    if !dry_run {
        secrets::ensure(context, &app, None).await.map_err(|missing| {
            let why = match missing {
                Missing::Because(_, message) => message,
                Missing::Error(error) => error.to_string(),
            };
            format!("migration.io: this pod runs, but cannot be moved: {why}")
        })?;
    }
    Ok(patch)
}
