//! Stages in which nothing of the application runs at the source any more.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};

use super::{
    before::{other_target, without_source},
    decide::{Case, Decision, Effect, operation_id},
    owned::was_asked,
    seen::{Done, Failure, FailureKind, Handover, OperationSeen, PodSeen, Residency},
};
use crate::api::migration::{Migration, MigrationStage, TargetLost};

/// The source's final dump is done.
pub(super) fn commit(next: &mut Migration, done: &Done, now: Timestamp) {
    next.source_stopped = Some(true);
    next.committed_at = Some(MicroTime(now));
    match done {
        Done::Checkpoint { id, frozen_ms, span } => {
            next.checkpoint_id = Some(id.clone());
            // One that was settled after its agent's death does not tell how long it was frozen: all of it, at most.
            next.frozen_at = moment(frozen_ms.map_or(span.0, |ms| span.1.saturating_sub(ms)));
            next.strategy = without_source(next.strategy);
        }
        Done::Stopped { id, generation, span } => {
            next.handover_id = Some(id.clone());
            next.handover_generation = Some(*generation);
            next.frozen_at = moment(span.0);
        }
        // No dump ends like that.
        Done::Restored { .. } => {}
    }
}

/// Nothing runs at the source: on to the restore, if the target is ready.
pub(super) fn go_on(case: &Case<'_>, next: &mut Migration) {
    next.operation = None;
    next.failures = None;
    next.retry_at = None;
    let usable = next.target.is_some() && !case.seen.target_doomed;
    match case.seen.target {
        PodSeen::Ready if usable => begin_restore(next),
        PodSeen::Gone | PodSeen::Starting | PodSeen::Silent if usable => {
            next.stage = MigrationStage::Preparing
        }
        _ => other_target(next, false),
    }
}

/// A node is chosen for what is in the store, or stopped at the source.
pub(super) fn choose(case: &Case<'_>) -> Decision {
    if case.timed_out() {
        return give_up(case, case.last_message("no node was found in time"));
    }
    if let Some(rest) = case.rests() {
        return Decision::Wait(rest);
    }
    let exhausted = case.failures() >= case.limits.budget;
    if case.written.target_takes_name() {
        return take_name(case, exhausted);
    }
    let node = case.node().filter(|_| !exhausted);
    if let Some(node) = node {
        return case.record(|next| {
            next.stage = MigrationStage::Preparing;
            next.target = Some(case.place(node));
        });
    }
    if case.written.handover_id.is_some() {
        return case.record(|next| next.stage = MigrationStage::TakingBack);
    }
    let tried = case.written.failed_nodes.contains(&case.written.source.node);
    if case.seen.source == PodSeen::Ready && !case.seen.source_doomed && !tried {
        return case.record(|next| {
            next.target = Some(next.source.clone());
            begin_restore(next);
        });
    }
    // Where no pod has ever come, another checkpoint would not be better.
    if exhausted && case.written.target_made_by.is_some() && case.written.failed_nodes.is_empty() {
        return give_up(case, case.last_message("no pod could be made for it"));
    }
    if exhausted {
        return older(case, "the checkpoint could not be restored anywhere");
    }
    case.wait()
}

/// The target gets the source's name, as soon as the source is gone. Nothing runs there: it was dumped, or lost.
fn take_name(case: &Case<'_>, exhausted: bool) -> Decision {
    match case.seen.source {
        // No pod has come into which it could be restored: another checkpoint would not be better.
        _ if exhausted => give_up(case, case.last_message("no pod could be made for it")),
        PodSeen::Gone | PodSeen::Ended | PodSeen::Killed => case.record(|next| {
            next.stage = MigrationStage::Preparing;
            next.target = Some(case.place(""));
        }),
        PodSeen::Leaving => case.wait(),
        PodSeen::Starting | PodSeen::Ready | PodSeen::Silent => Decision::Do(Effect::DeleteSource),
    }
}

/// The target's pod becomes ready.
pub(super) fn prepare(case: &Case<'_>) -> Decision {
    if case.timed_out() {
        return give_up(case, &case.not_ready("the target was not ready in time"));
    }
    if case.seen.target_doomed {
        return case.record(|next| other_target(next, false));
    }
    match case.seen.target {
        PodSeen::Ready => match case.rests() {
            Some(rest) => Decision::Wait(rest),
            None => case.record(begin_restore),
        },
        PodSeen::Gone if was_asked(case.written) => case.record(|next| other_target(next, false)),
        PodSeen::Gone if case.never_made() => {
            failed(case, FailureKind::Passing, "the target's pod was not made in time")
        }
        PodSeen::Gone => Decision::Do(Effect::CreateTarget),
        PodSeen::Ended if case.seen.superseded => failed(case, FailureKind::Refused, case.why_not_ready()),
        PodSeen::Ended | PodSeen::Killed | PodSeen::Leaving => {
            failed(case, FailureKind::Passing, case.why_not_ready())
        }
        PodSeen::Starting | PodSeen::Silent if case.lasted() > case.limits.prepare => failed(
            case,
            FailureKind::Passing,
            &case.not_ready("the target's pod did not become ready in time"),
        ),
        PodSeen::Starting | PodSeen::Silent => case.wait(),
    }
}

fn begin_restore(next: &mut Migration) {
    next.stage = MigrationStage::Restoring;
    next.operation = Some(operation_id(&next.id, "restore", next.attempt));
}

/// The target's agent restores.
pub(super) fn restore(case: &Case<'_>) -> Decision {
    match &case.seen.operation {
        OperationSeen::Succeeded(done) => case.record(|next| {
            next.stage = MigrationStage::Filling;
            next.operation = None;
            next.resumed_at = Some(MicroTime(case.now));
            next.blackout_ms = blackout(next, done);
            // Why it had to come back is told at the end.
            if !next.returns() {
                next.message = None;
            }
        }),
        OperationSeen::Failed(Failure { kind, message, .. }) => failed(case, *kind, message),
        // Nothing of it runs, whatever it was asked.
        OperationSeen::Unknown | OperationSeen::Absent if case.seen.target.is_over() => {
            failed(case, FailureKind::Passing, "the target's pod is gone")
        }
        // What is not known stays written down, and is settled when it can be.
        OperationSeen::Absent if case.timed_out() => out_of_time(case),
        _ if case.out_of_grace() => out_of_time(case),
        OperationSeen::Running if case.seen.target_doomed || case.timed_out() => Decision::Do(Effect::Cancel),
        // Somebody may have asked it just now: only a pod that is gone certainly runs nothing.
        OperationSeen::Absent if case.seen.target_doomed && !case.written.returns() => match case.seen.target
        {
            PodSeen::Leaving => case.wait(),
            _ => Decision::Do(Effect::DeleteTarget),
        },
        OperationSeen::Absent if case.seen.target == PodSeen::Ready => Decision::Do(Effect::Restore),
        OperationSeen::Running => case.wait_closely(),
        _ => case.wait(),
    }
}

/// Nothing runs at the target, nor will.
fn failed(case: &Case<'_>, kind: FailureKind, message: &str) -> Decision {
    let hands_over = case.written.handover_id.is_some();
    match kind {
        _ if hands_over => case.record(|next| {
            next.stage = MigrationStage::TakingBack;
            next.target_lost = match &case.seen.operation {
                _ if next.resumed_at.is_some() => Some(TargetLost::HadRun),
                OperationSeen::Failed(_) => None,
                _ => next.operation.as_ref().map(|_| TargetLost::MayHaveRun),
            };
            next.operation = None;
            next.resumed_at = None;
            next.message = Some(message.to_owned());
        }),
        _ if case.timed_out() => give_up(case, message),
        FailureKind::NoCheckpoint
        | FailureKind::RunsElsewhere
        | FailureKind::Refused
        | FailureKind::Strategy => give_up(case, message),
        FailureKind::Damaged => older(case, message),
        // There is no other pod to try, and the pod was not at fault.
        FailureKind::Passing | FailureKind::NoProcesses
            if case.written.target_takes_name()
                && matches!(case.seen.operation, OperationSeen::Failed(_))
                && case.failures() + 1 >= case.limits.budget =>
        {
            older(case, message)
        }
        // Another machine would not help; what has been prepared stays.
        FailureKind::Store => case.record(|next| {
            next.stage = MigrationStage::Preparing;
            next.operation = None;
            next.retry_at = Some(case.next_try(next.attempt));
            next.attempt += 1;
            next.message = Some(message.to_owned());
        }),
        FailureKind::Passing | FailureKind::NoProcesses => case.record(|next| {
            other_target(next, true);
            next.operation = None;
            next.resumed_at = None;
            next.retry_at = Some(case.next_try(case.failures()));
            next.message = Some(message.to_owned());
        }),
    }
}

/// The checkpoint before this one.
fn older(case: &Case<'_>, message: &str) -> Decision {
    let Some(known) = &case.seen.checkpoints else {
        return match case.out_of_grace() {
            true => give_up(case, message),
            false => case.wait(),
        };
    };
    let current = case.written.checkpoint_id.as_ref().or(known.first());
    let unusable = |id: &String| Some(id) == current || case.written.failed_checkpoints.contains(id);
    let Some(older) = known.iter().find(|id| !unusable(id)) else {
        return give_up(case, message);
    };
    case.record(|next| {
        next.failed_checkpoints.extend(current.cloned());
        next.message = Some(format!("{message}; checkpoint {older} is restored instead"));
        next.checkpoint_id = Some(older.clone());
        next.attempt += 1;
        next.failed_nodes.clear();
        go_on(case, next);
    })
}

/// Processes that are stopped at the source are to go on there.
pub(super) fn take_back(case: &Case<'_>) -> Decision {
    let from_store = |next: &mut Migration, why: &str| {
        forget_handover(next);
        next.checkpoint_id = None;
        next.strategy = without_source(next.strategy);
        next.message = Some(why.to_owned());
        other_target(next, true);
    };
    match case.seen.handover {
        _ if case.seen.source.is_over() => {
            case.record(|next| from_store(next, "the source's pod is gone; the last checkpoint is restored"))
        }
        // It was ended because the target, which is gone, needed it no longer.
        Handover::Over => {
            case.record(|next| from_store(next, "the target was lost; the last checkpoint is restored"))
        }
        Handover::GoesOn => case.record(|next| {
            other_target(next, true);
            forget_handover(next);
            next.source_stopped = None;
            next.committed_at = None;
            next.frozen_at = None;
            next.retry_at = Some(case.next_try(case.failures() + 1));
            let ended = case.failures() + 1 >= case.limits.budget || case.timed_out();
            if ended || case.cancelled() {
                let last = next.message.take().unwrap_or_default();
                next.message = Some(format!("{last}; the application runs on where it was"));
                next.stage = if ended { MigrationStage::Failed } else { MigrationStage::Cancelled };
            }
        }),
        Handover::Claimed => case.record(|next| {
            from_store(next, "the target was lost after it had begun to run; the last checkpoint is restored")
        }),
        Handover::Unknown | Handover::Stopped if case.out_of_grace() => case.end(
            MigrationStage::Failed,
            "the application is stopped at the source, whose agent lets it go on when it can",
        ),
        Handover::Unknown | Handover::Stopped => case.wait(),
    }
}

/// What became of processes that were still stopped at the source when the migration ended.
pub(super) fn settle_handover(case: &Case<'_>) -> Decision {
    let lost = case.seen.source.is_over() || matches!(case.seen.handover, Handover::Claimed | Handover::Over);
    if !lost && case.seen.handover != Handover::GoesOn {
        return Decision::Wait(case.limits.look * 10);
    }
    case.record(|next| {
        forget_handover(next);
        if !lost {
            next.source_stopped = None;
        }
    })
}

const KILLED: &str = "the restored processes were killed before their last page came";

/// The application runs at the target, and its pages arrive.
pub(super) fn fill(case: &Case<'_>) -> Decision {
    let hands_over = case.written.handover_id.is_some();
    match (case.seen.target, case.seen.residency) {
        (PodSeen::Gone, _) => failed(case, FailureKind::Passing, "the target's pod is gone"),
        (PodSeen::Killed, _) => failed(case, FailureKind::Passing, KILLED),
        // Their agents knew before their pod told.
        _ if hands_over && case.seen.handover == Handover::GoesOn => {
            failed(case, FailureKind::Passing, KILLED)
        }
        // It ended by itself, having been moved.
        (PodSeen::Ended, _) => has_moved(case, false),
        (_, Residency::Resident) => has_moved(case, true),
        // All of its pages are in the store: nobody has to be waited for, and it may have to move on.
        _ if !hands_over && (case.seen.on_demand || case.seen.target_doomed || case.timed_out()) => {
            has_moved(case, false)
        }
        // It has moved, and its source is kept until it can do without.
        _ if case.timed_out() => case.end(MigrationStage::Succeeded, "pages still arrive from the source"),
        _ => case.wait(),
    }
}

fn has_moved(case: &Case<'_>, resident: bool) -> Decision {
    case.record(|next| {
        next.resident_at = resident.then_some(MicroTime(case.now));
        if !resident {
            forget_handover(next);
        }
        if next.returns() {
            next.stage = MigrationStage::Failed;
            let last = next.message.take().unwrap_or_else(|| "no other node could run it".to_owned());
            next.message = Some(format!("{last}; the application was restored where it had been"));
        } else {
            next.stage = MigrationStage::RemovingSource;
        }
    })
}

/// The source's pod goes.
pub(super) fn remove_source(case: &Case<'_>) -> Decision {
    let gone = matches!(case.seen.source, PodSeen::Gone | PodSeen::Leaving);
    if gone || case.seen.preserve_source || case.out_of_grace() {
        return case.record(|next| next.stage = MigrationStage::Succeeded);
    }
    Decision::Do(Effect::DeleteSource)
}

/// The source of a migration that has succeeded goes when nobody needs it.
pub(super) fn leave_source(case: &Case<'_>) -> Decision {
    let gone = matches!(case.seen.source, PodSeen::Gone | PodSeen::Leaving);
    // It did not move: it is its ReplicaSet's again, which ends the pod that was to replace it.
    if case.seen.source_released && !gone && case.written.may_run_in() == Some(&case.written.source) {
        return Decision::Do(Effect::PutBack);
    }
    if case.written.stage != MigrationStage::Succeeded {
        return Decision::Over;
    }
    if case.written.keeps_source() {
        return leave_stopped(case);
    }
    if gone || case.seen.preserve_source { Decision::Over } else { Decision::Do(Effect::DeleteSource) }
}

/// Pages still came from processes that are stopped at the source when the migration ended.
fn leave_stopped(case: &Case<'_>) -> Decision {
    let over = case.seen.source.is_over() || case.seen.handover == Handover::Over;
    match case.seen.target {
        // Nobody needs them: all pages have come, it has ended by itself, or there is nothing left of them.
        _ if over => case.record(forget_handover),
        PodSeen::Ended => case.record(forget_handover),
        PodSeen::Gone => lost_late(case, "the target's pod is gone"),
        PodSeen::Killed => lost_late(case, KILLED),
        // Their agents knew before their pod told.
        _ if case.seen.handover == Handover::GoesOn => lost_late(case, KILLED),
        _ => Decision::Wait(case.limits.look * 10),
    }
}

fn forget_handover(next: &mut Migration) {
    next.handover_id = None;
    next.handover_generation = None;
}

/// The target was lost after the time in which its last page was waited for: what is stopped at the source is all there is.
fn lost_late(case: &Case<'_>, message: &str) -> Decision {
    case.record(|next| {
        next.stage = MigrationStage::Failed;
        next.resumed_at = None;
        next.target_lost = Some(TargetLost::HadRun);
        next.message = Some(format!("{message}; the application goes on where it was"));
    })
}

/// It cannot be run anywhere now.
fn give_up(case: &Case<'_>, message: &str) -> Decision {
    if case.written.handover_id.is_some() && case.written.stage != MigrationStage::TakingBack {
        return case.record(|next| {
            next.stage = MigrationStage::TakingBack;
            next.operation = None;
            next.message = Some(message.to_owned());
        });
    }
    let kept = match &case.written.checkpoint_id {
        Some(id) => format!("checkpoint {id} is complete and can be restored"),
        None => "its last checkpoint, if there is one, can be restored".to_owned(),
    };
    case.record(|next| {
        next.stage = MigrationStage::Failed;
        next.operation = None;
        next.resumed_at = None;
        next.message = Some(format!("{message}; the application does not run; {kept}"));
    })
}

/// The target did not say in time what became of the restore.
fn out_of_time(case: &Case<'_>) -> Decision {
    let target = case.written.target.as_ref().map_or("the target", |target| &target.pod);
    let message = format!("the restore did not end in time; whether it runs in {target} is not known yet");
    case.end(MigrationStage::Failed, &message)
}

/// From the freeze until it ran again, by the agents' clocks; those may differ.
fn blackout(written: &Migration, done: &Done) -> Option<u64> {
    let Done::Restored { resume_ms, span } = done else { return None };
    let ran = resume_ms.map_or(span.1, |ms| span.0 + ms);
    let frozen = u64::try_from(written.frozen_at.as_ref()?.0.as_millisecond()).ok()?;
    Some(ran.saturating_sub(frozen))
}

fn moment(unix_ms: u64) -> Option<MicroTime> {
    let ms = i64::try_from(unix_ms).ok()?;
    Timestamp::from_millisecond(ms).ok().map(MicroTime)
}
