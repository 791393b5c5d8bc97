//! Where an application may be moved to, best node first.
//!
//! What always holds: a node that is given is ready, takes new pods, is not about to vanish, has the labels the policy asks for,
//! the source's architecture, a CPU with all that the source's has where labels tell of both, and roughly the room. Whether a pod fits in every detail is the scheduler's to say; a node it
//! refuses is a failed try like any other.

mod cpu;

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::{
    api::core::v1::{Node, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;

use self::cpu::Likeness;
pub use self::cpu::lacks_features;
use crate::{api::MigrationPolicy, migration::spread};

/// The taint of a node that is about to vanish.
pub const INTERRUPTION_TAINT: &str = "migration.io/interruption";
/// The condition of such a node.
pub const INTERRUPTION_CONDITION: &str = "InterruptionNotice";

/// Taints by which others say that a node goes away.
const TERMINATION_TAINTS: [&str; 7] = [
    INTERRUPTION_TAINT,
    "aws-node-termination-handler/",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "cloud.google.com/impending-node-termination",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
];

/// Labels that say that a node can be taken away at any time, and the value with which they say it.
const INTERRUPTIBLE: [(&str, &str); 6] = [
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("node.kubernetes.io/lifecycle", "spot"),
];

/// What is asked of a node.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The application's.
    pub policy: &'a MigrationPolicy,
    /// The pod's, as in the template.
    pub spec: &'a PodSpec,
    /// Where the application runs.
    pub source: &'a str,
    /// The application's uid, by which those that move at once go to different nodes.
    pub uid: &'a str,
    /// A label and its value that say, beside the well-known ones, that a node can be taken away.
    pub interruptible_label: Option<(&'a str, &'a str)>,
}

/// The nodes that will do, best first. `pods` are those whose requests are known.
pub fn nodes<'a>(
    wanted: &Wanted<'_>,
    nodes: impl IntoIterator<Item = &'a Node>,
    pods: impl IntoIterator<Item = &'a Pod>,
) -> Vec<String> {
    let taken = taken(pods);
    let all: Vec<&Node> = nodes.into_iter().collect();
    let architecture = |node: &Node| node.labels().get("kubernetes.io/arch").cloned();
    let source = all.iter().copied().find(|node| node.name_any() == wanted.source);
    let source_architecture = source.and_then(architecture);
    let need = Room::of_pod(wanted.spec);
    let mut fitting: Vec<(bool, Likeness, String)> = Vec::new();
    for node in all {
        let name = node.name_any();
        let same = source_architecture.is_none() || architecture(node) == source_architecture;
        if name == wanted.source || !same || is_doomed(node) || !takes_pods(node, wanted.spec) {
            continue;
        }
        let selected = |selector: &BTreeMap<String, String>| {
            selector.iter().all(|(key, value)| node.labels().get(key) == Some(value))
        };
        if !wanted.policy.target_node_selector.as_ref().is_none_or(selected)
            || !wanted.spec.node_selector.as_ref().is_none_or(selected)
        {
            continue;
        }
        let Some(likeness) = source.map_or(Some(Likeness::Unknown), |source| cpu::likeness(source, node))
        else {
            continue;
        };
        let free = free(node, taken.get(name.as_str()).copied().unwrap_or_default());
        if free.cpu < need.cpu || free.memory < need.memory || free.pods < 1 {
            continue;
        }
        let avoided = wanted.policy.prefer_on_demand() && is_interruptible(node, wanted.interruptible_label);
        fitting.push((avoided, likeness, name));
    }
    // All of a node's applications move at once and cannot see where the others go: each has an order of its own.
    let order = |name: &str| spread(&format!("{}-{name}", wanted.uid), u64::MAX);
    fitting.sort_by_cached_key(|(avoided, likeness, name)| (*avoided, *likeness, order(name), name.clone()));
    fitting.into_iter().map(|(_, _, name)| name).collect()
}

/// Whether a node is about to vanish, or is not to be used any more.
pub fn is_doomed(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let tainted = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten().any(|taint| {
        TERMINATION_TAINTS
            .iter()
            .any(|name| taint.key == *name || (name.ends_with('/') && taint.key.starts_with(name)))
    });
    tainted || has_condition(node, INTERRUPTION_CONDITION)
}

/// Whether nothing of a node can run any more: somebody who knows has said so.
pub fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| taint.key == "node.kubernetes.io/out-of-service")
}

/// Whether the kubelet says that it can run pods.
pub fn is_ready(node: &Node) -> bool {
    has_condition(node, "Ready")
}

fn has_condition(node: &Node, name: &str) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == name && condition.status == "True")
}

fn takes_pods(node: &Node, spec: &PodSpec) -> bool {
    let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let tolerated =
        taints.into_iter().flatten().filter(|taint| taint.effect != "PreferNoSchedule").all(|taint| {
            spec.tolerations.iter().flatten().any(|toleration| {
                let key = toleration.key.as_deref().is_none_or(|key| key.is_empty() || key == taint.key);
                let effect = toleration
                    .effect
                    .as_deref()
                    .is_none_or(|effect| effect.is_empty() || effect == taint.effect);
                let value = toleration.operator.as_deref() == Some("Exists")
                    || toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("");
                key && effect && value
            })
        });
    is_ready(node) && !cordoned && tolerated && node.metadata.deletion_timestamp.is_none()
}

fn is_interruptible(node: &Node, own: Option<(&str, &str)>) -> bool {
    INTERRUPTIBLE
        .into_iter()
        .chain(own)
        .any(|(key, value)| node.labels().get(key).is_some_and(|found| found == value))
}

/// An amount of what pods ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    /// Thousandths of a processor.
    cpu: i64,
    /// Bytes.
    memory: i64,
    pods: i64,
}

impl Room {
    fn of_pod(spec: &PodSpec) -> Self {
        let own = spec.containers.iter().map(|container| Self::of(container.resources.as_ref()));
        own.fold(Self { pods: 1, ..Self::default() }, |sum, one| Self {
            cpu: sum.cpu.saturating_add(one.cpu),
            memory: sum.memory.saturating_add(one.memory),
            pods: sum.pods,
        })
    }

    fn of(resources: Option<&ResourceRequirements>) -> Self {
        let requests =
            resources.and_then(|resources| resources.requests.as_ref().or(resources.limits.as_ref()));
        requests.map_or_else(Self::default, Self::of_list)
    }

    fn of_list(list: &BTreeMap<String, Quantity>) -> Self {
        let value = |name: &str, scale: f64| {
            list.get(name).map_or(0, |quantity| (amount(&quantity.0) * scale) as i64)
        };
        Self { cpu: value("cpu", 1000.0), memory: value("memory", 1.0), pods: value("pods", 1.0) }
    }
}

/// What pods have of each node.
fn taken<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> HashMap<&'a str, Room> {
    let mut taken: HashMap<&str, Room> = HashMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let Some(node) = spec.node_name.as_deref().filter(|_| !matches!(phase, Some("Succeeded" | "Failed")))
        else {
            continue;
        };
        let (sum, one) = (taken.entry(node).or_default(), Room::of_pod(spec));
        *sum = Room {
            cpu: sum.cpu.saturating_add(one.cpu),
            memory: sum.memory.saturating_add(one.memory),
            pods: sum.pods + 1,
        };
    }
    taken
}

/// What is left on a node. One that does not say how much it has, has enough.
fn free(node: &Node, taken: Room) -> Room {
    const ENOUGH: Room = Room { cpu: i64::MAX / 2, memory: i64::MAX / 2, pods: i64::MAX / 2 };
    let Some(allocatable) = node.status.as_ref().and_then(|status| status.allocatable.as_ref()) else {
        return ENOUGH;
    };
    let mut all = Room::of_list(allocatable);
    if !allocatable.contains_key("pods") {
        all.pods = ENOUGH.pods;
    }
    Room {
        cpu: all.cpu.saturating_sub(taken.cpu),
        memory: all.memory.saturating_sub(taken.memory),
        pods: all.pods - taken.pods,
    }
}

/// A quantity as Kubernetes writes it; 0 for one that is none.
fn amount(text: &str) -> f64 {
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        _ => return text.parse().unwrap_or(0.0),
    };
    number.parse::<f64>().unwrap_or(0.0) * scale
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, change: serde_json::Value) -> Node {
        let mut value = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/arch": "amd64"}},
            "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}
        });
        merge(&mut value, change);
        serde_json::from_value(value).unwrap()
    }

    fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
        match (into, from) {
            (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn chosen(policy: serde_json::Value, all: &[Node], pods: &[&Pod]) -> Vec<String> {
        let policy: MigrationPolicy = serde_json::from_value(policy).unwrap();
        let spec: PodSpec = serde_json::from_value(json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}
        ]}))
        .unwrap();
        let wanted = Wanted {
            policy: &policy,
            spec: &spec,
            source: "source",
            uid: "u",
            interruptible_label: Some(("pool", "cheap")),
        };
        let mut chosen = nodes(&wanted, all, pods.iter().copied());
        // Those that stay come first; among equals the order is anybody's.
        let first = chosen.iter().position(|name| name < &"d".to_owned()).unwrap_or(0);
        chosen[first..].sort();
        chosen
    }

    #[test]
    fn no_node_is_given_that_is_or_will_be_gone() {
        let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
        let all = [
            node("source", json!({})),
            node("good", json!({})),
            node("cordoned", json!({"spec": {"unschedulable": true}})),
            node("unready", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})),
            node("arm", json!({"metadata": {"labels": {"kubernetes.io/arch": "arm64"}}})),
            node("ours", taint(INTERRUPTION_TAINT)),
            node("aws", taint("aws-node-termination-handler/spot-itn")),
            node("karpenter", taint("karpenter.sh/disrupted")),
            node("gke", taint("cloud.google.com/impending-node-termination")),
            node("autoscaler", taint("ToBeDeletedByClusterAutoscaler")),
            node("somebodys", taint("dedicated")),
            node(
                "noticed",
                json!({"status": {"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "InterruptionNotice", "status": "True"}]}}),
            ),
            node("small", json!({"status": {"allocatable": {"memory": "1000Mi"}}})),
            node("full", json!({"status": {"allocatable": {"pods": "0"}}})),
        ];
        assert_eq!(chosen(json!({}), &all, &[]), ["good"]);
    }

    #[test]
    fn nodes_that_stay_come_before_those_that_can_be_taken_away() {
        let labelled =
            |name: &str, key: &str, value: &str| node(name, json!({"metadata": {"labels": {key: value}}}));
        let all = [
            labelled("a", "eks.amazonaws.com/capacityType", "SPOT"),
            labelled("b", "cloud.google.com/gke-spot", "true"),
            labelled("c", "pool", "cheap"),
            labelled("d", "eks.amazonaws.com/capacityType", "ON_DEMAND"),
        ];
        assert_eq!(chosen(json!({}), &all, &[]), ["d", "a", "b", "c"]);
        assert_eq!(chosen(json!({"preferOnDemand": false}), &all, &[]), ["a", "b", "c", "d"]);
        assert_eq!(chosen(json!({"targetNodeSelector": {"pool": "cheap"}}), &all, &[]), ["c"]);
    }

    #[test]
    fn what_pods_have_asked_for_is_not_there_any_more() {
        let all = [node("a", json!({})), node("b", json!({}))];
        let pod = |node: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "spec": {"nodeName": node, "containers": [{"name": "x", "resources": {"requests": {"memory": "3500Mi"}}}]},
                "status": {"phase": phase}
            }))
            .unwrap()
        };
        assert_eq!(chosen(json!({}), &all, &[]), ["a", "b"]);
        assert_eq!(chosen(json!({}), &all, &[&pod("a", "Running")]), ["b"]);
        assert_eq!(chosen(json!({}), &all, &[&pod("a", "Succeeded")]), ["a", "b"]);
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in
            [("2", 2.0), ("250m", 0.25), ("1Gi", 1073741824.0), ("1.5k", 1500.0), ("1e3", 1000.0), ("x", 0.0)]
        {
            assert_eq!(amount(text), value, "{text}");
        }
    }
}
