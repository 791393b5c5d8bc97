//! `MigratableApp`, `migration.io/v1alpha1`: what a user asks for and what the operator reports.
//!
//! What always holds:
//!
//! - A field the user left out is absent, not a default that was filled in: every optional field is an `Option`, and an
//!   explicit `false` or `0` survives being read and written again. Defaults are applied where a value is read, by the
//!   methods of the policy types.
//! - Every closed set is an enum, so that the API server refuses a word that is not in it.
//! - The definition that `kubectl` installs is generated from these types and nothing else.

pub mod migration;

use std::collections::BTreeMap;
use std::time::Duration as StdDuration;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use kube::core::Duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use self::migration::Migration;

/// Annotation on a pod that asks for a migration: `migration.io/trigger: requested`.
pub const TRIGGER_ANNOTATION: &str = "migration.io/trigger";
/// Value of [`TRIGGER_ANNOTATION`] that is a request.
pub const TRIGGER_REQUESTED: &str = "requested";
/// Annotation on a pod that says why its migration was asked for; copied into the history.
pub const REASON_ANNOTATION: &str = "migration.io/reason";
/// Label on every pod of a [`MigratableApp`], naming it.
pub const APP_LABEL: &str = "migration.io/app";
/// Namespace of the operator and of the Secrets with the object store's credentials.
pub const SYSTEM_NAMESPACE: &str = "migration-system";

/// An application whose processes can move from node to node with their memory.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "migration.io",
    version = "v1alpha1",
    kind = "MigratableApp",
    namespaced,
    shortname = "mapp",
    status = "MigratableAppStatus",
    derive = "PartialEq",
    doc = "An application whose processes can move from node to node with their memory",
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Generation", "type": "integer", "jsonPath": ".status.generation"}"#,
    printcolumn = r#"{"name": "Node", "type": "string", "jsonPath": ".status.currentNode"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct MigratableAppSpec {
    /// The pod to run, as in a Deployment.
    #[schemars(schema_with = "any_pod_template")]
    pub template: PodTemplateSpec,
    /// When checkpoints are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_policy: Option<CheckpointPolicy>,
    /// When and where the application moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_policy: Option<MigrationPolicy>,
    /// Where checkpoints are stored.
    pub storage: Storage,
}

/// When checkpoints are made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointPolicy {
    /// Time between two periodic checkpoints, like `30s` or `1m30s`; 30 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"))]
    pub interval: Option<Duration>,
    /// Whether the interval follows the rate at which memory changes; yes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_adjust: Option<bool>,
    /// Changed memory, in megabytes, that makes a checkpoint due before its time; 100 when absent.
    #[serde(default, rename = "memoryThresholdMB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub memory_threshold_mb: Option<u32>,
    /// How many checkpoints may build on one another before a full one is made; 10 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_checkpoint_chain_depth: Option<u32>,
}

impl CheckpointPolicy {
    /// Time between two periodic checkpoints. A negative duration, which no schema lets in, counts as absent.
    pub fn interval(&self) -> StdDuration {
        match self.interval {
            Some(interval) if !interval.is_negative() => interval.into(),
            _ => StdDuration::from_secs(30),
        }
    }

    /// Whether the interval follows the rate at which memory changes.
    pub fn auto_adjust(&self) -> bool {
        self.auto_adjust.unwrap_or(true)
    }

    /// Changed memory, in megabytes, that makes a checkpoint due before its time.
    pub fn memory_threshold_mb(&self) -> u32 {
        self.memory_threshold_mb.unwrap_or(100)
    }

    /// How many checkpoints may build on one another before a full one is made.
    pub fn max_checkpoint_chain_depth(&self) -> u32 {
        self.max_checkpoint_chain_depth.unwrap_or(10)
    }
}

/// When and where the application moves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPolicy {
    /// Whether the application moves by itself when its node is about to disappear; yes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_migrate: Option<bool>,
    /// Labels a node must have to be moved to; any node when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_node_selector: Option<BTreeMap<String, String>>,
    /// Whether nodes that are not interruptible are preferred as targets; yes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer_on_demand: Option<bool>,
    /// Seconds after which a migration that has not finished counts as failed; 300 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub migration_timeout_seconds: Option<u32>,
}

impl MigrationPolicy {
    /// Whether the application moves by itself when its node is about to disappear.
    pub fn auto_migrate(&self) -> bool {
        self.auto_migrate.unwrap_or(true)
    }

    /// Whether nodes that are not interruptible are preferred as targets.
    pub fn prefer_on_demand(&self) -> bool {
        self.prefer_on_demand.unwrap_or(true)
    }

    /// Time after which a migration that has not finished counts as failed.
    pub fn migration_timeout(&self) -> StdDuration {
        StdDuration::from_secs(self.migration_timeout_seconds.unwrap_or(300).into())
    }
}

/// Where checkpoints are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// What speaks at the endpoint.
    #[serde(rename = "type")]
    pub kind: StorageType,
    /// The bucket; it must exist.
    #[schemars(length(min = 1))]
    pub bucket: String,
    /// URL of the service; the provider's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Name of the Secret with the credentials, in the operator's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<String>,
}

/// Kinds of object storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StorageType {
    /// Amazon S3, or a service that behaves like it.
    S3,
    /// MinIO: S3 with path-style addresses.
    Minio,
    /// Google Cloud Storage.
    Gcs,
}

/// What the operator reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigratableAppStatus {
    /// Where the application is in its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How many times the application has moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The `metadata.generation` this status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Node the application runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_node: Option<String>,
    /// Pod the application runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_pod_name: Option<String>,
    /// The newest checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_status: Option<CheckpointStatus>,
    /// The migration that is under way, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// Which run of the application is the newest; every restore is one more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub runner_generation: Option<u64>,
    /// Past migrations, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub migration_history: Vec<MigrationRecord>,
    /// Conditions, one of each type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where an application is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Its pod does not run yet.
    Pending,
    /// It runs.
    Running,
    /// It is moving.
    Migrating,
    /// It cannot go on without somebody's help; the conditions say why.
    Failed,
}

/// The newest checkpoint of an application.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Its id.
    #[serde(default, rename = "lastCheckpointID", skip_serializing_if = "Option::is_none")]
    pub last_checkpoint_id: Option<String>,
    /// When it was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint_time: Option<Time>,
    /// How many checkpoints it builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub checkpoint_chain_depth: Option<u32>,
    /// Id of the full checkpoint it builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_chain_root: Option<String>,
    /// Bytes the application's checkpoints take in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_checkpoint_size: Option<i64>,
}

/// One past migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationRecord {
    /// Node it left.
    pub from_node: String,
    /// Node it came to; empty when it never got that far.
    pub to_node: String,
    /// When it began.
    pub timestamp: Time,
    /// Why it was asked for.
    pub reason: String,
    /// How long it took.
    pub duration: Duration,
    /// Whether the application runs on the new node.
    pub success: bool,
    /// What went wrong, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The schema of a pod template: any object, because the API server checks it when the pod is made, by the rules of the
/// cluster's own version rather than of the one this crate was built with.
fn any_pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "The pod to run, as in a Deployment.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true
    })
}
