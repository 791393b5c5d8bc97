//! When to try again, how long to wait before, and when to give up.

use std::time::Duration;

use ulid::Ulid;

use super::StoreError;

/// Longest wait before the second try; it doubles with each one. "Full jitter": the wait is a random share of it, so
/// that many clients slowed down at once do not come back at once.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Where the doubling ends.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Why one try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again cannot help.
    Final(StoreError),
    /// Trying again may help.
    Again(Cause, String),
}

/// What kind of failure may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// No connection was made, so the request was certainly not carried out.
    Connect,
    /// Nothing was heard for a long time.
    Stalled,
    /// The server asked for patience, answered nonsense, or broke off.
    Broken,
}

impl Cause {
    /// How many tries in all. A stall has cost many seconds each time; a server that says "slow down" deserves patience.
    const fn tries(self) -> u32 {
        match self {
            Cause::Connect => 4,
            Cause::Stalled => 3,
            Cause::Broken => 8,
        }
    }
}

/// Counts the tries of one operation.
#[derive(Debug, Default)]
pub(super) struct Retries {
    failed: u32,
}

impl Retries {
    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure, as [`StoreError::Unavailable`] of the store `describe` names, when there is to be no next try.
    pub(super) async fn after(
        &mut self,
        failure: Failure,
        describe: impl Fn() -> String,
    ) -> Result<(), StoreError> {
        let (cause, reason) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again(cause, reason) => (cause, reason),
        };
        self.failed += 1;
        if self.failed >= cause.tries() {
            let reason = format!("{reason} (tried {} times)", self.failed);
            return Err(StoreError::Unavailable { store: describe(), reason });
        }
        tracing::debug!(store = describe(), reason, failed = self.failed, "will try again");
        tokio::time::sleep(wait(self.failed, random_share())).await;
        Ok(())
    }
}

fn wait(failed: u32, share: f64) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << failed.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    longest.mul_f64(share)
}

/// Evenly distributed in `0.0..1.0`.
fn random_share() -> f64 {
    let random = Ulid::new().random() & u128::from(u32::MAX);
    random as f64 / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        assert_eq!(wait(1, 1.0), Duration::from_millis(100));
        assert_eq!(wait(3, 1.0), Duration::from_millis(400));
        assert_eq!(wait(3, 0.25), Duration::from_millis(100));
        assert_eq!(wait(40, 1.0), LONGEST_WAIT);
    }

    #[test]
    fn waits_differ() {
        let shares: Vec<f64> = (0..64).map(|_| random_share()).collect();
        assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
        assert!(shares.iter().any(|share| *share < 0.5) && shares.iter().any(|share| *share >= 0.5));
    }

    #[tokio::test]
    async fn each_cause_has_its_own_patience() {
        for cause in [Cause::Connect, Cause::Stalled] {
            let mut retries = Retries::default();
            let mut failures = 1;
            while retries.after(Failure::Again(cause, "why".to_owned()), || "store".to_owned()).await.is_ok()
            {
                failures += 1;
            }
            assert_eq!(failures, cause.tries());
        }
    }

    #[tokio::test]
    async fn a_final_failure_is_not_retried() {
        let error = StoreError::NoSuchStore { store: "store".to_owned() };
        let outcome = Retries::default().after(Failure::Final(error), || "store".to_owned()).await;
        assert!(matches!(outcome, Err(StoreError::NoSuchStore { .. })));
    }
}
