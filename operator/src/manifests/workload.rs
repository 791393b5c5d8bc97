//! The operator's Deployment, and what reaches it.

use serde_json::{Value, json};

use super::{NAME, Options, metadata};

/// Where it serves health and numbers.
const HEALTH_PORT: u16 = 8080;
/// Where it serves the webhook.
const WEBHOOK_PORT: u16 = 9443;

pub(super) fn documents(options: &Options) -> Vec<Value> {
    vec![deployment(options), service(options), webhook(options)]
}

fn deployment(options: &Options) -> Value {
    let labels = json!({"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "migration"});
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(NAME, Some(&options.namespace)),
        "spec": {
            // One works, the other is there at once when it ends.
            "replicas": 2,
            "selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": NAME,
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "operator",
                        "image": options.image,
                        "args": [
                            "run",
                            format!("--cluster={}", options.cluster),
                            format!("--agent-image={}", options.agent_image),
                            format!("--health=0.0.0.0:{HEALTH_PORT}"),
                            format!("--webhook=0.0.0.0:{WEBHOOK_PORT}"),
                        ],
                        "env": [
                            {"name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace")},
                            {"name": "POD_NAME", "valueFrom": field("metadata.name")},
                        ],
                        "ports": [
                            {"name": "health", "containerPort": HEALTH_PORT},
                            {"name": "webhook", "containerPort": WEBHOOK_PORT},
                        ],
                        "livenessProbe": {"httpGet": {"path": "/livez", "port": "health"}, "periodSeconds": 20, "timeoutSeconds": 5},
                        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "health"}, "periodSeconds": 5, "timeoutSeconds": 5},
                        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
                    }],
                },
            },
        },
    })
}

fn service(options: &Options) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(NAME, Some(&options.namespace)),
        "spec": {
            "selector": {"app.kubernetes.io/name": NAME},
            "ports": [
                {"name": "webhook", "port": 443, "targetPort": "webhook"},
                {"name": "health", "port": HEALTH_PORT, "targetPort": "health"},
            ],
        },
    })
}

/// Without a `caBundle`: the operator puts its authority there, and keeps it current.
fn webhook(options: &Options) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": metadata(NAME, None),
        "webhooks": [{
            "name": "pods.migration.io",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": NAME, "namespace": options.namespace, "path": "/mutate-pods", "port": 443}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}],
            // A pod that asks to be migratable had better run as it is than not at all while the operator is away; and an
            // operator that cannot start because its own pods wait for it would never come back.
            "failurePolicy": "Ignore",
            "matchPolicy": "Equivalent",
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "NoneOnDryRun",
            "timeoutSeconds": 5,
            "namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", options.namespace]},
            ]},
        }],
    })
}
