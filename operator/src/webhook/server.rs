//! HTTPS for the API server.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{PATH, review};
use crate::{certificates::Issued, context::Context};

/// The largest review: a pod has less than 1.5 MiB, and there may be two of it.
const LIMIT: usize = 4 << 20;
/// How long somebody may take to ask. The API server itself waits five seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the server needs, which comes later than the server and changes.
#[derive(Clone, Default)]
pub struct Serving {
    /// Set once the operator runs. Until then, every question is refused, and pods run as they are.
    pub context: Arc<OnceLock<Arc<Context>>>,
    config: Arc<RwLock<Option<Arc<ServerConfig>>>>,
}

impl Serving {
    /// Shows this certificate to whoever connects from now on.
    ///
    /// # Errors
    /// When it cannot be used; the one before stays.
    pub fn use_certificate(&self, own: &Issued) -> Result<(), String> {
        let unusable =
            |error: &dyn std::fmt::Display| format!("the webhook's certificate cannot be used: {error}");
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).map_err(|error| unusable(&error))?;
        // API servers of all supported versions speak 1.3.
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&error))?
            .with_no_client_auth()
            .with_single_cert(chain.map_err(|error| unusable(&error))?, key)
            .map_err(|error| unusable(&error))?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(config));
        Ok(())
    }
}

/// Answers for ever; when it is dropped, so are its connections.
pub async fn serve(listener: TcpListener, serving: Serving) -> ! {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many files are open, mostly: it passes.
                tracing::warn!(%error, "a connection of the API server was not taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(config) = serving.config.read().unwrap_or_else(PoisonError::into_inner).clone() else {
            continue;
        };
        let serving = serving.clone();
        connections.spawn(async move {
            // Whoever breaks off has what they wanted.
            let Ok(Ok(stream)) = timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await else {
                return;
            };
            let service = service_fn(move |request| {
                let serving = serving.clone();
                async move { Ok::<_, Infallible>(answer(request, &serving).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, serving: &Serving) -> Response<Full<Bytes>> {
    if request.method() != Method::POST || request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "POST /mutate-pods\n");
    }
    let Some(context) = serving.context.get() else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the operator has not begun yet\n");
    };
    let body = match timeout(PATIENCE, Limited::new(request.into_body(), LIMIT).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => return plain(StatusCode::PAYLOAD_TOO_LARGE, "too much, or too slowly\n"),
    };
    match review::answer(context, &body).await {
        Some(review) => {
            let mut response = Response::new(Full::new(Bytes::from(review.to_string())));
            let kind = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        None => plain(StatusCode::BAD_REQUEST, "not an AdmissionReview of admission.k8s.io/v1\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
