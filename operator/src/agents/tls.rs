//! Connections over mTLS: both ends show a certificate of the same authority, and an agent's is for the address it is at.
//!
//! The files are read for each connection, so that certificates can be replaced while connections stay. Connections are kept
//! and used again; one that breaks is made anew by the next call.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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

use super::{AgentError, Agents};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a connection nobody used may have been dead without our knowing.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Where the operator's certificate is, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Ours, followed by what leads to the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of agents' certificates.
    pub ca: PathBuf,
}

/// Agents that are reached over mTLS.
#[derive(Debug)]
pub struct Mtls {
    files: TlsFiles,
    port: u16,
    kept: Mutex<HashMap<String, Channel>>,
}

impl Mtls {
    /// Agents that serve at this port.
    pub fn new(files: TlsFiles, port: u16) -> Self {
        Self { files, port, kept: Mutex::default() }
    }
}

#[async_trait]
impl Agents for Mtls {
    async fn channel(&self, pod_ip: &str) -> Result<Channel, AgentError> {
        // More than an operator has pods at a time; those of pods that are gone must not be kept for ever.
        const KEPT: usize = 4096;
        if let Some(channel) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(pod_ip) {
            return Ok(channel.clone());
        }
        let address = pod_ip.to_owned();
        let files = self.files.clone();
        // It is the connector that encrypts.
        let endpoint = Endpoint::from_shared(format!("http://{}", authority(pod_ip, self.port)))
            .map_err(|error| AgentError::Unreachable { address: address.clone(), reason: error.to_string() })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_while_idle(false);
        files.client()?;
        let channel = endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| encrypted(uri, files.clone())));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(address, channel.clone());
        Ok(channel)
    }

    fn address(&self, pod_ip: &str) -> String {
        format!("https://{}", authority(pod_ip, self.port))
    }
}

fn authority(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

async fn encrypted(uri: Uri, files: TlsFiles) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "an address without host and port");
    let (host, port) = (uri.host().ok_or_else(invalid)?, uri.port_u16().ok_or_else(invalid)?);
    let host = host.trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(files.client().map_err(io::Error::other)?);
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(connector.connect(name, stream).await?))
}

impl TlsFiles {
    fn client(&self) -> Result<Arc<ClientConfig>, AgentError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| unusable(&self.ca, &error))?;
        }
        let key = File::open(&self.key).map_err(|error| unusable(&self.key, &error))?;
        let key = PrivateKeyDer::from_pem_reader(BufReader::new(key)).map_err(|error| unusable(&self.key, &error))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&self.cert, &error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&self.cert)?, key)
            .map_err(|error| unusable(&self.cert, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AgentError> {
    let file = File::open(path).map_err(|error| unusable(path, &error))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(BufReader::new(file)).collect();
    let found = read.map_err(|error| unusable(path, &error))?;
    if found.is_empty() {
        return Err(AgentError::Certificates(format!("{} holds no certificate", path.display())));
    }
    Ok(found)
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> AgentError {
    AgentError::Certificates(format!("cannot use {}: {error}", path.display()))
}
