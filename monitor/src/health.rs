//! `/livez`, `/readyz` and `/metrics`.
//!
//! Alive is a monitor that has looked at what is announced within the last three minutes; that the metadata service or the API
//! server is away does not make it less so. Ready is one that hears every source of its cloud.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::watch};

use crate::{board::Source, metrics::Metrics, notice::Cloud};

/// Whoever acts wakes up more often than that; a pass over many pods with a slow API server takes less.
const STILL_ALIVE: Duration = Duration::from_secs(180);

/// A source that has not answered for so long may miss the shortest notice there is.
const STILL_HEARD: Duration = Duration::from_secs(30);

/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says that somebody is still at work.
#[derive(Clone, Debug)]
pub struct Heartbeat(Arc<Mutex<Instant>>);

impl Default for Heartbeat {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Heartbeat {
    /// Still at work.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Health {
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// Which cloud this is, once that is known.
    pub cloud: watch::Receiver<Option<Cloud>>,
    /// Of whoever acts.
    pub heartbeat: Heartbeat,
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, health: Health) -> Infallible {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let health = health.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &health);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // A client that goes away is its own business.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/livez" if health.heartbeat.age() <= STILL_ALIVE => plain(StatusCode::OK, "ok\n"),
        "/livez" => plain(StatusCode::SERVICE_UNAVAILABLE, "nobody looks at notices any more\n"),
        "/readyz" => match *health.cloud.borrow() {
            None => plain(StatusCode::SERVICE_UNAVAILABLE, "it is not known yet which cloud this is\n"),
            Some(cloud) if health.metrics.hears(Source::of(cloud), STILL_HEARD) => {
                plain(StatusCode::OK, "ok\n")
            }
            Some(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "the metadata service does not answer\n"),
        },
        "/metrics" => match health.metrics.text() {
            Ok(text) => {
                let mut response = plain(StatusCode::OK, text);
                let kind = header::HeaderValue::from_static(
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                );
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "not known\n"),
        },
        _ => plain(StatusCode::NOT_FOUND, "/livez, /readyz, /metrics\n"),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
