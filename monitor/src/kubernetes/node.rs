//! The node: what is written down on it, and how it is marked.
//!
//! A mark is put and removed by reading the node, changing what is ours and writing it back only if nobody else has written
//! since. Cordoning is undone only if it was done here ([`CORDONED`]); taints of others are never touched.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{CONDITION, Cluster, RECORDS, TAINT, error::ClusterError, error::answer, events};
use crate::{
    metrics::Action,
    plan::{Order, Record},
};

/// Annotation of a node that was cordoned here.
const CORDONED: &str = "migration.io/cordoned-by";

/// Who writes.
pub(super) const MANAGER: &str = "migration-monitor";

/// How often a node that others write too is tried.
const ATTEMPTS: u32 = 8;

/// What is known about the node from its own object.
pub(super) struct Known {
    pub origin: String,
    pub records: Vec<Record>,
}

/// How the node is marked.
pub(super) struct Mark {
    message: String,
    id: String,
}

impl Mark {
    pub fn of(order: &Order) -> Self {
        Self { message: format!("{} [{}]", order.reason, order.id), id: order.id.clone() }
    }
}

fn nodes(client: &Client) -> Api<Node> {
    Api::all(client.clone())
}

fn by_us() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// Reads the node. Records that are not ours to understand count as none, and are replaced.
pub(super) async fn read(client: &Client, name: &str) -> Result<Known, ClusterError> {
    let node = answer(nodes(client).get(name)).await?;
    let text = node.annotations().get(RECORDS).map_or("[]", String::as_str);
    let records = serde_json::from_str(text).unwrap_or_else(|error| {
        tracing::error!(%error, annotation = RECORDS, "what was seen before cannot be read");
        Vec::new()
    });
    Ok(Known { origin: node.uid().unwrap_or_else(|| name.to_owned()), records })
}

/// Writes down which notices were seen.
pub(super) async fn write(cluster: &Cluster<'_>, records: &[Record]) -> Result<(), ClusterError> {
    let text = serde_json::to_string(records)?;
    let patch = json!({"metadata": {"uid": cluster.origin, "annotations": {RECORDS: text}}});
    let (api, name) = (nodes(&cluster.client), &cluster.settings.node);
    match answer(api.patch_metadata(name, &by_us(), &Patch::Merge(patch))).await {
        Err(error) if error.is_about_another_object() => Err(ClusterError::Replaced),
        other => other.map(drop),
    }
}

/// Marks the node as about to vanish, as far as it is not yet.
pub(super) async fn mark(cluster: &Cluster<'_>, mark: &Mark) -> Result<(), ClusterError> {
    let cordon = cluster.settings.cordon;
    let node = change(cluster, |node| {
        let spec = node.spec.clone().unwrap_or_default();
        let mut taints = spec.taints.unwrap_or_default();
        let tainted = taints.iter().any(|taint| taint.key == TAINT);
        let cordoned = spec.unschedulable == Some(true);
        let mut done = Vec::new();
        let mut patch = json!({"metadata": {}, "spec": {}});
        if !tainted {
            taints.push(Taint {
                key: TAINT.to_owned(),
                effect: "NoSchedule".to_owned(),
                time_added: None,
                value: None,
            });
            patch["spec"]["taints"] = json!(taints);
            done.push(Action::Taint);
        }
        if cordon && !cordoned {
            patch["spec"]["unschedulable"] = json!(true);
            patch["metadata"]["annotations"] = json!({CORDONED: MANAGER});
            done.push(Action::Cordon);
        }
        (patch, done)
    })
    .await?;
    let conditions = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let present = conditions.iter().find(|one| one.type_ == CONDITION);
    if present.is_none_or(|one| one.status != "True" || one.message.as_deref() != Some(&mark.message)) {
        let now = Timestamp::now().to_string();
        let condition = json!({
            "type": CONDITION,
            "status": "True",
            "reason": "Announced",
            "message": mark.message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        });
        set_condition(cluster, condition).await?;
        let told = events::of_node(&cluster.client, &node, &mark.id, "InterruptionNotice", &mark.message);
        events::best_effort(told.await, &cluster.metrics);
    }
    Ok(())
}

/// Removes the mark, as far as it was put here.
pub(super) async fn unmark(cluster: &Cluster<'_>) -> Result<(), ClusterError> {
    let node = change(cluster, |node| {
        let spec = node.spec.clone().unwrap_or_default();
        let before = spec.taints.unwrap_or_default();
        let taints: Vec<Taint> = before.iter().filter(|taint| taint.key != TAINT).cloned().collect();
        let mut done = Vec::new();
        let mut patch = json!({"metadata": {}, "spec": {}});
        if taints.len() < before.len() {
            patch["spec"]["taints"] = json!(taints);
            done.push(Action::Untaint);
        }
        if node.annotations().get(CORDONED).is_some_and(|by| by == MANAGER) {
            patch["spec"]["unschedulable"] = Value::Null;
            patch["metadata"]["annotations"] = json!({CORDONED: null});
            done.push(Action::Uncordon);
        }
        (patch, done)
    })
    .await?;
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    if conditions.is_some_and(|all| all.iter().any(|one| one.type_ == CONDITION)) {
        set_condition(cluster, json!({"type": CONDITION, "$patch": "delete"})).await?;
        let id = Timestamp::now().as_millisecond().to_string();
        let message = "the notice was withdrawn";
        let told = events::of_node(&cluster.client, &node, &id, "InterruptionWithdrawn", message);
        events::best_effort(told.await, &cluster.metrics);
    }
    Ok(())
}

/// Reads the node and writes a change to it, unless there is none. Gives the node as it was read.
async fn change(
    cluster: &Cluster<'_>,
    change: impl Fn(&Node) -> (Value, Vec<Action>),
) -> Result<Node, ClusterError> {
    let (api, name) = (nodes(&cluster.client), &cluster.settings.node);
    for _ in 0..ATTEMPTS {
        let node = answer(api.get(name)).await?;
        if node.uid().is_some_and(|uid| uid != cluster.origin) {
            return Err(ClusterError::Replaced);
        }
        let (mut patch, done) = change(&node);
        if done.is_empty() {
            return Ok(node);
        }
        // Taints are one value to the API server: whoever changes them must have seen them all.
        patch["metadata"]["resourceVersion"] = json!(node.resource_version());
        match answer(api.patch(name, &by_us(), &Patch::Merge(patch))).await {
            Ok(_) => {
                for action in done {
                    cluster.metrics.did(action);
                    tracing::warn!(node = name, ?action, "changed");
                }
                return Ok(node);
            }
            Err(error) if error.word() == "conflict" => {}
            Err(error) => return Err(error),
        }
    }
    Err(ClusterError::Conflict(format!("node {name}")))
}

async fn set_condition(cluster: &Cluster<'_>, condition: Value) -> Result<(), ClusterError> {
    let patch = json!({"status": {"conditions": [condition]}});
    let api = nodes(&cluster.client);
    answer(api.patch_status(&cluster.settings.node, &by_us(), &Patch::Strategic(patch))).await.map(drop)
}
