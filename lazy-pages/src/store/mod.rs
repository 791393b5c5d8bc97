//! Object storage: the one trait behind which every store stands, and the stores.
//!
//! What always holds:
//! - Objects are immutable. The only write is [`ObjectStore::put_new`], which creates an object or fails; nothing is
//!   overwritten, ever. A reader sees all of an object or none of it.
//! - When `put_new` returns `Ok`, the object survives a power loss of this machine.
//! - A call either gives exactly the bytes asked for or an error: a short body is [`StoreError::Truncated`].
//! - Retries are bounded, jittered and done inside the implementation; an error that comes out is final for now. An
//!   ambiguous put (sent, no answer) is read back before it is called a failure.
//! - Cancelling (dropping the future) may leave a put done or not done, never half done.

#[cfg(feature = "fault-injection")]
pub mod faulty;
mod keys;
mod local;
mod probe;
mod retry;
mod s3;
mod url;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::{
    local::LocalStore,
    s3::{S3Store, StaticCredentials},
    url::{S3Config, StoreUrl},
};

/// A flat namespace of immutable objects. Keys are relative, `/`-separated, without empty or `..` segments.
#[async_trait]
pub trait ObjectStore: Send + Sync + fmt::Debug {
    /// The whole object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::TooLarge`] when it holds more than `limit` bytes; any other kind.
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError>;

    /// Exactly `length` bytes from `offset`; none are given without looking.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Truncated`] when the object ends earlier; any other kind.
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError>;

    /// Creates the object if there is none of that name.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when somebody else's object of that name is there; any other kind.
    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError>;

    /// All objects whose key starts with `prefix`, ascending by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError>;

    /// Removes the object; one that is not there counts as removed.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Proves that the store can be reached, written and read, and that it honours create-if-absent.
    ///
    /// # Errors
    /// [`StoreError::NoConditionalCreate`] when it lets an object be overwritten; any other kind.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Where it is, for messages; never contains a secret.
    fn describe(&self) -> String;

    /// Whether reads and writes stay on this machine, so that CPU time costs more than bytes.
    fn is_local(&self) -> bool;
}

/// What a listing says about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key, relative to the store.
    pub key: String,
    /// Size in bytes.
    pub length: u64,
}

/// Why a store did not do what it was asked. `key` and `store` say where.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No object of that name.
    #[error("{store} has no object {key}")]
    NotFound {
        /// The store, as [`ObjectStore::describe`] names it.
        store: String,
        /// The object.
        key: String,
    },
    /// The bucket or directory itself is missing.
    #[error("{store} does not exist")]
    NoSuchStore {
        /// The store.
        store: String,
    },
    /// An object of that name exists.
    #[error("{store} already has an object {key}")]
    AlreadyExists {
        /// The store.
        store: String,
        /// The object.
        key: String,
    },
    /// The object is shorter than what its reader was promised.
    #[error("{key} in {store} ends early: {got} of {wanted} bytes")]
    Truncated {
        /// The store.
        store: String,
        /// The object.
        key: String,
        /// Bytes received.
        got: u64,
        /// Bytes asked for.
        wanted: u64,
    },
    /// The object is larger than its reader accepts.
    #[error("{key} in {store} is larger than {limit} bytes")]
    TooLarge {
        /// The store.
        store: String,
        /// The object.
        key: String,
        /// Bytes accepted.
        limit: u64,
    },
    /// Credentials are missing, wrong, expired, or do not allow it.
    #[error("{store} refused access: {reason}")]
    Denied {
        /// The store.
        store: String,
        /// What the store said.
        reason: String,
    },
    /// The store overwrites objects although it was asked not to.
    #[error("{store} does not honour create-if-absent, which committing a checkpoint needs")]
    NoConditionalCreate {
        /// The store.
        store: String,
    },
    /// Not reachable, timed out, or kept failing until the retries were used up.
    #[error("{store} cannot be reached: {reason}")]
    Unavailable {
        /// The store.
        store: String,
        /// The last failure.
        reason: String,
    },
    /// Anything else the store or the operating system said.
    #[error("{store}: {reason}")]
    Other {
        /// The store.
        store: String,
        /// What was said.
        reason: String,
    },
    /// The name is not one an object can have.
    #[error("`{key}` is not the name of an object: {why}")]
    InvalidKey {
        /// The name.
        key: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The address of the store is not understood.
    #[error("store address `{address}` is not valid: {reason}")]
    InvalidUrl {
        /// The address, without secrets.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Opens the store at `url`. Does not talk to it yet; see [`ObjectStore::probe`].
///
/// # Errors
/// When the address is not valid, or credentials or TLS cannot be set up.
pub fn open(url: &StoreUrl) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let store: Arc<dyn ObjectStore> = match url {
        StoreUrl::Local(directory) => Arc::new(LocalStore::new(directory.clone())),
        StoreUrl::S3(config) => Arc::new(S3Store::new(config.clone())?),
    };
    #[cfg(feature = "fault-injection")]
    let store = faulty::from_environment(store)?;
    Ok(store)
}
