//! What a notice calls for.

use std::{fmt, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::notice::NoticeKind;

/// What to do about a recommendation to rebalance: the machine is more likely than before to be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// Nothing.
    Ignore,
    /// Take a checkpoint of everything, so that little is left to do when the interruption comes.
    Checkpoint,
    /// Move everything, as if the interruption had come.
    Migrate,
}

/// What kind of advice was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// Move while there is time.
    Migrate,
    /// Take a checkpoint.
    Checkpoint,
}

/// What a notice calls for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reaction {
    /// Everything has to leave.
    Leave,
    /// There is advice to follow.
    Follow(Advice),
    /// Nothing until then.
    Wait(Timestamp),
    /// Nothing.
    Ignore,
}

/// What was decided by whoever runs the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// About recommendations.
    pub rebalance: Rebalance,
    /// How long before it happens an interruption is acted on: maintenance is announced weeks ahead.
    pub lead: Duration,
}

impl Policy {
    /// What a notice calls for. One without a deadline is acted on at once; so is one whose kind is not known, because an
    /// interruption by another name is still one. A pause, which memory survives, calls for nothing.
    pub fn reaction(&self, kind: &NoticeKind, deadline: Option<Timestamp>, now: Timestamp) -> Reaction {
        match kind {
            NoticeKind::Pause => return Reaction::Ignore,
            NoticeKind::RebalanceRecommended => {
                return match self.rebalance {
                    Rebalance::Ignore => Reaction::Ignore,
                    Rebalance::Checkpoint => Reaction::Follow(Advice::Checkpoint),
                    Rebalance::Migrate => Reaction::Follow(Advice::Migrate),
                };
            }
            NoticeKind::Terminate
            | NoticeKind::Stop
            | NoticeKind::Hibernate
            | NoticeKind::Reboot
            | NoticeKind::Redeploy
            | NoticeKind::Unrecognised(_) => {}
        }
        let lead = SignedDuration::try_from(self.lead).unwrap_or(SignedDuration::MAX);
        let begin = deadline.and_then(|deadline| deadline.checked_sub(lead).ok());
        match begin {
            Some(begin) if begin > now => Reaction::Wait(begin),
            _ => Reaction::Leave,
        }
    }
}

impl Advice {
    /// Its name, as in annotations.
    pub fn word(self) -> &'static str {
        match self {
            Self::Migrate => "migrate",
            Self::Checkpoint => "checkpoint",
        }
    }
}

impl fmt::Display for Rebalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ignore => "ignore",
            Self::Checkpoint => "checkpoint",
            Self::Migrate => "migrate",
        })
    }
}

impl FromStr for Rebalance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ignore" => Ok(Self::Ignore),
            "checkpoint" => Ok(Self::Checkpoint),
            "migrate" => Ok(Self::Migrate),
            _ => Err("ignore, checkpoint or migrate".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { rebalance: Rebalance::Checkpoint, lead: Duration::from_secs(900) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_takes_memory_away_calls_for_leaving() {
        for kind in [
            NoticeKind::Terminate,
            NoticeKind::Stop,
            NoticeKind::Hibernate,
            NoticeKind::Reboot,
            NoticeKind::Redeploy,
            NoticeKind::Unrecognised("melt".into()),
        ] {
            for deadline in [None, Some(at(1_000)), Some(at(1_900))] {
                assert_eq!(POLICY.reaction(&kind, deadline, at(1_000)), Reaction::Leave, "{kind:?}");
            }
            assert_eq!(
                POLICY.reaction(&kind, Some(at(0)), at(1_000)),
                Reaction::Leave,
                "it is late, not over"
            );
        }
    }

    #[test]
    fn what_is_far_away_waits_until_it_is_near() {
        let weeks = Some(at(1_000_000));
        assert_eq!(POLICY.reaction(&NoticeKind::Reboot, weeks, at(0)), Reaction::Wait(at(999_100)));
        assert_eq!(POLICY.reaction(&NoticeKind::Reboot, weeks, at(999_100)), Reaction::Leave);
    }

    #[test]
    fn what_memory_survives_calls_for_nothing() {
        assert_eq!(POLICY.reaction(&NoticeKind::Pause, Some(at(5)), at(0)), Reaction::Ignore);
    }

    #[test]
    fn advice_is_followed_as_was_decided() {
        for (rebalance, reaction) in [
            (Rebalance::Ignore, Reaction::Ignore),
            (Rebalance::Checkpoint, Reaction::Follow(Advice::Checkpoint)),
            (Rebalance::Migrate, Reaction::Follow(Advice::Migrate)),
        ] {
            let policy = Policy { rebalance, ..POLICY };
            assert_eq!(policy.reaction(&NoticeKind::RebalanceRecommended, None, at(0)), reaction);
            assert_eq!(rebalance.to_string().parse(), Ok(rebalance));
        }
    }
}
