//! The definition that `kubectl` installs: what the types say, and the rules they cannot say.
//!
//! Rules are CEL and hold wherever the definition is installed (Kubernetes 1.25; older API servers drop them and the
//! operator refuses what they would have). Each message names the field from `spec` on and says what to do.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::MigratableApp;

/// The longest name: names of pods begin with it, and are names of hosts, which have 63 characters at most.
const NAME_LIMIT: usize = 52;

/// The CustomResourceDefinition of [`MigratableApp`].
///
/// # Errors
/// When it cannot be represented, which a test excludes.
pub fn definition() -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut definition = serde_json::to_value(MigratableApp::crd())?;
    if let Some(root) = definition.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        settle(root);
        root["x-kubernetes-validations"] = json!([rule(
            &format!(
                "self.metadata.name.size() <= {NAME_LIMIT} && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')"
            ),
            &format!(
                "metadata.name is too long or has a dot: use at most {NAME_LIMIT} lower-case letters, digits and `-`, because pods are named after it"
            ),
        )]);
    }
    serde_json::from_value(definition)
}

/// Says what Rust's types mean in the words that the API server knows: an absent option is absent and not null, so that a null
/// is replaced by the default, and numbers have signed formats.
fn settle(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
            }
            let signed = match fields.get("format").and_then(Value::as_str) {
                Some("uint32" | "uint16") => Some("int32"),
                Some("uint64") => Some("int64"),
                _ => None,
            };
            if let Some(format) = signed {
                fields.insert("format".to_owned(), json!(format));
            }
            fields.values_mut().for_each(settle);
        }
        Value::Array(items) => items.iter_mut().for_each(settle),
        _ => {}
    }
}

/// The schema of a pod template: any object, because the API server checks it when the pod is made, by the rules of the
/// cluster's own version rather than of the one this crate was built with. Only what rules look at is told.
pub(super) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "The pod to run, as in a Deployment.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "required": ["spec"],
        "properties": {
            "spec": {
                "description": "What the pod runs, as in any pod.",
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "required": ["containers"],
                "properties": {
                    "containers": {
                        "description": "The containers, as in any pod.",
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 64,
                        "items": {
                            "type": "object",
                            "x-kubernetes-preserve-unknown-fields": true,
                            "required": ["name"],
                            "properties": {
                                "name": {"description": "The container's name.", "type": "string", "maxLength": 63}
                            }
                        }
                    },
                    "hostPID": {
                        "description": "Must not be true: the agent sees the container's processes through the pod's own process namespace.",
                        "type": "boolean"
                    }
                }
            }
        }
    })
}

pub(super) fn spec_rules() -> Value {
    json!([
        rule(
            "!has(self.container) || self.template.spec.containers.exists(c, c.name == self.container)",
            "spec.container must be the name of one of spec.template.spec.containers",
        ),
        rule(
            // Where somebody else makes the pods it follows what their next version says.
            "has(self.injection) \
             || has(self.container) == has(oldSelf.container) && (!has(self.container) || self.container == oldSelf.container)",
            "spec.container cannot be changed, because the checkpoints are of its processes: create another MigratableApp",
        ),
        rule(
            "has(self.injection) == has(oldSelf.injection) && (!has(self.injection) || self.injection == oldSelf.injection)",
            "spec.injection cannot be changed: it says whose pods these are; leave it as it is",
        ),
        rule(
            "self.template.spec.containers.all(c, c.name != 'migration-agent')",
            "spec.template.spec.containers must not have one named migration-agent: that is the operator's, use another name",
        ),
        rule(
            "!has(self.template.spec.hostPID) || !self.template.spec.hostPID",
            "spec.template.spec.hostPID must not be true: the pod needs a process namespace of its own, remove hostPID",
        ),
        rule(
            "!has(self.migrationPolicy) || !has(self.migrationPolicy.strategy) || !(self.migrationPolicy.strategy in ['lazy-direct', 'lazy-hybrid']) \
             || !has(self.checkpointPolicy) || !has(self.checkpointPolicy.paths) || self.checkpointPolicy.paths.size() == 0",
            "spec.migrationPolicy.strategy lazy-direct and lazy-hybrid carry memory only: remove spec.checkpointPolicy.paths, or use lazy-storage or full",
        ),
        rule(
            "!has(self.migrationPolicy) || !has(self.migrationPolicy.strategy) || !(self.migrationPolicy.strategy in ['lazy-direct', 'lazy-hybrid']) \
             || !has(self.storage.asyncPrefetch) || self.storage.asyncPrefetch",
            "spec.storage.asyncPrefetch: false would keep the source of lazy-direct and lazy-hybrid for ever: remove it, or use lazy-storage",
        ),
    ])
}

pub(super) fn interval_rules() -> Value {
    let duration = "self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$')";
    json!([
        rule(
            duration,
            "spec.checkpointPolicy.interval must be a duration with units ms, s, m or h, like 30s or 1m30s"
        ),
        rule(
            &format!(
                "!{duration} || (duration(self) >= duration('1s') && duration(self) <= duration('24h'))"
            ),
            "spec.checkpointPolicy.interval must be from 1s to 24h",
        ),
    ])
}

pub(super) fn path_rules() -> Value {
    json!([rule(
        "self.all(path, path.startsWith('/') && path.size() > 1 && !path.matches('(^|/)[.][.](/|$)'))",
        "spec.checkpointPolicy.paths must be absolute paths below / without `..`, like /var/lib/redis",
    )])
}

pub(super) fn deadline_rules() -> Value {
    json!([rule(
        "!has(self.deadlineSeconds) || \
         (has(self.tFreezeMs) ? self.tFreezeMs : 0) + (has(self.tMarginMs) ? self.tMarginMs : 0) < self.deadlineSeconds * 1000",
        "spec.checkpointPolicy.deadlineScheduler: tFreezeMs and tMarginMs together must be less than deadlineSeconds, or no dump ever fits: lower them",
    )])
}

pub(super) fn migration_rules() -> Value {
    json!([rule(
        "!has(self.preDumpQuiesce) || !has(self.preDumpQuiesce.timeoutSeconds) || !has(self.migrationTimeoutSeconds) \
         || self.preDumpQuiesce.timeoutSeconds < self.migrationTimeoutSeconds",
        "spec.migrationPolicy.preDumpQuiesce.timeoutSeconds must be less than spec.migrationPolicy.migrationTimeoutSeconds, or no migration ever gets beyond it: lower it",
    )])
}

pub(super) fn quiesce_rules() -> Value {
    json!([
        rule(
            "(has(self.command) && self.command.size() > 0) != has(self.url)",
            "spec.migrationPolicy.preDumpQuiesce needs either command or url: set exactly one of them",
        ),
        rule(
            "!has(self.url) || self.url.matches('^http://[^/]+')",
            "spec.migrationPolicy.preDumpQuiesce.url must begin with http:// (let a command do anything else)",
        ),
    ])
}

pub(super) fn storage_rules() -> Value {
    json!([
        rule(
            "self.type == oldSelf.type",
            "spec.storage.type cannot be changed, because the checkpoints are there: create another MigratableApp",
        ),
        rule(
            "self.type != 'minio' || (has(self.endpoint) && self.endpoint != '')",
            "spec.storage.endpoint is needed with type minio: set it to the server's URL, like http://minio.storage:9000",
        ),
        rule(
            "!has(self.expressOneZone) || !self.expressOneZone",
            "spec.storage.expressOneZone is not supported: remove it, and name a general purpose bucket of the same region",
        ),
        rule(
            "self.type != 's3' || !self.bucket.endsWith('--x-s3')",
            "spec.storage.bucket is a directory bucket of S3 Express One Zone, which is not supported: name a general purpose bucket of the same region",
        ),
        rule(
            "!has(self.compressLevel) || !has(self.compress) || self.compress",
            "spec.storage.compressLevel means nothing with compress: false: remove one of them",
        ),
        rule(
            "!has(self.prefetchWorkers) || !has(self.asyncPrefetch) || self.asyncPrefetch",
            "spec.storage.prefetchWorkers means nothing with asyncPrefetch: false: remove one of them",
        ),
    ])
}

pub(super) fn bucket_rules() -> Value {
    json!([
        rule(
            "self == oldSelf",
            "spec.storage.bucket cannot be changed, because the checkpoints are in it: create another MigratableApp",
        ),
        rule(
            "self.matches('^[a-zA-Z0-9][a-zA-Z0-9._-]*[a-zA-Z0-9]$')",
            "spec.storage.bucket must be the bucket's name alone, of letters, digits, `.`, `_` and `-`, without s3:// and without a path",
        ),
    ])
}

pub(super) fn url_rules(field: &str) -> Value {
    json!([rule(
        "self.matches('^https?://[^/?#@]+(/[^?#]*)?$')",
        &format!(
            "spec.storage.{field} must be a URL with http:// or https://, without credentials and parameters, like https://storage.example:9000"
        ),
    )])
}

pub(super) fn name_rules(field: &str) -> Value {
    json!([rule(
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        &format!("spec.storage.{field} must be the name of a Secret, without its namespace"),
    )])
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}
