//! Whether a final dump still fits before a machine goes away.
//!
//! A dump takes `T_remain = T_freeze + dirty / bandwidth + T_margin`: the tree is frozen and looked at, what has changed since
//! the last checkpoint is sent, and something is kept for what is not known. The longer a tree runs after its last
//! checkpoint, the more has changed, so a checkpoint now keeps a dump later short.
//!
//! Nothing here measures or waits; [`Inputs`] come from elsewhere.

use std::time::Duration;

use serde::Serialize;

/// An amount of data, as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Volume(pub u64);

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Rate(pub u64);

impl Volume {
    /// How long it takes to send; for ever at no rate at all.
    fn at(self, rate: Rate) -> Duration {
        match (self.0, rate.0) {
            (0, _) => Duration::ZERO,
            (_, 0) => Duration::MAX,
            // At least a nanosecond too much rather than one too little.
            (bytes, rate) => {
                let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate));
                u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
            }
        }
    }

    fn grown(self, rate: Rate, over: Duration) -> Self {
        let more = u128::from(rate.0) * over.as_millis() / 1000;
        Self(self.0.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)))
    }
}

/// What is known about a tree and its way into the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Inputs {
    /// What a dump now would have to send.
    pub dirty: Volume,
    /// By how much that grows while the tree runs.
    pub growth: Rate,
    /// How fast the store takes it.
    pub bandwidth: Rate,
    /// How long the tree is frozen beside that.
    pub freeze: Duration,
    /// Kept for what is not known.
    pub margin: Duration,
    /// How long until the question is asked again.
    pub interval: Duration,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// A dump would fit, also when the question is asked again.
    Fits {
        /// What would be left.
        headroom: Duration,
    },
    /// A dump would fit now, and not any more when the question is asked again: a checkpoint now makes what changes until
    /// then the only thing to send.
    CheckpointNow {
        /// What would be left now.
        headroom: Duration,
    },
    /// A dump would not fit.
    CannotFit {
        /// What takes most of the time.
        why: Obstacle,
        /// By how much it is too long.
        short: Duration,
    },
}

/// What keeps a dump from fitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// Freezing the tree and looking at it takes longer than there is.
    Freeze,
    /// There is too much to send at this rate.
    Upload,
    /// It would fit, were nothing kept for what is not known.
    Margin,
}

impl Inputs {
    /// `T_remain`.
    pub fn needed(&self) -> Duration {
        self.freeze.saturating_add(self.dirty.at(self.bandwidth)).saturating_add(self.margin)
    }

    /// Whether a dump that may begin now and has to be done in `deadline` fits.
    pub fn verdict(&self, deadline: Duration) -> Verdict {
        let needed = self.needed();
        let Some(headroom) = deadline.checked_sub(needed) else {
            let why = match self.freeze.saturating_add(self.dirty.at(self.bandwidth)) {
                without_margin if without_margin <= deadline => Obstacle::Margin,
                _ if self.freeze >= deadline => Obstacle::Freeze,
                _ => Obstacle::Upload,
            };
            return Verdict::CannotFit { why, short: needed.saturating_sub(deadline) };
        };
        let later = Self { dirty: self.dirty.grown(self.growth, self.interval), ..*self };
        if later.needed() > deadline {
            Verdict::CheckpointNow { headroom }
        } else {
            Verdict::Fits { headroom }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn inputs() -> Inputs {
        Inputs {
            dirty: Volume(1000),
            growth: Rate(0),
            bandwidth: Rate(100),
            freeze: 2 * SECOND,
            margin: 3 * SECOND,
            interval: 60 * SECOND,
        }
    }

    #[test]
    fn what_is_needed_is_freeze_and_upload_and_margin() {
        assert_eq!(inputs().needed(), 15 * SECOND);
        assert_eq!(Inputs { dirty: Volume(0), bandwidth: Rate(0), ..inputs() }.needed(), 5 * SECOND);
        assert_eq!(Inputs { bandwidth: Rate(0), ..inputs() }.needed(), Duration::MAX);
        // A third of a second does not end in a nanosecond; it is never taken for less.
        let third = Inputs { dirty: Volume(1), bandwidth: Rate(3), ..inputs() }.needed();
        assert_eq!(third, 5 * SECOND + Duration::from_nanos(333_333_334));
    }

    #[test]
    fn what_fits_says_by_how_much_to_the_nanosecond() {
        assert_eq!(inputs().verdict(60 * SECOND), Verdict::Fits { headroom: 45 * SECOND });
        assert_eq!(inputs().verdict(15 * SECOND), Verdict::Fits { headroom: Duration::ZERO });
        let short = Duration::from_nanos(1);
        assert_eq!(
            inputs().verdict(15 * SECOND - short),
            Verdict::CannotFit { why: Obstacle::Margin, short }
        );
    }

    #[test]
    fn what_will_not_fit_next_time_is_to_be_checkpointed_now() {
        // 60 seconds at 75 bytes a second are 4500 more, 45 seconds of upload: exactly what there is.
        let growing = |rate| Inputs { growth: Rate(rate), ..inputs() };
        assert_eq!(growing(75).verdict(60 * SECOND), Verdict::Fits { headroom: 45 * SECOND });
        assert_eq!(growing(76).verdict(60 * SECOND), Verdict::CheckpointNow { headroom: 45 * SECOND });
        assert_eq!(growing(u64::MAX).verdict(60 * SECOND), Verdict::CheckpointNow { headroom: 45 * SECOND });
    }

    #[test]
    fn what_cannot_fit_says_why_and_how_much_is_missing() {
        let verdict = |inputs: Inputs, seconds| inputs.verdict(seconds * SECOND);
        assert_eq!(verdict(inputs(), 13), Verdict::CannotFit { why: Obstacle::Margin, short: 2 * SECOND });
        assert_eq!(verdict(inputs(), 11), Verdict::CannotFit { why: Obstacle::Upload, short: 4 * SECOND });
        assert_eq!(verdict(inputs(), 2), Verdict::CannotFit { why: Obstacle::Freeze, short: 13 * SECOND });
        let huge = Inputs { dirty: Volume(u64::MAX), bandwidth: Rate(1), ..inputs() };
        assert!(matches!(verdict(huge, 60), Verdict::CannotFit { why: Obstacle::Upload, .. }));
    }

    #[test]
    fn more_time_never_makes_it_worse_and_more_data_never_better() {
        let rank = |verdict| match verdict {
            Verdict::Fits { .. } => 2,
            Verdict::CheckpointNow { .. } => 1,
            Verdict::CannotFit { .. } => 0,
        };
        for dirty in (0..10_000).step_by(250) {
            for seconds in 0..120 {
                let now = Inputs { dirty: Volume(dirty), growth: Rate(9), ..inputs() };
                let more = Inputs { dirty: Volume(dirty + 250), ..now };
                let deadline = seconds * SECOND;
                assert!(rank(now.verdict(deadline + SECOND)) >= rank(now.verdict(deadline)));
                assert!(rank(now.verdict(deadline)) >= rank(more.verdict(deadline)));
            }
        }
    }
}
