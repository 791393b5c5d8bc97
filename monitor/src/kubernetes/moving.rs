//! Whether a pod's application is being moved.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};

use super::{APP, error::ClusterError, error::answer};

/// Asks the applications' own resources.
pub(super) struct Moving<'a> {
    client: &'a Client,
    resource: ApiResource,
}

impl<'a> Moving<'a> {
    pub fn new(client: &'a Client) -> Self {
        let kind = GroupVersionKind::gvk("migration.io", "v1alpha1", "MigratableApp");
        Self { client, resource: ApiResource::from_gvk(&kind) }
    }

    /// Whether the operator has begun to move this pod. Where there is no such application, nobody has.
    pub async fn moves(&self, pod: &Pod) -> Result<bool, ClusterError> {
        let Some(app) = pod.labels().get(APP) else { return Ok(false) };
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &self.resource);
        match answer(api.get(app)).await {
            Ok(app) => Ok(app.data.pointer("/status/phase").is_some_and(|phase| phase == "Migrating")),
            Err(error) if error.is_about_another_object() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
