//! Randomness that can be had again: splitmix64 from a seed and a number.

use std::time::Duration;

use migration_harness::pattern::scramble;

/// See the module's description.
pub struct Random(u64);

impl Random {
    /// The stream of a run.
    pub fn new(seed: u64, run: u64) -> Self {
        Random(scramble(seed ^ scramble(run)))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// A time shorter than this.
    pub fn time(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros().max(1) as u64))
    }
}
