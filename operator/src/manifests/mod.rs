//! What is applied to a cluster so that the operator works there.
//!
//! What always holds: rights come from one table ([`rbac`]) and nowhere else; what is shipped under `operator/deploy/` is what
//! comes out here, and a test compares them. The operator runs as an ordinary user, without capabilities, on a read-only root.

pub mod rbac;
mod workload;

use serde_json::{Value, json};

/// The name of everything that belongs to the operator.
pub const NAME: &str = "migration-operator";
/// The role it needs in each namespace with applications.
pub const NAMESPACE_ROLE: &str = "migration-operator-namespace";

/// What differs between installations.
#[derive(Clone, Debug)]
pub struct Options {
    /// The operator's namespace.
    pub namespace: String,
    /// The operator's image.
    pub image: String,
    /// The agent's image.
    pub agent_image: String,
    /// The cluster's name in the names of applications.
    pub cluster: String,
    /// Namespaces that may have applications.
    pub allow: Vec<String>,
}

/// Everything, in the order in which it is applied.
pub fn documents(options: &Options) -> Vec<Value> {
    let namespace = options.namespace.as_str();
    let account = json!({"kind": "ServiceAccount", "name": NAME, "namespace": namespace});
    let mut documents = vec![
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"app.kubernetes.io/part-of": "migration"}},
        }),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(NAME, Some(namespace))}),
        role("ClusterRole", NAME, None, rbac::CLUSTER),
        binding("ClusterRoleBinding", "ClusterRole", NAME, None, &account),
        role("ClusterRole", NAMESPACE_ROLE, None, rbac::NAMESPACE),
        role("Role", NAME, Some(namespace), rbac::SYSTEM),
        binding("RoleBinding", "Role", NAME, Some(namespace), &account),
    ];
    documents.extend(options.allow.iter().map(|allowed| allow(allowed, namespace)));
    documents.extend(workload::documents(options));
    documents
}

/// What allows a namespace to have applications.
pub fn allow(allowed: &str, operator_namespace: &str) -> Value {
    let account = json!({"kind": "ServiceAccount", "name": NAME, "namespace": operator_namespace});
    binding("RoleBinding", "ClusterRole", NAMESPACE_ROLE, Some(allowed), &account)
}

fn metadata(name: &str, namespace: Option<&str>) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "migration"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn role(kind: &str, name: &str, namespace: Option<&str>, table: &[rbac::Rule]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(name, namespace),
        "rules": rbac::rules(table),
    })
}

fn binding(kind: &str, role: &str, name: &str, namespace: Option<&str>, subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(name, namespace),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name},
        "subjects": [subject],
    })
}
