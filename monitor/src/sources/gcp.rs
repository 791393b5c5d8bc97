//! Google Compute Engine: a request that is answered when the value changes.
//!
//! The first request asks for the value and its `ETag`; every further one is answered when the value has another tag, or
//! after [`HANG`]. That is short, although the service would wait for an hour: a connection that died silently is found out
//! then, and a notice is 30 seconds. A service that does not wait is asked as often as the others.

use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::{Request, StatusCode, header::ETAG};

use super::{PATIENCE, SourceError, pace::Pace};
use crate::{
    board::{Board, Source},
    gcp,
    http::{Endpoint, HttpError},
    notice::Notice,
};

/// How long a request waits for a change.
const HANG: Duration = Duration::from_secs(10);

/// A value that is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct What {
    source: Source,
    path: &'static str,
    read: fn(&[u8]) -> Result<Option<Notice>, crate::NoticeError>,
}

/// All values.
pub(super) const ALL: [What; 2] = [
    What {
        source: Source::GcpPreempted,
        path: "/computeMetadata/v1/instance/preempted",
        read: gcp::preempted,
    },
    What {
        source: Source::GcpMaintenance,
        path: "/computeMetadata/v1/instance/maintenance-event",
        read: gcp::maintenance_event,
    },
];

/// Waits for changes of one value, again and again.
pub(super) async fn follow(endpoint: Endpoint, what: What, interval: Duration, board: Board) {
    let mut pace = Pace::new(what.source.word(), interval);
    let mut tag: Option<String> = None;
    let mut looked = Instant::now();
    loop {
        let begun = Instant::now();
        match look(&endpoint, what, tag.as_deref()).await {
            Ok((notice, new)) => {
                pace.answered();
                // Nobody had looked until this request was there; if it did not wait, until its answer.
                let blind = if tag.is_some() { begun - looked } else { looked.elapsed() };
                board.report(what.source, notice.into_iter().collect(), blind);
                looked = Instant::now();
                let at_once = begun.elapsed() < HANG / 2;
                let ignored = new.is_none() || (at_once && new == tag);
                tag = new;
                if ignored {
                    pace.wait(begun).await;
                }
            }
            Err(error) => {
                pace.failed(&error, board.metrics());
                // The next answer is to come at once, whatever it is.
                tag = None;
                pace.wait(begun).await;
            }
        }
    }
}

async fn look(
    endpoint: &Endpoint,
    what: What,
    tag: Option<&str>,
) -> Result<(Option<Notice>, Option<String>), SourceError> {
    let (uri, patience) = match tag {
        None => (what.path.to_owned(), PATIENCE),
        Some(tag) => {
            let (path, seconds) = (what.path, HANG.as_secs());
            let uri = format!("{path}?wait_for_change=true&timeout_sec={seconds}&last_etag={tag}");
            (uri, HANG + PATIENCE / 2)
        }
    };
    let request = Request::get(uri).header("metadata-flavor", "Google").body(Full::default());
    let answer = endpoint.ask(request.map_err(HttpError::from)?, patience).await?;
    if answer.status != StatusCode::OK {
        return Err(SourceError::Status(answer.status));
    }
    let notice = (what.read)(&answer.body)?;
    // A tag that cannot be in an address is none.
    let tag = answer.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
    let tag = tag.filter(|tag| !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    Ok((notice, tag.map(str::to_owned)))
}

/// Whether this is the service of this cloud.
pub(super) async fn is_here(endpoint: &Endpoint) -> Result<bool, SourceError> {
    let request = Request::get("/").header("metadata-flavor", "Google").body(Full::default());
    let answer = endpoint.ask(request.map_err(HttpError::from)?, PATIENCE).await?;
    Ok(answer.headers.get("metadata-flavor").is_some_and(|value| value == "Google"))
}
