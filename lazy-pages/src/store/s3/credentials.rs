//! Who we are to the server.
//!
//! In this order: the profile the address names; `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY` and
//! `AWS_SESSION_TOKEN`; the profile `AWS_PROFILE` names, or `default`; the container's credentials service; the
//! instance's metadata service. The last two have a time limit, so that a machine without them gets its error soon.
//! Credentials that expire are fetched again a minute before. Nothing here is ever printed.

use std::{env, fmt, path::PathBuf};

use rusoto_credential::AwsCredentials;
use tokio::sync::Mutex;

use super::{metadata, profile};

/// Credentials are renewed this many seconds before they expire.
const RENEW_AHEAD: i64 = 60;

/// A pair of keys, with the token that goes with temporary ones.
#[derive(Clone)]
pub struct StaticCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticCredentials").finish_non_exhaustive()
    }
}

/// Finds credentials and keeps them until they expire.
pub(super) struct Credentials {
    profile: Option<String>,
    current: Mutex<Option<AwsCredentials>>,
}

impl Credentials {
    /// Those of `profile`, or of the environment. Looks for nothing yet.
    pub(super) fn search(profile: Option<String>) -> Self {
        Self { profile, current: Mutex::default() }
    }

    /// These, for ever.
    pub(super) fn fixed(given: StaticCredentials) -> Self {
        let StaticCredentials { access_key, secret_key, session_token } = given;
        let credentials = AwsCredentials::new(access_key, secret_key, session_token, None);
        Self { profile: None, current: Mutex::new(Some(credentials)) }
    }

    /// Valid credentials.
    ///
    /// # Errors
    /// A sentence saying where was looked, or what is wrong with what was found.
    pub(super) async fn get(&self) -> Result<AwsCredentials, String> {
        // Held while fetching, so that many requests at once cause one fetch.
        let mut current = self.current.lock().await;
        if let Some(credentials) = current.as_ref().filter(|credentials| !expires_soon(credentials)) {
            return Ok(credentials.clone());
        }
        let found = self.find().await?;
        *current = Some(found.clone());
        Ok(found)
    }

    async fn find(&self) -> Result<AwsCredentials, String> {
        if let Some(name) = &self.profile {
            return from_profile(name)?.ok_or_else(|| no_such_profile(name));
        }
        if let Some(credentials) = from_environment(|name| env::var(name).ok())? {
            return Ok(credentials);
        }
        match variable("AWS_PROFILE") {
            Some(name) => return from_profile(&name)?.ok_or_else(|| no_such_profile(&name)),
            None => {
                if let Some(credentials) = from_profile("default")? {
                    return Ok(credentials);
                }
            }
        }
        from_services().await?.ok_or_else(|| {
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or have a profile in \
             ~/.aws/credentials; no container or instance offers any either"
                .to_owned()
        })
    }
}

fn expires_soon(credentials: &AwsCredentials) -> bool {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let soon = i64::try_from(now).unwrap_or(i64::MAX).saturating_add(RENEW_AHEAD);
    credentials.expires_at().is_some_and(|expires| expires.timestamp() < soon)
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Option<AwsCredentials>, String> {
    let get = |name| get(name).filter(|value| !value.is_empty());
    match (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
        (None, None) => Ok(None),
        (Some(key), Some(secret)) => {
            Ok(Some(AwsCredentials::new(key, secret, get("AWS_SESSION_TOKEN"), None)))
        }
        (Some(_), None) => Err("AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY".to_owned()),
        (None, Some(_)) => Err("AWS_SECRET_ACCESS_KEY is set without AWS_ACCESS_KEY_ID".to_owned()),
    }
}

fn no_such_profile(name: &str) -> String {
    format!("no profile `{name}` in {}", credentials_file().display())
}

fn home(file: &str) -> PathBuf {
    PathBuf::from(variable("HOME").unwrap_or_default()).join(".aws").join(file)
}

fn credentials_file() -> PathBuf {
    variable("AWS_SHARED_CREDENTIALS_FILE").map_or_else(|| home("credentials"), PathBuf::from)
}

fn config_file() -> PathBuf {
    variable("AWS_CONFIG_FILE").map_or_else(|| home("config"), PathBuf::from)
}

/// The profile's keys; both files may hold them, the credentials file wins.
fn from_profile(name: &str) -> Result<Option<AwsCredentials>, String> {
    for file in [credentials_file(), config_file()] {
        let Some(section) = profile::read(&file, name)? else { continue };
        let incomplete = |what| format!("profile `{name}` in {} has no {what}", file.display());
        match (section.get("aws_access_key_id"), section.get("aws_secret_access_key")) {
            (None, None) => {}
            (Some(key), Some(secret)) => {
                let token = section.get("aws_session_token").cloned();
                return Ok(Some(AwsCredentials::new(key.clone(), secret.clone(), token, None)));
            }
            (Some(_), None) => return Err(incomplete("aws_secret_access_key")),
            (None, Some(_)) => return Err(incomplete("aws_access_key_id")),
        }
    }
    Ok(None)
}

async fn from_services() -> Result<Option<AwsCredentials>, String> {
    if let Some(credentials) = metadata::container(variable).await? {
        return Ok(Some(credentials));
    }
    if variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let address = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    Ok(metadata::instance(
        address.as_deref().map_or(metadata::INSTANCE, |address| address.trim_end_matches('/')),
    )
    .await)
}

/// The region to sign for when the address names none.
pub(super) fn region(profile: Option<&str>) -> Result<Option<String>, String> {
    if let Some(region) = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
        return Ok(Some(region));
    }
    let name = profile.map(str::to_owned).or_else(|| variable("AWS_PROFILE"));
    let section = profile::read(&config_file(), name.as_deref().unwrap_or("default"))?;
    Ok(section.and_then(|section| section.get("region").cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Result<Option<AwsCredentials>, String> {
        from_environment(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_gives_all_three_parts() {
        let credentials = environment(&[
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_SESSION_TOKEN", "token"),
        ]);
        let credentials = credentials.expect("complete").expect("present");
        assert_eq!(credentials.aws_access_key_id(), "id");
        assert_eq!(credentials.aws_secret_access_key(), "secret");
        assert_eq!(credentials.token().as_deref(), Some("token"));
    }

    #[test]
    fn half_a_pair_of_keys_is_an_error_that_names_the_other_half() {
        let error = environment(&[("AWS_ACCESS_KEY_ID", "id")]).expect_err("half");
        assert!(error.contains("without AWS_SECRET_ACCESS_KEY"), "{error}");
        let error =
            environment(&[("AWS_SECRET_ACCESS_KEY", "hush"), ("AWS_ACCESS_KEY_ID", "")]).expect_err("half");
        assert!(error.contains("without AWS_ACCESS_KEY_ID") && !error.contains("hush"), "{error}");
        assert!(environment(&[]).expect("nothing is fine").is_none());
    }
}
