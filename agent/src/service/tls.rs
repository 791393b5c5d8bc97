//! mTLS: both ends show a certificate of the same authority.
//!
//! The files are looked at whenever a connection comes and read again when they have changed, so that certificates can be
//! replaced while connections stay. What has changed and cannot be used is logged, and the certificates before go on being
//! used. A connection is judged once, when it comes: one that outlives its certificate stays.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::error::AgentError;

/// Where the certificates are, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// Our certificate, followed by what leads to the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities that the other end's certificate may come from.
    pub ca: PathBuf,
}

/// What tells that a file was replaced or written.
type Stamp = [(u64, i64, i64, u64); 3];

struct Loaded {
    stamp: Option<Stamp>,
    config: Arc<ServerConfig>,
}

/// The server's side.
pub struct Tls {
    files: Files,
    loaded: Mutex<Loaded>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn new(files: Files) -> Result<Self, AgentError> {
        let stamp = files.stamp();
        let config = files.server()?;
        Ok(Self { files, loaded: Mutex::new(Loaded { stamp, config }) })
    }

    /// What the next connection is to be met with.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if stamp != loaded.stamp {
            match self.files.server() {
                Ok(config) => {
                    tracing::info!("certificates were read again");
                    loaded.config = config;
                }
                Err(error) => tracing::error!(
                    error = crate::error_chain(&error),
                    "changed certificates cannot be used; those before are"
                ),
            }
            loaded.stamp = stamp;
        }
        Arc::clone(&loaded.config)
    }
}

impl Files {
    fn stamp(&self) -> Option<Stamp> {
        let of = |path: &Path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
        };
        Some([of(&self.cert)?, of(&self.key)?, of(&self.ca)?])
    }

    fn server(&self) -> Result<Arc<ServerConfig>, AgentError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
            .build()
            .map_err(|error| unusable(&self.ca, error))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&self.cert, error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.private_key()?)
            .map_err(|error| unusable(&self.cert, error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would not show its certificate again, and could be older than the authority.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The client's side.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn client(&self) -> Result<Arc<ClientConfig>, AgentError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&self.cert, error))?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.private_key()?)
            .map_err(|error| unusable(&self.cert, error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, AgentError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| unusable(&self.ca, error))?;
        }
        Ok(roots)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, AgentError> {
        certificates(&self.cert)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, AgentError> {
        let file = File::open(&self.key).map_err(AgentError::path("open", &self.key))?;
        PrivateKeyDer::from_pem_reader(BufReader::new(file)).map_err(|error| unusable(&self.key, error))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AgentError> {
    let file = File::open(path).map_err(AgentError::path("open", path))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(BufReader::new(file)).collect();
    let found = read.map_err(|error| unusable(path, error))?;
    if found.is_empty() {
        return Err(unusable(path, "it holds no certificate"));
    }
    Ok(found)
}

fn unusable(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AgentError {
    AgentError::Io { what: format!("cannot use {}", path.display()), source: io::Error::other(error) }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The names in a certificate that was verified: URIs and DNS names of its subject.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    let names = certificate.valid_uri_names().chain(certificate.valid_dns_names());
    names.map(str::to_owned).collect()
}
