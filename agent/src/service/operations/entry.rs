//! One operation, and those who wait for it.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use migration_proto::agent::{ErrorDetail, Reason};
use tokio::sync::watch;

use crate::{
    AgentError, Cancel, Progress,
    service::{
        error,
        journal::{self, End, Outcome, Record},
        wire,
    },
};

/// A caller's clock has begun before ours: one that leaves this long before the deadline leaves because of it.
const CLOCKS: Duration = Duration::from_millis(250);

/// One operation.
#[derive(Debug)]
pub struct Entry {
    pub(super) record: watch::Sender<Record>,
    progress: Progress,
    pub(super) cancel: Cancel,
    deadline: Option<Instant>,
    ended: OnceLock<Instant>,
    callers: Mutex<Callers>,
}

#[derive(Debug, Default)]
struct Callers {
    waiting: usize,
    /// It goes on when nobody waits.
    detached: bool,
    /// Why it was given up.
    reason: Option<Reason>,
}

/// Somebody who waits for an operation; when the last one goes, it is given up.
#[derive(Debug)]
pub struct Waiter {
    entry: Arc<Entry>,
}

impl Entry {
    pub(super) fn new(record: Record, deadline: Option<Instant>) -> Arc<Self> {
        Arc::new(Self {
            record: watch::Sender::new(record),
            progress: Progress::default(),
            cancel: Cancel::default(),
            deadline,
            ended: OnceLock::new(),
            callers: Mutex::default(),
        })
    }

    /// As it is now.
    pub fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How long there is until it is given up, or how long before that it ended.
    pub fn headroom_ms(&self) -> Option<i64> {
        let ended = *self.ended.get().unwrap_or(&Instant::now());
        self.deadline.map(|deadline| wire::signed_ms(ended, deadline))
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.record.borrow().end.is_some()
    }

    /// Returns when it has ended.
    pub async fn ended(&self) {
        // The sender is `self`.
        let _ = self.record.subscribe().wait_for(|record| record.end.is_some()).await;
    }

    /// Gives it up if that is still possible.
    pub fn give_up(&self, reason: Reason) {
        let mut callers = self.callers();
        if !self.has_ended() && !self.cancel.is_cancelled() && self.cancel.cancel() {
            callers.reason = Some(reason);
        }
    }

    pub(super) fn failure(&self, failed: &AgentError, left: Option<String>) -> ErrorDetail {
        let mut detail = error::of_error(failed, left);
        if matches!(failed, AgentError::Cancelled)
            && let Some(reason) = self.callers().reason
        {
            detail.set_reason(reason);
            match reason {
                Reason::Deadline => detail.message = "the deadline has passed".to_owned(),
                Reason::Stopping => detail.message = "the agent is being stopped".to_owned(),
                _ => {}
            }
            "to try again, use a new operation id".clone_into(&mut detail.hint);
        }
        detail
    }

    pub(super) fn ended_as(&self, outcome: Outcome) -> Record {
        let _ = self.ended.set(Instant::now());
        let mut record = self.record();
        record.end = Some(End { unix_ms: journal::unix_ms(), outcome });
        record
    }

    pub(super) fn ends(&self, outcome: Outcome) {
        self.record.send_replace(self.ended_as(outcome));
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    pub(super) fn join(entry: &Arc<Entry>, detach: bool) -> Self {
        let mut callers = entry.callers();
        callers.waiting += 1;
        callers.detached |= detach;
        drop(callers);
        Self { entry: Arc::clone(entry) }
    }

    /// What it waits for.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut callers = self.entry.callers();
        callers.waiting -= 1;
        let alone = callers.waiting == 0 && !callers.detached;
        drop(callers);
        if alone {
            let late = self.entry.deadline.is_some_and(|deadline| Instant::now() + CLOCKS >= deadline);
            self.entry.give_up(if late { Reason::Deadline } else { Reason::Cancelled });
        }
    }
}
