//! Stages in which the application runs on whatever fails.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    after,
    decide::{Case, Decision, Effect, operation_id},
    seen::{Failure, FailureKind, OperationSeen, PodSeen},
};
use crate::api::migration::{Migration, MigrationStage, MigrationStrategy};

/// A node is chosen.
pub(super) fn choose(case: &Case<'_>) -> Decision {
    if let Some(decision) = over(case) {
        return decision;
    }
    if hurries(case) {
        return begin_dump(case);
    }
    if let Some(rest) = case.rests() {
        return Decision::Wait(rest);
    }
    match case.node() {
        // There is no target to be made ready: its name is the source's.
        Some(_) if case.written.target_takes_name() => begin_dump(case),
        Some(node) => case.record(|next| {
            next.stage = MigrationStage::Preparing;
            next.target = Some(case.place(node));
        }),
        None => case.wait(),
    }
}

/// The target's pod becomes ready.
pub(super) fn prepare(case: &Case<'_>) -> Decision {
    if let Some(decision) = over(case) {
        return decision;
    }
    if case.seen.target_doomed {
        return case.record(|next| other_target(next, false));
    }
    if hurries(case) {
        return begin_dump(case);
    }
    match case.seen.target {
        PodSeen::Ready if case.rests().is_none() => return begin_dump(case),
        PodSeen::Gone if case.never_made() => {
            return fail_target(case, "the target's pod was not made in time");
        }
        PodSeen::Gone => return Decision::Do(Effect::CreateTarget),
        PodSeen::Ended | PodSeen::Killed | PodSeen::Leaving => {
            return fail_target(case, case.why_not_ready());
        }
        _ => {}
    }
    if case.lasted() > case.limits.prepare && case.seen.target != PodSeen::Ready {
        return fail_target(case, &case.not_ready("the target's pod did not become ready in time"));
    }
    case.wait()
}

/// The source's agent dumps.
pub(super) fn dump(case: &Case<'_>) -> Decision {
    match &case.seen.operation {
        OperationSeen::Succeeded(done) => case.record(|next| {
            after::commit(next, done, case.now);
            after::go_on(case, next);
        }),
        OperationSeen::Failed(failure) => failed(case, failure),
        OperationSeen::Running if case.cancelled() || case.timed_out() => match case.out_of_grace() {
            false => Decision::Do(Effect::Cancel),
            true => out_of_time(case),
        },
        OperationSeen::Absent if case.seen.source.is_over() => lost(case),
        // It was written down and perhaps not asked for; if a request is on its way, it is settled later.
        OperationSeen::Absent if case.cancelled() => {
            case.end(MigrationStage::Cancelled, "cancelled before anything was frozen")
        }
        OperationSeen::Absent if case.timed_out() => out_of_time(case),
        OperationSeen::Absent if case.seen.source == PodSeen::Ready => Decision::Do(Effect::Dump),
        // What became of it is in the store, and nowhere else.
        OperationSeen::Unknown if case.seen.source.is_over() => lost(case),
        OperationSeen::Unknown if case.out_of_grace() => out_of_time(case),
        OperationSeen::Running => case.wait_closely(),
        _ => case.wait(),
    }
}

/// What ends these stages early.
fn over(case: &Case<'_>) -> Option<Decision> {
    if case.seen.source.is_over() {
        return Some(lost(case));
    }
    if case.cancelled() {
        return Some(case.end(MigrationStage::Cancelled, "cancelled; the application runs on where it was"));
    }
    if case.timed_out() {
        return Some(out_of_time(case));
    }
    None
}

fn out_of_time(case: &Case<'_>) -> Decision {
    let what = match case.written.stage {
        MigrationStage::ChoosingTarget => "no node was found in time".to_owned(),
        MigrationStage::Preparing => case.not_ready("the target was not ready in time"),
        _ => "the final dump did not end in time".to_owned(),
    };
    let last = case.written.message.as_deref().map(|last| format!(" ({last})")).unwrap_or_default();
    case.end(MigrationStage::Failed, &format!("{what}{last}; the application runs on where it was"))
}

/// The source is gone: its last checkpoint is all there is.
fn lost(case: &Case<'_>) -> Decision {
    case.record(|next| {
        next.source_stopped = Some(true);
        next.checkpoint_id = None;
        next.strategy = without_source(next.strategy);
        next.message = Some("the source's pod is gone; its last checkpoint is restored".to_owned());
        after::go_on(case, next);
    })
}

/// The source's machine goes away too soon for the target to be waited for.
fn hurries(case: &Case<'_>) -> bool {
    let deadline = case.written.deadline.as_ref();
    deadline.is_some_and(|deadline| case.now + case.limits.reserve >= deadline.0)
        && case.seen.source == PodSeen::Ready
        && case.failures() < case.limits.budget
}

fn begin_dump(case: &Case<'_>) -> Decision {
    case.record(|next| {
        next.stage = MigrationStage::Dumping;
        next.operation = Some(operation_id(&next.id, "dump", next.attempt));
        next.dump_at = Some(MicroTime(case.now));
        next.retry_at = None;
        // Processes that are stopped have to be run before their machine is gone.
        if case.seen.target != PodSeen::Ready || next.target.is_none() {
            next.strategy = without_source(next.strategy);
        }
    })
}

/// The strategy to use where the source cannot be relied upon.
pub(super) fn without_source(strategy: MigrationStrategy) -> MigrationStrategy {
    if strategy.hands_over() { MigrationStrategy::LazyStorage } else { strategy }
}

/// Another target; this one's node is not taken again while there are others.
pub(super) fn other_target(next: &mut Migration, failed: bool) {
    next.stage = MigrationStage::ChoosingTarget;
    next.attempt += 1;
    if let Some(target) = next.target.take()
        && !target.node.is_empty()
        && !next.failed_nodes.contains(&target.node)
    {
        next.failed_nodes.push(target.node);
    }
    if failed {
        next.failures = Some(next.failures.unwrap_or(0) + 1);
    }
}

fn fail_target(case: &Case<'_>, message: &str) -> Decision {
    if case.failures() + 1 >= case.limits.budget {
        return case.end(
            MigrationStage::Failed,
            &format!("{message}, {} times; the application runs on where it was", case.limits.budget),
        );
    }
    case.record(|next| {
        other_target(next, true);
        next.retry_at = Some(case.next_try(case.failures() + 1));
        next.message = Some(message.to_owned());
    })
}

/// The dump failed, and the application runs on.
fn failed(case: &Case<'_>, failure: &Failure) -> Decision {
    // A dump before this one was committed, and failed only afterwards: it has ended the processes. Or a target that took
    // them over had everything before it was lost.
    let known_why = case.written.checkpoint_id.is_some() || case.written.target_lost.is_some();
    if failure.kind == FailureKind::NoProcesses && known_why {
        return case.record(|next| {
            next.source_stopped = Some(true);
            next.committed_at = Some(MicroTime(case.now));
            next.strategy = without_source(next.strategy);
            after::go_on(case, next);
        });
    }
    let ended = case.failures() + 1 >= case.limits.budget || failure.kind == FailureKind::Refused;
    case.record(|next| {
        next.operation = None;
        next.checkpoint_id = failure.checkpoint.clone();
        if case.cancelled() {
            next.stage = MigrationStage::Cancelled;
            next.message = Some("cancelled; the application runs on where it was".to_owned());
            return;
        }
        if ended || case.timed_out() {
            next.stage = MigrationStage::Failed;
            next.message = Some(format!("{}; the application runs on where it was", failure.message));
            return;
        }
        next.message = Some(failure.message.clone());
        // The target stays, ready as it is.
        next.stage =
            if next.target.is_some() { MigrationStage::Preparing } else { MigrationStage::ChoosingTarget };
        next.attempt += 1;
        if failure.kind == FailureKind::Strategy && next.strategy.hands_over() {
            next.strategy = MigrationStrategy::LazyStorage;
        } else {
            next.failures = Some(case.failures() + 1);
            next.retry_at = Some(case.next_try(case.failures() + 1));
        }
    })
}
