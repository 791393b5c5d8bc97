//! `/livez`, `/readyz` and `/metrics` over HTTP.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::context::Context;

/// How long somebody may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is told.
#[derive(Clone, Default)]
pub struct Health {
    /// Set once the operator runs.
    pub context: Arc<OnceLock<Arc<Context>>>,
    /// Whether it can do its work, leading or waiting to lead.
    pub ready: Arc<AtomicBool>,
}

/// Answers for ever.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(address: &str, health: Health) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many files are open, mostly: it passes.
                tracing::warn!(%error, "a connection for numbers was not taken");
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
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // Whoever breaks off has what they wanted.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if health.ready.load(Ordering::SeqCst) => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the API server was not reached yet\n".to_owned()),
        "/metrics" => match health.context.get().map(|context| context.metrics.text()) {
            Some(Ok(numbers)) => {
                let mut response = text(StatusCode::OK, numbers);
                let kind = header::HeaderValue::from_static(
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                );
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            Some(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "not started yet\n".to_owned()),
        },
        _ => text(StatusCode::NOT_FOUND, "/livez, /readyz or /metrics\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
