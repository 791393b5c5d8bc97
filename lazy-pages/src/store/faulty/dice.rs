//! What is to happen to an operation: a pure function of the plan's seed and the operation's number.
//!
//! Every fate takes the same throws in the same order, whatever they give. So turning one kind of fault on or off does
//! not move the others to other operations.

use std::time::Duration;

use super::FaultPlan;

/// What is to happen to one operation. Some of it concerns only gets or only puts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fate {
    /// To wait first, a stall included.
    pub delay: Duration,
    /// Whether `delay` includes a stall.
    pub stalled: bool,
    pub error: Option<ErrorKind>,
    pub put: Option<PutFault>,
    pub body: Option<BodyFault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    Unavailable,
    Denied,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutFault {
    /// Done, and reported as failed.
    Hidden,
    /// Not done, and reported in the same words.
    Lost,
}

/// What happens to a body, and where in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum BodyFault {
    /// An error that tells how much came.
    Truncated(Share),
    /// What came, as if it were all.
    Shortened(Share),
    /// One bit is wrong.
    Flipped(Share),
}

/// Evenly distributed in `0.0..1.0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share(f64);

impl Share {
    /// A number less than `whole`, which is not 0.
    pub fn of(self, whole: usize) -> usize {
        ((whole as f64 * self.0) as usize).min(whole - 1)
    }
}

impl Fate {
    /// The fate of operation `number`.
    pub fn of(plan: &FaultPlan, number: u64) -> Self {
        let mut dice = Dice::new(plan.seed, number);
        let late = plan.latency.as_secs_f64() * dice.share().0;
        let late = Duration::try_from_secs_f64(late).unwrap_or(plan.latency);
        let thrown = dice.share().0;
        let stall = plan.stall.filter(|stall| thrown < stall.chance);
        let error = dice.chance(plan.errors, |share| {
            [ErrorKind::Unavailable, ErrorKind::Denied, ErrorKind::Other][share.of(3)]
        });
        let put = dice.chance(plan.ambiguous, |share| [PutFault::Hidden, PutFault::Lost][share.of(2)]);
        let truncated = dice.chance(plan.truncate, |share| share);
        let place = dice.share();
        let truncated = truncated.map(|which| match which.of(2) {
            0 => BodyFault::Truncated(place),
            _ => BodyFault::Shortened(place),
        });
        let flipped = dice.chance(plan.flip, BodyFault::Flipped);
        Self {
            delay: late.saturating_add(stall.map_or(Duration::ZERO, |stall| stall.lasts)),
            stalled: stall.is_some(),
            error,
            put,
            body: truncated.or(flipped),
        }
    }
}

/// SplitMix64, whose first outputs are as good as later ones: a fate takes only a few.
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u64) -> Self {
        // Mixed apart, so that neither neighbouring seeds nor neighbouring operations share a sequence.
        Self(mix(seed ^ mix(number.wrapping_add(GOLDEN))))
    }

    fn share(&mut self) -> Share {
        self.0 = self.0.wrapping_add(GOLDEN);
        Share((mix(self.0) >> 11) as f64 / (1_u64 << 53) as f64)
    }

    /// With this probability a value made of another throw.
    fn chance<T>(&mut self, probability: f64, make: impl FnOnce(Share) -> T) -> Option<T> {
        let (thrown, other) = (self.share(), self.share());
        (thrown.0 < probability).then(|| make(other))
    }
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faulty::Stall;

    fn everything(seed: u64) -> FaultPlan {
        FaultPlan {
            seed,
            errors: 0.3,
            latency: Duration::from_millis(20),
            stall: Some(Stall { chance: 0.1, lasts: Duration::from_secs(2) }),
            truncate: 0.2,
            flip: 0.2,
            ambiguous: 0.5,
            outage: None,
        }
    }

    fn fates(plan: &FaultPlan) -> Vec<Fate> {
        (0..20_000).map(|number| Fate::of(plan, number)).collect()
    }

    #[test]
    fn a_fate_depends_on_seed_and_number_alone() {
        assert_eq!(fates(&everything(7)), fates(&everything(7)));
        assert_ne!(fates(&everything(7)), fates(&everything(8)));
    }

    #[test]
    fn one_kind_of_fault_does_not_move_another() {
        let without = FaultPlan { errors: 0.0, stall: None, truncate: 0.0, ambiguous: 0.0, ..everything(7) };
        for (all, some) in fates(&everything(7)).iter().zip(fates(&without)) {
            assert!(some.error.is_none() && some.put.is_none() && !some.stalled);
            if let Some(BodyFault::Flipped(_)) = all.body {
                assert_eq!(some.body, all.body);
            }
        }
    }

    #[test]
    fn faults_come_as_often_as_planned() {
        let fates = fates(&everything(7));
        let share = |which: &dyn Fn(&Fate) -> bool| {
            fates.iter().filter(|fate| which(fate)).count() as f64 / fates.len() as f64
        };
        let near = |found: f64, planned: f64| assert!((found - planned).abs() < 0.02, "{found} {planned}");
        for kind in [ErrorKind::Unavailable, ErrorKind::Denied, ErrorKind::Other] {
            near(share(&|fate| fate.error == Some(kind)), 0.1);
        }
        for kind in [PutFault::Hidden, PutFault::Lost] {
            near(share(&|fate| fate.put == Some(kind)), 0.25);
        }
        near(share(&|fate| fate.stalled), 0.1);
        near(share(&|fate| matches!(fate.body, Some(BodyFault::Truncated(_)))), 0.1);
        near(share(&|fate| matches!(fate.body, Some(BodyFault::Shortened(_)))), 0.1);
        near(share(&|fate| matches!(fate.body, Some(BodyFault::Flipped(_)))), 0.16);
        assert!(fates.iter().all(|fate| fate.stalled == (fate.delay >= Duration::from_secs(2))));
    }

    #[test]
    fn a_share_of_a_whole_is_less_than_it() {
        for share in [0.0, 0.5, 1.0 - f64::EPSILON / 2.0] {
            for whole in [1, 2, 3, usize::MAX] {
                assert!(Share(share).of(whole) < whole);
            }
        }
    }
}
