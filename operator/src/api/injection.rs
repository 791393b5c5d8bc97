//! Applications that are pods somebody else makes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::migration::TargetMadeBy;

/// Who makes an application's pods, if its MigratableApp does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Injection {
    /// The kind of what makes them; `Pod` if nothing does.
    pub owner: PodOwner,
    /// The name of what makes them, or of the pod.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The uid of what makes them, or of the pod.
    #[schemars(length(min = 1, max = 63))]
    pub uid: String,
}

/// What makes pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PodOwner {
    /// A ReplicaSet, of a Deployment: another pod of another name replaces one that is gone.
    ReplicaSet,
    /// A StatefulSet: a pod of the same name replaces one that is gone.
    StatefulSet,
    /// Nobody: the pod was made by itself, and is not replaced.
    Pod,
}

impl PodOwner {
    /// Who makes the target of a migration; `None` if the operator does.
    pub fn makes_target(self) -> Option<TargetMadeBy> {
        match self {
            Self::ReplicaSet => Some(TargetMadeBy::ReplicaSet),
            Self::StatefulSet => Some(TargetMadeBy::StatefulSet),
            Self::Pod => None,
        }
    }
}
