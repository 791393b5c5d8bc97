//! When the next periodic checkpoint is made.
//!
//! A function of the policy and of what is known: no I/O, no clock. Applications with the same interval do not come at the
//! same moment: each has its own place in it, by its uid.
//!
//! With `autoAdjust` the interval follows what a checkpoint has to write: it is shortened down to a quarter when that is more
//! than `memoryThresholdMB`, and lengthened up to fourfold when it is a tenth of it or less. With a deadline scheduler a
//! checkpoint is due as soon as a final dump would not fit into the deadline any more when the next one is over:
//! `T_freeze + dirty / bandwidth + T_margin`.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{CheckpointPolicy, DeadlineScheduler},
    migration::{since, spread},
};

/// What is known about an application.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// When it began to run here, or its last checkpoint was begun.
    pub last: Timestamp,
    /// Bytes a checkpoint would have to send, if that is known.
    pub upload: Option<u64>,
    /// How long the last one kept it frozen.
    pub frozen: Option<Duration>,
    /// Bytes a second that reached the store at the last one.
    pub bandwidth: Option<u64>,
    /// Checkpoints that have failed since one succeeded.
    pub failures: u32,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// Not before then.
    At(Timestamp),
    /// A final dump does not fit into the deadline, however often checkpoints are made; the next one is then.
    CannotFit(Timestamp),
}

/// More would not help a store that suffers.
const LONGEST_REST: Duration = Duration::from_secs(600);

/// When the next checkpoint is due.
pub fn next(policy: &CheckpointPolicy, facts: &Facts<'_>, now: Timestamp) -> Due {
    let interval = policy.interval().max(Duration::from_secs(1));
    if facts.failures > 0 {
        let rest = interval.saturating_mul(1 << facts.failures.min(6)).min(LONGEST_REST.max(interval));
        return due(facts.last + rest, now);
    }
    let interval = match (policy.auto_adjust(), facts.upload) {
        (true, Some(upload)) => adjusted(interval, upload, policy.memory_threshold_mb()),
        _ => interval,
    };
    // A twentieth apart, and never a whole interval late.
    let apart = Duration::from_millis(spread(facts.uid, (interval.as_millis() / 20) as u64 + 1));
    let regular = due(facts.last + interval + apart, now);
    let Some(scheduler) = policy.deadline_scheduler.as_ref().filter(|scheduler| !scheduler.dry_run()) else {
        return regular;
    };
    match (verdict(scheduler, facts), regular) {
        (Verdict::Fits, regular) => regular,
        (_, Due::Now) | (Verdict::Soon, _) if since(facts.last, now) >= scheduler.scan_interval() => Due::Now,
        (Verdict::Never, Due::At(at)) => Due::CannotFit(at),
        (_, regular) => regular,
    }
}

/// Whether a final dump fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Also when the next checkpoint comes in its turn.
    Fits,
    /// Now, but not when the next checkpoint comes in its turn.
    Soon,
    /// Not even now.
    Never,
}

/// Whether a final dump fits into the deadline.
pub fn verdict(scheduler: &DeadlineScheduler, facts: &Facts<'_>) -> Verdict {
    let (Some(upload), Some(bandwidth)) = (facts.upload, scheduler.bandwidth().or(facts.bandwidth)) else {
        return Verdict::Fits;
    };
    let freeze = scheduler.freeze().or(facts.frozen).unwrap_or_default();
    let needed = |bytes: u64| {
        let sending = Duration::from_secs_f64(bytes as f64 / bandwidth.max(1) as f64);
        freeze.saturating_add(sending).saturating_add(scheduler.margin())
    };
    if needed(upload) > scheduler.deadline() {
        return Verdict::Never;
    }
    // What is sent each time is what changes in an interval; before the next checkpoint has ended, that is twice as much.
    if needed(upload.saturating_mul(2)) > scheduler.deadline() { Verdict::Soon } else { Verdict::Fits }
}

fn adjusted(interval: Duration, upload: u64, threshold_mb: u32) -> Duration {
    let threshold = u64::from(threshold_mb).max(1) * 1_000_000;
    let ratio = threshold as f64 / upload.max(1) as f64;
    // Between a tenth of the threshold and all of it, the interval is what was asked for.
    let factor = if ratio < 1.0 { ratio.max(0.25) } else { (ratio / 10.0).clamp(1.0, 4.0) };
    interval.mul_f64(factor)
}

fn due(at: Timestamp, now: Timestamp) -> Due {
    if at <= now { Due::Now } else { Due::At(at) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn facts() -> Facts<'static> {
        Facts { uid: "u", last: at(0), upload: None, frozen: None, bandwidth: None, failures: 0 }
    }

    fn policy(yaml: &str) -> CheckpointPolicy {
        serde_saphyr::from_str(yaml).unwrap()
    }

    /// Seconds until it is due, about.
    fn seconds(policy: &CheckpointPolicy, facts: &Facts<'_>) -> u64 {
        match next(policy, facts, at(0)) {
            Due::At(moment) | Due::CannotFit(moment) => since(at(0), moment).as_secs(),
            Due::Now => 0,
        }
    }

    #[test]
    fn it_is_due_an_interval_after_the_last_one_and_a_little_apart_from_others() {
        let policy = policy("{interval: 100s, autoAdjust: false}");
        let due: Vec<u64> =
            ["a", "b", "c", "d"].map(|uid| seconds(&policy, &Facts { uid, ..facts() })).into();
        assert!(due.iter().all(|due| (100..=105).contains(due)), "{due:?}");
        assert!(due.iter().any(|one| *one != due[0]), "{due:?}");
        assert_eq!(next(&policy, &facts(), at(106)), Due::Now);
    }

    #[test]
    fn the_interval_follows_how_much_there_is_to_write() {
        let policy = policy("{interval: 100s, memoryThresholdMB: 100}");
        let after =
            |megabytes: u64| seconds(&policy, &Facts { upload: Some(megabytes * 1_000_000), ..facts() });
        assert!((100..=105).contains(&after(50)), "{}", after(50));
        assert!((50..=53).contains(&after(200)), "{}", after(200));
        assert!((25..=27).contains(&after(10_000)), "{}", after(10_000));
        assert!((400..=420).contains(&after(0)), "{}", after(0));
        let fixed = CheckpointPolicy { auto_adjust: Some(false), ..policy };
        assert!((100..=105).contains(&seconds(&fixed, &Facts { upload: Some(0), ..facts() })));
    }

    #[test]
    fn failures_make_it_wait_longer_and_not_for_ever() {
        let policy = policy("{interval: 30s}");
        let after = |failures| seconds(&policy, &Facts { failures, ..facts() });
        assert_eq!((after(1), after(2), after(3), after(60)), (60, 120, 240, 600));
    }

    #[test]
    fn a_dump_that_would_soon_not_fit_makes_a_checkpoint_due_at_once() {
        // 2 s + 6 s of sending + 2 s fit into 15; with twice as much to send they do not.
        let scheduler = "{deadlineSeconds: 15, bandwidthMBps: 100, tFreezeMs: 2000, tMarginMs: 2000, scanIntervalMs: 5000}";
        let policy =
            policy(&format!("{{interval: 100s, autoAdjust: false, deadlineScheduler: {scheduler}}}"));
        let facts = Facts { upload: Some(600_000_000), ..facts() };
        assert!(matches!(next(&policy, &facts, at(1)), Due::At(_)), "no more often than it is looked");
        assert_eq!(next(&policy, &facts, at(5)), Due::Now);
        assert!(matches!(next(&policy, &Facts { upload: Some(400_000_000), ..facts }, at(5)), Due::At(_)));
        assert!(matches!(
            next(&policy, &Facts { upload: Some(2_000_000_000), ..facts }, at(5)),
            Due::CannotFit(_)
        ));
        let mut dry = policy.clone();
        dry.deadline_scheduler.as_mut().unwrap().dry_run = Some(true);
        assert!(matches!(next(&dry, &facts, at(5)), Due::At(_)), "a dry run changes nothing");
    }
}
