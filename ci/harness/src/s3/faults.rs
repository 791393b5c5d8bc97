//! Misbehaviour on demand, and a count of what was asked.

use std::{
    future::Future,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Method, Response, StatusCode,
    body::Frame,
    header::{CONTENT_LENGTH, CONTENT_TYPE, RANGE},
};
use s3s::{Body, HttpRequest, HttpResponse};

/// How to misbehave. Everything is off at first; every switch may be turned while requests are under way.
#[derive(Debug, Default)]
pub struct Faults {
    delay: Mutex<Duration>,
    large_delay: Mutex<(u64, Duration)>,
    refuse: AtomicU64,
    cut_gets: AtomicU64,
    lose_puts: AtomicU64,
    silence_puts: AtomicU64,
    pub(super) overwrites: AtomicBool,
    pub(super) knows_no_ranges: AtomicBool,
    gets: AtomicU64,
    puts: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    others: AtomicU64,
}

/// How many requests of each kind came, those that were made to fail included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Objects or ranges of them.
    pub gets: u64,
    /// Objects created.
    pub puts: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Anything else.
    pub others: u64,
}

impl Faults {
    /// Every answer begins this much later.
    pub fn delay_answers(&self, delay: Duration) {
        *self.delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Answers to requests for ranges of more than `bytes` begin this much later still.
    pub fn delay_large_ranges(&self, bytes: u64, delay: Duration) {
        *self.large_delay.lock().unwrap_or_else(PoisonError::into_inner) = (bytes, delay);
    }

    /// The next `count` requests are answered 503 SlowDown.
    pub fn refuse_next(&self, count: u64) {
        self.refuse.store(count, Relaxed);
    }

    /// The bodies of the next `count` objects or ranges that are sent break off in the middle.
    pub fn cut_next_gets(&self, count: u64) {
        self.cut_gets.store(count, Relaxed);
    }

    /// The next `count` PUTs are read, and the connection is closed without storing anything or answering. Those to be
    /// carried out silently come first.
    pub fn lose_next_puts(&self, count: u64) {
        self.lose_puts.store(count, Relaxed);
    }

    /// The next `count` PUTs are carried out, and the connection is closed without an answer.
    pub fn carry_out_next_puts_silently(&self, count: u64) {
        self.silence_puts.store(count, Relaxed);
    }

    /// Whether `If-None-Match` is ignored.
    pub fn overwrite(&self, yes: bool) {
        self.overwrites.store(yes, Relaxed);
    }

    /// Whether `Range` is ignored.
    pub fn know_no_ranges(&self, yes: bool) {
        self.knows_no_ranges.store(yes, Relaxed);
    }

    /// What was asked so far.
    pub fn requests(&self) -> Requests {
        Requests {
            gets: self.gets.load(Relaxed),
            puts: self.puts.load(Relaxed),
            lists: self.lists.load(Relaxed),
            deletes: self.deletes.load(Relaxed),
            others: self.others.load(Relaxed),
        }
    }

    fn large_delay(&self, request: &HttpRequest) -> Duration {
        let (bytes, delay) = *self.large_delay.lock().unwrap_or_else(PoisonError::into_inner);
        match wanted_bytes(request) {
            Some(wanted) if wanted > bytes => delay,
            _ => Duration::ZERO,
        }
    }

    /// Answers `request` through `call`, or worse. An error closes the connection.
    pub(super) async fn around<F>(
        &self,
        request: HttpRequest,
        call: impl FnOnce(HttpRequest) -> F,
    ) -> io::Result<HttpResponse>
    where
        F: Future<Output = io::Result<HttpResponse>>,
    {
        let method = request.method().clone();
        let object = request.uri().path().trim_matches('/').contains('/');
        let refused = take(&self.refuse);
        let silenced = !refused && method == Method::PUT && take(&self.silence_puts);
        let lost = !refused && !silenced && method == Method::PUT && take(&self.lose_puts);
        self.count(&method, object, request.uri().query().unwrap_or_default()).fetch_add(1, Relaxed);
        let delay = *self.delay.lock().unwrap_or_else(PoisonError::into_inner) + self.large_delay(&request);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // The answer of a server that leaves a body unread is lost to a reset; the real one reads it.
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if refused {
            return Ok(slow_down());
        }
        if lost {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let response = call(HttpRequest::from_parts(head, Body::from(body))).await?;
        if silenced {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if method == Method::GET && object && response.status().is_success() && take(&self.cut_gets) {
            return cut(response).await;
        }
        Ok(response)
    }

    fn count(&self, method: &Method, object: bool, query: &str) -> &AtomicU64 {
        match (method, object) {
            (&Method::GET, true) => &self.gets,
            (&Method::PUT, true) => &self.puts,
            (&Method::DELETE, true) => &self.deletes,
            (&Method::GET, false) if query.contains("list-type=2") => &self.lists,
            _ => &self.others,
        }
    }
}

/// Takes one from the counter, if there is one.
fn take(counter: &AtomicU64) -> bool {
    counter.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

fn slow_down() -> HttpResponse {
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>SlowDown</Code>\
        <Message>Please reduce your request rate.</Message></Error>";
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/xml"));
    response
}

/// The same head, then half the body, then the end of the connection.
async fn cut(response: HttpResponse) -> io::Result<HttpResponse> {
    let (mut head, body) = response.into_parts();
    let whole = body.collect().await.map_err(io::Error::other)?.to_bytes();
    head.headers.insert(CONTENT_LENGTH, whole.len().into());
    let half = whole.slice(..whole.len() / 2);
    let parts = [Ok(Frame::data(half)), Err(io::Error::from(io::ErrorKind::ConnectionAborted))];
    let parts = parts.into_iter().filter(|part: &io::Result<Frame<Bytes>>| {
        part.as_ref().map_or(true, |frame| frame.data_ref().is_none_or(|data| !data.is_empty()))
    });
    let body = Body::http_body(StreamBody::new(futures_util::stream::iter(parts)));
    Ok(Response::from_parts(head, body))
}

/// The length of the range a request asks for.
fn wanted_bytes(request: &HttpRequest) -> Option<u64> {
    let range = request.headers().get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (first, last) = range.split_once('-')?;
    Some(last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)? + 1)
}
