//! Objects in a directory of this machine.
//!
//! What always holds:
//! - An object appears under its name complete and durable, or not at all: it is written to a file below `.incoming/`,
//!   synced, and given its name with `link(2)`, which fails when the name is taken. Then the directories are synced.
//! - Directories are 0700 and files 0600: they hold the memory of processes.
//! - Nothing outside the directory is reached; symbolic links are not listed.
//!
//! The directory is made by the first put; before that the store is empty. Directories stay when their last object goes.
//! Cancelling a put does not stop it: it runs to its end on a blocking thread. A crash may leave a file below
//! `.incoming/`; its name carries the time it was made, and [`ObjectStore::probe`] removes those older than a day.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use nix::errno::Errno;
use ulid::Ulid;

use super::{ObjectMeta, ObjectStore, StoreError, StoreUrl, keys, probe};

/// No put takes this long, so what is older was left by a crash.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A directory as a store. Cheap to clone.
#[derive(Clone)]
pub struct LocalStore(Arc<Inner>);

struct Inner {
    root: PathBuf,
    /// Directories whose own entry is known to be on disk, so that it is synced once and not for every object.
    durable: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    /// The store in `root`, an absolute path. Touches nothing yet.
    pub fn new(root: PathBuf) -> Self {
        Self(Arc::new(Inner { root, durable: Mutex::default() }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|error| {
            Err(StoreError::Other {
                store: self.describe(),
                reason: format!("the work was stopped: {error}"),
            })
        })
    }
}

impl std::fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LocalStore").field(&self.0.root).finish()
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let key = keys::checked(key)?.to_owned();
        self.blocking(move |inner| {
            let (file, length) = inner.open(&key)?;
            if length > limit {
                return Err(StoreError::TooLarge { store: inner.describe(), key, limit });
            }
            inner.read(&file, &key, 0, length)
        })
        .await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let key = keys::checked(key)?.to_owned();
        if length == 0 {
            return Ok(Bytes::new());
        }
        self.blocking(move |inner| {
            let (file, size) = inner.open(&key)?;
            let available = size.saturating_sub(offset);
            // Before anything is allocated for it.
            if available < length {
                return Err(StoreError::Truncated {
                    store: inner.describe(),
                    key,
                    got: available,
                    wanted: length,
                });
            }
            inner.read(&file, &key, offset, length)
        })
        .await
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let key = keys::checked(key)?.to_owned();
        self.blocking(move |inner| inner.put_new(&key, &body)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let prefix = keys::checked_prefix(prefix)?.to_owned();
        self.blocking(move |inner| inner.list(&prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let key = keys::checked(key)?.to_owned();
        self.blocking(move |inner| inner.delete(&key)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        probe::probe(self).await?;
        self.blocking(Inner::remove_stale).await
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn is_local(&self) -> bool {
        true
    }
}

impl Inner {
    fn describe(&self) -> String {
        StoreUrl::Local(self.root.clone()).to_string()
    }

    fn error(&self, key: &str, doing: &str, error: &io::Error) -> StoreError {
        let store = self.describe();
        match error.kind() {
            ErrorKind::NotFound => StoreError::NotFound { store, key: key.to_owned() },
            ErrorKind::PermissionDenied => {
                StoreError::Denied { store, reason: format!("{doing} {key}: {error}") }
            }
            _ => StoreError::Other { store, reason: format!("{doing} {key}: {error}") },
        }
    }

    /// The object's file and its size; a directory of that name is no object.
    fn open(&self, key: &str) -> Result<(File, u64), StoreError> {
        let failed = |error| self.error(key, "opening", &error);
        let file = File::open(self.root.join(key)).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(ErrorKind::NotFound.into()));
        }
        Ok((file, metadata.len()))
    }

    fn read(&self, file: &File, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let failed = |error| self.error(key, "reading", &error);
        let size = usize::try_from(length).map_err(|_| failed(ErrorKind::OutOfMemory.into()))?;
        // Reserved, not zeroed: this is every byte a restore reads.
        let mut buffer = Vec::with_capacity(size);
        let mut file = file;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        file.take(length).read_to_end(&mut buffer).map_err(failed)?;
        if buffer.len() < size {
            return Err(StoreError::Truncated {
                store: self.describe(),
                key: key.to_owned(),
                got: buffer.len() as u64,
                wanted: length,
            });
        }
        Ok(buffer.into())
    }

    fn put_new(&self, key: &str, body: &[u8]) -> Result<(), StoreError> {
        match self.try_put_new(key, body) {
            // Somebody removed a directory that was there before: make it again, once.
            Err(StoreError::NotFound { .. }) => {
                self.durable.lock().unwrap_or_else(PoisonError::into_inner).clear();
                match self.try_put_new(key, body) {
                    Err(StoreError::NotFound { store, key }) => Err(StoreError::Other {
                        store,
                        reason: format!("no directory can be made to hold {key}"),
                    }),
                    outcome => outcome,
                }
            }
            outcome => outcome,
        }
    }

    fn try_put_new(&self, key: &str, body: &[u8]) -> Result<(), StoreError> {
        let failed = |error| self.error(key, "writing", &error);
        let path = self.root.join(key);
        let incoming = self.root.join(keys::RESERVED);
        let directory = path.parent().unwrap_or(&self.root);
        self.make_durable(directory).map_err(failed)?;
        self.make_durable(&incoming).map_err(failed)?;
        let temporary = Temporary::create(&incoming, body).map_err(failed)?;
        match fs::hard_link(&temporary.0, &path) {
            Ok(()) => {}
            // Over NFS the answer to a repeated request may be the failure of the repetition.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && temporary.is_linked() => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(StoreError::AlreadyExists { store: self.describe(), key: key.to_owned() });
            }
            Err(error)
                if matches!(
                    Errno::from_raw(error.raw_os_error().unwrap_or(0)),
                    Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS
                ) =>
            {
                return Err(StoreError::NoConditionalCreate { store: self.describe() });
            }
            Err(error) => return Err(failed(error)),
        }
        sync_directory(directory).map_err(failed)
    }

    /// Makes `directory`, at or below the root, and everything above it, and sees to it that they survive a power loss.
    fn make_durable(&self, directory: &Path) -> io::Result<()> {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<&Path> = directory
            .ancestors()
            // Above the root only what does not exist is ours.
            .take_while(|path| !durable.contains(*path) && (path.starts_with(&self.root) || !path.exists()))
            .collect();
        for path in missing.into_iter().rev() {
            let made = match DirBuilder::new().mode(0o700).create(path) {
                Ok(()) => true,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error),
            };
            // Synced even when somebody else made it: they may not have come to it yet.
            match path.parent().map_or(Ok(()), sync_directory) {
                // A root that was given to us in a directory we cannot read.
                Err(error) if error.kind() == ErrorKind::PermissionDenied && !made && path == self.root => {}
                synced => synced?,
            }
            durable.insert(path.to_owned());
        }
        Ok(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let start = prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
        let mut found = Vec::new();
        let mut pending = vec![start.to_owned()];
        while let Some(directory) = pending.pop() {
            let failed = |error| self.error(&directory, "listing", &error);
            let entries = match fs::read_dir(self.root.join(&directory)) {
                Ok(entries) => entries,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                // A name that is not UTF-8 was not made by us.
                let Ok(name) = entry.file_name().into_string() else { continue };
                let key = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                if keys::check(&key).is_err() {
                    continue;
                }
                let kind = entry.file_type().map_err(failed)?;
                if kind.is_dir() && (key.starts_with(prefix) || prefix.starts_with(&key)) {
                    pending.push(key);
                } else if kind.is_file() && key.starts_with(prefix) {
                    match entry.metadata() {
                        Ok(metadata) => found.push(ObjectMeta { key, length: metadata.len() }),
                        // Deleted while we looked.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
            }
        }
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.root.join(key);
        match fs::remove_file(&path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
            // A directory: there is no object of that name.
            Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(()),
            Err(error) => Err(self.error(key, "removing", &error)),
            Ok(()) => sync_directory(path.parent().unwrap_or(&self.root))
                .map_err(|error| self.error(key, "removing", &error)),
        }
    }

    fn remove_stale(&self) -> Result<(), StoreError> {
        let incoming = self.root.join(keys::RESERVED);
        let failed = |error| self.error(keys::RESERVED, "cleaning", &error);
        for entry in fs::read_dir(&incoming).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let made = entry.file_name().to_str().and_then(|name| Ulid::from_string(name).ok());
            let age = made.and_then(|ulid| SystemTime::now().duration_since(ulid.datetime()).ok());
            if age.is_some_and(|age| age > STALE) {
                // Somebody else may clean at the same moment.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// A file below `.incoming/`, removed when it goes out of scope; its content lives on under the name it was linked to.
struct Temporary(PathBuf);

impl Temporary {
    fn create(incoming: &Path, body: &[u8]) -> io::Result<Self> {
        let path = incoming.join(Ulid::new().to_string());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let temporary = Self(path);
        file.write_all(body)?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn is_linked(&self) -> bool {
        fs::symlink_metadata(&self.0).is_ok_and(|metadata| metadata.nlink() > 1)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed now is found by its age later.
        let _ = fs::remove_file(&self.0);
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
