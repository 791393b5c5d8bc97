//! A migration as it is written down in the status, so that whoever takes over knows where it is.
//!
//! What always holds: a step that changes anything outside is written down here before it is taken. What is found here may
//! therefore have been done or not; it has never been done without being found here. Operation ids and names of pods follow
//! from [`Migration::id`] and the numbers of attempts, so that repeating a step is the same step.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The migration that is under way, or the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// Its name, which no other migration has.
    pub id: String,
    /// How far it is.
    pub stage: MigrationStage,
    /// Since when it is that far.
    pub stage_at: MicroTime,
    /// Why it was asked for.
    pub reason: String,
    /// Who asked for it.
    pub triggered_by: TriggeredBy,
    /// Where pages come from while it moves: the policy's strategy, unless there was no time for it.
    pub strategy: MigrationStrategy,
    /// The interruption notice it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// When it began.
    pub started_at: MicroTime,
    /// When it is given up.
    pub timeout_at: MicroTime,
    /// When the source's machine goes away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<MicroTime>,
    /// Where the application ran when it began.
    pub source: Place,
    /// Where it is to run; the source itself when it is brought back there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Place>,
    /// Who makes the target's pod, if it is not the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_made_by: Option<TargetMadeBy>,
    /// Which try this is, from 1. Operations and pods of different tries have different names.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// Failures since it began, or since the checkpoint that is now restored was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// Not before then is the next try made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<MicroTime>,
    /// Nodes on which a try has failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_nodes: Vec<String>,
    /// Checkpoints that cannot be restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_checkpoints: Vec<String>,
    /// The agent's operation that may have been asked for and whose outcome is not known: a final dump at the source, or,
    /// once nothing runs there, a restore at the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Whether nothing of the application runs at the source any more: it was dumped, or stopped, or its pod is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_stopped: Option<bool>,
    /// The checkpoint that is restored; the newest in the store if absent.
    #[serde(default, rename = "checkpointID", skip_serializing_if = "Option::is_none")]
    pub checkpoint_id: Option<String>,
    /// The handover by which the target gets the processes that are stopped at the source.
    #[serde(default, rename = "handoverID", skip_serializing_if = "Option::is_none")]
    pub handover_id: Option<String>,
    /// Which run of the application that handover is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub handover_generation: Option<u64>,
    /// Whether a target was lost that took over processes which are stopped at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_lost: Option<TargetLost>,
    /// Whether somebody asked for it to be cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested: Option<bool>,
    /// When the final dump was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump_at: Option<MicroTime>,
    /// When the checkpoint was known to be durable, or the application to be stopped for its handover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_at: Option<MicroTime>,
    /// When it was frozen for good at the source, by the clock there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    /// When it was known to run again; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<MicroTime>,
    /// Milliseconds for which the application did not run: from its freeze until it ran at the target, by the agents' clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub blackout_ms: Option<u64>,
    /// When its last page was known to be at the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// What went wrong last, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Migration {
    /// The only pod in which processes of the application can exist now; none if they are a checkpoint.
    pub fn may_run_in(&self) -> Option<&Place> {
        if !self.source_has_stopped() {
            Some(&self.source)
        } else if self.resumed_at.is_some() || self.operation.is_some() {
            self.target.as_ref()
        } else if self.handover_id.is_some() {
            Some(&self.source)
        } else {
            None
        }
    }

    /// Whether nothing of the application runs at the source any more.
    pub fn source_has_stopped(&self) -> bool {
        self.source_stopped == Some(true)
    }

    /// Whether processes that are stopped at the source are to go on there.
    pub fn takes_back(&self) -> bool {
        let left_over = self.stage.is_over() && self.resumed_at.is_none() && self.operation.is_none();
        self.handover_id.is_some() && (self.stage == MigrationStage::TakingBack || left_over)
    }

    /// Whether it has ended while pages still came from processes that are stopped at the source: these go on there if the target is lost.
    pub fn keeps_source(&self) -> bool {
        self.stage == MigrationStage::Succeeded && self.handover_id.is_some() && self.resident_at.is_none()
    }

    /// Whether the target's pod can exist only when the source's does not any more.
    pub fn target_takes_name(&self) -> bool {
        self.target_made_by == Some(TargetMadeBy::StatefulSet)
    }

    /// Whether it is being brought back to where it was.
    pub fn returns(&self) -> bool {
        self.target.as_ref() == Some(&self.source)
    }
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MigrationStage {
    /// A node is being chosen; the application runs on, unless there is a checkpoint or handover of it already.
    ChoosingTarget,
    /// The target's pod is created and gets ready.
    Preparing,
    /// The application is frozen and dumped; it goes on if that fails.
    Dumping,
    /// The target restores it.
    Restoring,
    /// The target could not run a tree that is stopped at the source, which is to go on there.
    TakingBack,
    /// It runs at the target, where pages still arrive.
    Filling,
    /// It runs at the target and the source is removed.
    RemovingSource,
    /// It runs at the target.
    Succeeded,
    /// It could not be moved; the message says where it is.
    Failed,
    /// Somebody cancelled it; it runs on at the source.
    Cancelled,
}

impl MigrationStage {
    /// Whether nothing more comes of this migration.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A target of a handover whose pod is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetLost {
    /// It had begun to run the application: what was stopped at the source does not go on.
    HadRun,
    /// Whether it had is not known.
    MayHaveRun,
}

/// A controller that makes the target's pod, because it makes all pods of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetMadeBy {
    /// It makes a pod for one that is released from it, beside that one.
    ReplicaSet,
    /// It makes a pod of the same name once the one before is gone.
    StatefulSet,
}

/// Who asked for a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TriggeredBy {
    /// Somebody who annotated the pod.
    Person,
    /// The monitor of a node that goes away.
    Monitor,
    /// The operator: the application's pod is gone, and its last checkpoint is restored.
    Recovery,
}

/// Where pages come from while an application moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStrategy {
    /// All of them come from the store before the application runs.
    Full,
    /// From the store, on demand.
    LazyStorage,
    /// From the stopped processes at the source, on demand.
    LazyDirect,
    /// From the source, or from the store once they are there.
    LazyHybrid,
}

impl MigrationStrategy {
    /// Whether the source's processes are stopped and handed over, rather than ended once their checkpoint is durable.
    pub fn hands_over(self) -> bool {
        matches!(self, Self::LazyDirect | Self::LazyHybrid)
    }
}

/// A pod and its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The pod's name.
    pub pod: String,
    /// The node's name; empty while that is not known.
    pub node: String,
    /// What tells the pod from others that had its name or will have it: its uid or, if it was made for a migration, its annotation
    /// `migration.io/migration`. Absent where no two pods have one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}
