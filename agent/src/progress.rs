//! How far a long operation is, for whoever wants to show it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Steps of a checkpoint or restore, in the order they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Stage {
    /// Looking at the process, the store and the previous checkpoint.
    Preparing = 0,
    /// The tree is frozen and its memory is being read.
    Dumping = 1,
    /// The tree is frozen until the last object is durable.
    Committing = 2,
    /// Metadata, and for a full restore all pages, are being fetched.
    Fetching = 3,
    /// CRIU rebuilds the tree.
    Restoring = 4,
    /// The process runs; its remaining pages arrive.
    Filling = 5,
    /// A checkpoint is being checked.
    Verifying = 6,
}

impl Stage {
    /// A word or two for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Dumping => "reading memory",
            Self::Committing => "committing",
            Self::Fetching => "fetching",
            Self::Restoring => "restoring",
            Self::Filling => "running, pages arriving",
            Self::Verifying => "verifying",
        }
    }

    fn from_number(number: u64) -> Self {
        const ALL: [Stage; 7] = [
            Stage::Preparing,
            Stage::Dumping,
            Stage::Committing,
            Stage::Fetching,
            Stage::Restoring,
            Stage::Filling,
            Stage::Verifying,
        ];
        ALL[number.min(6) as usize]
    }
}

/// Counters written by an operation and read by whoever shows them. Cheap enough for the frozen path.
#[derive(Debug, Default)]
pub struct Progress {
    stage: AtomicU64,
    bytes: AtomicU64,
    /// 0 while that is not known.
    total: AtomicU64,
}

impl Progress {
    /// The operation has reached `stage`.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u64, Ordering::Relaxed);
    }

    /// `bytes` more of the process's memory have been handled.
    pub fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// There will be `bytes` of memory.
    pub fn expect_bytes(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// How much memory there will be, where that is known.
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }

    /// The stage and the bytes of memory handled so far.
    pub fn now(&self) -> (Stage, u64) {
        (Stage::from_number(self.stage.load(Ordering::Relaxed)), self.bytes.load(Ordering::Relaxed))
    }
}
