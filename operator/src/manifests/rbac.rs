//! What the operator may do: one table, from which the manifests, the chart and the tests are made.
//!
//! Three roles, by where they hold:
//!
//! - [`CLUSTER`], everywhere: sees applications, pods and nodes, reports, and keeps its own webhook's certificate current. It
//!   can read no Secret and create no pod.
//! - [`NAMESPACE`], in the namespaces that an administrator allows: makes pods and the Secrets they mount, and the applications of pods
//!   that ask to be migratable by annotation. Whoever may create
//!   pods in a namespace can read its Secrets by mounting them, so that this right is given for each namespace alone.
//! - [`SYSTEM`], in the operator's own namespace: the credentials that are mirrored, the authority, the lease, the defaults.
//!
//! In a namespace that was not allowed, an application is shown as not migratable, with the command that allows it.

use serde_json::{Value, json};

/// One rule of a role.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resource, with its subresource.
    pub resource: &'static str,
    /// The objects it is about; all when empty.
    pub names: &'static [&'static str],
    /// What may be done.
    pub verbs: &'static [&'static str],
    /// What for.
    pub why: &'static str,
}

/// What holds everywhere.
pub const CLUSTER: &[Rule] = &[
    Rule {
        group: "migration.io",
        resource: "migratableapps",
        names: &[],
        verbs: &["get", "list", "watch", "patch"],
        why: "the applications; patch sets and removes the finalizer and takes back what was asked for by annotation",
    },
    Rule {
        group: "migration.io",
        resource: "migratableapps/status",
        names: &[],
        verbs: &["patch"],
        why: "the reports, and the state of a migration",
    },
    Rule {
        group: "migration.io",
        resource: "migratableapps/finalizers",
        names: &[],
        verbs: &["update"],
        why: "pods and Secrets are owned by their application",
    },
    Rule {
        group: "",
        resource: "pods",
        names: &[],
        verbs: &["get", "list", "watch"],
        why: "where applications run, and triggers",
    },
    Rule {
        group: "",
        resource: "nodes",
        names: &[],
        verbs: &["get", "list", "watch"],
        why: "where they can go",
    },
    Rule {
        group: "events.k8s.io",
        resource: "events",
        names: &[],
        verbs: &["create", "patch"],
        why: "events of applications",
    },
    Rule {
        group: "admissionregistration.k8s.io",
        resource: "mutatingwebhookconfigurations",
        names: &["migration-operator"],
        verbs: &["get", "patch"],
        why: "its own webhook's authority",
    },
];

/// What holds in the namespaces that were allowed.
pub const NAMESPACE: &[Rule] = &[
    Rule {
        group: "",
        resource: "pods",
        names: &[],
        verbs: &["create", "delete", "patch"],
        why: "applications' pods; patch takes back what was asked for by annotation, and releases a pod from its ReplicaSet",
    },
    Rule {
        group: "",
        resource: "pods/status",
        names: &[],
        verbs: &["patch"],
        why: "a target's pod is ready only when the application runs in it",
    },
    Rule {
        group: "migration.io",
        resource: "migratableapps",
        names: &[],
        verbs: &["create", "delete"],
        why: "those of pods that ask to be migratable by annotation; they come and go with their pods",
    },
    Rule {
        group: "apps",
        resource: "replicasets",
        names: &[],
        verbs: &["get"],
        why: "whether a ReplicaSet will replace a pod that is released from it",
    },
    Rule {
        group: "apps",
        resource: "statefulsets",
        names: &[],
        verbs: &["get"],
        why: "whether a StatefulSet still wants a pod that is gone",
    },
    Rule {
        group: "",
        resource: "secrets",
        names: &[],
        verbs: &["create", "patch"],
        why: "the store's credentials and agents' certificates, which pods mount; they go with what owns them",
    },
    Rule {
        group: "networking.k8s.io",
        resource: "networkpolicies",
        names: &[],
        verbs: &["list", "create", "patch"],
        why: "with --network-policies: who reaches the agents; list tells whether others isolate their pods already",
    },
];

/// What holds in the operator's own namespace.
pub const SYSTEM: &[Rule] = &[
    Rule {
        group: "",
        resource: "secrets",
        names: &[],
        verbs: &["get", "create"],
        why: "the store's credentials, whose names applications tell; the authority, when there is none",
    },
    Rule {
        group: "",
        resource: "secrets",
        names: &["migration-authority"],
        verbs: &["update"],
        why: "authorities are renewed",
    },
    Rule {
        group: "",
        resource: "configmaps",
        names: &["migration-injection"],
        verbs: &["get"],
        why: "defaults of pods that ask to be migratable by annotation",
    },
    Rule {
        group: "coordination.k8s.io",
        resource: "leases",
        names: &[],
        verbs: &["create"],
        why: "one operator at a time works",
    },
    Rule {
        group: "coordination.k8s.io",
        resource: "leases",
        names: &["migration-operator"],
        verbs: &["get", "update"],
        why: "one operator at a time works",
    },
];

/// The `rules` of a role.
pub fn rules(table: &[Rule]) -> Value {
    let rule = |rule: &Rule| {
        let mut value = json!({"apiGroups": [rule.group], "resources": [rule.resource], "verbs": rule.verbs});
        if !rule.names.is_empty() {
            value["resourceNames"] = json!(rule.names);
        }
        value
    };
    table.iter().map(rule).collect()
}
