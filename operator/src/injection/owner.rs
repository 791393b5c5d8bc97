//! What makes a pod, and whether it wants more of them.

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, StatefulSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, ResourceExt, api::ListParams};

use super::HASH_LABEL;
use crate::{
    api::{Injection, MigratableApp, PodOwner},
    context::Context,
    error::Error,
};

/// Why a pod's maker would be in the way of a migration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoOwner {
    /// A ReplicaSet that is not a Deployment's has no label that nobody else selects by.
    #[error(
        "its ReplicaSet {0} belongs to no Deployment, and could not be told to let a pod go; use a Deployment"
    )]
    NoDeployment(String),
    /// A controller that makes pods for a node, a task, or in a way that is not known here.
    #[error(
        "its pods are made by a {0}, which could not replace one by its copy; use a Deployment, a StatefulSet, or a MigratableApp"
    )]
    Unknown(String),
}

/// What makes a pod. One that nobody controls has no uid before it was created.
///
/// # Errors
/// When the pod of such a maker cannot be moved.
pub fn owner_of(pod: &Pod) -> Result<Injection, NoOwner> {
    let Some(controller) = controller_of(pod) else {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        return Ok(Injection { owner: PodOwner::Pod, name: pod.name_any(), uid });
    };
    let of_apps = controller.api_version.starts_with("apps/");
    let hash = pod.labels().contains_key(HASH_LABEL) || super::is_released(pod);
    let owner = match controller.kind.as_str() {
        "ReplicaSet" if of_apps && hash => PodOwner::ReplicaSet,
        "ReplicaSet" if of_apps => return Err(NoOwner::NoDeployment(controller.name.clone())),
        "StatefulSet" if of_apps => PodOwner::StatefulSet,
        other => return Err(NoOwner::Unknown(other.to_owned())),
    };
    Ok(Injection { owner, name: controller.name.clone(), uid: controller.uid.clone() })
}

/// The controller of a pod.
pub fn controller_of(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// What the maker of an application's pods wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// It is gone or going, or has been told to have no such pod.
    Nothing,
    /// It has as many as it wants.
    Enough,
    /// It will make another.
    More,
}

/// What the maker of an application's pods wants, by the API server itself. `pod` is one that is there or is to be made.
///
/// # Errors
/// When the API server does not answer.
pub async fn wants(ctx: &Context, app: &MigratableApp, pod: &str) -> Result<Wants, Error> {
    let Some(injection) = &app.spec.injection else { return Ok(Wants::Nothing) };
    let namespace = app.namespace().unwrap_or_default();
    match injection.owner {
        PodOwner::Pod => Ok(Wants::Nothing),
        PodOwner::ReplicaSet => {
            let sets: Api<ReplicaSet> = Api::namespaced(ctx.client.clone(), &namespace);
            let set = sets.get_opt(&injection.name).await.map_err(Error::kube("read a ReplicaSet"))?;
            let there = |set: &ReplicaSet| {
                set.metadata.uid.as_ref() == Some(&injection.uid) && set.metadata.deletion_timestamp.is_none()
            };
            let Some(spec) = set.filter(there).and_then(|set| set.spec) else { return Ok(Wants::Nothing) };
            let wanted = spec.replicas.unwrap_or(1);
            if wanted == 0 {
                return Ok(Wants::Nothing);
            }
            let labels: Vec<String> = spec
                .selector
                .match_labels
                .iter()
                .flatten()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let selected = ListParams::default().labels(&labels.join(","));
            let pods =
                ctx.pods_of(app).list(&selected).await.map_err(Error::kube("list a ReplicaSet's pods"))?;
            let counts = |pod: &&Pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                pod.metadata.deletion_timestamp.is_none()
                    && !matches!(phase, Some("Succeeded" | "Failed"))
                    && controller_of(pod).is_some_and(|owner| owner.uid == injection.uid)
            };
            let there = pods.items.iter().filter(counts).count();
            let enough = i32::try_from(there).is_ok_and(|there| there >= wanted);
            Ok(if enough { Wants::Enough } else { Wants::More })
        }
        PodOwner::StatefulSet => {
            let sets: Api<StatefulSet> = Api::namespaced(ctx.client.clone(), &namespace);
            let set = sets.get_opt(&injection.name).await.map_err(Error::kube("read a StatefulSet"))?;
            let there = |set: &StatefulSet| {
                set.metadata.uid.as_ref() == Some(&injection.uid) && set.metadata.deletion_timestamp.is_none()
            };
            let Some(spec) = set.filter(there).and_then(|set| set.spec) else { return Ok(Wants::Nothing) };
            let first = spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0);
            let ordinal = pod.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse::<i32>().ok());
            let wanted = first..first.saturating_add(spec.replicas.unwrap_or(1));
            let more = ordinal.is_some_and(|ordinal| wanted.contains(&ordinal));
            Ok(if more { Wants::More } else { Wants::Nothing })
        }
    }
}
