//! How much a checkpoint taken now would have to send, and how fast that goes: what [`deadline`](crate::deadline) needs.
//!
//! [`FromStatistics`] answers from what the last checkpoints cost: as much as the most expensive of them, at the rate of the
//! slowest. Nothing of the running tree is looked at, so a tree that suddenly changes more than it did is
//! underestimated; one without a checkpoint after its first is taken to have changed altogether.

use std::{sync::Arc, time::Duration};

use lazy_pages::{catalog::Catalog, format::Manifest, ids::AppId, units::PAGE_SIZE};

use crate::{
    Agent, AgentError,
    deadline::{Rate, Volume},
};

/// Of how many checkpoints the cost counts.
const LAST: usize = 5;

/// What is known about an application's next checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Memory that has changed.
    pub changed: Volume,
    /// What has to be sent of it, compressed.
    pub upload: Volume,
    /// By how much that grows.
    pub growth: Rate,
    /// How fast the store takes it; `None` if it was never measured.
    pub bandwidth: Option<Rate>,
    /// How long the tree is frozen beside that.
    pub freeze: Duration,
    /// How many checkpoints this was learnt from.
    pub checkpoints: u32,
}

/// Whoever knows how much has changed.
pub trait DirtyVolume {
    /// What is known; `None` if that is nothing, because there was no checkpoint.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn estimate(&self, app: &AppId) -> Result<Option<Estimate>, AgentError>;
}

/// Learns from the statistics of the last checkpoints.
#[derive(Debug)]
pub struct FromStatistics<'a>(pub &'a Agent);

impl DirtyVolume for FromStatistics<'_> {
    fn estimate(&self, app: &AppId) -> Result<Option<Estimate>, AgentError> {
        let catalog = Catalog::new(Arc::clone(self.0.store()));
        self.0.block_on(async {
            let mut manifests = Vec::new();
            // One more: how long the oldest counted took to become necessary is told by the one before it.
            for id in catalog.list(app).await?.into_iter().take(LAST + 1) {
                manifests.push(catalog.load_manifest(app, id).await?);
            }
            let cost: Vec<Cost> = manifests.iter().map(Cost::of).collect();
            Ok(learn(&cost))
        })
    }
}

/// What one checkpoint cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    created_unix_ms: u64,
    full: bool,
    changed: u64,
    uploaded: u64,
    elapsed_ms: u64,
    bytes_per_second: u64,
}

impl Cost {
    fn of(manifest: &Manifest) -> Self {
        let statistics = manifest.statistics;
        Self {
            created_unix_ms: manifest.created_unix_ms,
            full: manifest.parent.is_none(),
            changed: statistics.pages_stored * PAGE_SIZE as u64,
            uploaded: statistics.bytes_uploaded,
            elapsed_ms: statistics.elapsed_ms,
            bytes_per_second: statistics.bytes_per_second,
        }
    }

    /// What the freeze takes beside the upload.
    fn freeze(&self) -> Duration {
        let upload = match self.bytes_per_second {
            0 => 0,
            rate => (u128::from(self.uploaded) * 1000 / u128::from(rate)) as u64,
        };
        Duration::from_millis(self.elapsed_ms.saturating_sub(upload))
    }
}

/// `costs`: newest first.
fn learn(costs: &[Cost]) -> Option<Estimate> {
    let last = &costs[..costs.len().min(LAST)];
    // A full one says what a tree has, not what changes; without others, that is the bound.
    let mut counted: Vec<&Cost> = last.iter().filter(|cost| !cost.full).collect();
    if counted.is_empty() {
        counted = last.iter().take(1).collect();
    }
    let growth = costs.windows(2).filter(|pair| !pair[0].full).map(|pair| {
        let apart = pair[0].created_unix_ms.saturating_sub(pair[1].created_unix_ms).max(1);
        (u128::from(pair[0].uploaded) * 1000 / u128::from(apart)) as u64
    });
    Some(Estimate {
        changed: Volume(counted.iter().map(|cost| cost.changed).max()?),
        upload: Volume(counted.iter().map(|cost| cost.uploaded).max()?),
        growth: Rate(growth.max().unwrap_or(0)),
        bandwidth: last.iter().map(|cost| cost.bytes_per_second).filter(|rate| *rate > 0).min().map(Rate),
        freeze: counted.iter().map(|cost| cost.freeze()).max()?,
        checkpoints: counted.len() as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(created_s: u64, full: bool, uploaded: u64) -> Cost {
        Cost {
            created_unix_ms: created_s * 1000,
            full,
            changed: uploaded * 2,
            uploaded,
            elapsed_ms: 5000,
            bytes_per_second: 1000,
        }
    }

    #[test]
    fn nothing_is_known_without_a_checkpoint_and_the_worst_is_assumed_after_one() {
        assert_eq!(learn(&[]), None);
        let known = learn(&[cost(10, true, 3000)]).unwrap();
        assert_eq!((known.changed, known.upload), (Volume(6000), Volume(3000)));
        assert_eq!((known.growth, known.bandwidth), (Rate(0), Some(Rate(1000))));
        assert_eq!(known.freeze, Duration::from_secs(2), "three of the five seconds were upload");
    }

    #[test]
    fn the_most_expensive_of_the_last_counts_and_the_full_one_does_not() {
        let costs = [cost(40, false, 500), cost(30, false, 900), cost(20, false, 10), cost(0, true, 100_000)];
        let known = learn(&costs).unwrap();
        assert_eq!((known.upload, known.checkpoints), (Volume(900), 3));
        assert_eq!(known.growth, Rate(90), "900 bytes in ten seconds");
        let mut old = vec![cost(100, false, 1); LAST];
        old.push(cost(1, false, 1_000_000));
        assert_eq!(learn(&old).unwrap().upload, Volume(1));
    }

    #[test]
    fn the_slowest_rate_counts_and_one_that_was_not_measured_does_not() {
        let rate = |bytes_per_second| Cost { bytes_per_second, ..cost(10, false, 1000) };
        assert_eq!(learn(&[rate(0), rate(700), rate(300)]).unwrap().bandwidth, Some(Rate(300)));
        let unknown = learn(&[rate(0)]).unwrap();
        assert_eq!((unknown.bandwidth, unknown.freeze), (None, Duration::from_secs(5)));
    }
}
