//! Asking the metadata service, and going on asking whatever it does.
//!
//! Every path has a task of its own, so that one that hangs delays no other. What always holds: a path is looked at at least
//! every [`LONGEST_PAUSE`] after its last answer or failure, however long the service was in trouble, so that a notice is
//! seen in time once it can be; and no failure ends a task.
//!
//! Notices of AWS also come as EventBridge events, through an SQS queue. That is not read here: it needs credentials and an
//! infrastructure of its own, reads the notices of all machines in one place, and says about spot interruptions what the
//! machine's own metadata service says too.

mod aws;
mod azure;
mod detect;
mod error;
mod gcp;
mod pace;

use std::{convert::Infallible, future::pending, panic::resume_unwind, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};

pub use self::{azure::acknowledge, error::SourceError, pace::LONGEST_PAUSE};
use crate::{board::Board, http::Endpoint, notice::Cloud};

/// Where the metadata service of every cloud is.
pub const ENDPOINT: &str = "http://169.254.169.254";

/// How long an answer may take that is not meant to take any time.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to ask, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the metadata service is.
    pub endpoint: Endpoint,
    /// Which cloud this is; found out if it is not said.
    pub cloud: Option<Cloud>,
    /// How often to ask where a request cannot wait for a change.
    pub interval: Duration,
    /// Azure: the name of this machine, as Scheduled Events call it; asked for if it is not said.
    pub machine: Option<String>,
}

/// Finds out which cloud this is, says so through `found`, and reports what its sources see until it is dropped.
pub async fn run(settings: Settings, board: Board, found: watch::Sender<Option<Cloud>>) -> Infallible {
    let cloud = match settings.cloud {
        Some(cloud) => cloud,
        None => detect::detect(&settings.endpoint, board.metrics()).await,
    };
    tracing::info!(cloud = cloud.word(), endpoint = %settings.endpoint, "asking the metadata service");
    found.send_replace(Some(cloud));
    let mut tasks = JoinSet::new();
    match cloud {
        Cloud::Aws => {
            let session = Arc::new(aws::Session::new(settings.endpoint));
            for what in aws::ALL {
                tasks.spawn(aws::follow(Arc::clone(&session), what, settings.interval, board.clone()));
            }
        }
        Cloud::Gcp => {
            for what in gcp::ALL {
                tasks.spawn(gcp::follow(settings.endpoint.clone(), what, settings.interval, board.clone()));
            }
        }
        Cloud::Azure => {
            let Settings { endpoint, interval, machine, .. } = settings;
            tasks.spawn(azure::follow(endpoint, machine, interval, board));
        }
    }
    // None of them ends by itself; dropping this ends all.
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            // Better started again than deaf to one source.
            resume_unwind(error.into_panic());
        }
    }
    pending().await
}
