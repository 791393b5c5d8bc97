//! The Secret that the authorities are kept in, and what agents get.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};

use super::{Authorities, CertificateError, Identity, Issued};

/// The Secret with the authorities and their keys, in the operator's namespace.
pub const AUTHORITY_SECRET: &str = "migration-authority";
/// Its key with everything in it.
const AUTHORITIES: &str = "authorities.json";
/// Its key with the certificates to trust, for whoever looks.
const BUNDLE: &str = "ca.crt";
/// How long an agent's certificate holds. Agents read a new one as soon as it is there.
const AGENT_LIFE: Duration = Duration::from_secs(48 * 3600);
/// How often a write is tried that others get ahead of.
const TRIES: u32 = 5;

/// Reads the authorities, or makes the first one. However many operators do that at once, they get the same.
///
/// # Errors
/// When the Secret cannot be read, written or understood.
pub async fn load(
    client: &Client,
    namespace: &str,
    now: SystemTime,
) -> Result<Authorities, CertificateError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..TRIES {
        if let Some(secret) = secrets.get_opt(AUTHORITY_SECRET).await.map_err(refused("read", namespace))? {
            return understood(&secret, namespace);
        }
        let first = Authorities::new(now)?;
        match secrets.create(&PostParams::default(), &secret(&first, namespace, None)?).await {
            Ok(_) => return Ok(first),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(refused("create", namespace)(error)),
        }
    }
    Err(CertificateError::Unusable { namespace: namespace.to_owned(), why: "it comes and goes".to_owned() })
}

/// Reads the authorities and replaces them if it is time to.
///
/// # Errors
/// As [`load`].
pub async fn renew(
    client: &Client,
    namespace: &str,
    now: SystemTime,
) -> Result<Authorities, CertificateError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..TRIES {
        let Some(read) = secrets.get_opt(AUTHORITY_SECRET).await.map_err(refused("read", namespace))? else {
            return load(client, namespace, now).await;
        };
        let before = understood(&read, namespace)?;
        let Some(after) = before.renewed(now)? else { return Ok(before) };
        let written = secret(&after, namespace, read.metadata.resource_version)?;
        match secrets.replace(AUTHORITY_SECRET, &PostParams::default(), &written).await {
            Ok(_) => return Ok(after),
            // Another operator was faster: what it wrote is looked at instead.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
            Err(error) => return Err(refused("write", namespace)(error)),
        }
    }
    Err(CertificateError::Unusable {
        namespace: namespace.to_owned(),
        why: "it changes all the time".to_owned(),
    })
}

/// A certificate for the agent of an application, as the data of the Secret that its pod mounts, and when to replace it.
///
/// # Errors
/// When it cannot be made.
pub fn agent_data(
    authorities: &Authorities,
    agent: &Identity,
    now: SystemTime,
) -> Result<(BTreeMap<String, ByteString>, SystemTime), CertificateError> {
    let Issued { certificate, key, renew_at } = authorities.issue(agent, AGENT_LIFE, now)?;
    let data = [("tls.crt", certificate), ("tls.key", key), (BUNDLE, authorities.bundle())];
    Ok((data.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).into(), renew_at))
}

fn secret(
    authorities: &Authorities,
    namespace: &str,
    resource_version: Option<String>,
) -> Result<Secret, CertificateError> {
    let json = serde_json::to_vec(authorities).map_err(|error| CertificateError::Unusable {
        namespace: namespace.to_owned(),
        why: error.to_string(),
    })?;
    let data = [(AUTHORITIES, json), (BUNDLE, authorities.bundle().into_bytes())];
    let mut secret = Secret::default();
    secret.metadata.name = Some(AUTHORITY_SECRET.to_owned());
    secret.metadata.namespace = Some(namespace.to_owned());
    secret.metadata.resource_version = resource_version;
    secret.metadata.labels = Some([("app.kubernetes.io/part-of".to_owned(), "migration".to_owned())].into());
    secret.data = Some(data.map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).into());
    Ok(secret)
}

fn understood(secret: &Secret, namespace: &str) -> Result<Authorities, CertificateError> {
    let unusable = |why: String| CertificateError::Unusable { namespace: namespace.to_owned(), why };
    let data = secret.data.as_ref().and_then(|data| data.get(AUTHORITIES));
    let data = data.ok_or_else(|| unusable(format!("it has no {AUTHORITIES}")))?;
    // What it says is not repeated: there are keys in it.
    let authorities: Authorities = serde_json::from_slice(&data.0)
        .map_err(|error| unusable(format!("{AUTHORITIES} is damaged near line {}", error.line())))?;
    if authorities.is_empty() { Err(unusable(format!("{AUTHORITIES} is empty"))) } else { Ok(authorities) }
}

fn refused(what: &'static str, namespace: &str) -> impl FnOnce(kube::Error) -> CertificateError {
    let namespace = namespace.to_owned();
    move |source| CertificateError::Kube { what, namespace, source: Box::new(source) }
}
