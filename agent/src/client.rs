//! The other side of the service: connections to an agent.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use migration_proto::agent::{self as wire, Reason, agent_client::AgentClient};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::{
    AgentError, ExistingFiles, FileRules, OpenFiles,
    service::{detail_of, reason_word, tls::Files},
};

/// A path in the API, which is text.
///
/// # Errors
/// When it is not.
pub fn wire_path(path: &Path) -> Result<String, AgentError> {
    let text = path.to_str().ok_or_else(|| AgentError::Usage(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

/// Rules about files, as an agent is told them.
///
/// # Errors
/// When a path is not UTF-8.
pub fn wire_files(rules: &FileRules) -> Result<wire::FileRules, AgentError> {
    let paths = |paths: &[PathBuf]| paths.iter().map(|path| wire_path(path)).collect::<Result<_, _>>();
    let open = match rules.open {
        OpenFiles::Carry => wire::OpenFiles::Carry,
        OpenFiles::Same => wire::OpenFiles::Same,
        OpenFiles::Ignore => wire::OpenFiles::Ignore,
    };
    Ok(wire::FileRules {
        paths: paths(&rules.listed)?,
        open: open.into(),
        same: paths(&rules.same)?,
        limit: rules.limit,
    })
}

/// What becomes of files that are in the way, as an agent is told it.
pub fn wire_existing_files(existing: ExistingFiles) -> wire::ExistingFiles {
    match existing {
        ExistingFiles::SetAside => wire::ExistingFiles::SetAside,
        ExistingFiles::Replace => wire::ExistingFiles::Replace,
        ExistingFiles::Refuse => wire::ExistingFiles::Refuse,
    }
}

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentAddress {
    /// `unix:/path`
    Unix(PathBuf),
    /// `https://host:port`, with a certificate to show. `https://host:port/?name=NAME` for one whose own certificate is not its
    /// host's but has this name, as agents have that come and go under ever new addresses.
    Https(Uri),
    /// `http://host:port`, for an agent that serves plaintext.
    Http(Uri),
}

impl FromStr for AgentAddress {
    type Err = AgentError;

    fn from_str(text: &str) -> Result<Self, AgentError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        let uri = text.parse::<Uri>().ok().filter(|uri| uri.port().is_some() && uri.host().is_some());
        match uri {
            Some(uri) if uri.scheme_str() == Some("https") => Ok(Self::Https(uri)),
            Some(uri) if uri.scheme_str() == Some("http") => Ok(Self::Http(uri)),
            _ => Err(AgentError::Usage(format!(
                "`{text}` is no agent's address: unix:/path or https://host:port"
            ))),
        }
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https(uri) | Self::Http(uri) => write!(f, "{uri}"),
        }
    }
}

/// An agent, connected to.
///
/// # Errors
/// Those of [`channel`].
pub async fn connect(
    address: &AgentAddress,
    files: Option<&Files>,
) -> Result<AgentClient<Channel>, AgentError> {
    Ok(AgentClient::new(channel(address, files).await?))
}

/// Connects to an agent; over TLS with the certificate and authorities in `files`.
///
/// # Errors
/// When it cannot be reached, or a certificate is refused.
pub async fn channel(address: &AgentAddress, files: Option<&Files>) -> Result<Channel, AgentError> {
    let failed = |error: tonic::transport::Error| AgentError::Io {
        what: format!("cannot reach the agent at {address}"),
        source: io::Error::other(error),
    };
    let channel = match address {
        AgentAddress::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            });
            // The name is for the protocol only.
            Endpoint::from_static("http://agent")
                .connect_timeout(CONNECT)
                .connect_with_connector(connector)
                .await
        }
        AgentAddress::Http(uri) => Endpoint::from(uri.clone()).connect_timeout(CONNECT).connect().await,
        AgentAddress::Https(uri) => {
            let files = files.ok_or_else(|| {
                AgentError::Usage("https needs --tls-cert, --tls-key and --tls-ca".to_owned())
            })?;
            let connector = TlsConnector::from(files.client()?);
            let name = uri.query().and_then(|query| query.strip_prefix("name=")).map(str::to_owned);
            let connector = service_fn(move |uri: Uri| encrypted(uri, name.clone(), connector.clone()));
            // It is the connector that encrypts.
            let plain = format!("http://{}", uri.authority().map_or("", |authority| authority.as_str()));
            let endpoint = Endpoint::from_shared(plain).map_err(failed)?;
            endpoint.connect_timeout(CONNECT).connect_with_connector(connector).await
        }
    };
    channel.map_err(failed)
}

async fn encrypted(
    uri: Uri,
    name: Option<String>,
    connector: TlsConnector,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "an address without host and port");
    let (host, port) = (uri.host().ok_or_else(invalid)?, uri.port_u16().ok_or_else(invalid)?);
    let host = host.trim_matches(['[', ']']);
    let name = name.unwrap_or_else(|| host.to_owned());
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(connector.connect(name, stream).await?))
}

/// What a call was refused with.
pub fn refused(status: &Status) -> AgentError {
    match detail_of(status) {
        Some(detail) => AgentError::Service {
            reason: reason_word(detail.reason()),
            message: detail.message,
            left: detail.left,
            hint: detail.hint,
        },
        None if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) => AgentError::Service {
            reason: reason_word(Reason::Deadline),
            message: "the agent did not answer in time".to_owned(),
            left: String::new(),
            hint: "`migration-agent status` tells what became of it".to_owned(),
        },
        None => AgentError::Io {
            what: "the agent did not answer".to_owned(),
            source: io::Error::other(Arc::new(status.clone())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_how_to_get_there() {
        for good in [
            "unix:/run/agent.sock",
            "https://10.0.0.1:7070/",
            "https://[::1]:7070/?name=a.example",
            "http://host:1/",
        ] {
            assert_eq!(good.parse::<AgentAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "unix:relative", "/run/agent.sock", "https://host", "ftp://host:1", "host:1"] {
            assert!(bad.parse::<AgentAddress>().is_err(), "{bad}");
        }
    }
}
