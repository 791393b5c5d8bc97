//! Who trusts whom in a stack: one authority for servers, one for the front proxy, a key for service accounts' tokens, and a
//! token for whoever may do everything.

use std::{fmt::Write, fs, net::IpAddr, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
};

use crate::error::Error;

/// The name that the front proxy shows to the server behind it.
pub const FRONT_PROXY: &str = "front-proxy";

/// Who may speak to the API server, by the token it shows.
pub struct Tokens {
    /// Somebody who may do everything.
    pub admin: String,
    /// A kubelet each: its node's name, and its token.
    pub nodes: Vec<(String, String)>,
}

/// Makes everything and writes it to the directory, as the servers' command lines name it. `addresses` are those at which the API
/// server is reached beside the loopback's; `nodes` have kubelets.
///
/// # Errors
/// When a key cannot be made or a file cannot be written.
pub fn create(directory: &Path, addresses: &[IpAddr], nodes: &[String]) -> Result<Tokens, Error> {
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).map_err(Error::io(format!("write {}", path.display())))
    };
    let authority = authority("servers")?;
    write("ca.crt", &authority.pem())?;
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut names = vec!["127.0.0.1", "localhost", "kubernetes.default.svc"];
    names.extend(addresses.iter().map(String::as_str));
    let (cert, key) = leaf(&authority, "server", &names, ExtendedKeyUsagePurpose::ServerAuth)?;
    write("server.crt", &cert)?;
    write("server.key", &key)?;

    let proxy = self::authority("front proxy")?;
    write("proxy-ca.crt", &proxy.pem())?;
    let (cert, key) = leaf(&proxy, FRONT_PROXY, &[], ExtendedKeyUsagePurpose::ClientAuth)?;
    write("proxy.crt", &cert)?;
    write("proxy.key", &key)?;

    let signer = KeyPair::generate()?;
    write("tokens.key", &signer.serialize_pem())?;
    write("tokens.pub", &signer.public_key_pem())?;

    let tokens = Tokens {
        admin: token()?,
        nodes: nodes.iter().map(|node| Ok((node.clone(), token()?))).collect::<Result<_, Error>>()?,
    };
    let mut known = format!("{},admin,admin,\"system:masters\"\n", tokens.admin);
    for (node, token) in &tokens.nodes {
        // Writing to a String does not fail.
        _ = writeln!(known, "{token},system:node:{node},{node},\"system:nodes\"");
    }
    write("tokens.csv", &known)?;
    Ok(tokens)
}

/// The public key of a fresh pair is as hard to guess as anything.
fn token() -> Result<String, Error> {
    let pair = KeyPair::generate()?;
    Ok(pair.der_bytes().iter().skip(1).take(24).map(|byte| format!("{byte:02x}")).collect())
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>, Error> {
    let mut params = named(name, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn leaf(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    addresses: &[&str],
    usage: ExtendedKeyUsagePurpose,
) -> Result<(String, String), Error> {
    let key = KeyPair::generate()?;
    let mut params = named(name, addresses)?;
    params.extended_key_usages = vec![usage];
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn named(name: &str, addresses: &[&str]) -> Result<CertificateParams, Error> {
    let mut params =
        CertificateParams::new(addresses.iter().map(|&address| address.to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
