//! Who may run an application: at most one, whatever fails.
//!
//! The runs of an application are numbered; each number is a *generation*. A restored tree runs, and a tree that was stopped
//! to be handed over goes on, only after whoever holds it has created the object `runners/<generation>` in the store. Stores
//! create an object for one of any number of callers, so each generation has one runner.
//!
//! What always holds:
//! - An attempt whose outcome is not known changes nothing and can be repeated: the object names its creator by a token.
//! - The run of a tree that was handed over has begun for certain only when its runner says so (`runners/<generation>.ran`): a
//!   claim may be granted and CRIU die before it lets go of the tree.
//! - A generation is over when its runner says so (`runners/<generation>.ended`) because nothing of it runs, or when an
//!   operator who knows says it for a machine that will never speak again. Only then may the next one be claimed.

use std::sync::Arc;

use bytes::Bytes;
use lazy_pages::{
    ids::{AppId, CheckpointId},
    store::{ObjectStore, StoreError},
};
use serde::{Deserialize, Serialize};

use crate::error::AgentError;

/// More than a runner ever takes.
const LIMIT: u64 = 64 << 10;

/// Somebody who runs an application, or wants to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// Which run of the application.
    pub generation: u64,
    /// The machine, for people.
    pub host: String,
    /// Unlike any other's.
    pub token: String,
}

impl Runner {
    /// This machine as the runner of a generation.
    pub fn here(generation: u64) -> Self {
        let name = rustix::system::uname();
        let host = name.nodename().to_string_lossy().into_owned();
        Self { generation, host, token: CheckpointId::new().to_string() }
    }
}

/// Whose a generation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller's.
    Ours,
    /// Somebody else's.
    Theirs(Runner),
}

/// The generations of one application.
#[derive(Clone, Debug)]
pub struct Fence {
    store: Arc<dyn ObjectStore>,
    app: AppId,
}

impl Fence {
    /// Those of `app`.
    pub fn new(store: Arc<dyn ObjectStore>, app: AppId) -> Self {
        Self { store, app }
    }

    /// The newest generation anybody has claimed; 0 if there is none.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn newest(&self) -> Result<u64, AgentError> {
        let prefix = self.prefix();
        let objects = self.store.list(&prefix).await?;
        let numbers = objects.iter().filter_map(|object| object.key.strip_prefix(&prefix)?.parse().ok());
        Ok(numbers.max().unwrap_or(0))
    }

    /// Claims a generation. Repeating a claim that was granted grants it again.
    ///
    /// # Errors
    /// When the store fails. Whether the claim was granted is not known then: nothing may run, and the same claim has to be
    /// repeated.
    pub async fn claim(&self, runner: &Runner) -> Result<Claim, AgentError> {
        let key = self.key(runner.generation);
        let body = serde_json::to_vec(runner).map_err(|error| self.damaged(&key, &error))?;
        match self.store.put_new(&key, Bytes::from(body)).await {
            Ok(()) => Ok(Claim::Ours),
            Err(StoreError::AlreadyExists { .. }) => {
                let holder = self.read(&key).await?;
                Ok(if holder == *runner { Claim::Ours } else { Claim::Theirs(holder) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Who has claimed a generation.
    ///
    /// # Errors
    /// When the store fails, or the object is not one of ours.
    pub async fn runner(&self, generation: u64) -> Result<Option<Runner>, AgentError> {
        match self.read(&self.key(generation)).await {
            Ok(runner) => Ok(Some(runner)),
            Err(AgentError::Store(StoreError::NotFound { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says that nothing of a generation runs, nor will. Only for its runner, or for whoever knows that its machine is gone.
    ///
    /// # Errors
    /// When the store fails; it may have been said then, and can be repeated.
    pub async fn end(&self, generation: u64) -> Result<(), AgentError> {
        match self.store.put_new(&self.ended(generation), Bytes::new()).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that a generation has begun to run. Only for its runner.
    ///
    /// # Errors
    /// When the store fails; it may have been said then, and can be repeated.
    pub async fn ran(&self, generation: u64) -> Result<(), AgentError> {
        match self.store.put_new(&self.begun(generation), Bytes::new()).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether that was said.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn has_run(&self, generation: u64) -> Result<bool, AgentError> {
        self.is_there(&self.begun(generation)).await
    }

    /// The same as [`Self::end`], if this runner has claimed its generation.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn end_if_ours(&self, runner: &Runner) -> Result<(), AgentError> {
        match self.runner(runner.generation).await? {
            Some(holder) if holder == *runner => self.end(runner.generation).await,
            _ => Ok(()),
        }
    }

    /// Whether that was said.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn has_ended(&self, generation: u64) -> Result<bool, AgentError> {
        self.is_there(&self.ended(generation)).await
    }

    async fn is_there(&self, key: &str) -> Result<bool, AgentError> {
        match self.store.get(key, LIMIT).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn read(&self, key: &str) -> Result<Runner, AgentError> {
        let bytes = self.store.get(key, LIMIT).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.damaged(key, &error))
    }

    fn damaged(&self, key: &str, error: &serde_json::Error) -> AgentError {
        let reason = format!("{key} does not name a runner: {error}");
        StoreError::Other { store: self.store.describe(), reason }.into()
    }

    fn prefix(&self) -> String {
        format!("{}/runners/", self.app)
    }

    /// Numbers have one length, so that listings are in their order.
    fn key(&self, generation: u64) -> String {
        format!("{}{generation:020}", self.prefix())
    }

    fn ended(&self, generation: u64) -> String {
        format!("{}.ended", self.key(generation))
    }

    fn begun(&self, generation: u64) -> String {
        format!("{}.ran", self.key(generation))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use lazy_pages::store::LocalStore;
    use tempfile::TempDir;
    use tokio::runtime::Runtime;

    use super::*;

    fn fence() -> (TempDir, Fence, Runtime) {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::new(directory.path().to_owned()));
        (directory, Fence::new(store, "app".parse().unwrap()), Runtime::new().unwrap())
    }

    #[test]
    fn of_many_who_claim_a_generation_at_once_one_gets_it() {
        let (_directory, fence, runtime) = fence();
        for generation in 1..20 {
            let barrier = Barrier::new(8);
            let granted: Vec<(Runner, Claim)> = thread::scope(|scope| {
                let claim = || {
                    let runner = Runner::here(generation);
                    barrier.wait();
                    let claim = runtime.block_on(fence.claim(&runner)).unwrap();
                    (runner, claim)
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let winners: Vec<_> = granted.iter().filter(|(_, claim)| *claim == Claim::Ours).collect();
            let [(winner, _)] = winners[..] else { panic!("{granted:?}") };
            for (runner, claim) in &granted {
                assert!(*claim == Claim::Theirs(winner.clone()) || runner == winner);
            }
            assert_eq!(runtime.block_on(fence.claim(winner)).unwrap(), Claim::Ours, "again");
            assert_eq!(runtime.block_on(fence.newest()).unwrap(), generation);
        }
    }

    #[test]
    fn a_generation_is_over_when_that_was_said() {
        let (_directory, fence, runtime) = fence();
        runtime.block_on(async {
            assert_eq!(fence.newest().await.unwrap(), 0);
            assert_eq!(fence.runner(1).await.unwrap(), None);
            let runner = Runner::here(1);
            fence.claim(&runner).await.unwrap();
            assert_eq!(fence.runner(1).await.unwrap(), Some(runner));
            assert!(!fence.has_ended(1).await.unwrap());
            fence.end(1).await.unwrap();
            fence.end(1).await.unwrap();
            assert!(fence.has_ended(1).await.unwrap());
            assert!(!fence.has_run(1).await.unwrap(), "a claim is no run, and neither is its end");
            fence.ran(1).await.unwrap();
            fence.ran(1).await.unwrap();
            assert!(fence.has_run(1).await.unwrap() && !fence.has_run(2).await.unwrap());
            assert_eq!(fence.newest().await.unwrap(), 1, "the end of a generation is none");
        });
    }
}
