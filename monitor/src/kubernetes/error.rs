//! Why the cluster is not as it should be yet.

use std::{future::Future, time::Duration};

use tokio::time::timeout;

/// How long an answer of the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why something could not be done. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server refuses, or does not answer.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// It took too long.
    #[error("the API server did not answer within {PATIENCE:?}")]
    TooSlow,
    /// Something changed meanwhile, again and again.
    #[error("{0} changes too often")]
    Conflict(String),
    /// The node is another one of the same name.
    #[error("the node was replaced")]
    Replaced,
    /// A record that cannot be written.
    #[error("a record cannot be written: {0}")]
    Record(#[from] serde_json::Error),
}

impl ClusterError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// In a word, as in metrics.
    pub fn word(&self) -> &'static str {
        match (self, self.code()) {
            (Self::TooSlow, _) => "timeout",
            (Self::Conflict(_) | Self::Replaced, _) | (_, Some(409)) => "conflict",
            (_, Some(401 | 403)) => "forbidden",
            (_, Some(404)) => "not-found",
            (_, Some(_)) | (Self::Record(_), _) => "refused",
            (Self::Api(_), None) => "unreachable",
        }
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self.word() {
            "forbidden" => "give the monitor's service account the rights in monitor/deploy/rbac.yaml",
            "not-found" => "--node-name has to be the name of the Node object this runs on",
            _ => "nothing; pods stay as they are until then",
        }
    }

    /// The API server is there, and does not want this.
    pub(super) fn is_an_answer(&self) -> bool {
        self.code().is_some()
    }

    /// The object is gone, or is another one than the one that was read.
    pub(super) fn is_about_another_object(&self) -> bool {
        matches!(self.code(), Some(404 | 409))
    }
}

/// Waits for an answer, though not for ever.
pub(super) async fn answer<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, ClusterError> {
    timeout(PATIENCE, call).await.map_err(|_| ClusterError::TooSlow)?.map_err(ClusterError::from)
}
