//! Events, so that `kubectl describe` tells why.
//!
//! An event's name follows from the notice: telling it again changes nothing. What cannot be told is counted and let be;
//! the trigger does not depend on it.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, Node, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{Api, Client, ResourceExt, api::PostParams};

use super::{error::ClusterError, error::answer, node::MANAGER};
use crate::metrics::Metrics;

/// An event about a pod.
pub(super) async fn of_pod(
    client: &Client,
    pod: &Pod,
    id: &str,
    reason: &str,
    message: &str,
) -> Result<(), ClusterError> {
    let object = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        namespace: pod.namespace(),
        uid: pod.uid(),
        ..ObjectReference::default()
    };
    tell(client, &pod.namespace().unwrap_or_default(), object, id, reason, message).await
}

/// An event about the node. Those are in the namespace `default`, as the node is in none.
pub(super) async fn of_node(
    client: &Client,
    node: &Node,
    id: &str,
    reason: &str,
    message: &str,
) -> Result<(), ClusterError> {
    let object = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.name_any()),
        uid: node.uid(),
        ..ObjectReference::default()
    };
    tell(client, "default", object, id, reason, message).await
}

async fn tell(
    client: &Client,
    namespace: &str,
    object: ObjectReference,
    id: &str,
    reason: &str,
    message: &str,
) -> Result<(), ClusterError> {
    let now = Time(Timestamp::now());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{id}", object.name.as_deref().unwrap_or_default())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: object,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        type_: Some("Warning".to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        reporting_component: Some(MANAGER.to_owned()),
        source: Some(EventSource { component: Some(MANAGER.to_owned()), host: None }),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    match answer(api.create(&PostParams::default(), &event)).await {
        // It has been told.
        Err(error) if error.word() == "conflict" => Ok(()),
        other => other.map(drop),
    }
}

/// Counts what could not be told.
pub(super) fn best_effort(told: Result<(), ClusterError>, metrics: &Metrics) {
    if let Err(error) = told {
        metrics.failed("kubernetes", "event");
        tracing::debug!(%error, "an event could not be told");
    }
}
