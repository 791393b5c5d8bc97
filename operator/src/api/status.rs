//! What the operator reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Program, migration::Migration};

/// How many past migrations are reported; older ones are forgotten.
pub const MIGRATION_HISTORY_LIMIT: usize = 10;

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
    /// What tells that pod from others of its name, as in `migration.source.mark`; absent where no two pods have one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_pod_mark: Option<String>,
    /// What its processes were started from, where this object makes its pods: a change of `spec.template` takes effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
    /// Whether they were started anew because somebody asked for that: checkpoints from before are of another run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<bool>,
    /// The newest checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_status: Option<CheckpointStatus>,
    /// The migration that is under way, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// Past migrations, oldest first; the last ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MIGRATION_HISTORY_LIMIT), extend("x-kubernetes-list-type" = "atomic"))]
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
    /// The checkpoint's id, as the command line knows it.
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
    /// How long it took, from the request to the last step, like `4.2s`.
    pub duration: Duration,
    /// How long the application stood still, like `350ms`; absent when it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blackout: Option<Duration>,
    /// Whether the application runs on the new node.
    pub success: bool,
    /// What went wrong, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
