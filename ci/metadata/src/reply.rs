//! Answers.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{HeaderName, HeaderValue},
};

pub(crate) type Reply = Response<Full<Bytes>>;

pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply
}

pub(crate) fn ok(body: impl Into<Bytes>) -> Reply {
    text(StatusCode::OK, body)
}

pub(crate) fn not_found() -> Reply {
    text(StatusCode::NOT_FOUND, "404 - Not Found\n")
}

pub(crate) fn bad_request(why: &str) -> Reply {
    text(StatusCode::BAD_REQUEST, format!("400 - Bad Request: {why}\n"))
}

/// With a header; one that cannot be written is left out.
pub(crate) fn with(mut reply: Reply, name: &'static str, value: &str) -> Reply {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(HeaderName::from_static(name), value);
    }
    reply
}
