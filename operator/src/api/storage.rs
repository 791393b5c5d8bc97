//! Where checkpoints are stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::definition;

/// Where checkpoints are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = definition::storage_rules()))]
pub struct Storage {
    /// What speaks at the endpoint. It cannot be changed.
    #[serde(rename = "type")]
    pub kind: StorageType,
    /// The bucket; it must exist. It cannot be changed: the checkpoints are in it.
    #[schemars(length(min = 3, max = 222), extend("x-kubernetes-validations" = definition::bucket_rules()))]
    pub bucket: String,
    /// URL of the service, like `http://minio.storage:9000`; the provider's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = definition::url_rules("endpoint")))]
    pub endpoint: Option<String>,
    /// Region of the bucket, like `eu-central-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
    /// Name of the Secret with the credentials, in the operator's namespace: keys `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and perhaps `AWS_SESSION_TOKEN`. When absent, the pod's service account has to have access.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = definition::name_rules("credentialsSecret")))]
    pub credentials_secret: Option<String>,
    /// Whether the bucket is in the path of an address rather than in its host name. When absent: yes with an endpoint, no without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// URL to fetch from instead of the endpoint, such as a content delivery network before the bucket. Pages are fetched there, and
    /// from the endpoint what is not to be had there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), extend("x-kubernetes-validations" = definition::url_rules("downloadEndpoint")))]
    pub download_endpoint: Option<String>,
    /// Whether pages nobody waits for are fetched in the background. With `false` a page comes when it is touched, and never before: the
    /// application needs the store, and its page server, as long as it lives, and a migration is over as soon as it runs at the
    /// target. Means nothing with the strategy `full`. When absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_prefetch: Option<bool>,
    /// How many requests at a time fetch in the background. When absent, what suits the store, which is 16 of 4 MiB for one that is not local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub prefetch_workers: Option<u32>,
    /// Whether pages are compressed. When absent or true: where that makes them smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress: Option<bool>,
    /// How hard zstd compresses pages. When absent, the agent chooses how to compress by how fast the store is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 22))]
    pub compress_level: Option<u32>,
    /// Whether the bucket is a directory bucket of S3 Express One Zone. Those have sessions and signatures of their own, which are not
    /// supported: only `false` is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub express_one_zone: Option<bool>,
}

impl Storage {
    /// How many requests at a time a restore has to fetch what nobody waits for; the agent's choice when `None`.
    pub fn prefetch_workers(&self) -> Option<u32> {
        if self.async_prefetch == Some(false) { Some(0) } else { self.prefetch_workers }
    }
}

/// Kinds of object storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StorageType {
    /// Amazon S3, or a service that behaves like it.
    S3,
    /// MinIO: S3 with path-style addresses.
    Minio,
    /// Google Cloud Storage, by its S3 interface.
    Gcs,
}
