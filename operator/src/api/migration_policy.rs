//! When, where and how an application moves.

use std::{collections::BTreeMap, time::Duration as StdDuration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{definition, migration::MigrationStrategy};

/// When, where and how an application moves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = definition::migration_rules()))]
pub struct MigrationPolicy {
    /// Whether the application moves by itself when its node is about to disappear. When it does not, a checkpoint is made
    /// instead. A person's request is obeyed either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub auto_migrate: Option<bool>,
    /// Labels a node must have to be moved to; any node when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub target_node_selector: Option<BTreeMap<String, String>>,
    /// Whether nodes that cannot be taken away at short notice are preferred as targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub prefer_on_demand: Option<bool>,
    /// Seconds after which a migration that has not finished is given up; the application then goes on where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400), extend("default" = 300))]
    pub migration_timeout_seconds: Option<u32>,
    /// Where pages come from while the application moves. `full`: from the store, all before it runs. `lazy-storage`: from the store,
    /// on demand. `lazy-direct`: from the source node, on demand. `lazy-hybrid`: from the source node, or from the store once they
    /// are there. The last two carry memory only, no files, and need both nodes until the last page has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "lazy-storage"))]
    pub strategy: Option<MigrationStrategy>,
    /// What drains the application's load before it is frozen for the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_dump_quiesce: Option<Quiesce>,
}

/// What is called before the final dump, and once more when that dump does not come. If it fails, the application is not
/// frozen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = definition::quiesce_rules()))]
pub struct Quiesce {
    /// A program and its arguments, run by the agent without a shell; MIGRATION_EVENT says what is about to happen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)), extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
    /// An address that gets a POST and has to answer with a status of 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// Seconds it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600), extend("default" = 10))]
    pub timeout_seconds: Option<u32>,
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

    /// Time after which a migration that has not finished is given up.
    pub fn migration_timeout(&self) -> StdDuration {
        StdDuration::from_secs(self.migration_timeout_seconds.unwrap_or(300).into())
    }

    /// Where pages come from while the application moves.
    pub fn strategy(&self) -> MigrationStrategy {
        self.strategy.unwrap_or(MigrationStrategy::LazyStorage)
    }
}

impl Quiesce {
    /// How long it may take.
    pub fn timeout(&self) -> StdDuration {
        StdDuration::from_secs(self.timeout_seconds.unwrap_or(10).into())
    }
}
