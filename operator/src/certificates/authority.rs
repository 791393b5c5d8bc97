//! The authorities of an installation: one that issues, perhaps one that will, and those that have.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{CertificateError, Identity};

/// How long an authority lives.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// With how much of its life left the newest authority gets a successor.
const RENEW_BEFORE: Duration = Duration::from_secs(120 * 24 * 3600);
/// How long an authority is trusted before it issues: longer than it takes until every pod has been told of it.
pub const SETTLE: Duration = Duration::from_secs(24 * 3600);
/// By how much clocks may differ.
const SKEW: Duration = Duration::from_secs(300);

/// The authorities, oldest first. Holds their keys: neither printed nor logged.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Authorities {
    authorities: Vec<Authority>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Authority {
    name: String,
    /// Seconds since 1970.
    created: u64,
    certificate: String,
    key: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key: neither printed nor logged.
    pub key: String,
    /// When it should be replaced: a third of its life is then left.
    pub renew_at: SystemTime,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.authorities.iter().map(|authority| &authority.name)).finish()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Authorities {
    /// The first authority of an installation.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(now: SystemTime) -> Result<Self, CertificateError> {
        Ok(Self { authorities: vec![Authority::new(now)?] })
    }

    /// What should replace these, if anything: with a successor when it is time for one, and without those that have expired.
    ///
    /// # Errors
    /// When a successor cannot be made.
    pub fn renewed(&self, now: SystemTime) -> Result<Option<Self>, CertificateError> {
        let mut authorities = self.authorities.clone();
        authorities.retain(|authority| authority.expires() > now);
        if authorities.last().is_none_or(|newest| newest.expires() < now + RENEW_BEFORE) {
            authorities.push(Authority::new(now)?);
        }
        let changed = Self { authorities };
        Ok((changed != *self).then_some(changed))
    }

    /// Whom to trust, in PEM.
    pub fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| authority.certificate.as_str()).collect()
    }

    /// Issues a certificate.
    ///
    /// # Errors
    /// When there is no authority, or a key cannot be made.
    pub fn issue(
        &self,
        identity: &Identity,
        life: Duration,
        now: SystemTime,
    ) -> Result<Issued, CertificateError> {
        // The newest that everybody knows of; when there is only one, nobody has got a certificate of another one.
        let settled = self.authorities.iter().rev().find(|authority| authority.settled(now));
        let authority = settled.or(self.authorities.first()).ok_or(rcgen::Error::CouldNotParseCertificate)?;
        let issuer = Issuer::new(authority_params(&authority.name)?, KeyPair::from_pem(&authority.key)?);
        let expires = (now + life).min(authority.expires());
        let key = KeyPair::generate()?;
        let mut params = identity.params()?;
        params.not_before = date(now - SKEW)?;
        params.not_after = date(expires)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        let left = expires.duration_since(now).unwrap_or_default();
        Ok(Issued { certificate, key: key.serialize_pem(), renew_at: now + left * 2 / 3 })
    }

    /// Whether there is an authority at all.
    pub(super) fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }
}

impl Authority {
    fn new(now: SystemTime) -> Result<Self, CertificateError> {
        let created = now.duration_since(UNIX_EPOCH).map_err(|_| CertificateError::Clock)?.as_secs();
        let key = KeyPair::generate()?;
        // Two authorities never have the same name: a client would take one for the other.
        let name = format!("migration.io authority {created}");
        let mut params = authority_params(&name)?;
        params.not_before = date(now - SKEW)?;
        params.not_after = date(now + LIFE)?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { name, created, certificate, key: key.serialize_pem() })
    }

    fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.created)
    }

    fn expires(&self) -> SystemTime {
        self.created() + LIFE
    }

    fn settled(&self, now: SystemTime) -> bool {
        self.created() + SETTLE <= now
    }
}

fn authority_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn date(time: SystemTime) -> Result<OffsetDateTime, CertificateError> {
    let seconds = time.duration_since(UNIX_EPOCH).map_err(|_| CertificateError::Clock)?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| CertificateError::Clock)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CertificateError::Clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn issuer_of(authorities: &Authorities, now: SystemTime) -> usize {
        // What was issued tells its issuer by the only thing that differs: its last day.
        let issued = authorities.issue(&Identity::Operator, LIFE * 2, now).unwrap();
        let left = (issued.renew_at.duration_since(now).unwrap().as_secs() * 3).div_ceil(2);
        let expires = now + Duration::from_secs(left);
        let near = |authority: &Authority| {
            let difference =
                authority.expires().duration_since(expires).or_else(|error| Ok::<_, ()>(error.duration()));
            difference.unwrap() < Duration::from_secs(10)
        };
        authorities.authorities.iter().position(near).unwrap()
    }

    #[test]
    fn young_authorities_are_left_alone() {
        let authorities = Authorities::new(start()).unwrap();
        assert!(authorities.renewed(start() + 200 * DAY).unwrap().is_none());
    }

    #[test]
    fn a_successor_is_trusted_before_it_issues() {
        let authorities = Authorities::new(start()).unwrap();
        let now = start() + 250 * DAY;
        let two = authorities.renewed(now).unwrap().unwrap();
        assert_eq!(two.authorities.len(), 2);
        assert_eq!(two.bundle().matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(issuer_of(&two, now), 0);
        assert_eq!(issuer_of(&two, now + SETTLE), 1);
        assert!(two.renewed(now + SETTLE).unwrap().is_none());
    }

    #[test]
    fn an_authority_is_trusted_until_it_expires() {
        let two = Authorities::new(start()).unwrap().renewed(start() + 250 * DAY).unwrap().unwrap();
        assert!(two.renewed(start() + 364 * DAY).unwrap().is_none());
        let one = two.renewed(start() + 366 * DAY).unwrap().unwrap();
        assert_eq!(one.authorities.len(), 1);
        assert!(one.authorities[0] == two.authorities[1]);
    }

    #[test]
    fn after_a_long_time_away_there_is_a_new_authority() {
        let old = Authorities::new(start()).unwrap();
        let new = old.renewed(start() + 4000 * DAY).unwrap().unwrap();
        assert_eq!(new.authorities.len(), 1);
        assert_ne!(new.bundle(), old.bundle());
    }

    #[test]
    fn keys_are_not_printed() {
        let authorities = Authorities::new(start()).unwrap();
        let issued = authorities.issue(&Identity::Operator, DAY, start()).unwrap();
        assert!(!format!("{authorities:?} {issued:?}").contains("PRIVATE"));
    }
}
