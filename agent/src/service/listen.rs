//! Where callers come in: a Unix socket for the machine's root, TCP with mTLS for everybody else.
//!
//! A handshake that is slow or fails costs nobody but its caller: each has a task of its own, and [`HANDSHAKE`] to be done.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use super::{
    caller::{Caller, Peer, Rules},
    tls::{Tls, names},
};
use crate::error::AgentError;

/// How long a handshake may take, so that callers who say nothing do not pile up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be accepted, as when all descriptors are in use.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection and who is at its other end.
pub struct Connection {
    io: Box<dyn Duplex>,
    peer: Peer,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}

/// Where accepted connections go.
pub type Accepted = mpsc::Sender<io::Result<Connection>>;

/// Listens on a Unix socket that only this process's own user and root can open. A socket of an agent that has died is
/// replaced.
///
/// # Errors
/// When another agent listens there, or the socket cannot be made.
pub fn unix(path: &Path) -> Result<UnixListener, AgentError> {
    let failed = |source| AgentError::Io { what: format!("cannot listen on {}", path.display()), source };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(failed(io::Error::new(ErrorKind::AddrInUse, "another agent listens there")));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    // Nobody can reach it before its mode is right, nor see a moment without one.
    let hidden = tempfile::Builder::new().prefix(".agent-").tempdir_in(folder).map_err(failed)?;
    let first = hidden.path().join("sock");
    let listener = UnixListener::bind(&first).map_err(failed)?;
    fs::set_permissions(&first, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&first, path).map_err(failed)?;
    Ok(listener)
}

/// Accepts callers on a Unix socket: root, or this process's own user.
pub async fn accept_unix(listener: UnixListener, accepted: Accepted) {
    let own = rustix::process::geteuid().as_raw();
    let is_trusted =
        |stream: &UnixStream| stream.peer_cred().is_ok_and(|peer| [0, own].contains(&peer.uid()));
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_trusted(&stream) => {
                let peer = Peer { caller: Caller::Operator, name: "unix socket".to_owned() };
                if accepted.send(Ok(Connection { io: Box::new(stream), peer })).await.is_err() {
                    return;
                }
            }
            Ok(_) => tracing::warn!("refused: a caller on the Unix socket who is not root"),
            Err(error) => pause(error).await,
        }
    }
}

/// Accepts callers over TCP: with `tls` those that its rules let in, without it everybody, as an operator.
pub async fn accept_tcp(listener: TcpListener, tls: Option<(Arc<Tls>, Rules)>, accepted: Accepted) {
    let tls = tls.map(Arc::new);
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause(error).await;
                continue;
            }
        };
        if accepted.is_closed() {
            return;
        }
        // Small answers are not to wait for more; without it they are only slower.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls.clone() else {
            let peer = Peer { caller: Caller::Operator, name: from.to_string() };
            if accepted.send(Ok(Connection { io: Box::new(stream), peer })).await.is_err() {
                return;
            }
            continue;
        };
        let accepted = accepted.clone();
        tokio::spawn(async move {
            match timeout(HANDSHAKE, meet(stream, &tls.0, &tls.1)).await {
                // If nobody takes it, the agent is being stopped.
                Ok(Ok(connection)) => drop(accepted.send(Ok(connection)).await),
                Ok(Err(reason)) => tracing::warn!(%from, reason, "refused"),
                Err(_) => tracing::warn!(%from, "refused: no handshake in time"),
            }
        });
    }
}

async fn meet(stream: TcpStream, tls: &Tls, rules: &Rules) -> Result<Connection, String> {
    let acceptor = TlsAcceptor::from(tls.current());
    let stream = acceptor.accept(stream).await.map_err(|error| error.to_string())?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let names = certificate.map(names).unwrap_or_default();
    let peer = rules.caller(&names);
    let peer = peer.ok_or_else(|| format!("no --allow-client lets {} in", names.join(", ")))?;
    tracing::debug!(peer = peer.name, "connected");
    Ok(Connection { io: Box::new(stream), peer })
}

async fn pause(error: io::Error) {
    tracing::warn!(%error, "a connection cannot be accepted");
    tokio::time::sleep(PAUSE).await;
}
