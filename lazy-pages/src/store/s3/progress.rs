//! Telling a slow transfer from a dead one.
//!
//! A fixed time limit that suits 8 MiB over a slow line is far too long for a server that went away. So every piece of a
//! body that moves, either way, is noted, and a try ends when nothing has moved for a while.

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::super::retry::{Cause, Failure};

/// Longest silence: more than a busy server needs to make 16 MiB durable, little enough to try again.
const SILENCE: Duration = Duration::from_secs(15);
/// Slowest transfer that is still worth waiting for; slower is as good as dead, and a hostile server's trickle ends.
const SLOWEST_BYTES_PER_SECOND: u64 = 16 * 1024;
/// Bodies are sent in pieces of this size, to see them move.
const PIECE: usize = 128 * 1024;

/// When something last moved.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    /// Milliseconds after `started`.
    moved: AtomicU64,
}

impl Progress {
    /// Starts now.
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), moved: AtomicU64::new(0) }
    }

    /// Something moved.
    pub(super) fn note(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }

    fn silent_until(&self) -> Instant {
        self.started + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + SILENCE
    }

    /// `work`, which moves about `length` bytes, unless it stops moving.
    ///
    /// # Errors
    /// What `work` gives, or [`Cause::Stalled`].
    pub(super) async fn watch<T>(
        &self,
        length: u64,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut work = pin!(work);
        let end = self.started + SILENCE + Duration::from_secs(length / SLOWEST_BYTES_PER_SECOND);
        loop {
            let deadline = self.silent_until().min(end);
            if let Ok(outcome) = tokio::time::timeout_at(deadline, &mut work).await {
                return outcome;
            }
            if Instant::now() >= self.silent_until().min(end) {
                let waited = self.started.elapsed().as_secs();
                return Err(Failure::Again(Cause::Stalled, format!("no answer in {waited} s")));
            }
        }
    }
}

/// `body` in pieces that share its memory.
pub(super) fn pieces(mut body: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!body.is_empty()).then(|| body.split_to(body.len().min(PIECE))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_body_without_copies() {
        let body = Bytes::from((0..300_000_u32).map(|byte| byte as u8).collect::<Vec<u8>>());
        let start = body.as_ptr();
        let parts: Vec<Bytes> = pieces(body.clone()).collect();
        assert_eq!(parts.concat(), body);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0].as_ptr(), start);
        assert_eq!(pieces(Bytes::new()).count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_try() {
        let progress = Progress::new();
        let outcome: Result<(), _> = progress.watch(1 << 30, std::future::pending()).await;
        assert!(matches!(outcome, Err(Failure::Again(Cause::Stalled, _))));
        assert_eq!(progress.started.elapsed().as_secs(), SILENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn movement_keeps_a_slow_try_alive() {
        let progress = Progress::new();
        let work = async {
            for _ in 0..10 {
                tokio::time::sleep(SILENCE - Duration::from_secs(1)).await;
                progress.note();
            }
            Ok(7)
        };
        assert_eq!(progress.watch(1 << 30, work).await.expect("alive"), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_ends_too() {
        let progress = Progress::new();
        let work = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                progress.note();
            }
        };
        let outcome: Result<(), _> = progress.watch(SLOWEST_BYTES_PER_SECOND * 100, work).await;
        assert!(outcome.is_err());
        assert_eq!(progress.started.elapsed().as_secs(), 115);
    }
}
