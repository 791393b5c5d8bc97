//! What applies to pods that say nothing else: a ConfigMap.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::Deserialize;

use super::DEFAULTS;
use crate::{
    api::{CheckpointPolicy, DeletionPolicy, MigrationPolicy, Storage},
    context::Context,
};

/// Its key.
const KEY: &str = "defaults.yaml";

/// What applies to pods that say nothing else.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// Where checkpoints go.
    pub storage: Storage,
    /// When they are made.
    #[serde(default)]
    pub checkpoint_policy: Option<CheckpointPolicy>,
    /// How the application moves.
    #[serde(default)]
    pub migration_policy: Option<MigrationPolicy>,
    /// What becomes of the checkpoints when the pod is gone for good.
    #[serde(default)]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// Reads them.
///
/// # Errors
/// Why there are none, and what to do.
pub async fn defaults(context: &Context) -> Result<Defaults, String> {
    let namespace = &context.settings.namespace;
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let about = format!("the ConfigMap {namespace}/{DEFAULTS}");
    let map = maps.get_opt(DEFAULTS).await.map_err(|error| format!("{about} cannot be read: {error}"))?;
    let text = map.and_then(|map| map.data?.remove(KEY)).ok_or_else(|| {
        format!("this pod runs, but cannot be moved: {about} is missing or has no {KEY}; write `storage:` into it as in a MigratableApp")
    })?;
    serde_saphyr::from_str(&text).map_err(|error| format!("{about} is not understood: {error}"))
}
