//! Errors on the wire: a code of gRPC's, and an [`ErrorDetail`] that says which of our reasons it was, what was left and what
//! to do next.

use migration_proto::agent::{ErrorDetail, Reason, StatusDetails};
use prost::Message;
use tonic::{Code, Status};

use crate::error::{AgentError, chain};

const TYPE: &str = "type.googleapis.com/migration.agent.v1.ErrorDetail";

/// A detail of our own.
pub fn detail(reason: Reason, message: impl Into<String>, left: &str, hint: &str) -> ErrorDetail {
    ErrorDetail {
        reason: reason.into(),
        message: message.into(),
        left: left.to_owned(),
        hint: hint.to_owned(),
        checkpoint: String::new(),
    }
}

/// What an operation failed with.
pub fn of_error(error: &AgentError, left: Option<String>) -> ErrorDetail {
    let checkpoint = match error {
        AgentError::AfterCommit { checkpoint, .. } => checkpoint.to_string(),
        _ => String::new(),
    };
    ErrorDetail {
        reason: reason(error.reason()).into(),
        message: chain(error),
        left: left.unwrap_or_default(),
        hint: error.hint().unwrap_or_default(),
        checkpoint,
    }
}

/// The reason that a word stands for.
fn reason(word: &str) -> Reason {
    let name = format!("REASON_{}", word.replace('-', "_").to_uppercase());
    Reason::from_str_name(&name).unwrap_or(Reason::Internal)
}

/// The word for a reason, as in JSON output.
pub fn word(reason: Reason) -> String {
    reason.as_str_name().trim_start_matches("REASON_").to_lowercase().replace('_', "-")
}

/// The status that carries a detail.
pub fn status(detail: &ErrorDetail) -> Status {
    let code = match detail.reason() {
        Reason::Usage => Code::InvalidArgument,
        Reason::OperationMismatch => Code::AlreadyExists,
        Reason::UnknownOperation
        | Reason::NoSuchProcess
        | Reason::NoCheckpoint
        | Reason::UnknownCheckpoint => Code::NotFound,
        Reason::Busy | Reason::Interrupted | Reason::RestoredMeanwhile => Code::Aborted,
        Reason::Forbidden => Code::PermissionDenied,
        Reason::Stopping | Reason::Store => Code::Unavailable,
        Reason::Cancelled => Code::Cancelled,
        Reason::Deadline => Code::DeadlineExceeded,
        Reason::Read | Reason::Verify | Reason::Bundle | Reason::Catalog | Reason::HasRun => Code::DataLoss,
        Reason::ContainsAgent
        | Reason::StillLazy
        | Reason::OtherApplication
        | Reason::Snapshot
        | Reason::ServedCheckpoint
        | Reason::PidTaken
        | Reason::StillArriving
        | Reason::RunsElsewhere
        | Reason::NotHandedOver
        | Reason::HandoverOver
        | Reason::Hook
        | Reason::WrongMachine
        | Reason::NotRoot
        | Reason::NoUserfaultfd => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    let any = prost_types::Any { type_url: TYPE.to_owned(), value: detail.encode_to_vec() };
    let details = StatusDetails { code: code.into(), message: detail.message.clone(), details: vec![any] };
    Status::with_details(code, detail.message.clone(), details.encode_to_vec().into())
}

/// The detail in a status, if it carries one.
pub fn detail_of(status: &Status) -> Option<ErrorDetail> {
    let details = StatusDetails::decode(status.details()).ok()?;
    let ours = details.details.iter().find(|any| any.type_url == TYPE)?;
    ErrorDetail::decode(&ours.value[..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_an_error_has_its_number() {
        let source = include_str!("../error.rs");
        let body = source.split("pub fn reason(&self)").nth(1).unwrap().split("\n    }\n").next().unwrap();
        let words: Vec<&str> = body
            .lines()
            .filter_map(|line| line.split("=> \"").nth(1))
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert!(words.len() > 20, "{words:?}");
        for word in words {
            let name = format!("REASON_{}", word.replace('-', "_").to_uppercase());
            assert!(Reason::from_str_name(&name).is_some(), "`{word}` has no number in agent.proto");
        }
    }

    #[test]
    fn a_detail_survives_its_way_through_a_status() {
        let sent = detail(Reason::PidTaken, "pid 7 is taken", "nothing runs", "end it");
        let status = status(&sent);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(detail_of(&status), Some(sent));
        assert_eq!(detail_of(&Status::internal("no detail")), None);
        assert_eq!(word(Reason::PidTaken), "pid-taken");
    }
}
