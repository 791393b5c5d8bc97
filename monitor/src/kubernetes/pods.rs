//! The migratable pods of this node, and their trigger.
//!
//! A trigger is a set of annotations. One that is there already is left alone, so that looking again costs one list; so is a pod
//! whose trigger was there and is not any more, because the operator has taken it up, or a person has removed it. Pods are
//! changed only as the object that was read: one that was replaced meanwhile is seen by the next look.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{APP, error::ClusterError, error::answer, events, moving::Moving, node::MANAGER};
use crate::{
    metrics::{Action, Metrics},
    plan::Order,
};

const TRIGGER: &str = "migration.io/trigger";
const REASON: &str = "migration.io/reason";
const TRIGGERED_BY: &str = "migration.io/triggered-by";
const DEADLINE: &str = "migration.io/deadline";
const NOTICE: &str = "migration.io/notice";
const ADVICE: &str = "migration.io/advice";

/// What a trigger says when nobody withdrew it.
const REQUESTED: &str = "requested";
/// Who triggers. Without this it was a person.
const MONITOR: &str = "monitor";

/// How many pods are changed at once.
const AT_ONCE: usize = 32;

/// Which notice, and with which deadline, pods were triggered for, by their uid.
pub(super) type Told = BTreeMap<String, (String, Option<Timestamp>)>;

/// The pods of a node.
pub(super) struct Pods<'a> {
    client: &'a Client,
    node: &'a str,
}

impl<'a> Pods<'a> {
    pub fn new(client: &'a Client, node: &'a str) -> Self {
        Self { client, node }
    }

    /// Triggers every pod that is not triggered for this yet. Says how many migratable pods there are.
    pub async fn trigger(
        &self,
        order: &Order,
        told: &mut Told,
        metrics: &Arc<Metrics>,
    ) -> Result<usize, ClusterError> {
        let pods = self.live().await?;
        let how_many = pods.len();
        let this = (order.id.clone(), order.deadline);
        let uid = |pod: &Pod| pod.uid().unwrap_or_default();
        told.retain(|known, _| pods.iter().any(|pod| uid(pod) == *known));
        let mut changes = Vec::new();
        for pod in pods {
            match wanted(&pod, order) {
                _ if told.get(&uid(&pod)) == Some(&this) => {}
                Some(annotations) => changes.push((annotations, pod)),
                None => drop(told.insert(uid(&pod), this.clone())),
            }
        }
        let message = format!("{} [{}]", order.reason, order.id);
        let reason = if order.leave() { "InterruptionNotice" } else { "InterruptionLikely" };
        let (changed, failure) = self.change(changes, Action::Trigger, metrics).await;
        told.extend(changed.iter().map(|pod| (uid(pod), this.clone())));
        // The node is not marked any later because of events.
        let (client, id, metrics) = (self.client.clone(), order.id.clone(), Arc::clone(metrics));
        tokio::spawn(async move {
            for pod in changed {
                let told = events::of_pod(&client, &pod, &id, reason, &message).await;
                events::best_effort(told, &metrics);
            }
        });
        failure.map_or(Ok(how_many), Err)
    }

    /// Takes back triggers for notices that were withdrawn, unless their pod moves already; those of `order` stay. Says how many
    /// pods move, whether their trigger is still there or was taken up.
    pub async fn release(
        &self,
        ids: &[String],
        order: Option<&Order>,
        metrics: &Metrics,
    ) -> Result<usize, ClusterError> {
        let moving = Moving::new(self.client);
        let (mut released, mut how_many) = (Vec::new(), 0);
        for pod in self.live().await? {
            let notice = pod.annotations().get(NOTICE);
            if notice.is_some_and(|id| order.is_some_and(|order| order.id == *id)) {
                continue;
            }
            if moving.moves(&pod).await? {
                how_many += 1;
            } else if notice.is_some_and(|id| ids.contains(id)) {
                released.push((unwanted(&pod), pod));
            }
        }
        let (_, failure) = self.change(released, Action::Untrigger, metrics).await;
        failure.map_or(Ok(how_many), Err)
    }

    /// All migratable pods here that are not over and not being deleted.
    async fn live(&self) -> Result<Vec<Pod>, ClusterError> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.node)).labels(APP);
        let mut pods = answer(Api::<Pod>::all(self.client.clone()).list(&here)).await?.items;
        pods.retain(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
        });
        Ok(pods)
    }

    /// Changes pods, and gives those that were, and why another was not. One that cannot be changed hinders no other; what is gone
    /// or was replaced is no failure.
    async fn change(
        &self,
        changes: Vec<(Value, Pod)>,
        action: Action,
        metrics: &Metrics,
    ) -> (Vec<Pod>, Option<ClusterError>) {
        let (mut changed, mut failure) = (Vec::new(), None);
        let mut running = JoinSet::new();
        let mut changes = changes.into_iter();
        loop {
            while running.len() < AT_ONCE
                && let Some((annotations, pod)) = changes.next()
            {
                let api: Api<Pod> =
                    Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
                running.spawn(async move { (annotate(&api, &pod, annotations).await, pod) });
            }
            match running.join_next().await {
                None => break,
                Some(Ok((Ok(()), pod))) => {
                    metrics.did(action);
                    tracing::info!(pod = pod.name_any(), namespace = pod.namespace(), ?action, "changed");
                    changed.push(pod);
                }
                Some(Ok((Err(error), _))) if error.is_about_another_object() => {}
                Some(Ok((Err(error), pod))) => {
                    tracing::warn!(pod = pod.name_any(), namespace = pod.namespace(), %error, "not changed");
                    failure = Some(error);
                }
                // A task that panicked has changed nothing that the next look would not see.
                Some(Err(_)) => {}
            }
        }
        (changed, failure)
    }
}

async fn annotate(api: &Api<Pod>, pod: &Pod, annotations: Value) -> Result<(), ClusterError> {
    let patch = json!({"metadata": {"uid": pod.uid(), "annotations": annotations}});
    let by_us = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    answer(api.patch_metadata(&pod.name_any(), &by_us, &Patch::Merge(patch))).await.map(drop)
}

/// Whether a person asked for this pod to move.
fn asked_by_a_person(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(TRIGGER).is_some_and(|trigger| trigger == REQUESTED)
        && annotations.get(TRIGGERED_BY).is_none_or(|by| by != MONITOR)
}

/// What to write on a pod, if it is not there yet.
fn wanted(pod: &Pod, order: &Order) -> Option<Value> {
    let present = pod.annotations();
    let deadline = order.deadline.map(|time| time.to_string());
    let same_notice = present.get(NOTICE) == Some(&order.id);
    if same_notice && present.get(DEADLINE) == deadline.as_ref() {
        return None;
    }
    if asked_by_a_person(present) {
        return Some(json!({NOTICE: order.id, DEADLINE: deadline}));
    }
    Some(json!({
        TRIGGER: REQUESTED,
        REASON: order.reason,
        TRIGGERED_BY: MONITOR,
        NOTICE: order.id,
        DEADLINE: deadline,
        ADVICE: order.advice.map(|advice| advice.word()),
    }))
}

/// What to write on a pod that was triggered for nothing.
fn unwanted(pod: &Pod) -> Value {
    if asked_by_a_person(pod.annotations()) {
        return json!({NOTICE: null, DEADLINE: null});
    }
    json!({TRIGGER: null, REASON: null, TRIGGERED_BY: null, NOTICE: null, DEADLINE: null, ADVICE: null})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{board::Source, policy::Advice};

    fn order() -> Order {
        Order {
            id: "aws-spot-terminate-1".into(),
            source: Source::AwsSpot,
            reason: "the machine is taken away".into(),
            deadline: Some("2026-09-18T08:22:00Z".parse().unwrap()),
            advice: None,
        }
    }

    fn pod(annotations: &[(&str, &str)]) -> Pod {
        let mut pod = Pod::default();
        let pairs = annotations.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        pod.metadata.annotations = Some(pairs.collect());
        pod
    }

    /// As a merge patch changes them.
    fn patched(pod: &Pod, patch: &Value) -> Pod {
        let mut pod = pod.clone();
        let annotations = pod.metadata.annotations.get_or_insert_default();
        for (name, value) in patch.as_object().unwrap() {
            match value.as_str() {
                Some(value) => annotations.insert(name.clone(), value.to_owned()),
                None => annotations.remove(name),
            };
        }
        pod
    }

    #[test]
    fn a_pod_that_is_triggered_for_a_notice_is_left_alone() {
        let fresh = pod(&[("other", "stays")]);
        let triggered = patched(&fresh, &wanted(&fresh, &order()).unwrap());
        assert_eq!(triggered.annotations()[TRIGGERED_BY], "monitor");
        assert_eq!(triggered.annotations()[DEADLINE], "2026-09-18T08:22:00Z");
        assert_eq!(wanted(&triggered, &order()), None);
        assert_eq!(patched(&triggered, &unwanted(&triggered)), fresh);
    }

    #[test]
    fn an_interruption_replaces_advice_and_a_deadline_that_moved_is_told() {
        let advice = Order {
            id: "aws-rebalance-1".into(),
            advice: Some(Advice::Checkpoint),
            deadline: None,
            ..order()
        };
        let fresh = pod(&[]);
        let advised = patched(&fresh, &wanted(&fresh, &advice).unwrap());
        assert_eq!(advised.annotations()[ADVICE], "checkpoint");
        assert!(!advised.annotations().contains_key(DEADLINE));
        let triggered = patched(&advised, &wanted(&advised, &order()).unwrap());
        assert!(!triggered.annotations().contains_key(ADVICE));
        let later = Order { deadline: Some("2026-09-18T08:23:00Z".parse().unwrap()), ..order() };
        assert_eq!(wanted(&triggered, &later).unwrap()[DEADLINE], "2026-09-18T08:23:00Z");
    }

    #[test]
    fn a_persons_trigger_stays_a_persons() {
        let asked = pod(&[(TRIGGER, REQUESTED), (REASON, "I want it there")]);
        let triggered = patched(&asked, &wanted(&asked, &order()).unwrap());
        assert!(!triggered.annotations().contains_key(TRIGGERED_BY));
        assert_eq!(triggered.annotations()[REASON], "I want it there");
        assert_eq!(triggered.annotations()[NOTICE], order().id);
        assert_eq!(patched(&triggered, &unwanted(&triggered)), asked);
    }
}
