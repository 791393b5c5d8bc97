//! The API server trusts the webhook: its authority is kept where the API server looks for it.

use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

/// The configuration, which the manifests create.
const CONFIGURATION: &str = "migration-operator";

/// Puts the authorities into the webhook's configuration, if there is one and they are not there. Returns whether there is one.
///
/// # Errors
/// When the API server refuses.
pub async fn announce(client: &Client, bundle: &str) -> Result<bool, kube::Error> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let Some(found) = configurations.get_opt(CONFIGURATION).await? else { return Ok(false) };
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let webhooks = found.webhooks.unwrap_or_default();
    let stale = webhooks.iter().filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle));
    // Merged by name: the rest of each webhook stays as it is.
    let stale: Vec<Value> =
        stale.map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}})).collect();
    if !stale.is_empty() {
        let patch = json!({"webhooks": stale});
        configurations.patch(CONFIGURATION, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    }
    Ok(true)
}
