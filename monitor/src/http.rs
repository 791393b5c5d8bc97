//! Requests to a metadata service: HTTP/1 without TLS to a link-local address, one connection a request.
//!
//! A connection is not kept: it is cheap on the machine itself, and one that died silently would cost the time that there is not.
//! Every request ends within its patience, and an answer longer than [`MAX_DOCUMENT`] is refused.

use std::{fmt, io, str::FromStr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Request, Response, StatusCode, Uri, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::MAX_DOCUMENT;

/// Where a metadata service is: `http://169.254.169.254`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// Not the address of a metadata service.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no address of a metadata service: http://host or http://host:port")]
pub struct InvalidEndpoint(String);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, or it broke.
    #[error("the metadata service cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    /// It took too long.
    #[error("the metadata service did not answer within {0:?}")]
    TooSlow(Duration),
    /// Something that is not HTTP, or a connection that ended early.
    #[error("the metadata service broke off: {0}")]
    BrokenOff(#[from] hyper::Error),
    /// A body that is too long or cannot be read.
    #[error("the answer's body cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// A request that cannot be written, as with a token that is no header's value.
    #[error("the request cannot be written: {0}")]
    Request(#[from] hyper::http::Error),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let bare = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
        let host = uri.host().filter(|host| bare && !host.is_empty()).ok_or_else(invalid)?;
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port: uri.port_u16().unwrap_or(80) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl Endpoint {
    fn authority(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Asks, and waits for the whole answer.
    ///
    /// # Errors
    /// When there is none within `patience`. A status that speaks of a failure is an answer.
    pub async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<Answer, HttpError> {
        let host = self.authority().parse().map_err(hyper::http::Error::from)?;
        request.headers_mut().insert(HOST, host);
        timeout(patience, self.exchange(request)).await.map_err(|_| HttpError::TooSlow(patience))?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, HttpError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answered = async {
            let response: Response<_> = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_DOCUMENT).collect().await.map_err(HttpError::Body)?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::pin!(connection, answered);
        tokio::select! {
            biased;
            answer = &mut answered => answer,
            // An end of the connection is told to whoever waits for the answer.
            _ = &mut connection => answered.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_nothing_more() {
        for (good, shown) in [
            ("http://169.254.169.254", "http://169.254.169.254:80"),
            ("http://metadata.google.internal/", "http://metadata.google.internal:80"),
            ("http://[fd00:ec2::254]:81", "http://[fd00:ec2::254]:81"),
        ] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for bad in ["", "169.254.169.254", "https://host", "http://host/latest", "http://host?x=1"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
