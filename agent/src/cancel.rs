//! Giving an operation up from another thread, until the moment from which it can only succeed.
//!
//! Exactly one of [`Cancel::cancel`] and [`Cancel::pass`] has its way: an operation that has passed is never undone, and one
//! that was cancelled never passes. Whoever waits meanwhile is woken by what it left with [`Cancel::on_cancel`].

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::error::AgentError;

/// A token that an operation looks at, and others cancel it by. Clones are the same token.
#[derive(Clone)]
pub struct Cancel {
    state: Arc<watch::Sender<State>>,
    /// What ends the waiting of whoever cannot look at the token.
    wake: Arc<Mutex<Vec<Waker>>>,
}

type Waker = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Cancelled,
    Passed,
}

impl Default for Cancel {
    fn default() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::Open)), wake: Arc::default() }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&*self.state.borrow()).finish()
    }
}

impl Cancel {
    /// Gives the operation up. `false` when it can only succeed or fail by itself any more.
    pub fn cancel(&self) -> bool {
        let mut wakers = self.wakers();
        self.state.send_if_modified(|state| {
            let open = *state == State::Open;
            if open {
                *state = State::Cancelled;
            }
            open
        });
        let cancelled = self.is_cancelled();
        if cancelled {
            wakers.drain(..).for_each(|wake| wake());
        }
        cancelled
    }

    /// Whether it was given up.
    pub fn is_cancelled(&self) -> bool {
        *self.state.borrow() == State::Cancelled
    }

    /// # Errors
    /// [`AgentError::Cancelled`] if it was given up.
    pub fn check(&self) -> Result<(), AgentError> {
        if self.is_cancelled() { Err(AgentError::Cancelled) } else { Ok(()) }
    }

    /// From here on it cannot be given up. `false` if it was already.
    pub fn pass(&self) -> bool {
        self.state.send_if_modified(|state| {
            let open = *state == State::Open;
            if open {
                *state = State::Passed;
            }
            open
        });
        !self.is_cancelled()
    }

    /// Calls `wake` when it is given up, at once if it was already.
    pub fn on_cancel(&self, wake: impl FnOnce() + Send + 'static) {
        let mut wakers = self.wakers();
        if self.is_cancelled() { wake() } else { wakers.push(Box::new(wake)) }
    }

    /// Returns when it is given up.
    pub async fn cancelled(&self) {
        let mut changes = self.state.subscribe();
        if changes.wait_for(|state| *state == State::Cancelled).await.is_err() {
            // The sender is `self`.
            std::future::pending().await
        }
    }

    /// Runs `operation`, or drops it when this is given up.
    ///
    /// # Errors
    /// [`AgentError::Cancelled`]; those of the operation.
    pub async fn or_run<T, E: Into<AgentError>>(
        &self,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, AgentError> {
        tokio::select! {
            biased;
            () = self.cancelled() => Err(AgentError::Cancelled),
            result = operation => result.map_err(Into::into),
        }
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn what_was_cancelled_does_not_pass_and_wakes_whoever_waits_once() {
        let cancel = Cancel::default();
        let woken = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&woken);
        cancel.on_cancel(move || _ = count.fetch_add(1, Ordering::SeqCst));
        cancel.check().unwrap();
        assert!(cancel.cancel());
        assert!(cancel.cancel());
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(!cancel.pass());
        assert!(matches!(cancel.check(), Err(AgentError::Cancelled)));
        // Who comes late is not left waiting.
        let count = Arc::clone(&woken);
        cancel.on_cancel(move || _ = count.fetch_add(1, Ordering::SeqCst));
        assert_eq!(woken.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_has_passed_cannot_be_cancelled() {
        let cancel = Cancel::default();
        cancel.on_cancel(|| panic!("nobody was to be woken"));
        assert!(cancel.pass());
        assert!(!cancel.cancel());
        assert!(!cancel.is_cancelled());
    }

    #[test]
    fn of_two_that_race_exactly_one_wins() {
        for _ in 0..2000 {
            let cancel = Cancel::default();
            let other = cancel.clone();
            let cancelled = thread::spawn(move || other.cancel());
            let passed = cancel.pass();
            assert_ne!(passed, cancelled.join().unwrap());
        }
    }
}
