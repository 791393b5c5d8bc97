//! Certificates in use: who gets a connection to whom.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use migration_operator::certificates::{Authorities, Identity, Issued, SETTLE, agent_server_name};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(bundle: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    roots
}

fn parts(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap())
}

fn agent(app: &str) -> Identity {
    Identity::Agent { cluster: "prod".to_owned(), namespace: "shop".to_owned(), app: app.to_owned() }
}

/// Whether a client that trusts `trusted` gets a connection to such a server under this name, as operator and agent have one.
async fn connects(
    server: &Issued,
    server_trusts: &str,
    client: &Issued,
    client_trusts: &str,
    name: &str,
) -> bool {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(server_trusts)), provider())
        .build()
        .unwrap();
    let (chain, key) = parts(server);
    let accepting = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let (chain, key) = parts(client);
    let connecting = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(client_trusts))
        .with_client_auth_cert(chain, key)
        .unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (accepted, connected) = tokio::join!(
        TlsAcceptor::from(Arc::new(accepting)).accept(far),
        TlsConnector::from(Arc::new(connecting)).connect(name, near),
    );
    accepted.is_ok() && connected.is_ok()
}

#[tokio::test]
async fn the_operator_reaches_an_agent_under_its_applications_name_only() {
    let now = SystemTime::now();
    let authorities = Authorities::new(now).unwrap();
    let trusted = authorities.bundle();
    let operator = authorities.issue(&Identity::Operator, HOUR, now).unwrap();
    let server = authorities.issue(&agent("cart"), HOUR, now).unwrap();
    assert!(connects(&server, &trusted, &operator, &trusted, &agent_server_name("shop", "cart")).await);
    for other in [agent_server_name("shop", "bank"), agent_server_name("bank", "cart"), "10.0.0.1".to_owned()]
    {
        assert!(!connects(&server, &trusted, &operator, &trusted, &other).await, "{other}");
    }
}

#[tokio::test]
async fn agents_of_one_application_reach_each_other() {
    let now = SystemTime::now();
    let authorities = Authorities::new(now).unwrap();
    let trusted = authorities.bundle();
    let (source, target) = (
        authorities.issue(&agent("cart"), HOUR, now).unwrap(),
        authorities.issue(&agent("cart"), HOUR, now).unwrap(),
    );
    assert_ne!(source.key, target.key);
    assert!(connects(&source, &trusted, &target, &trusted, &agent_server_name("shop", "cart")).await);
}

#[tokio::test]
async fn nobody_serves_with_the_operators_certificate() {
    let now = SystemTime::now();
    let authorities = Authorities::new(now).unwrap();
    let trusted = authorities.bundle();
    let operator = authorities.issue(&Identity::Operator, HOUR, now).unwrap();
    let name = migration_operator::certificates::OPERATOR_NAME;
    assert!(!connects(&operator, &trusted, &operator, &trusted, name).await);
}

#[tokio::test]
async fn certificates_of_another_installation_and_expired_ones_are_refused() {
    let now = SystemTime::now();
    let authorities = Authorities::new(now).unwrap();
    let others = Authorities::new(now).unwrap();
    let (trusted, name) = (authorities.bundle(), agent_server_name("shop", "cart"));
    let server = authorities.issue(&agent("cart"), HOUR, now).unwrap();
    let stranger = others.issue(&Identity::Operator, HOUR, now).unwrap();
    assert!(!connects(&server, &trusted, &stranger, &trusted, &name).await);
    let earlier = Authorities::new(now - 2 * DAY).unwrap();
    let expired = earlier.issue(&Identity::Operator, HOUR, now - DAY).unwrap();
    let server = earlier.issue(&agent("cart"), HOUR, now).unwrap();
    assert!(!connects(&server, &earlier.bundle(), &expired, &earlier.bundle(), &name).await);
    let fresh = earlier.issue(&Identity::Operator, HOUR, now).unwrap();
    assert!(connects(&server, &earlier.bundle(), &fresh, &earlier.bundle(), &name).await);
}

#[tokio::test]
async fn a_change_of_authorities_breaks_no_connection() {
    let now = SystemTime::now();
    // Made so long ago that a successor is due today.
    let old = Authorities::new(now - 250 * DAY).unwrap();
    let both = old.renewed(now - SETTLE * 2).unwrap().unwrap();
    let name = agent_server_name("shop", "cart");
    // An agent that has heard of the successor, and has a certificate of the one before.
    let agent_before = both.issue(&agent("cart"), 2 * DAY, now - SETTLE - HOUR).unwrap();
    // The operator already has one of the successor.
    let operator_after = both.issue(&Identity::Operator, HOUR, now).unwrap();
    assert!(connects(&agent_before, &both.bundle(), &operator_after, &both.bundle(), &name).await);
    // Who trusts the first one only would not be reached any more: that is what the time in between is for.
    assert!(!connects(&agent_before, &old.bundle(), &operator_after, &both.bundle(), &name).await);
    let operator_before = both.issue(&Identity::Operator, 2 * DAY, now - SETTLE - HOUR).unwrap();
    assert!(connects(&agent_before, &old.bundle(), &operator_before, &both.bundle(), &name).await);
}
