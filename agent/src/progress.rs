//! How far a long operation is, for whoever wants to show it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

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
    times: Mutex<Times>,
}

/// When stages were entered, and when the last of them was over.
#[derive(Debug, Default)]
struct Times {
    entered: Vec<(Stage, Instant)>,
    over: Option<Instant>,
}

impl Progress {
    /// The operation has reached `stage`.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u64, Ordering::Relaxed);
        self.times().entered.push((stage, Instant::now()));
    }

    /// What was the last stage's is done.
    pub fn leave(&self) {
        self.times().over = Some(Instant::now());
    }

    /// How long a stage took; `None` if it was not reached, or is not over.
    pub fn time_in(&self, stage: Stage) -> Option<Duration> {
        let times = self.times();
        let place = times.entered.iter().position(|(entered, _)| *entered == stage)?;
        let (_, begun) = times.entered[place];
        let over = times.entered.get(place + 1).map(|(_, next)| *next).or(times.over)?;
        Some(over.saturating_duration_since(begun))
    }

    /// The stages entered since an operation began, and when each began and ended, counted from then.
    pub fn stages_since(&self, began: Instant) -> Vec<(Stage, Duration, Duration)> {
        let times = self.times();
        let from = |at: Instant| at.saturating_duration_since(began);
        let ends = times.entered.iter().skip(1).map(|(_, next)| *next);
        let last = times.over.unwrap_or_else(Instant::now);
        let stages = times.entered.iter().zip(ends.chain([last]));
        let stages = stages.filter(|((_, entered), _)| *entered >= began);
        stages.map(|((stage, entered), left)| (*stage, from(*entered), from(left.max(*entered)))).collect()
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
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
