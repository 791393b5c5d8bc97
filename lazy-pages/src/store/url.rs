//! The address of a store, as a user writes it.
//!
//! `file:///directory` or an absolute path;
//! `s3://bucket/prefix?endpoint=…&download-endpoint=…&region=…&path-style=true&profile=…`.
//!
//! What always holds: an address never carries credentials. One that does is refused, and neither the error, `Display`
//! nor `Debug` repeats them. `Display` gives an address that parses to the same value.

use std::{
    fmt,
    path::{Component, PathBuf},
    str::FromStr,
};

use url::{Url, form_urlencoded};

use super::{StoreError, keys};

/// Where credentials belong, for those who put them into an address.
const CREDENTIALS_BELONG: &str = "credentials do not belong in an address: set AWS_ACCESS_KEY_ID and \
     AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or name a profile of the credentials file with `profile=`";

/// Which store, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory of this machine; absolute.
    Local(PathBuf),
    /// A bucket of an S3 server.
    S3(S3Config),
}

/// Where a bucket is and how to talk to its server. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket's name.
    pub bucket: String,
    /// What every key starts with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The server, `http://host:port` or `https://host:port`; AWS itself when there is none.
    pub endpoint: Option<String>,
    /// A server to ask for parts of objects before [`Self::endpoint`], such as a content delivery network in front of the
    /// bucket; it is addressed as that is.
    pub download_endpoint: Option<String>,
    /// The region requests are signed for; from the environment or the profile when there is none.
    pub region: Option<String>,
    /// Whether the bucket is in the path (`host/bucket`) rather than in the host name (`bucket.host`). The default is
    /// the path with an `endpoint`, as MinIO wants it, and the host name without.
    pub path_style: Option<bool>,
    /// The profile of the shared credentials file to use.
    pub profile: Option<String>,
}

impl FromStr for StoreUrl {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let parsed = match text.split_once("://") {
            _ if text.starts_with('/') => local_path(text),
            Some(("file", _)) => local_url(text),
            Some(("s3", rest)) => S3Config::parse(rest).map(StoreUrl::S3),
            _ => Err("expected file:///directory, an absolute path, or s3://bucket/prefix".to_owned()),
        };
        parsed.map_err(|reason| StoreError::InvalidUrl { address: redact(text), reason })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Local(path) => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "{}", path.display()),
            },
            StoreUrl::S3(config) => config.fmt(f),
        }
    }
}

fn local_path(text: &str) -> Result<StoreUrl, String> {
    let path = PathBuf::from(text);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("the path must not contain `..`".to_owned());
    }
    // Collected from its components, so that `/a//b/` and `/a/b` are the same store.
    Ok(StoreUrl::Local(path.components().collect()))
}

fn local_url(text: &str) -> Result<StoreUrl, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a file address has no `?` or `#` part".to_owned());
    }
    let path =
        url.to_file_path().map_err(|()| "a file address has three slashes: file:///directory".to_owned())?;
    Ok(StoreUrl::Local(path.components().collect()))
}

impl S3Config {
    /// Reads what follows `s3://`.
    fn parse(rest: &str) -> Result<Self, String> {
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = location.split_once('/').unwrap_or((location, ""));
        if location.contains('@') {
            return Err(CREDENTIALS_BELONG.to_owned());
        }
        if bucket.contains(':') {
            return Err("after s3:// comes the bucket; name the server with `endpoint=`".to_owned());
        }
        check_bucket(bucket)?;
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() {
            keys::check(prefix).map_err(|why| format!("the prefix is not valid: {why}"))?;
        }
        let mut config = Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: None,
            download_endpoint: None,
            region: None,
            path_style: None,
            profile: None,
        };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            config.set(&key, &value)?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let repeated = match key {
            "endpoint" => self.endpoint.replace(check_endpoint(key, value)?).is_some(),
            "download-endpoint" => self.download_endpoint.replace(check_endpoint(key, value)?).is_some(),
            "region" => self.region.replace(check_name("region", value)?).is_some(),
            "profile" => self.profile.replace(check_name("profile", value)?).is_some(),
            "path-style" => {
                let value = value.parse().map_err(|_| "`path-style` is `true` or `false`".to_owned())?;
                self.path_style.replace(value).is_some()
            }
            _ if ["key", "secret", "token", "password", "credential"].iter().any(|word| {
                // Only a hint which of two refusals to give.
                key.to_ascii_lowercase().contains(word)
            }) =>
            {
                return Err(CREDENTIALS_BELONG.to_owned());
            }
            _ => {
                return Err(format!(
                    "`{key}` is not one of endpoint, download-endpoint, region, path-style, profile"
                ));
            }
        };
        if repeated { Err(format!("`{key}` is given twice")) } else { Ok(()) }
    }
}

impl fmt::Display for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let path_style = self.path_style.map(|value| value.to_string());
        let pairs = [
            ("endpoint", &self.endpoint),
            ("download-endpoint", &self.download_endpoint),
            ("region", &self.region),
            ("path-style", &path_style),
            ("profile", &self.profile),
        ];
        let mut separator = '?';
        for (key, value) in pairs {
            if let Some(value) = value {
                // Characters that mean nothing inside a query stay readable.
                let encoded: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
                write!(f, "{separator}{key}={}", encoded.replace("%3A", ":").replace("%2F", "/"))?;
                separator = '&';
            }
        }
        Ok(())
    }
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let valid = (3..=63).contains(&bucket.len())
        && bucket.chars().all(allowed)
        && edge(bucket.chars().next())
        && edge(bucket.chars().next_back())
        && !bucket.contains("..");
    if valid {
        Ok(())
    } else {
        Err("a bucket has 3 to 63 characters out of lower-case letters, digits, `-` and `.`".to_owned())
    }
}

fn check_endpoint(what: &str, value: &str) -> Result<String, String> {
    let url = Url::parse(value)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| format!("`{what}` is http://host:port or https://host:port"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(CREDENTIALS_BELONG.to_owned());
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{what}` names a server only, without a path"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn check_name(what: &str, value: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if value.is_empty() || value.len() > 128 || !value.chars().all(allowed) {
        return Err(format!("`{what}` holds letters, digits, `-`, `_` and `.`"));
    }
    Ok(value.to_owned())
}

/// `text` without anything that could be a secret: no user part, nothing after a colon in its authority, no values of
/// its query.
fn redact(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // A secret key may hold slashes, so a user part can reach beyond the first one.
    let (hidden, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("…@", rest),
        None => ("", rest),
    };
    let (location, query) = rest.split_once('?').map_or((rest, None), |(left, right)| (left, Some(right)));
    let (authority, path) = location.split_at(location.find('/').unwrap_or(location.len()));
    let authority = match authority.split_once(':') {
        Some((host, _)) if scheme == "s3" => format!("{host}:…"),
        _ => authority.to_owned(),
    };
    let mut redacted = format!("{scheme}://{hidden}{authority}{path}");
    for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        let key = pair.split('=').next().unwrap_or_default();
        redacted += &format!("{}{key}=…", if index == 0 { '?' } else { '&' });
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(text: &str) -> S3Config {
        match text.parse().expect(text) {
            StoreUrl::S3(config) => config,
            StoreUrl::Local(path) => panic!("{text} is the directory {path:?}"),
        }
    }

    fn refusal(text: &str) -> String {
        text.parse::<StoreUrl>().expect_err(text).to_string()
    }

    #[test]
    fn every_part_of_an_s3_address_is_read() {
        let config = s3(
            "s3://my-bucket/some/prefix/?endpoint=http%3A%2F%2F[::1]:9000/&region=eu-west-1&path-style=true&profile=ci",
        );
        assert_eq!(config.bucket, "my-bucket");
        assert_eq!(config.prefix, "some/prefix");
        assert_eq!(config.endpoint.as_deref(), Some("http://[::1]:9000"));
        assert_eq!(config.region.as_deref(), Some("eu-west-1"));
        assert_eq!(config.path_style, Some(true));
        assert_eq!(config.profile.as_deref(), Some("ci"));
    }

    #[test]
    fn an_address_survives_being_printed() {
        for text in [
            "s3://bucket",
            "s3://a.bucket.with.dots/prefix/of/three?region=us-east-1",
            "s3://bucket/p?endpoint=https://minio.example:9000&region=x&path-style=false&profile=a.b-c_d",
            "s3://bucket?download-endpoint=https://near.example&region=x",
            "file:///var/lib/checkpoints",
            "file:///with%20space/and%25percent",
            "/plain/path",
            "/with space/and%percent/ünïcode",
            "/",
        ] {
            let url: StoreUrl = text.parse().expect(text);
            let again: StoreUrl = url.to_string().parse().expect(text);
            assert_eq!(again, url, "{text} printed as {url}");
        }
        assert_eq!("file:///a%20b".parse::<StoreUrl>().expect("valid"), StoreUrl::Local("/a b".into()));
        assert_eq!("/a//b/".parse::<StoreUrl>().expect("valid"), StoreUrl::Local("/a/b".into()));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert!(refusal("s3://bucket/p?reigon=x").contains("`reigon`"));
        assert!(refusal("s3://bucket/p?region=a&region=b").contains("twice"));
        assert!(refusal("s3://bucket?path-style=maybe").contains("path-style"));
        assert!(refusal("s3://bucket?endpoint=localhost:9000").contains("endpoint"));
        assert!(refusal("s3://bucket?endpoint=http://h/path").contains("without a path"));
        assert!(refusal("s3://bucket?download-endpoint=near").contains("`download-endpoint`"));
        assert!(refusal("s3://localhost:9000/bucket").contains("endpoint="));
        assert!(refusal("s3://Bucket").contains("lower-case"));
        assert!(refusal("s3:///prefix").contains("bucket"));
        assert!(refusal("s3://bucket/a/../b").contains("prefix"));
        assert!(refusal("relative/path").contains("absolute path"));
        assert!(refusal("file://relative").contains("three slashes"));
        assert!(refusal("/a/../b").contains(".."));
        assert!(refusal("gs://bucket").contains("s3://"));
        assert!(refusal("").contains("s3://"));
    }

    #[test]
    fn credentials_in_an_address_are_refused_and_not_repeated() {
        for text in [
            "s3://AKIAKEY:hush/hush+hush@bucket/prefix",
            "s3://AKIAKEY:hush@bucket/prefix?region=x",
            "s3://AKIAKEY:hush",
            "s3://bucket?secret_key=hush",
            "s3://bucket?accessKey=AKIA&secretKey=hush",
            "s3://bucket?endpoint=http://user:hush@host",
            "s3://bucket?session-token=hush",
        ] {
            let error = text.parse::<StoreUrl>().expect_err(text);
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains("hush"), "{shown}");
            }
        }
        assert!(refusal("s3://AKIAKEY:hush@bucket/prefix").contains("AWS_SECRET_ACCESS_KEY"));
        assert!(refusal("s3://bucket?secret_key=hush").contains("AWS_SECRET_ACCESS_KEY"));
    }
}
