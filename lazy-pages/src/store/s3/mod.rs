//! Objects in a bucket of an S3 server. All that knows rusoto is below here.
//!
//! What always holds:
//! - Every PUT says `If-None-Match: *` and carries the SHA-256 of its body, so nothing is overwritten and nothing damaged
//!   on its way is kept.
//! - After a try that may have reached the server, "there is one already" may mean our own: the object is read back, and
//!   the put succeeded exactly if it has our bytes.
//! - A GET gives exactly the bytes asked for; an answer that breaks off or is about another range is tried again.
//! - Parts of objects, which never change, are asked for at a download endpoint first if there is one, once; whatever that does
//!   not give, the server itself does. Nothing else goes there: what it remembers may be old.
//! - A try ends when nothing moves for 15 seconds; tries are bounded and apart by random waits (`retry`).
//! - Refused credentials, a missing bucket or object are final at once.
//!
//! Cancelling drops the connection; a put then may be done or not.

mod answers;
mod credentials;
mod link;
mod metadata;
mod profile;
mod progress;

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use rusoto_core::ByteStream;
use rusoto_s3::{DeleteObjectRequest, GetObjectRequest, ListObjectsV2Output, ListObjectsV2Request, S3};
use tokio::task::JoinSet;

pub use self::credentials::StaticCredentials;
use self::{
    credentials::Credentials,
    link::{Link, Try},
    progress::Progress,
};
use super::{
    ObjectMeta, ObjectStore, S3Config, StoreError, keys, probe,
    retry::{Cause, Failure, Retries},
};

/// A page of a listing has at most 1000 keys of at most 1 KiB.
const LISTING_LIMIT: u64 = 16 << 20;
/// No object is longer, and some servers cannot even read a larger number.
const LAST_BYTE: u64 = i64::MAX as u64 - 1;
/// Memory set aside for a body before its first byte came; more grows as it comes.
const TRUSTED_LENGTH: u64 = 64 << 20;

/// A bucket as a store. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct S3Store(Arc<Inner>);

struct Inner {
    config: S3Config,
    link: Arc<Link>,
    /// To the download endpoint.
    near: Option<Arc<Link>>,
    credentials: Credentials,
}

impl S3Store {
    /// The store `config` names, with the credentials of its profile, the environment, or the machine. Does not talk to
    /// it yet.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the shared configuration file cannot be read.
    pub fn new(config: S3Config) -> Result<Self, StoreError> {
        let credentials = Credentials::search(config.profile.clone());
        Self::with(config, credentials)
    }

    /// The store `config` names, with these credentials.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_credentials(config: S3Config, credentials: StaticCredentials) -> Result<Self, StoreError> {
        Self::with(config, Credentials::fixed(credentials))
    }

    fn with(config: S3Config, credentials: Credentials) -> Result<Self, StoreError> {
        let region = match &config.region {
            Some(region) => Some(region.clone()),
            None => credentials::region(config.profile.as_deref())
                .map_err(|reason| StoreError::Other { store: config.to_string(), reason })?,
        };
        let region = region.as_deref().unwrap_or("us-east-1");
        let link = Arc::new(Link::new(&config, config.endpoint.as_deref(), region)?);
        let near = config.download_endpoint.as_deref();
        let near = near.map(|endpoint| Link::new(&config, Some(endpoint), region)).transpose()?.map(Arc::new);
        Ok(Self(Arc::new(Inner { config, link, near, credentials })))
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Store").field(&self.0.config).finish()
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let key = keys::checked(key)?;
        self.0.persist(|| self.0.try_get(key, limit)).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let key = keys::checked(key)?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        if let Some(near) = &self.0.near
            && let Ok(bytes) = self.0.try_get_range(near, key, offset, length).await
        {
            return Ok(bytes);
        }
        self.0.persist(|| self.0.try_get_range(&self.0.link, key, offset, length)).await
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let key = keys::checked(key)?;
        let mut maybe_ours = false;
        match self.0.create(key, &body, &mut maybe_ours).await {
            Err(error) if maybe_ours => self.0.settle(key, &body, error).await,
            outcome => outcome,
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let prefix = keys::checked_prefix(prefix)?;
        let mut found = Vec::new();
        let mut token = None;
        let mut seen = HashSet::new();
        loop {
            let page = self.0.persist(|| self.0.try_list(prefix, token.clone())).await?;
            self.0.take_page(page.contents.unwrap_or_default(), prefix, &mut found);
            match (page.is_truncated, page.next_continuation_token) {
                (Some(true), Some(next)) if seen.insert(next.clone()) => token = Some(next),
                (Some(true), _) => {
                    return Err(self.0.other("the listing does not go on where it says it does"));
                }
                _ => break,
            }
        }
        // Not every server sorts.
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let key = keys::checked(key)?;
        match self.0.persist(|| self.0.try_delete(key)).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        probe::probe(self).await
    }

    fn describe(&self) -> String {
        self.0.config.to_string()
    }

    fn is_local(&self) -> bool {
        false
    }
}

impl Inner {
    /// Tries until it works or there is no point.
    async fn persist<T, F>(&self, once: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut retries = Retries::default();
        loop {
            match once().await {
                Ok(done) => return Ok(done),
                Err(failure) => retries.after(failure, || self.config.to_string()).await?,
            }
        }
    }

    async fn start(&self, key: Option<&str>, wanted: u64, body_limit: u64) -> Result<Try, Failure> {
        self.start_on(&self.link, key, wanted, body_limit).await
    }

    async fn start_on(
        &self,
        link: &Arc<Link>,
        key: Option<&str>,
        wanted: u64,
        body_limit: u64,
    ) -> Result<Try, Failure> {
        let credentials = self.credentials.get().await.map_err(|reason| {
            Failure::Final(StoreError::Denied { store: self.config.to_string(), reason })
        })?;
        Ok(Try {
            link: Arc::clone(link),
            credentials,
            key: key.map(str::to_owned),
            wanted,
            body_limit,
            progress: Arc::new(Progress::new()),
            failure: Arc::new(Mutex::new(None)),
        })
    }

    async fn try_get(&self, key: &str, limit: u64) -> Result<Bytes, Failure> {
        let this = self.start(Some(key), limit, u64::MAX).await?;
        let too_large = || {
            Failure::Final(StoreError::TooLarge {
                store: self.config.to_string(),
                key: key.to_owned(),
                limit,
            })
        };
        let work = async {
            let answer = this.client().get_object(self.get_request(key, None)).await;
            let answer = answer.map_err(|error| this.failure(&error))?;
            let announced = answer.content_length.and_then(|length| u64::try_from(length).ok());
            if announced.is_some_and(|length| length > limit) {
                return Err(too_large());
            }
            let mut body = answer.body.ok_or_else(no_body)?;
            let mut buffer = reserve(announced.unwrap_or(0));
            while let Some(piece) = next_piece(&mut body, buffer.len()).await? {
                if buffer.len() as u64 + piece.len() as u64 > limit {
                    return Err(too_large());
                }
                buffer.extend_from_slice(&piece);
            }
            Ok(buffer.freeze())
        };
        this.progress.watch(limit.min(TRUSTED_LENGTH), work).await
    }

    async fn try_get_range(
        &self,
        link: &Arc<Link>,
        key: &str,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Failure> {
        let this = self.start_on(link, Some(key), length, u64::MAX).await?;
        let truncated = |got| {
            Failure::Final(StoreError::Truncated {
                store: self.config.to_string(),
                key: key.to_owned(),
                got,
                wanted: length,
            })
        };
        if offset > LAST_BYTE {
            return Err(truncated(0));
        }
        // A range names its last byte.
        let last = offset.saturating_add(length - 1).min(LAST_BYTE);
        let work = async {
            let range = format!("bytes={offset}-{last}");
            let answer = this.client().get_object(self.get_request(key, Some(range))).await;
            let answer = answer.map_err(|error| this.failure(&error))?;
            let mut to_skip = 0;
            match &answer.content_range {
                Some(given) => match content_range(given) {
                    Some((first, end, size)) if first == offset && end < last && end + 1 == size => {
                        return Err(truncated(size.saturating_sub(offset)));
                    }
                    Some((first, end, _)) if first == offset && end == last => {}
                    _ => return Err(broken(format!("asked for bytes {offset}-{last}, got `{given}`"))),
                },
                // A server that does not know ranges sends all of it.
                None => {
                    to_skip = offset;
                    let size = answer.content_length.and_then(|size| u64::try_from(size).ok());
                    if let Some(size) = size.filter(|size| *size <= last) {
                        return Err(truncated(size.saturating_sub(offset)));
                    }
                }
            }
            let mut body = answer.body.ok_or_else(no_body)?;
            let mut buffer = reserve(length);
            while (buffer.len() as u64) < length {
                let Some(mut piece) = next_piece(&mut body, buffer.len()).await? else {
                    return Err(broken(format!("the answer ended after {} of {length} bytes", buffer.len())));
                };
                let skipped = to_skip.min(piece.len() as u64);
                to_skip -= skipped;
                // Both fit: they are at most the length of a piece in memory.
                let _ = piece.split_to(skipped as usize);
                let missing = length - buffer.len() as u64;
                piece.truncate(missing.min(piece.len() as u64) as usize);
                buffer.extend_from_slice(&piece);
            }
            Ok(buffer.freeze())
        };
        this.progress.watch(length, work).await
    }

    async fn create(&self, key: &str, body: &Bytes, maybe_ours: &mut bool) -> Result<(), StoreError> {
        let mut retries = Retries::default();
        loop {
            let tried = async {
                let this = self.start(Some(key), 0, u64::MAX).await?;
                let work = this.create(self.full(key), body.clone());
                this.progress.watch(body.len() as u64, work).await
            };
            let Err(failure) = tried.await else { return Ok(()) };
            *maybe_ours |= matches!(failure, Failure::Again(Cause::Stalled | Cause::Broken, _));
            retries.after(failure, || self.config.to_string()).await?;
        }
    }

    /// Finds out whether a put that failed with `error` did create our object in one of its tries.
    async fn settle(&self, key: &str, body: &Bytes, error: StoreError) -> Result<(), StoreError> {
        let exists = || StoreError::AlreadyExists { store: self.config.to_string(), key: key.to_owned() };
        let was_refused = matches!(error, StoreError::AlreadyExists { .. });
        match self.persist(|| self.try_get(key, body.len() as u64)).await {
            Ok(there) if there == *body => Ok(()),
            Ok(_) | Err(StoreError::TooLarge { .. }) => Err(exists()),
            Err(StoreError::NotFound { .. }) if was_refused => Err(StoreError::Unavailable {
                store: self.config.to_string(),
                reason: format!("{key} was there and is gone: whether it was ours is not known"),
            }),
            Err(unread) if was_refused => Err(unread),
            // A server that refuses a long body without reading it resets the connection, and its reason is lost.
            Err(telling @ (StoreError::Denied { .. } | StoreError::NoSuchStore { .. })) => Err(telling),
            Err(_) => Err(error),
        }
    }

    async fn try_list(&self, prefix: &str, token: Option<String>) -> Result<ListObjectsV2Output, Failure> {
        let this = self.start(None, 0, LISTING_LIMIT).await?;
        let full = self.full(prefix);
        let request = ListObjectsV2Request {
            bucket: self.config.bucket.clone(),
            prefix: (!full.is_empty()).then_some(full),
            continuation_token: token,
            ..Default::default()
        };
        let client = this.client();
        // rusoto panics on a listing whose numbers it cannot read; in a task of its own that is an error. Dropping the
        // set stops the task.
        let mut task = JoinSet::new();
        task.spawn(async move { client.list_objects_v2(request).await });
        let work = async {
            match task.join_next().await {
                Some(Ok(answer)) => answer.map_err(|error| this.failure(&error)),
                _ => Err(broken("the listing is not understood".to_owned())),
            }
        };
        this.progress.watch(LISTING_LIMIT, work).await
    }

    /// Adds what is ours of a page.
    fn take_page(&self, objects: Vec<rusoto_s3::Object>, prefix: &str, found: &mut Vec<ObjectMeta>) {
        let own = self.full("");
        for object in objects {
            let (Some(key), Some(length)) = (object.key, object.size) else { continue };
            let Some(key) = key.strip_prefix(&own) else { continue };
            // What somebody else keeps in the bucket may have any name.
            if let (true, Ok(key), Ok(length)) =
                (key.starts_with(prefix), keys::checked(key), length.try_into())
            {
                found.push(ObjectMeta { key: key.to_owned(), length });
            }
        }
    }

    async fn try_delete(&self, key: &str) -> Result<(), Failure> {
        let this = self.start(Some(key), 0, LISTING_LIMIT).await?;
        let request = DeleteObjectRequest {
            bucket: self.config.bucket.clone(),
            key: self.full(key),
            ..Default::default()
        };
        let work = async { this.client().delete_object(request).await.map_err(|error| this.failure(&error)) };
        this.progress.watch(0, work).await.map(drop)
    }

    fn get_request(&self, key: &str, range: Option<String>) -> GetObjectRequest {
        GetObjectRequest {
            bucket: self.config.bucket.clone(),
            key: self.full(key),
            range,
            ..Default::default()
        }
    }

    /// The key within the bucket.
    fn full(&self, key: &str) -> String {
        match &*self.config.prefix {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    fn other(&self, reason: &str) -> StoreError {
        StoreError::Other { store: self.config.to_string(), reason: reason.to_owned() }
    }
}

fn broken(reason: String) -> Failure {
    Failure::Again(Cause::Broken, reason)
}

fn no_body() -> Failure {
    broken("the answer has no body".to_owned())
}

fn reserve(length: u64) -> BytesMut {
    BytesMut::with_capacity(usize::try_from(length.min(TRUSTED_LENGTH)).unwrap_or(0))
}

async fn next_piece(body: &mut ByteStream, so_far: usize) -> Result<Option<Bytes>, Failure> {
    let piece = body.next().await.transpose();
    piece.map_err(|error| broken(format!("the answer broke off after {so_far} bytes: {error}")))
}

/// First byte, last byte and size of the object, from `bytes 0-9/100`.
fn content_range(value: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    // A size the server does not know is as good as a range without end.
    let size = if size == "*" { u64::MAX } else { size.parse().ok()? };
    Some((first.parse().ok()?, last.parse().ok()?, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 9, 100)));
        assert_eq!(content_range("bytes 7-7/*"), Some((7, 7, u64::MAX)));
        for nonsense in ["", "bytes", "bytes 1/2", "bytes 1-/2", "bytes -1/2", "0-9/100", "bytes a-b/c"] {
            assert_eq!(content_range(nonsense), None, "{nonsense:?}");
        }
    }
}
