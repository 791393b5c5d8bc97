//! `MigratableApp`, `migration.io/v1alpha1`: what a user asks for and what the operator reports.
//!
//! What always holds:
//!
//! - Every optional field is an `Option`, and an explicit `false` or `0` survives being read and written again. The API
//!   server fills the documented defaults in; the methods of the policy types give the same ones where it has not, for
//!   objects that were stored before a field existed.
//! - Every closed set is an enum, so that the API server refuses a word that is not in it.
//! - The definition that `kubectl` installs is generated from these types and nothing else ([`definition`]). What the types
//!   cannot say is a CEL rule; each rule's message names the field and what to do.
//! - What identifies the application's memory cannot be changed: the kind of store, the bucket, and the container; where somebody else makes
//!   the pods, the container is the one that their next version names.
//!
//! The names follow Kubernetes' own for checkpoints of pods ([KEP-5823]), so that one can be told in the words of the other:
//!
//! | here | `PodCheckpoint` (`node.k8s.io/v1alpha1`) |
//! |---|---|
//! | `status.currentPodName` | `spec.sourcePod.name` |
//! | `status.currentNode` | `status.nodeName` |
//! | `status.checkpointStatus.lastCheckpointTime` | `status.completionTime` |
//! | `status.checkpointStatus.lastCheckpointID` and `spec.storage` | `status.checkpointLocation` (a union that only has `nodeLocal` yet) |
//! | `spec.template` | `status.checkpointedPodTemplate` |
//! | `spec.container` | one of `status.checkpointedContainers` |
//! | condition `Checkpointed` | condition `Ready` |
//! | reasons `CheckpointCompleted`, `CheckpointInProgress`, `CheckpointFailed` | the same |
//! | a restored pod of the application | a pod with `spec.restoreFrom` |
//!
//! [KEP-5823]: https://git.k8s.io/enhancements/keps/sig-node/5823-pod-level-checkpoint-restore

mod checkpoint_policy;
mod definition;
mod injection;
pub mod migration;
mod migration_policy;
mod program;
mod status;
mod storage;

pub use checkpoint_policy::{CheckpointPolicy, DeadlineScheduler};
pub use definition::definition;
pub use injection::{Injection, PodOwner};
pub use migration_policy::{MigrationPolicy, Quiesce};
pub use program::Program;
pub use status::{CheckpointStatus, MIGRATION_HISTORY_LIMIT, MigratableAppStatus, MigrationRecord, Phase};
pub use storage::{Storage, StorageType};

use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    category = "all",
    category = "migration",
    status = "MigratableAppStatus",
    derive = "PartialEq",
    doc = "An application whose processes can move from node to node with their memory.",
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase", "description": "Where the application is in its life"}"#,
    printcolumn = r#"{"name": "Generation", "type": "integer", "jsonPath": ".status.generation", "description": "How many times it has moved"}"#,
    printcolumn = r#"{"name": "Node", "type": "string", "jsonPath": ".status.currentNode", "description": "Where it runs"}"#,
    printcolumn = r#"{"name": "Migratable", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Migratable\")].status", "description": "Whether it could move now", "priority": 1}"#,
    printcolumn = r#"{"name": "Checkpoint", "type": "date", "jsonPath": ".status.checkpointStatus.lastCheckpointTime", "description": "Since the last checkpoint", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = definition::spec_rules()))]
pub struct MigratableAppSpec {
    /// The pod to run, as in a Deployment.
    #[schemars(schema_with = "definition::pod_template")]
    pub template: PodTemplateSpec,
    /// The container of the template whose processes move; the first one when absent. The others are started anew on the
    /// new node. It cannot be changed; where somebody else makes the pods, it follows what they ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// When checkpoints are made and which are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = {}))]
    pub checkpoint_policy: Option<CheckpointPolicy>,
    /// When, where and how the application moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = {}))]
    pub migration_policy: Option<MigrationPolicy>,
    /// Where checkpoints are stored.
    pub storage: Storage,
    /// What becomes of the checkpoints when the MigratableApp is deleted. `Retain` keeps them in the store, where the command line
    /// finds them; `Delete` removes them all, but for those that somebody has given a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "Retain"))]
    pub deletion_policy: Option<DeletionPolicy>,
    /// Who makes the application's pods, where that is not this object: the operator writes it for pods with the annotation
    /// `migration.io/enabled`, and nobody else should. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injection: Option<Injection>,
}

/// What becomes of checkpoints when nobody manages them any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay.
    #[default]
    Retain,
    /// They are deleted.
    Delete,
}

impl MigratableAppSpec {
    /// What becomes of the checkpoints when the object is deleted.
    pub fn deletion_policy(&self) -> DeletionPolicy {
        self.deletion_policy.unwrap_or_default()
    }

    /// The name of the container whose processes move; `None` if the template has no container at all.
    pub fn container_name(&self) -> Option<&str> {
        let first =
            || self.template.spec.as_ref()?.containers.first().map(|container| container.name.as_str());
        self.container.as_deref().or_else(first)
    }
}
