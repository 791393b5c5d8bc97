//! Connections over mTLS: the operator shows its certificate, and the agent has to show that of the application it is asked for.
//!
//! Certificates are issued by the operator's own authorities and are in memory only. They are replaced while connections stay.
//! Connections are kept and used again for a while; one that breaks, or was not used for longer, is made anew by the next call.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::{AgentError, Agents, At};
use crate::certificates::{Issued, agent_server_name};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a connection in use may have been dead without our knowing.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long a connection that is not used is kept. Agents of applications that are moved are asked every second or so. The others' are
/// asked once a minute, and thousands of connections that wait for that take more memory than everything else there is.
const KEPT: Duration = Duration::from_secs(20);

/// Agents that are reached over mTLS.
#[derive(Debug)]
pub struct Mtls {
    port: u16,
    config: Arc<Mutex<Option<Arc<ClientConfig>>>>,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// And when each was used last.
    channels: HashMap<At, (Channel, Instant)>,
    swept: Instant,
}

impl Kept {
    fn get(&mut self, at: &At, now: Instant) -> Option<Channel> {
        if now.duration_since(self.swept) > KEPT {
            self.channels.retain(|_, (_, used)| now.duration_since(*used) <= KEPT);
            self.swept = now;
        }
        let (channel, used) = self.channels.get_mut(at)?;
        *used = now;
        Some(channel.clone())
    }
}

impl Mtls {
    /// Agents that serve at this port. None can be reached before there is a certificate.
    pub fn new(port: u16) -> Self {
        let kept = Kept { channels: HashMap::new(), swept: Instant::now() };
        Self { port, config: Arc::default(), kept: Mutex::new(kept) }
    }

    /// What to show and whom to trust from now on.
    ///
    /// # Errors
    /// When it cannot be used; what was used before stays.
    pub fn use_certificate(&self, own: &Issued, trusted: &str) -> Result<(), AgentError> {
        let unusable = |error: &dyn std::fmt::Display| AgentError::Certificates(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
            roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).map_err(|error| unusable(&error))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.map_err(|error| unusable(&error))?, key)
            .map_err(|error| unusable(&error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(config));
        Ok(())
    }
}

#[async_trait]
impl Agents for Mtls {
    async fn channel(&self, at: &At) -> Result<Channel, AgentError> {
        if let Some(channel) =
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(at, Instant::now())
        {
            return Ok(channel);
        }
        // It is the connector that encrypts.
        let endpoint =
            Endpoint::from_shared(format!("http://{}", authority(&at.pod_ip, self.port))).map_err(
                |error| AgentError::Unreachable { address: at.pod_ip.clone(), reason: error.to_string() },
            )?;
        let endpoint = endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(KEEP_ALIVE);
        let config = Arc::clone(&self.config);
        let name = agent_server_name(&at.namespace, &at.app);
        let connector = service_fn(move |uri: Uri| {
            let config = config.lock().unwrap_or_else(PoisonError::into_inner).clone();
            encrypted(uri, name.clone(), config)
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.channels.insert(at.clone(), (channel.clone(), Instant::now()));
        Ok(channel)
    }

    fn address(&self, at: &At) -> String {
        // Its certificate has a name for the application, whose addresses come and go.
        let name = agent_server_name(&at.namespace, &at.app);
        format!("https://{}/?name={name}", authority(&at.pod_ip, self.port))
    }
}

fn authority(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

async fn encrypted(
    uri: Uri,
    name: String,
    config: Option<Arc<ClientConfig>>,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let config = config.ok_or_else(|| io::Error::other("the operator has no certificate yet"))?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "an address without host and port");
    let (host, port) = (uri.host().ok_or_else(invalid)?, uri.port_u16().ok_or_else(invalid)?);
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_kept_as_long_as_it_is_used() {
        let at = |app: &str| At {
            pod_ip: "10.0.0.1".to_owned(),
            namespace: "shop".to_owned(),
            app: app.to_owned(),
        };
        let begun = Instant::now();
        let channel = Endpoint::from_static("http://10.0.0.1").connect_lazy();
        let channels = ["used", "unused"].map(|app| (at(app), (channel.clone(), begun)));
        let mut kept = Kept { channels: channels.into(), swept: begun };
        let mut now = begun;
        for _ in 0..5 {
            now += KEPT * 3 / 4;
            assert!(kept.get(&at("used"), now).is_some());
        }
        assert_eq!(kept.channels.len(), 1);
        assert!(kept.get(&at("unused"), now).is_none());
        assert!(kept.get(&at("used"), now + KEPT * 2).is_none());
    }
}
