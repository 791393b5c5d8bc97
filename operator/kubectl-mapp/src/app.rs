//! An application as the operator tells of it: the parts that are shown.

use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    kubectl::{KIND, Kubectl},
};

/// A MigratableApp.
#[derive(Clone, Debug, Deserialize)]
pub struct App {
    metadata: Metadata,
    #[serde(default)]
    pub status: Status,
}

#[derive(Clone, Debug, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Its status.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub phase: Option<String>,
    pub generation: Option<i64>,
    pub current_node: Option<String>,
    pub current_pod_name: Option<String>,
    pub checkpoint_status: Option<Checkpoint>,
    pub migration: Option<Migration>,
    pub migration_history: Vec<Past>,
    pub conditions: Vec<Condition>,
}

/// Its newest checkpoint.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoint {
    #[serde(rename = "lastCheckpointID")]
    pub last_checkpoint_id: Option<String>,
    pub last_checkpoint_time: Option<String>,
    pub checkpoint_chain_depth: Option<u32>,
    pub total_checkpoint_size: Option<u64>,
}

/// The migration that is under way, or the last one.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Migration {
    pub id: String,
    pub stage: String,
    pub reason: String,
    pub message: Option<String>,
    pub source: Option<Place>,
    pub target: Option<Place>,
    pub blackout_ms: Option<u64>,
    #[serde(rename = "checkpointID")]
    pub checkpoint_id: Option<String>,
}

/// A pod and its node.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Place {
    pub pod: String,
    pub node: String,
}

/// A past migration.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Past {
    pub from_node: String,
    pub to_node: String,
    pub timestamp: String,
    pub reason: String,
    pub duration: String,
    pub blackout: Option<String>,
    pub success: bool,
    pub message: Option<String>,
}

/// A condition.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

impl Migration {
    /// Whether nothing more comes of it.
    pub fn is_over(&self) -> bool {
        ["Succeeded", "Failed", "Cancelled"].contains(&self.stage.as_str())
    }
}

impl App {
    /// One application.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(kubectl: &Kubectl, name: &str) -> Result<Self, Error> {
        Ok(serde_json::from_value(kubectl.get(KIND, Some(name))?)?)
    }

    /// All of the namespace.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn list(kubectl: &Kubectl) -> Result<Vec<Self>, Error> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<App>,
        }
        let list: List = serde_json::from_value(kubectl.get(KIND, None)?)?;
        Ok(list.items)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// A condition.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// The pod it runs in.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self) -> Result<&str, Error> {
        let none = || Error::NoPod { name: self.name().to_owned() };
        self.status.current_pod_name.as_deref().ok_or_else(none)
    }
}
