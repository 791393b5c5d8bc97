//! How the agent is told of the object store: an address without secrets, and a file with them.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use crate::api::{Storage, StorageType};

/// Key of the credentials file in the mirrored Secret.
pub const CREDENTIALS_KEY: &str = "credentials";

/// Google's endpoint that speaks S3.
const GOOGLE: &str = "https://storage.googleapis.com";

/// The store's address as `migration-agent --store` takes it.
pub fn store_url(storage: &Storage) -> String {
    let mut options: Vec<String> = Vec::new();
    let google = (storage.kind == StorageType::Gcs).then(|| GOOGLE.to_owned());
    if let Some(endpoint) = storage.endpoint.clone().or(google) {
        options.push(format!("endpoint={}", endpoint.trim_end_matches('/')));
    }
    if let Some(near) = &storage.download_endpoint {
        options.push(format!("download-endpoint={}", near.trim_end_matches('/')));
    }
    match (&storage.region, storage.kind) {
        (Some(region), _) => options.push(format!("region={region}")),
        // MinIO's own default; Google takes any.
        (None, StorageType::Minio | StorageType::Gcs) => options.push("region=us-east-1".to_owned()),
        (None, StorageType::S3) => {}
    }
    if storage.path_style.unwrap_or(storage.kind == StorageType::Minio) {
        options.push("path-style=true".to_owned());
    }
    let options = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
    format!("s3://{}{options}", storage.bucket)
}

/// How `migration-agent --compression` is told what the application's storage says of it, if it says something.
pub fn compression(storage: &Storage) -> Option<String> {
    match (storage.compress, storage.compress_level) {
        (Some(false), _) => Some("none".to_owned()),
        (_, Some(level)) => Some(format!("zstd:{level}")),
        _ => None,
    }
}

/// The name of the Secret with an application's credentials, in its namespace.
pub fn mirrored_secret_name(app: &str) -> String {
    format!("{app}-migration-store")
}

/// The credentials file for a Secret as users write them: `AWS_ACCESS_KEY_ID` or `accessKey` and the like. `None` if there are
/// none in it.
pub fn credentials_file(secret: &BTreeMap<String, ByteString>) -> Option<String> {
    let value = |names: &[&str]| {
        let found = names.iter().find_map(|&name| secret.get(name))?;
        let text = std::str::from_utf8(&found.0).ok()?.trim().to_owned();
        // A line break would begin another setting.
        (!text.is_empty() && !text.contains(['\n', '\r'])).then_some(text)
    };
    if let Some(file) = secret.get(CREDENTIALS_KEY) {
        return String::from_utf8(file.0.clone()).ok();
    }
    let id =
        value(&["AWS_ACCESS_KEY_ID", "accessKeyID", "accessKeyId", "accessKey", "access-key", "access_key"])?;
    let key = value(&["AWS_SECRET_ACCESS_KEY", "secretAccessKey", "secretKey", "secret-key", "secret_key"])?;
    let token = value(&["AWS_SESSION_TOKEN", "sessionToken"]);
    let token = token.map(|token| format!("aws_session_token = {token}\n")).unwrap_or_default();
    Some(format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {key}\n{token}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(entries: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
            .collect()
    }

    #[test]
    fn a_stores_address_says_what_its_kind_needs() {
        let url = |yaml: &str| store_url(&serde_saphyr::from_str(yaml).unwrap());
        assert_eq!(url("{type: s3, bucket: b, region: eu-central-1}"), "s3://b?region=eu-central-1");
        assert_eq!(
            url("{type: minio, bucket: b, endpoint: 'http://minio:9000/'}"),
            "s3://b?endpoint=http://minio:9000&region=us-east-1&path-style=true"
        );
        assert_eq!(
            url("{type: gcs, bucket: b}"),
            "s3://b?endpoint=https://storage.googleapis.com&region=us-east-1"
        );
        assert_eq!(
            url("{type: s3, bucket: b, region: r, downloadEndpoint: 'https://near.example/'}"),
            "s3://b?download-endpoint=https://near.example&region=r"
        );
        let told = "{type: minio, bucket: b, endpoint: 'http://m', pathStyle: false}";
        assert_eq!(url(told), "s3://b?endpoint=http://m&region=us-east-1");
    }

    #[test]
    fn pages_are_compressed_as_the_storage_says() {
        let told = |yaml: &str| compression(&serde_saphyr::from_str(yaml).unwrap());
        assert_eq!(told("{type: s3, bucket: b}"), None);
        assert_eq!(told("{type: s3, bucket: b, compress: true}"), None);
        assert_eq!(told("{type: s3, bucket: b, compress: false, compressLevel: 3}").as_deref(), Some("none"));
        assert_eq!(
            told("{type: s3, bucket: b, compress: true, compressLevel: 3}").as_deref(),
            Some("zstd:3")
        );
    }

    #[test]
    fn credentials_are_found_under_the_names_people_use() {
        let expected = "[default]\naws_access_key_id = id\naws_secret_access_key = key\n";
        for names in [["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], ["accessKey", "secretKey"]] {
            assert_eq!(
                credentials_file(&secret(&[(names[0], "id\n"), (names[1], "key")])).as_deref(),
                Some(expected)
            );
        }
        assert_eq!(credentials_file(&secret(&[("accessKey", "id")])), None);
        assert_eq!(credentials_file(&secret(&[("accessKey", "id\nx = 1"), ("secretKey", "key")])), None);
        assert_eq!(credentials_file(&secret(&[("credentials", "as it is")])).as_deref(), Some("as it is"));
    }
}
