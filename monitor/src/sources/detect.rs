//! Which cloud this is: the one whose metadata service behaves as only its own does.
//!
//! All three are asked at once, as their services have the same address and do not know each other's paths. Nothing is
//! concluded from silence: whoever starts before the service does goes on asking.

use std::time::Instant;

use super::{SourceError, aws, azure, gcp, pace::Pace};
use crate::{http::Endpoint, metrics::Metrics, notice::Cloud};

/// Asks until it is known.
pub(super) async fn detect(endpoint: &Endpoint, metrics: &Metrics) -> Cloud {
    let mut pace = Pace::new("detection", super::LONGEST_PAUSE);
    loop {
        let begun = Instant::now();
        match once(endpoint).await {
            Ok(cloud) => return cloud,
            Err(error) => pace.failed(&error, metrics),
        }
        pace.wait(begun).await;
    }
}

async fn once(endpoint: &Endpoint) -> Result<Cloud, SourceError> {
    let (aws, gcp, azure) =
        tokio::join!(aws::is_here(endpoint), gcp::is_here(endpoint), azure::is_here(endpoint));
    let mut failure = SourceError::NotA("metadata service of a cloud that is known");
    for (cloud, here) in [(Cloud::Aws, aws), (Cloud::Gcp, gcp), (Cloud::Azure, azure)] {
        match here {
            Ok(true) => return Ok(cloud),
            Ok(false) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
