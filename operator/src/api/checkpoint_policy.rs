//! When checkpoints are made and which are kept.

use std::time::Duration as StdDuration;

use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::definition;

/// When checkpoints are made and which are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointPolicy {
    /// Time between two periodic checkpoints, like `30s` or `1m30s`; from 1s to 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        extend("default" = "30s", "x-kubernetes-validations" = definition::interval_rules())
    )]
    pub interval: Option<Duration>,
    /// Whether the interval follows the rate at which memory changes: more often when a final dump would take too long, less
    /// often when little changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub auto_adjust: Option<bool>,
    /// Changed memory, in megabytes, that makes a checkpoint due before its time.
    #[serde(default, rename = "memoryThresholdMB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216), extend("default" = 100))]
    pub memory_threshold_mb: Option<u32>,
    /// How many checkpoints may build on one another before a full one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("default" = 10))]
    pub max_checkpoint_chain_depth: Option<u32>,
    /// How many checkpoints are kept. Older ones are deleted, but for those that somebody has given a name; what newer ones need
    /// of them stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("default" = 3))]
    pub keep: Option<u32>,
    /// Files and directories of the container that travel with the processes, whether they are open or not, like
    /// `/var/lib/redis`. What is open for writing travels anyway. Not for what lies on a volume that both nodes see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 1024)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = definition::path_rules())
    )]
    pub paths: Vec<String>,
    /// Keeps a final dump short enough for the notice that machines give before they vanish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_scheduler: Option<DeadlineScheduler>,
}

/// Makes a checkpoint as soon as a final dump would no longer fit the time there is after a notice: `freeze + changed memory /
/// bandwidth + margin`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = definition::deadline_rules()))]
pub struct DeadlineScheduler {
    /// Only tell in the conditions what would be done, and make checkpoints by the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub dry_run: Option<bool>,
    /// Seconds between a notice and the end of the machine: 120 on AWS, 30 on GCP and Azure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400), extend("default" = 30))]
    pub deadline_seconds: Option<u32>,
    /// Megabytes a second that reach the store; measured when absent.
    #[serde(default, rename = "bandwidthMBps", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub bandwidth_mbps: Option<u32>,
    /// Milliseconds between two looks at how much has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 3_600_000), extend("default" = 5000))]
    pub scan_interval_ms: Option<u32>,
    /// Milliseconds that freezing takes beside what is sent; measured when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3_600_000))]
    pub t_freeze_ms: Option<u32>,
    /// Milliseconds kept for what is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3_600_000), extend("default" = 2000))]
    pub t_margin_ms: Option<u32>,
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

    /// How many checkpoints are kept.
    pub fn keep(&self) -> u32 {
        self.keep.unwrap_or(3)
    }
}

impl DeadlineScheduler {
    /// Whether it only tells what it would do.
    pub fn dry_run(&self) -> bool {
        self.dry_run.unwrap_or(false)
    }

    /// Time between a notice and the end of the machine.
    pub fn deadline(&self) -> StdDuration {
        StdDuration::from_secs(self.deadline_seconds.unwrap_or(30).into())
    }

    /// Bytes a second that reach the store; `None` if they are to be measured.
    pub fn bandwidth(&self) -> Option<u64> {
        self.bandwidth_mbps.map(|megabytes| u64::from(megabytes) * 1_000_000)
    }

    /// Time between two looks at how much has changed.
    pub fn scan_interval(&self) -> StdDuration {
        StdDuration::from_millis(self.scan_interval_ms.unwrap_or(5000).into())
    }

    /// Time that freezing takes beside what is sent; `None` if it is to be measured.
    pub fn freeze(&self) -> Option<StdDuration> {
        self.t_freeze_ms.map(|milliseconds| StdDuration::from_millis(milliseconds.into()))
    }

    /// Time kept for what is not known.
    pub fn margin(&self) -> StdDuration {
        StdDuration::from_millis(self.t_margin_ms.unwrap_or(2000).into())
    }
}
