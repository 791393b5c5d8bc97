//! Which application a pod that is being created is to take over, if any.
//!
//! Everything is read from the API server itself. When it does not answer, the pod starts anew: that is what a pod does for which no
//! webhook is asked, and it is noticed like that.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::ListParams};

use super::{HASH_LABEL, OWNER_LABEL};
use crate::{
    api::{
        Injection, MigratableApp, PodOwner,
        migration::{Migration, MigrationStage, Place, TargetMadeBy},
    },
    context::Context,
    error::Error,
    migration::{next_targets, owner_made},
    observe::{self, current_place},
    placement,
    status::{has_checkpoint, next_id},
};

/// Nodes beyond these are as good as one another.
const PREFERRED: usize = 8;
/// Terms about more nodes make a pod too large.
const EXCLUDED: usize = 200;

/// What a pod has to be so that an application can be restored into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The application.
    pub app: String,
    /// What [`MIGRATION_ANNOTATION`](crate::pods::MIGRATION_ANNOTATION) is on it.
    pub mark: String,
    /// Its name, where that is free to choose.
    pub name: Option<String>,
    /// Nodes it must not be on.
    pub excluded: Vec<String>,
    /// Nodes it had better be on, the best first.
    pub preferred: Vec<String>,
    /// Labels its node must have.
    pub selector: BTreeMap<String, String>,
}

/// The application that waits for a pod of this maker; `None` if there is none, and the pod starts anew.
///
/// # Errors
/// When the API server does not answer.
pub async fn awaited(
    ctx: &Context,
    namespace: &str,
    pod: &Pod,
    owner: &Injection,
) -> Result<Option<Replacement>, Error> {
    let Some(maker) = owner.owner.makes_target() else { return Ok(None) };
    let pods = pods_beside(ctx, namespace, pod).await?;
    let mut apps = of_owner(ctx, namespace, owner).await?;
    // Who has waited longest comes first.
    let begun = |app: &MigratableApp| {
        app.status.as_ref().and_then(|status| status.migration.as_ref()).map(|one| one.started_at.0)
    };
    apps.sort_by_key(|app| (begun(app), app.name_any()));
    for app in apps.iter().filter(|app| app.metadata.deletion_timestamp.is_none()) {
        let Some(waiting) = waiting(ctx, app, maker, pod, &pods).await? else { continue };
        return Ok(Some(describe(ctx, app, waiting)));
    }
    Ok(None)
}

/// The applications that are pods of this maker.
///
/// # Errors
/// When the API server does not answer.
pub async fn of_owner(
    ctx: &Context,
    namespace: &str,
    owner: &Injection,
) -> Result<Vec<MigratableApp>, Error> {
    let labelled = ListParams::default().labels(&format!("{OWNER_LABEL}={}", owner.uid));
    let mut apps = ctx.apps(namespace).list(&labelled).await.map_err(Error::kube("list applications"))?.items;
    apps.retain(|app| app.spec.injection.as_ref() == Some(owner));
    Ok(apps)
}

/// An application that waits: the pod, the migration's id, and what its migration knows.
struct Waiting<'a> {
    place: Place,
    id: String,
    source: String,
    migration: Option<&'a Migration>,
}

async fn waiting<'a>(
    ctx: &Context,
    app: &'a MigratableApp,
    maker: TargetMadeBy,
    pod: &Pod,
    pods: &[Pod],
) -> Result<Option<Waiting<'a>>, Error> {
    let Some(status) = &app.status else { return Ok(None) };
    let last = status.migration.as_ref();
    let moves = last.filter(|one| !one.stage.is_over() && one.stage != MigrationStage::RemovingSource);
    let source = match moves {
        Some(written) => written.source.clone(),
        None => match current_place(status).or_else(|| stranded(status.migration.as_ref())) {
            Some(place) => place,
            None => return Ok(None),
        },
    };
    if maker == TargetMadeBy::StatefulSet {
        // Memory goes on only in the program that it is of: another version starts anew.
        let same = observe::has_program(app, pod.annotations(), pod.spec.as_ref());
        if pod.metadata.name.as_ref() != Some(&source.pod) || !same {
            return Ok(None);
        }
    }
    if let Some(written) = moves {
        let Some(place) = next_target(written, maker, pods) else { return Ok(None) };
        let source = written.source.node.clone();
        return Ok(Some(Waiting { place, id: written.id.clone(), source, migration: Some(written) }));
    }
    let id = next_id(app);
    let place = owner_made(maker, &source.pod, &id, 1);
    let taken = maker == TargetMadeBy::ReplicaSet && named(pods, &place.pod).is_some();
    // One that is there is not replaced.
    let there = maker == TargetMadeBy::ReplicaSet && named(pods, &source.pod).is_some_and(is_live);
    if taken || there || !has_checkpoint(status) {
        return Ok(None);
    }
    let runs = status.current_pod_name.is_some();
    let awaits = !runs || is_lost(ctx, app, &source).await?;
    Ok(awaits.then_some(Waiting { place, id, source: source.node, migration: None }))
}

/// Where an application was that is a checkpoint now.
fn stranded(last: Option<&Migration>) -> Option<Place> {
    last.filter(|last| last.source_has_stopped()).map(|last| last.source.clone())
}

/// The target that a migration is to have next, unless it has it.
fn next_target(written: &Migration, maker: TargetMadeBy, pods: &[Pod]) -> Option<Place> {
    let mut next = next_targets(written, maker).into_iter();
    if maker == TargetMadeBy::StatefulSet {
        return next.next();
    }
    let before = written.stage == MigrationStage::ChoosingTarget && !written.source_has_stopped();
    if before && named(pods, &written.source.pod).is_some_and(is_live) {
        // Nothing has been released yet: a pod that is made now is one more.
        return None;
    }
    // One that is there is not replaced.
    if written.target.as_ref().and_then(|target| named(pods, &target.pod)).is_some_and(is_live) {
        return None;
    }
    for place in next {
        match named(pods, &place.pod) {
            None => return Some(place),
            Some(pod) if is_live(pod) => return None,
            Some(_) => {}
        }
    }
    None
}

/// The pods that the ReplicaSet of a new one knows for its own, which those are not that were released from it.
async fn pods_beside(ctx: &Context, namespace: &str, pod: &Pod) -> Result<Vec<Pod>, Error> {
    let Some(hash) = pod.labels().get(HASH_LABEL) else { return Ok(Vec::new()) };
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    let labelled = ListParams::default().labels(&format!("{HASH_LABEL}={hash}"));
    Ok(pods.list(&labelled).await.map_err(Error::kube("list a ReplicaSet's pods"))?.items)
}

fn named<'a>(pods: &'a [Pod], name: &str) -> Option<&'a Pod> {
    pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name))
}

async fn pod_at(ctx: &Context, app: &MigratableApp, name: &str) -> Result<Option<Pod>, Error> {
    ctx.pods_of(app).get_opt(name).await.map_err(Error::kube("read a pod"))
}

fn is_live(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod was lost with its machine, rather than deleted by somebody: its node is gone, out of service or does not answer, or
/// has ended the pod for a reason of its own.
///
/// # Errors
/// When the API server does not answer.
pub async fn is_lost(ctx: &Context, app: &MigratableApp, place: &Place) -> Result<bool, Error> {
    let pod = pod_at(ctx, app, &place.pod).await?.filter(|pod| observe::is_at(place, pod));
    if pod.as_ref().is_some_and(is_live) && pod_is_on_a_node_that_is_there(ctx, pod.as_ref(), place).await? {
        return Ok(false);
    }
    // Evictions and shutdowns of nodes have a reason.
    let by_machine = |pod: &Pod| {
        let status = pod.status.as_ref();
        status.is_some_and(|status| status.phase.as_deref() == Some("Failed") && status.reason.is_some())
    };
    if pod.as_ref().is_some_and(by_machine) {
        return Ok(true);
    }
    Ok(!node_answers(ctx, pod.as_ref(), place).await?)
}

async fn pod_is_on_a_node_that_is_there(
    ctx: &Context,
    pod: Option<&Pod>,
    place: &Place,
) -> Result<bool, Error> {
    let node = node_of(ctx, pod, place).await?;
    Ok(node.is_some_and(|node| !placement::is_out_of_service(&node)))
}

async fn node_answers(ctx: &Context, pod: Option<&Pod>, place: &Place) -> Result<bool, Error> {
    let node = node_of(ctx, pod, place).await?;
    Ok(node.is_some_and(|node| placement::is_ready(&node) && !placement::is_out_of_service(&node)))
}

async fn node_of(ctx: &Context, pod: Option<&Pod>, place: &Place) -> Result<Option<Node>, Error> {
    let of_pod = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_ref());
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    match of_pod.unwrap_or(&place.node).as_str() {
        "" => Ok(None),
        name => nodes.get_opt(name).await.map_err(Error::kube("read a node")),
    }
}

fn describe(ctx: &Context, app: &MigratableApp, waiting: Waiting<'_>) -> Replacement {
    let nodes = ctx.nodes.state();
    let mut preferred = observe::nodes(ctx, app, &waiting.source);
    let failed = waiting.migration.map(|written| written.failed_nodes.clone()).unwrap_or_default();
    // Nodes on which a try has failed are taken again when there is no other.
    if preferred.iter().any(|node| !failed.contains(node)) {
        preferred.retain(|node| !failed.contains(node));
    }
    let takes_name = app.spec.injection.as_ref().is_some_and(|one| one.owner == PodOwner::StatefulSet);
    // What cannot come back to the pod it was in may come back to its node, when nothing else has worked.
    let last_resort = takes_name && waiting.migration.and_then(|written| written.failures).unwrap_or(0) > 1;
    let source = nodes.iter().find(|node| node.name_any() == waiting.source).cloned();
    let mut excluded: Vec<String> = nodes
        .iter()
        .filter(|node| placement::is_doomed(node))
        .map(|node| node.name_any())
        .chain(failed.iter().filter(|node| !preferred.is_empty() && !preferred.contains(node)).cloned())
        .chain(Some(waiting.source).filter(|node| !node.is_empty() && !last_resort))
        .collect();
    excluded.sort();
    excluded.dedup();
    // After the others: where they are too many, the agent there refuses what its CPU cannot run.
    let lacks = |node: &Node| source.as_ref().is_some_and(|source| placement::lacks_features(source, node));
    let lacking = nodes.iter().filter(|node| lacks(node)).map(|node| node.name_any());
    let lacking: Vec<String> = lacking.filter(|node| !excluded.contains(node)).collect();
    excluded.extend(lacking);
    excluded.truncate(EXCLUDED);
    preferred.truncate(PREFERRED);
    let policy = app.spec.migration_policy.as_ref();
    Replacement {
        app: app.name_any(),
        mark: waiting.place.mark.unwrap_or(waiting.id),
        name: (!takes_name).then_some(waiting.place.pod),
        excluded,
        preferred,
        selector: policy.and_then(|policy| policy.target_node_selector.clone()).unwrap_or_default(),
    }
}
