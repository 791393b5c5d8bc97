//! When to ask next, and what to say about failures.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::SourceError;
use crate::metrics::Metrics;

/// The longest time between two attempts: the shortest notice of any cloud is 30 seconds.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The rhythm of one source.
pub(super) struct Pace {
    /// What is asked for, in messages.
    name: &'static str,
    interval: Duration,
    failures: u32,
    /// The last failure, so that a long one is told once.
    told: Option<&'static str>,
}

impl Pace {
    pub fn new(name: &'static str, interval: Duration) -> Self {
        Self { name, interval: interval.min(LONGEST_PAUSE), failures: 0, told: None }
    }

    /// It answered.
    pub fn answered(&mut self) {
        if let Some(reason) = self.told.take() {
            tracing::info!(source = self.name, after = reason, "the metadata service answers again");
        }
        self.failures = 0;
    }

    /// It did not.
    pub fn failed(&mut self, error: &SourceError, metrics: &Metrics) {
        metrics.failed("metadata", error.word());
        self.failures = self.failures.saturating_add(1);
        if self.told != Some(error.word()) {
            self.told = Some(error.word());
            tracing::warn!(
                source = self.name,
                %error,
                hint = error.hint(),
                "it is not known whether the machine will be interrupted"
            );
        }
    }

    /// Waits until it is time for the next attempt after one that began at `begun`. Never exactly as long, so that the
    /// machines of a cluster do not ask all at once.
    pub async fn wait(&self, begun: Instant) {
        let doubled = self.interval.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        let pause = if self.failures == 0 { self.interval } else { doubled.min(LONGEST_PAUSE) };
        let pause = pause.mul_f64(0.8 + 0.2 * fastrand::f64());
        // Between a failure and the next attempt there is always something, however long the failure took.
        let least = if self.failures == 0 { Duration::ZERO } else { pause / 4 };
        sleep(pause.saturating_sub(begun.elapsed()).max(least)).await;
    }
}
