//! Where CRIU's metadata images (tens of kilobytes) live while a dump or restore runs. Page data never goes here, except
//! what a restore must have in memory before the process runs.
//!
//! The directory holds secrets of the process, so it is private to root, on tmpfs where there is one, and removed when
//! the operation ends. One left behind by a program that was killed is removed by the next one to start.

use std::{
    env, fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::error::AgentError;

/// Holds a lock while its owner lives, so that nobody takes it for a leftover.
const LOCK: &str = "lock";

/// A private directory that is removed on drop.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl WorkDir {
    /// Makes one under `parent`, or where it fits best: `/run` if that is a tmpfs, `/dev/shm`, or the temporary directory.
    ///
    /// # Errors
    /// [`AgentError::WorkDirectory`] when no place can be written.
    pub fn create(parent: Option<&Path>) -> Result<Self, AgentError> {
        first_of(parent, Self::create_in).map(|(_, made)| made)
    }

    fn create_in(parent: &Path) -> std::io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        remove_leftovers(parent);
        let directory = tempfile::Builder::new()
            .prefix("work-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let lock = fs::File::create(directory.path().join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        fs::DirBuilder::new().mode(0o700).create(directory.path().join("images"))?;
        Ok(Self { path: directory.keep(), _lock: lock })
    }

    /// An empty directory for CRIU's images.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Bytes that fit into it.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn room(&self) -> Result<u64, AgentError> {
        let told = rustix::fs::statvfs(&self.path);
        let told = told.map_err(|errno| AgentError::path("look at", &self.path)(errno.into()))?;
        Ok(told.f_bavail.saturating_mul(told.f_frsize))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(directory = %self.path.display(), %error, "a work directory stays behind");
        }
    }
}

/// The directory below which work directories are made, made if need be.
///
/// # Errors
/// [`AgentError::WorkDirectory`] when no place can be written.
pub fn parent_directory(parent: Option<&Path>) -> Result<PathBuf, AgentError> {
    first_of(parent, |parent| fs::DirBuilder::new().recursive(true).mode(0o700).create(parent))
        .map(|(parent, ())| parent)
}

/// Where `make` succeeds first: in `parent` if it is given, else in one of the default places.
fn first_of<T>(
    parent: Option<&Path>,
    mut make: impl FnMut(&Path) -> std::io::Result<T>,
) -> Result<(PathBuf, T), AgentError> {
    let candidates = parent.map_or_else(default_parents, |parent| vec![parent.to_owned()]);
    let mut refused = Vec::new();
    for parent in candidates {
        match make(&parent) {
            Ok(made) => return Ok((parent, made)),
            Err(error) => refused.push(format!("{}: {error}", parent.display())),
        }
    }
    Err(AgentError::WorkDirectory { reason: refused.join("; ") })
}

fn default_parents() -> Vec<PathBuf> {
    let mut parents = Vec::new();
    if is_tmpfs(Path::new("/run")) {
        parents.push(PathBuf::from("/run/migration-agent"));
    }
    parents.push(PathBuf::from("/dev/shm/migration-agent"));
    parents.push(env::temp_dir().join("migration-agent"));
    parents
}

/// Whether files there live in memory.
pub fn is_tmpfs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with("work-") {
            continue;
        }
        // Nobody holds the lock of a directory whose owner is dead. One without a lock file is being made right now.
        let Ok(lock) = fs::File::open(path.join(LOCK)) else { continue };
        if Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_is_removed_and_a_used_one_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let used = WorkDir::create(Some(parent.path())).unwrap();
        let leftover = parent.path().join("work-dead");
        fs::create_dir(&leftover).unwrap();
        fs::write(leftover.join(LOCK), "").unwrap();

        let other = WorkDir::create(Some(parent.path())).unwrap();

        assert!(used.images().is_dir());
        assert!(other.images().is_dir());
        assert!(!leftover.exists());
        drop((used, other));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
