//! Which faults, how often and for how long, as a value and as text:
//! `seed=7,errors=0.05,latency=20ms,stall=0.01:2s,truncate=0.02,flip=0.01,ambiguous=0.1,outage=3s+2s`.
//!
//! Everything may be left out; what is left out does not happen. `Display` gives text that parses to the same plan.

use std::{fmt, str::FromStr, time::Duration};

/// Which faults a [`FaultyStore`](super::FaultyStore) injects. Probabilities are from 0 to 1, for each operation they can
/// happen to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultPlan {
    /// Which operations meet which faults.
    pub seed: u64,
    /// Probability of `Unavailable`, `Denied` or `Other`, in equal shares; the operation is not carried out.
    pub errors: f64,
    /// An operation begins up to this much later.
    pub latency: Duration,
    /// Operations that hang.
    pub stall: Option<Stall>,
    /// Probability that a body comes in part; half of these are reported as `Truncated`, half as if they were whole.
    pub truncate: f64,
    /// Probability that a body has a wrong bit.
    pub flip: f64,
    /// Probability that a put is reported `Unavailable`; half of these are done.
    pub ambiguous: f64,
    /// When nothing works.
    pub outage: Option<Outage>,
}

/// Operations that hang, and then go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stall {
    /// Probability of it.
    pub chance: f64,
    /// How long.
    pub lasts: Duration,
}

/// A time during which every operation is `Unavailable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When it begins, after the store was opened.
    pub after: Duration,
    /// How long it lasts.
    pub lasts: Duration,
}

impl Outage {
    /// Whether it is under way so long after the store was opened.
    pub fn contains(&self, since_opened: Duration) -> bool {
        since_opened.checked_sub(self.after).is_some_and(|into| into < self.lasts)
    }
}

/// Why a text is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{part}`: {why}")]
pub struct InvalidPlan {
    /// The part that is not understood.
    pub part: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl FromStr for FaultPlan {
    type Err = InvalidPlan;

    fn from_str(text: &str) -> Result<Self, InvalidPlan> {
        let mut plan = Self::default();
        let mut seen = Vec::new();
        for part in text.split(',') {
            let invalid = |why| InvalidPlan { part: part.to_owned(), why };
            let (key, value) = part.split_once('=').ok_or(invalid("expected a name, `=` and a value"))?;
            if seen.contains(&key) {
                return Err(invalid("it is given twice"));
            }
            seen.push(key);
            plan.set(key, value).map_err(invalid)?;
        }
        Ok(plan)
    }
}

impl FaultPlan {
    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "seed" => self.seed = value.parse().map_err(|_| "a seed is a whole number below 2^64")?,
            "errors" => self.errors = probability(value)?,
            "latency" => self.latency = duration(value)?,
            "stall" => {
                let (chance, lasts) = value.split_once(':').ok_or("expected probability:duration")?;
                self.stall = Some(Stall { chance: probability(chance)?, lasts: duration(lasts)? });
            }
            "truncate" => self.truncate = probability(value)?,
            "flip" => self.flip = probability(value)?,
            "ambiguous" => self.ambiguous = probability(value)?,
            "outage" => {
                let (after, lasts) = value.split_once('+').ok_or("expected beginning+duration")?;
                self.outage = Some(Outage { after: duration(after)?, lasts: duration(lasts)? });
            }
            _ => return Err("not one of seed, errors, latency, stall, truncate, flip, ambiguous, outage"),
        }
        Ok(())
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={}", self.seed)?;
        let probability = |f: &mut fmt::Formatter<'_>, name, value: f64| match value {
            0.0 => Ok(()),
            value => write!(f, ",{name}={value}"),
        };
        probability(f, "errors", self.errors)?;
        if !self.latency.is_zero() {
            write!(f, ",latency={}", Span(self.latency))?;
        }
        if let Some(Stall { chance, lasts }) = self.stall {
            write!(f, ",stall={chance}:{}", Span(lasts))?;
        }
        probability(f, "truncate", self.truncate)?;
        probability(f, "flip", self.flip)?;
        probability(f, "ambiguous", self.ambiguous)?;
        if let Some(Outage { after, lasts }) = self.outage {
            write!(f, ",outage={}+{}", Span(after), Span(lasts))?;
        }
        Ok(())
    }
}

fn probability(text: &str) -> Result<f64, &'static str> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or("a probability is a number from 0 to 1")
}

/// Units of a duration and how many nanoseconds each has, the longest first.
const UNITS: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000), ("ns", 1)];

/// A duration as a plan writes it.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        // The last unit divides everything.
        let unit = UNITS.iter().find(|(_, length)| nanos.is_multiple_of(u128::from(*length)));
        let (name, length) = unit.unwrap_or(&UNITS[3]);
        write!(f, "{}{name}", nanos / u128::from(*length))
    }
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    let why = "a duration is a whole number and s, ms, us or ns";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let length = UNITS.iter().find(|(name, _)| *name == unit).ok_or(why)?.1;
    let nanos =
        number.parse::<u128>().ok().and_then(|number| number.checked_mul(length.into())).ok_or(why)?;
    let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| why)?;
    Ok(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_part_of_a_plan_is_read() {
        let text = "seed=7,errors=0.05,latency=20ms,stall=0.01:2s,truncate=0.02,flip=0.01,ambiguous=0.1,\
                    outage=3s+2s";
        let plan = FaultPlan {
            seed: 7,
            errors: 0.05,
            latency: Duration::from_millis(20),
            stall: Some(Stall { chance: 0.01, lasts: Duration::from_secs(2) }),
            truncate: 0.02,
            flip: 0.01,
            ambiguous: 0.1,
            outage: Some(Outage { after: Duration::from_secs(3), lasts: Duration::from_secs(2) }),
        };
        assert_eq!(text.parse(), Ok(plan));
        assert_eq!(plan.to_string(), text);
        assert_eq!("seed=7".parse(), Ok(FaultPlan { seed: 7, ..FaultPlan::default() }));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, part) in [
            ("", ""),
            ("errors", "errors"),
            ("seed=7,", ""),
            ("seed=7,errors=0.1,seed=8", "seed=8"),
            ("erors=0.1", "erors=0.1"),
            ("errors=1.1", "errors=1.1"),
            ("errors=-0.1", "errors=-0.1"),
            ("errors=NaN", "errors=NaN"),
            ("seed=-1", "seed=-1"),
            ("latency=20", "latency=20"),
            ("latency=ms", "latency=ms"),
            ("latency=-1ms", "latency=-1ms"),
            ("latency=99999999999999999999s", "latency=99999999999999999999s"),
            ("stall=0.1", "stall=0.1"),
            ("outage=3s", "outage=3s"),
        ] {
            assert_eq!(text.parse::<FaultPlan>().unwrap_err().part, part, "{text}");
        }
    }

    #[test]
    fn an_outage_begins_and_ends() {
        let seconds = Duration::from_secs;
        let outage = Outage { after: seconds(3), lasts: seconds(2) };
        let during: Vec<bool> = (0..7).map(|second| outage.contains(seconds(second))).collect();
        assert_eq!(during, [false, false, false, true, true, false, false]);
        let endless = Outage { after: seconds(1), lasts: Duration::MAX };
        assert!(endless.contains(Duration::MAX) && !endless.contains(Duration::ZERO));
    }

    fn durations() -> impl Strategy<Value = Duration> {
        let any = (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(s, ns)| Duration::new(s, ns));
        prop_oneof![
            any,
            (0..100_000_u64).prop_map(Duration::from_millis),
            (0..100_u64).prop_map(Duration::from_secs)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_plan_survives_being_printed(
            seed in any::<u64>(),
            (errors, truncate, flip, ambiguous) in (0.0..=1.0, 0.0..=1.0, 0.0..=1.0, 0.0..=1.0),
            latency in durations(),
            stall in proptest::option::of((0.0..=1.0, durations())),
            outage in proptest::option::of((durations(), durations())),
        ) {
            let plan = FaultPlan {
                seed, errors, latency, truncate, flip, ambiguous,
                stall: stall.map(|(chance, lasts)| Stall { chance, lasts }),
                outage: outage.map(|(after, lasts)| Outage { after, lasts }),
            };
            prop_assert_eq!(plan.to_string().parse(), Ok(plan));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z=,.:+0-9 -]{0,60}") {
            if let Ok(plan) = text.parse::<FaultPlan>() {
                prop_assert_eq!(plan.to_string().parse(), Ok(plan));
            }
        }
    }
}
