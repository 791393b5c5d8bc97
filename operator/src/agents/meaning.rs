//! What an agent's words mean for a migration.

use migration_proto::agent::{ErrorDetail, Operation, OperationState, Reason, Strategy, operation::Outcome};

use crate::{
    api::migration::MigrationStrategy,
    migration::{Done, Failure, FailureKind, OperationSeen},
};

/// An operation, as a decision sees it.
pub fn seen(operation: &Operation) -> OperationSeen {
    let span = (operation.started_unix_ms, operation.finished_unix_ms);
    let ms = |ms: Option<f64>| ms.map(|ms| ms.max(0.0) as u64);
    match (operation.state(), &operation.outcome) {
        (OperationState::Running, _) => OperationSeen::Running,
        (_, Some(Outcome::Checkpoint(result))) => OperationSeen::Succeeded(Done::Checkpoint {
            id: result.checkpoint.clone(),
            frozen_ms: ms(result.frozen_ms),
            span,
        }),
        (_, Some(Outcome::Handover(result))) => OperationSeen::Succeeded(Done::Stopped {
            id: result.handover.clone(),
            generation: result.generation,
            span,
        }),
        (_, Some(Outcome::Restore(result))) => {
            OperationSeen::Succeeded(Done::Restored { resume_ms: ms(result.resume_ms), span })
        }
        (_, Some(Outcome::Error(detail))) => OperationSeen::Failed(failure(detail)),
        // An agent that speaks another version: nothing is known.
        (_, None) => OperationSeen::Unknown,
    }
}

/// What follows from an agent's error.
pub fn failure(detail: &ErrorDetail) -> Failure {
    let kind = match detail.reason() {
        Reason::Usage | Reason::OperationMismatch | Reason::Forbidden => FailureKind::Refused,
        Reason::NoSuchProcess | Reason::Launcher => FailureKind::NoProcesses,
        Reason::StillArriving | Reason::TooLarge => FailureKind::Strategy,
        Reason::NoCheckpoint => FailureKind::NoCheckpoint,
        Reason::UnknownCheckpoint | Reason::Verify | Reason::Bundle | Reason::Images | Reason::Catalog => {
            FailureKind::Damaged
        }
        Reason::RunsElsewhere => FailureKind::RunsElsewhere,
        Reason::Store | Reason::Write | Reason::Read => FailureKind::Store,
        _ => FailureKind::Passing,
    };
    let hint = Some(detail.hint.as_str()).filter(|hint| !hint.is_empty());
    let message = hint.map_or_else(|| detail.message.clone(), |hint| format!("{}; {hint}", detail.message));
    let checkpoint = Some(detail.checkpoint.clone()).filter(|id| !id.is_empty());
    Failure { kind, message, checkpoint }
}

/// An agent's name for a strategy.
pub fn wire_strategy(strategy: MigrationStrategy) -> Strategy {
    match strategy {
        MigrationStrategy::Full => Strategy::Full,
        MigrationStrategy::LazyStorage => Strategy::LazyStorage,
        MigrationStrategy::LazyDirect => Strategy::LazyDirect,
        MigrationStrategy::LazyHybrid => Strategy::LazyHybrid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_refuses_for_good_is_not_tried_again() {
        let kind =
            |reason: Reason| failure(&ErrorDetail { reason: reason.into(), ..Default::default() }).kind;
        assert_eq!(kind(Reason::Usage), FailureKind::Refused);
        assert_eq!(kind(Reason::Verify), FailureKind::Damaged);
        assert_eq!(kind(Reason::StillArriving), FailureKind::Strategy);
        assert_eq!(kind(Reason::Store), FailureKind::Store);
        for passing in [Reason::Busy, Reason::Stopping, Reason::Criu, Reason::Interrupted, Reason::Cancelled]
        {
            assert_eq!(kind(passing), FailureKind::Passing, "{passing:?}");
        }
    }

    #[test]
    fn an_operation_without_an_outcome_is_not_taken_for_one_that_succeeded() {
        let ended = Operation { state: OperationState::Succeeded.into(), ..Default::default() };
        assert_eq!(seen(&ended), OperationSeen::Unknown);
        let running = Operation { state: OperationState::Running.into(), ..Default::default() };
        assert_eq!(seen(&running), OperationSeen::Running);
    }
}
