//! The way to the server: addressing, signing, sending, and making sense of refusals.
//!
//! Requests come from rusoto's typed client or are made here; both end in [`Try::send`], which signs them, sends them
//! over our own connections and lets only two headers of the answer through: rusoto panics on values it does not expect.
//! Bodies of refusals and of listings are bounded.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use hyper::{
    Body, HeaderMap, Request, Response,
    client::HttpConnector,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue, TRANSFER_ENCODING, USER_AGENT},
};
use hyper_tls::{
    HttpsConnector,
    native_tls::{Protocol, TlsConnector},
};
use rusoto_core::{
    ByteStream, Client, DispatchSignedRequest, HttpDispatchError, Region,
    request::HttpResponse,
    signature::{SignedRequest, SignedRequestPayload},
};
use rusoto_credential::AwsCredentials;
use rusoto_s3::S3Client;

use super::{
    super::{
        StoreError,
        retry::{Cause, Failure},
        url::S3Config,
    },
    answers::Refusal,
    progress::{Progress, pieces},
};

/// A connection across the world takes half a second; three lost packets more are forgiven.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Servers close idle connections after about a minute; using one that is about to close costs a retry.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
/// What is read of a refusal's body.
const REFUSAL_LIMIT: usize = 64 * 1024;
/// Hashing more than this is not done between other work.
const SIGN_INLINE: usize = 256 * 1024;

/// Connections to one bucket's server.
pub(super) struct Link {
    http: hyper::Client<HttpsConnector<HttpConnector>>,
    region: Region,
    /// `/bucket`.
    bucket_path: String,
    /// `bucket.host:port`, when the bucket is addressed by host name.
    bucket_host: Option<String>,
    store: String,
}

impl Link {
    /// Sets up TLS and addressing for the server at `endpoint`, or AWS; connects to nothing.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(super) fn new(config: &S3Config, endpoint: Option<&str>, region: &str) -> Result<Self, StoreError> {
        let store = config.to_string();
        let tls = TlsConnector::builder().min_protocol_version(Some(Protocol::Tlsv12)).build().map_err(
            |error| StoreError::Other {
                store: store.clone(),
                reason: format!("TLS cannot be set up: {error}"),
            },
        )?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // A ranged GET is one small packet: waiting to fill it costs 40 ms.
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        tcp.set_keepalive(Some(IDLE_LIMIT));
        let http = hyper::Client::builder()
            .pool_idle_timeout(IDLE_LIMIT)
            .build(HttpsConnector::from((tcp, tls.into())));
        let endpoint = endpoint.map_or_else(|| aws_endpoint(region), str::to_owned);
        let host = endpoint.split_once("://").map_or(&*endpoint, |(_, host)| host);
        // With dots in its name a bucket's host name matches no certificate.
        let path_style =
            config.path_style.unwrap_or(config.endpoint.is_some() || config.bucket.contains('.'));
        Ok(Self {
            http,
            bucket_path: format!("/{}", config.bucket),
            bucket_host: (!path_style).then(|| format!("{}.{host}", config.bucket)),
            region: Region::Custom { name: region.to_owned(), endpoint },
            store,
        })
    }

    /// Moves the bucket from the path, where rusoto puts it, to the host name, if that is where it belongs.
    fn address(&self, request: &mut SignedRequest) {
        if let (Some(host), Some(rest)) = (&self.bucket_host, request.path.strip_prefix(&self.bucket_path)) {
            request.path = if rest.is_empty() { "/".to_owned() } else { rest.to_owned() };
            request.set_hostname(Some(host.clone()));
        }
    }
}

fn aws_endpoint(region: &str) -> String {
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://s3.{region}.amazonaws.com{suffix}")
}

/// One try of one request.
#[derive(Clone)]
pub(super) struct Try {
    pub(super) link: Arc<Link>,
    pub(super) credentials: AwsCredentials,
    /// The object the request is about, if about one.
    pub(super) key: Option<String>,
    /// Bytes asked for.
    pub(super) wanted: u64,
    /// Most bytes of an answer's body that are let through.
    pub(super) body_limit: u64,
    pub(super) progress: Arc<Progress>,
    /// rusoto's errors hold only text, so what went wrong goes around it.
    pub(super) failure: Arc<Mutex<Option<Failure>>>,
}

impl Try {
    /// rusoto's client, sending through here.
    pub(super) fn client(&self) -> S3Client {
        S3Client::new_with_client(Client::new_not_signing(self.clone()), self.link.region.clone())
    }

    /// What went wrong when the client gave `error`.
    pub(super) fn failure(&self, error: &dyn std::fmt::Display) -> Failure {
        let kept = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.unwrap_or_else(|| {
            Failure::Again(Cause::Broken, format!("the answer is not understood: {error}"))
        })
    }

    /// Creates the object of this name in the bucket, if there is none. rusoto's typed PUT cannot say the last part.
    pub(super) async fn create(&self, full_key: String, body: Bytes) -> Result<(), Failure> {
        let path = format!("{}/{full_key}", self.link.bucket_path);
        let mut request = SignedRequest::new("PUT", "s3", &self.link.region, &path);
        request.add_header("if-none-match", "*");
        // The signature covers the body's SHA-256, which the server checks.
        request.set_payload(Some(body));
        self.send(request).await.map(drop)
    }

    async fn send(&self, mut request: SignedRequest) -> Result<HttpResponse, Failure> {
        self.link.address(&mut request);
        let creates = request.method == "PUT";
        let long =
            matches!(&request.payload, Some(SignedRequestPayload::Buffer(body)) if body.len() > SIGN_INLINE);
        if long {
            let credentials = self.credentials.clone();
            let signing = tokio::task::spawn_blocking(move || {
                request.sign(&credentials);
                request
            });
            request = signing
                .await
                .map_err(|error| Failure::Again(Cause::Broken, format!("signing was stopped: {error}")))?;
        } else {
            request.sign(&self.credentials);
        }
        let is_get = request.method == "GET";
        let request = self.to_http(request)?;
        let response = self.link.http.request(request).await.map_err(|error| {
            let cause = if error.is_connect() { Cause::Connect } else { Cause::Broken };
            Failure::Again(cause, error.to_string())
        })?;
        self.progress.note();
        if !response.status().is_success() {
            return Err(self.refusal(response, creates).await);
        }
        let ends_are_known = response.headers().contains_key(CONTENT_LENGTH)
            || response.headers().contains_key(TRANSFER_ENCODING);
        if is_get && !ends_are_known {
            return Err(Failure::Again(Cause::Broken, "the answer does not say how long it is".to_owned()));
        }
        Ok(self.accept(response))
    }

    fn to_http(&self, request: SignedRequest) -> Result<Request<Body>, Failure> {
        let query = request.canonical_query_string();
        let separator = if query.is_empty() { "" } else { "?" };
        let (scheme, host, path) = (request.scheme(), request.hostname(), request.canonical_path());
        let mut http = Request::builder()
            .method(request.method())
            .uri(format!("{scheme}://{host}{path}{separator}{query}"))
            .body(Body::empty())
            .map_err(|error| {
                let reason = format!("no request can be made of this address: {error}");
                Failure::Final(StoreError::Other { store: self.link.store.clone(), reason })
            })?;
        for (name, values) in request.headers() {
            for value in values {
                let pair =
                    HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_bytes(value).ok());
                // Only credentials come from outside. Their value is not repeated.
                let (name, value) = pair.ok_or_else(|| {
                    let reason = format!("the credentials hold characters that header {name} cannot carry");
                    Failure::Final(StoreError::Denied { store: self.link.store.clone(), reason })
                })?;
                http.headers_mut().append(name, value);
            }
        }
        http.headers_mut().insert(USER_AGENT, HeaderValue::from_static("lazy-pages"));
        if let Some(SignedRequestPayload::Buffer(body)) = request.payload {
            let progress = Arc::clone(&self.progress);
            let moving = stream::iter(pieces(body)).map(move |piece| {
                progress.note();
                Ok::<_, io::Error>(piece)
            });
            *http.body_mut() = Body::wrap_stream(moving);
        }
        Ok(http)
    }

    async fn refusal(&self, response: Response<Body>, creates: bool) -> Failure {
        let status = response.status();
        let region = response.headers().get("x-amz-bucket-region").and_then(|value| value.to_str().ok());
        let region = region.map(|region| region.chars().take(32).collect::<String>());
        let mut body = Vec::new();
        let mut pieces = response.into_body();
        // Whatever part of the body arrives is good enough; the status says most.
        while let Some(Ok(piece)) = pieces.next().await {
            body.extend_from_slice(&piece[..piece.len().min(REFUSAL_LIMIT - body.len())]);
            if body.len() == REFUSAL_LIMIT {
                break;
            }
        }
        Refusal {
            status,
            body: &body,
            region: region.as_deref(),
            store: self.link.store.clone(),
            key: self.key.as_deref(),
            wanted: self.wanted,
            creates,
        }
        .classify()
    }

    fn accept(&self, response: Response<Body>) -> HttpResponse {
        let status = response.status();
        let mut headers = HeaderMap::with_capacity(2);
        for name in [CONTENT_LENGTH, CONTENT_RANGE] {
            let value = response.headers().get(&name).and_then(|value| value.to_str().ok());
            let value = value.filter(|value| name != CONTENT_LENGTH || value.parse::<i64>().is_ok());
            if let Some(value) = value {
                headers.insert(name, value.to_owned());
            }
        }
        let progress = Arc::clone(&self.progress);
        let passed = AtomicU64::new(0);
        let limit = self.body_limit;
        let body = response.into_body().map_err(io::Error::other).and_then(move |piece| {
            progress.note();
            let length = piece.len() as u64;
            let total = passed.fetch_add(length, Ordering::Relaxed) + length;
            let within =
                if total > limit { Err(io::Error::other("the answer is too long")) } else { Ok(piece) };
            future::ready(within)
        });
        HttpResponse { status, headers, body: ByteStream::new(body) }
    }
}

impl DispatchSignedRequest for Try {
    fn dispatch(
        &self,
        request: SignedRequest,
        _: Option<Duration>,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpDispatchError>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            this.send(request).await.map_err(|failure| {
                *this.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                HttpDispatchError::new(String::new())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addressed(url: &str) -> (String, String) {
        let super::super::super::StoreUrl::S3(config) = url.parse().expect(url) else { panic!("{url}") };
        let region = config.region.as_deref().unwrap_or("us-east-1");
        let link = Link::new(&config, config.endpoint.as_deref(), region).expect("TLS");
        let path = format!("/{}/a/b", config.bucket);
        let mut request = SignedRequest::new("GET", "s3", &link.region, &path);
        link.address(&mut request);
        (format!("{}://{}", request.scheme(), request.hostname()), request.canonical_path())
    }

    #[test]
    fn buckets_of_aws_are_in_the_host_name() {
        let (host, path) = addressed("s3://bucket?region=eu-west-1");
        assert_eq!((&*host, &*path), ("https://bucket.s3.eu-west-1.amazonaws.com", "/a/b"));
        let (host, _) = addressed("s3://bucket?region=cn-north-1");
        assert_eq!(host, "https://bucket.s3.cn-north-1.amazonaws.com.cn");
    }

    #[test]
    fn a_bucket_with_dots_is_in_the_path() {
        let (host, path) = addressed("s3://my.bucket?region=eu-west-1");
        assert_eq!((&*host, &*path), ("https://s3.eu-west-1.amazonaws.com", "/my.bucket/a/b"));
    }

    #[test]
    fn buckets_of_other_servers_are_in_the_path_unless_told() {
        let (host, path) = addressed("s3://bucket?endpoint=http://[::1]:9000");
        assert_eq!((&*host, &*path), ("http://[::1]:9000", "/bucket/a/b"));
        let (host, path) = addressed("s3://bucket?endpoint=https://minio.example:9000&path-style=false");
        assert_eq!((&*host, &*path), ("https://bucket.minio.example:9000", "/a/b"));
    }
}
