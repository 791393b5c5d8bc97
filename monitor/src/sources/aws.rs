//! Amazon EC2: version 2 of the metadata service, where a session token comes first.
//!
//! The token is shared by all paths and replaced before its end; a 401, which an ended or revoked token gets, makes the
//! next request ask for another one at once. The older version without tokens is not used.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use tokio::sync::Mutex;

use super::{PATIENCE, SourceError, pace::Pace};
use crate::{
    aws,
    board::{Board, Source},
    http::{Answer, Endpoint},
    notice::Notice,
};

/// How long a token is to live, in seconds: the longest there is.
const LIFE: &str = "21600";
const LIFE_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// A path that is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct What {
    source: Source,
    path: &'static str,
    read: fn(&[u8]) -> Result<Vec<Notice>, crate::NoticeError>,
}

/// All paths.
pub(super) const ALL: [What; 3] = [
    What {
        source: Source::AwsSpot,
        path: "/latest/meta-data/spot/instance-action",
        read: |document| aws::spot_instance_action(document).map(|notice| vec![notice]),
    },
    What {
        source: Source::AwsRebalance,
        path: "/latest/meta-data/events/recommendations/rebalance",
        read: |document| aws::rebalance_recommendation(document).map(|notice| vec![notice]),
    },
    What {
        source: Source::AwsMaintenance,
        path: "/latest/meta-data/events/maintenance/scheduled",
        read: aws::scheduled_maintenance,
    },
];

/// A session with the metadata service.
#[derive(Debug)]
pub(super) struct Session {
    endpoint: Endpoint,
    token: Mutex<Option<Token>>,
}

#[derive(Clone, Debug)]
struct Token {
    value: String,
    replace_at: Instant,
}

/// Asks for one path, again and again.
pub(super) async fn follow(session: Arc<Session>, what: What, interval: Duration, board: Board) {
    let mut pace = Pace::new(what.source.word(), interval);
    let mut looked = Instant::now();
    loop {
        let begun = Instant::now();
        match session.look(what).await {
            Ok(notices) => {
                pace.answered();
                board.report(what.source, notices, looked.elapsed());
                looked = begun;
            }
            Err(error) => pace.failed(&error, board.metrics()),
        }
        pace.wait(begun).await;
    }
}

impl Session {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, token: Mutex::new(None) }
    }

    async fn look(&self, what: What) -> Result<Vec<Notice>, SourceError> {
        let token = self.token().await?;
        let mut answer = self.get(what.path, &token).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            self.forget(&token).await;
            let token = self.token().await?;
            answer = self.get(what.path, &token).await?;
            if answer.status == StatusCode::UNAUTHORIZED {
                self.forget(&token).await;
            }
        }
        match answer.status {
            StatusCode::OK => Ok((what.read)(&answer.body)?),
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            status => Err(SourceError::Status(status)),
        }
    }

    async fn get(&self, path: &str, token: &Token) -> Result<Answer, SourceError> {
        let request = Request::get(path).header("x-aws-ec2-metadata-token", &token.value);
        let request = request.body(Full::default()).map_err(crate::http::HttpError::from)?;
        Ok(self.endpoint.ask(request, PATIENCE).await?)
    }

    /// The token; a new one if there is none or it is about to end. Whoever comes meanwhile waits for the same one.
    async fn token(&self) -> Result<Token, SourceError> {
        let mut token = self.token.lock().await;
        if let Some(token) = token.as_ref().filter(|token| Instant::now() < token.replace_at) {
            return Ok(token.clone());
        }
        Ok(token.insert(new_token(&self.endpoint).await?).clone())
    }

    async fn forget(&self, refused: &Token) {
        let mut token = self.token.lock().await;
        if token.as_ref().is_some_and(|present| present.value == refused.value) {
            *token = None;
        }
    }
}

async fn new_token(endpoint: &Endpoint) -> Result<Token, SourceError> {
    let begun = Instant::now();
    let answer = endpoint.ask(token_request()?, PATIENCE).await?;
    if answer.status != StatusCode::OK {
        return Err(SourceError::Status(answer.status));
    }
    let (Some(life), Ok(value)) = (life(&answer), String::from_utf8(answer.body.to_vec())) else {
        return Err(SourceError::NotA("session token"));
    };
    // Replaced while it is still good, however short its life.
    Ok(Token { value, replace_at: begun + life * 4 / 5 })
}

fn token_request() -> Result<Request<Full<Bytes>>, SourceError> {
    let request = Request::builder().method(Method::PUT).uri("/latest/api/token").header(LIFE_HEADER, LIFE);
    Ok(request.body(Full::default()).map_err(crate::http::HttpError::from)?)
}

/// How long a token lives; only the real service says so.
fn life(answer: &Answer) -> Option<Duration> {
    let seconds = answer.headers.get(LIFE_HEADER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Whether this is the service of this cloud.
pub(super) async fn is_here(endpoint: &Endpoint) -> Result<bool, SourceError> {
    match new_token(endpoint).await {
        Ok(_) => Ok(true),
        Err(SourceError::Http(error)) => Err(error.into()),
        Err(_) => Ok(false),
    }
}
