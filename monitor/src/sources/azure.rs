//! Azure: Scheduled Events, one document about all machines of a set.
//!
//! Scheduled Events are switched on by the first request for them, whose answer may take two minutes: until one has come,
//! each attempt has twice the patience of the one before.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use super::{PATIENCE, SourceError, pace::Pace};
use crate::{
    azure,
    board::{Board, Source},
    http::{Answer, Endpoint, HttpError},
    notice::Notice,
};

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";

/// How long the first answer may take.
const FIRST: Duration = Duration::from_secs(150);

/// The longest name of a machine.
const LONGEST_NAME: usize = 128;

/// Asks for the document, again and again.
pub(super) async fn follow(
    endpoint: Endpoint,
    mut machine: Option<String>,
    interval: Duration,
    board: Board,
) {
    let source = Source::AzureScheduledEvents;
    let mut pace = Pace::new(source.word(), interval);
    let mut looked = Instant::now();
    let mut patience = PATIENCE;
    let mut answered = false;
    loop {
        let begun = Instant::now();
        match look(&endpoint, &mut machine, patience).await {
            Ok(notices) => {
                (answered, patience) = (true, PATIENCE);
                pace.answered();
                board.report(source, notices, looked.elapsed());
                looked = begun;
            }
            Err(error) => {
                if !answered && matches!(error, SourceError::Http(HttpError::TooSlow(_))) {
                    patience = (patience * 2).min(FIRST);
                }
                pace.failed(&error, board.metrics());
            }
        }
        pace.wait(begun).await;
    }
}

async fn look(
    endpoint: &Endpoint,
    machine: &mut Option<String>,
    patience: Duration,
) -> Result<Vec<Notice>, SourceError> {
    let name = match machine {
        Some(name) => name,
        None => machine.insert(own_name(endpoint).await?),
    };
    let answer = ask(endpoint, Method::GET, EVENTS, Bytes::new(), patience).await?;
    let mut notices = azure::scheduled_events(&answer.body)?;
    let mine = |names: &[String]| names.is_empty() || names.iter().any(|one| one.eq_ignore_ascii_case(name));
    notices.retain(|notice| mine(&notice.resources));
    Ok(notices)
}

async fn own_name(endpoint: &Endpoint) -> Result<String, SourceError> {
    let answer = ask(endpoint, Method::GET, NAME, Bytes::new(), PATIENCE).await?;
    let name = std::str::from_utf8(&answer.body).unwrap_or_default().trim_ascii();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match !name.is_empty() && name.len() <= LONGEST_NAME && plain {
        true => Ok(name.to_owned()),
        false => Err(SourceError::NotA("machine's name")),
    }
}

/// Tells the cloud that nothing on this machine needs an event to wait any longer. It may begin at once.
///
/// # Errors
/// When the service does not take it; it can be said again.
pub async fn acknowledge(endpoint: &Endpoint, event: &str) -> Result<(), SourceError> {
    let body = json!({"StartRequests": [{"EventId": event}]}).to_string();
    ask(endpoint, Method::POST, EVENTS, body.into(), PATIENCE).await.map(drop)
}

async fn ask(
    endpoint: &Endpoint,
    method: Method,
    uri: &str,
    body: Bytes,
    patience: Duration,
) -> Result<Answer, SourceError> {
    let request = Request::builder().method(method).uri(uri).header("metadata", "true");
    let request = request.body(Full::new(body)).map_err(HttpError::from)?;
    let answer = endpoint.ask(request, patience).await?;
    if answer.status == StatusCode::OK { Ok(answer) } else { Err(SourceError::Status(answer.status)) }
}

/// Whether this is the service of this cloud.
pub(super) async fn is_here(endpoint: &Endpoint) -> Result<bool, SourceError> {
    match own_name(endpoint).await {
        Ok(_) => Ok(true),
        Err(SourceError::Http(error)) => Err(error.into()),
        Err(_) => Ok(false),
    }
}
