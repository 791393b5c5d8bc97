//! Checkpoints at intervals of a workload that goes on: what is lost with its machine is at most an interval.
//!
//! What always holds:
//! - Every checkpoint can be restored on its own, uploads only what changed, and leaves the workload running.
//! - A checkpoint that fails leaves the ones before it as they are. It is reported and tried again: the first time after
//!   one interval, then after two, four, at most sixteen intervals, until one succeeds.
//! - Intervals go from the beginning of one checkpoint to that of the next. One that takes longer than an interval lets
//!   as many go by as it takes.
//! - Retention is applied after a checkpoint was committed and reported; that it fails harms no checkpoint.
//! - It ends when the workload has ended, or when it is stopped. A checkpoint under way is finished first, which only the
//!   end of this process prevents: CRIU then lets the tree go on, and there is no such checkpoint.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lazy_pages::catalog::{Catalog, Collected, Retention};

use crate::{
    agent::Agent,
    checkpoint::{CheckpointReport, CheckpointRequest},
    error::AgentError,
    progress::Progress,
    tree,
};

/// Intervals between two attempts at most, after several have failed.
const LONGEST_PAUSE: u32 = 16;

/// How soon the end of the workload is noticed.
const LOOK: Duration = Duration::from_millis(200);

/// Which checkpoints, how often, and which of them to keep.
#[derive(Clone, Debug)]
pub struct Periodic {
    /// Of what. It is left running whatever this says of it.
    pub request: CheckpointRequest,
    /// From the beginning of one to the beginning of the next.
    pub every: Duration,
    /// Which to keep; without it, all.
    pub retention: Option<Retention>,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// There is a new checkpoint.
    Committed(CheckpointReport),
    /// There is none; the next attempt comes after this time.
    Failed(AgentError, Duration),
    /// Retention was applied.
    Collected(Collected),
    /// Retention could not be applied; the next checkpoint is the next occasion.
    NotCollected(AgentError),
}

/// Why there are no more checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The workload has ended.
    Workload,
    /// It was stopped.
    Stopped,
}

/// Stops periodic checkpoints, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// No checkpoint begins after this.
    pub fn stop(&self) {
        let (stopped, changed) = &*self.0;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }

    /// Whether it was stopped, which this waits for so long.
    pub fn wait(&self, time: Duration) -> bool {
        let (stopped, changed) = &*self.0;
        let stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Agent {
    /// Takes checkpoints until the workload ends or `stop` is called; the first one at once.
    ///
    /// # Errors
    /// When there is nothing to try again: [`AgentError::NoSuchProcess`] before the first, [`AgentError::NotRoot`],
    /// [`AgentError::ContainsAgent`], or an interval of no length.
    pub fn checkpoint_periodically(
        &self,
        periodic: &Periodic,
        stop: &Stop,
        tell: &mut dyn FnMut(Event),
    ) -> Result<End, AgentError> {
        let Periodic { request, every, retention } = periodic;
        if every.is_zero() {
            return Err(AgentError::Usage("checkpoints cannot be taken every 0 s".to_owned()));
        }
        let request = CheckpointRequest { leave_running: true, ..request.clone() };
        let workload = tree::started(request.pid).ok_or(AgentError::NoSuchProcess { pid: request.pid })?;
        let runs = || tree::started(request.pid) == Some(workload);
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let result = self.checkpoint(&request, &Progress::default());
            match result {
                Ok(report) => {
                    failures = 0;
                    tell(Event::Committed(report));
                    if let Some(retention) = retention {
                        let catalog = Catalog::new(Arc::clone(&self.store));
                        let collected = self.block_on(catalog.collect(&request.app, *retention));
                        tell(match collected {
                            Ok(collected) => Event::Collected(collected),
                            Err(error) => Event::NotCollected(error.into()),
                        });
                    }
                }
                Err(_) if !runs() => return Ok(End::Workload),
                Err(error @ (AgentError::NotRoot | AgentError::ContainsAgent { .. })) => return Err(error),
                Err(error) => {
                    failures += 1;
                    let next = pause(*every, failures, begun.elapsed());
                    tell(Event::Failed(error, next));
                }
            }
            let next = Instant::now() + pause(*every, failures, begun.elapsed());
            loop {
                let left = next.saturating_duration_since(Instant::now());
                if stop.wait(left.min(LOOK)) {
                    return Ok(End::Stopped);
                }
                if !runs() {
                    return Ok(End::Workload);
                }
                if left <= LOOK {
                    break;
                }
            }
        }
    }
}

/// How long to wait after an attempt that took so long, when so many have failed one after the other.
fn pause(every: Duration, failures: u32, took: Duration) -> Duration {
    let intervals = 1 << failures.saturating_sub(1).min(LONGEST_PAUSE.ilog2());
    let period = every.saturating_mul(intervals).as_nanos().max(1);
    let left = period - took.as_nanos() % period;
    Duration::from_nanos(left.try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn intervals_go_from_beginning_to_beginning() {
        assert_eq!(pause(10 * SECOND, 0, Duration::ZERO), 10 * SECOND);
        assert_eq!(pause(10 * SECOND, 0, 3 * SECOND), 7 * SECOND);
        assert_eq!(pause(10 * SECOND, 0, 23 * SECOND), 7 * SECOND, "two have gone by");
        assert_eq!(pause(Duration::MAX, 0, SECOND), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn attempts_become_rarer_while_they_fail() {
        let pauses = [1, 2, 3, 4, 5, 6, 7, u32::MAX].map(|failures| pause(SECOND, failures, Duration::ZERO));
        assert_eq!(pauses.map(|pause| pause.as_secs()), [1, 2, 4, 8, 16, 16, 16, 16]);
        assert_eq!(pause(SECOND, 3, SECOND), 3 * SECOND);
    }

    #[test]
    fn stopping_ends_a_wait_at_once_and_every_later_one() {
        let stop = Stop::default();
        assert!(!stop.wait(Duration::ZERO));
        let other = stop.clone();
        let waiting = std::thread::spawn(move || other.wait(Duration::from_secs(3600)));
        stop.stop();
        assert!(waiting.join().unwrap());
        assert!(stop.wait(Duration::from_secs(3600)));
    }
}
