//! The decision: what all stages have in common, and their beginning and end. See the module for the rules.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};

use super::{
    after, before,
    owned::target_of,
    seen::{OperationSeen, PodSeen, Seen},
};
use crate::api::migration::{Migration, MigrationStage, Place};

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Write this down, then decide again. Until it is written nothing is done.
    Record(Box<Migration>),
    /// Do this, then look again. What is written down covers it.
    Do(Effect),
    /// Look again when something changes, at the latest after this time.
    Wait(Duration),
    /// Nothing is left to be done.
    Over,
}

/// Something that changes the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Create the target's pod, or make way for whoever makes it.
    CreateTarget,
    /// Delete the target's pod, in which nothing of the application may run.
    DeleteTarget,
    /// Ask the source's agent for the final dump.
    Dump,
    /// Ask the target's agent for the restore.
    Restore,
    /// Cancel the operation that is written down.
    Cancel,
    /// Delete the source's pod.
    DeleteSource,
    /// Give the source's pod back to the ReplicaSet it was released from.
    PutBack,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many times something is tried.
    pub budget: u32,
    /// How long a pod may take until it is ready, when no deadline is nearer.
    pub prepare: Duration,
    /// How long before the source's machine goes away a dump begins at the latest.
    pub reserve: Duration,
    /// How long an operation that is cancelled by the timeout is waited for, and an operation that was perhaps never asked
    /// for may still arrive.
    pub grace: Duration,
    /// How often is looked while nothing happens.
    pub look: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            budget: 3,
            // An image of some gigabytes.
            prepare: Duration::from_secs(120),
            // Google's notice comes 30 seconds before the end: there the dump begins at once.
            reserve: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            look: Duration::from_secs(1),
        }
    }
}

/// A decision being made.
pub(super) struct Case<'a> {
    pub written: &'a Migration,
    pub seen: &'a Seen,
    pub limits: &'a Limits,
    pub now: Timestamp,
}

/// What is to be done now.
pub fn decide(written: &Migration, seen: &Seen, limits: &Limits, now: Timestamp) -> Decision {
    let case = Case { written, seen, limits, now };
    if seen.cancel && written.cancel_requested.is_none() && !written.stage.is_over() {
        return case.record(|next| next.cancel_requested = Some(true));
    }
    // Somebody else has chosen it.
    if let (Some(Place { node, .. }), Some(found)) = (&written.target, &seen.target_node)
        && node.is_empty()
        && !written.stage.is_over()
    {
        return case.record(|next| {
            next.target.as_mut().into_iter().for_each(|target| target.node.clone_from(found))
        });
    }
    match (written.stage, written.source_has_stopped()) {
        (MigrationStage::ChoosingTarget, false) => before::choose(&case),
        (MigrationStage::Preparing, false) => before::prepare(&case),
        (MigrationStage::Dumping, _) => before::dump(&case),
        (MigrationStage::ChoosingTarget, true) => after::choose(&case),
        (MigrationStage::Preparing, true) => after::prepare(&case),
        (MigrationStage::Restoring, _) => after::restore(&case),
        (MigrationStage::TakingBack, _) => after::take_back(&case),
        (MigrationStage::Filling, _) => after::fill(&case),
        (MigrationStage::RemovingSource, _) => after::remove_source(&case),
        (MigrationStage::Succeeded | MigrationStage::Failed | MigrationStage::Cancelled, _) => settle(&case),
    }
}

impl Case<'_> {
    pub fn record(&self, change: impl FnOnce(&mut Migration)) -> Decision {
        let mut next = self.written.clone();
        change(&mut next);
        if next.stage != self.written.stage {
            next.stage_at = MicroTime(self.now);
            if next.stage.is_over() {
                next.finished_at = Some(MicroTime(self.now));
            }
        }
        Decision::Record(Box::new(next))
    }

    pub fn wait(&self) -> Decision {
        Decision::Wait(self.limits.look)
    }

    /// The application stands still: every moment counts.
    pub fn wait_closely(&self) -> Decision {
        Decision::Wait(self.limits.look / 10)
    }

    pub fn end(&self, stage: MigrationStage, message: &str) -> Decision {
        self.record(|next| {
            next.stage = stage;
            next.message = Some(message.to_owned());
        })
    }

    pub fn timed_out(&self) -> bool {
        self.now >= self.written.timeout_at.0
    }

    /// The timeout is over, and so is what was given to what was under way then.
    pub fn out_of_grace(&self) -> bool {
        self.now >= self.written.timeout_at.0 + self.limits.grace
    }

    pub fn cancelled(&self) -> bool {
        self.written.cancel_requested == Some(true)
    }

    /// How long this stage has lasted.
    pub fn lasted(&self) -> Duration {
        since(self.written.stage_at.0, self.now)
    }

    /// A failed try has to be let rest.
    pub fn rests(&self) -> Option<Duration> {
        let until = self.written.retry_at.as_ref()?.0;
        (until > self.now).then(|| since(self.now, until))
    }

    pub fn failures(&self) -> u32 {
        self.written.failures.unwrap_or(0)
    }

    /// When the next try may be made after that many failures: two seconds, four, eight, a little apart for each migration.
    pub fn next_try(&self, failures: u32) -> MicroTime {
        let base = 1000u64 << failures.min(5);
        let apart = spread(&format!("{}-{failures}", self.written.id), base / 4);
        MicroTime(self.now + Duration::from_millis(base + apart))
    }

    /// The first node that has not failed; one that has if there is no other.
    pub fn node(&self) -> Option<&String> {
        let failed = &self.written.failed_nodes;
        let nodes = &self.seen.nodes;
        nodes.iter().find(|node| !failed.contains(node)).or_else(|| nodes.first())
    }

    /// The target of this try; `node` is where it goes if that is ours to say.
    pub fn place(&self, node: &str) -> Place {
        target_of(self.written, node)
    }

    /// What went wrong last, if anything has.
    pub fn last_message<'b>(&'b self, otherwise: &'b str) -> &'b str {
        self.written.message.as_deref().unwrap_or(otherwise)
    }

    /// Why a target's pod that has ended was of no use.
    pub fn why_not_ready(&self) -> &str {
        self.seen.refused.as_deref().unwrap_or("the target's pod ended before it was ready")
    }

    /// That the target was not ready in time, and what it waits for.
    pub fn not_ready(&self, what: &str) -> String {
        match &self.seen.target_waits {
            Some(waits) => format!("{what} ({waits})"),
            None => what.to_owned(),
        }
    }

    /// Whoever makes the target's pod has not done so in time.
    pub fn never_made(&self) -> bool {
        self.seen.target == PodSeen::Gone
            && self.written.target_made_by.is_some()
            && self.lasted() > self.limits.prepare
    }
}

/// What is left of a migration that is over: an operation whose outcome was not known.
fn settle(case: &Case<'_>) -> Decision {
    let written = case.written;
    if written.takes_back() {
        return after::settle_handover(case);
    }
    if written.operation.is_none() {
        return after::leave_source(case);
    }
    let dump = !written.source_has_stopped();
    let pod = if dump { case.seen.source } else { case.seen.target };
    let known = |change: &dyn Fn(&mut Migration)| {
        case.record(|next| {
            next.operation = None;
            change(next);
        })
    };
    match &case.seen.operation {
        // It came too late for this migration, and the checkpoint is there all the same.
        OperationSeen::Succeeded(done) if dump => known(&|next| after::commit(next, done, case.now)),
        OperationSeen::Succeeded(_) => known(&|next| next.resumed_at = Some(MicroTime(case.now))),
        OperationSeen::Failed(_) => known(&|_| {}),
        OperationSeen::Running => Decision::Do(Effect::Cancel),
        OperationSeen::Unknown | OperationSeen::Absent if pod.is_over() => {
            known(&|next| next.source_stopped = Some(true))
        }
        // A request could still be on its way.
        OperationSeen::Absent => match &written.finished_at {
            Some(finished) if since(finished.0, case.now) < case.limits.grace => case.wait(),
            _ => known(&|_| {}),
        },
        OperationSeen::Unknown => Decision::Wait(case.limits.look * 10),
    }
}

/// How long it is from one moment to a later one; nothing if it is not later.
pub(crate) fn since(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or(Duration::ZERO)
}

/// A number below `limit` that follows from a name.
pub(crate) fn spread(name: &str, limit: u64) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first) % limit.max(1)
}

/// The name of an operation: the same for the same try of the same step.
pub fn operation_id(migration: &str, step: &str, attempt: u32) -> String {
    format!("{migration}-{step}-{attempt}")
}

/// The name of a target's pod. `before` is the source's; what its own migration has added to that is taken away.
pub fn pod_name(before: &str, migration: &str, attempt: u32) -> String {
    // A pod's name is its host name, of 63 characters at most.
    const LONGEST: usize = 63;
    let base = before.rsplit_once("-m").filter(|(_, rest)| is_suffix(rest)).map_or(before, |(base, _)| base);
    let suffix = format!("-m{}-{attempt}", &migration[..migration.len().min(8)]);
    let base = &base[..base.floor_char_boundary(LONGEST - suffix.len())];
    format!("{}{suffix}", base.trim_end_matches(['-', '.']))
}

/// Whether this is what [`pod_name`] adds: eight hexadecimal digits and a number.
fn is_suffix(text: &str) -> bool {
    text.split_once('-').is_some_and(|(id, attempt)| {
        id.len() == 8
            && id.bytes().all(|byte| byte.is_ascii_hexdigit())
            && attempt.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_does_not_grow_from_migration_to_migration() {
        let first = pod_name("cache-0", "0123456789abcdef", 1);
        assert_eq!(first, "cache-0-m01234567-1");
        assert_eq!(pod_name(&first, "fedcba9876543210", 12), "cache-0-mfedcba98-12");
        let long = "a".repeat(80);
        let name = pod_name(&long, "0123456789abcdef", 3);
        assert_eq!(name.len(), 63);
        assert!(name.ends_with("-m01234567-3"));
        // What only looks alike is part of the name.
        assert_eq!(pod_name("my-mapp-1", "0123456789abcdef", 1), "my-mapp-1-m01234567-1");
    }
}
