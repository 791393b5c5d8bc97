//! What a machine remembers of its handovers, so that an agent that was killed does not leave a stopped tree that nobody
//! knows of. It lives on a tmpfs beside the images, as the tree lives in memory: the same loss of power takes both.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use lazy_pages::ids::{AppId, CheckpointId};
use serde::{Deserialize, Serialize};

use crate::{
    fence::Runner,
    launcher::{self, Fate},
    tree::{Identity, Tree},
};

const PREFIX: &str = "handover-";
const RECORD: &str = "handover.json";

/// A task of the tree when it was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedTask {
    /// Its pid.
    pub pid: u32,
    /// Who it is.
    pub identity: Identity,
    /// It had been stopped before, by somebody else.
    pub by_another: bool,
}

/// What is remembered of one handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    app: String,
    id: String,
    /// Root of the tree.
    pub root: u32,
    /// All of its tasks.
    pub tasks: Vec<StoppedTask>,
    /// Control directory of the launcher in front of it.
    #[serde(default)]
    pub launcher: Option<PathBuf>,
    /// This machine, as whoever takes the tree back.
    pub runner: Runner,
    /// Whether a checkpoint was promised.
    pub upload: bool,
    /// Whether the dump was over and the handover described in the store, so that somebody may have been told.
    pub offered: bool,
    /// How often its threads had been given a processor when it was stopped.
    #[serde(default)]
    pub turns: Option<u64>,
}

impl Saved {
    /// Of a tree that is about to be stopped.
    pub fn new(
        app: &AppId,
        id: CheckpointId,
        tree: &Tree,
        runner: Runner,
        (upload, launcher): (bool, Option<PathBuf>),
    ) -> Self {
        let task = |(&pid, &identity): (&u32, &Identity)| StoppedTask {
            pid,
            identity,
            by_another: crate::tree::is_stopped(pid),
        };
        let tasks = tree.tasks().iter().map(task).collect();
        let (app, id, root) = (app.to_string(), id.to_string(), tree.root());
        Self { app, id, root, tasks, launcher, runner, upload, offered: false, turns: None }
    }

    /// Adds tasks that were forked before the tree was frozen, and forgets those that ended.
    pub fn frozen(&mut self, tree: &Tree) {
        let known = std::mem::take(&mut self.tasks);
        let by_another = |pid, identity| {
            known.iter().any(|task| task.pid == pid && task.identity == identity && task.by_another)
        };
        let task = |(&pid, &identity): (&u32, &Identity)| StoppedTask {
            pid,
            identity,
            by_another: by_another(pid, identity),
        };
        self.tasks = tree.tasks().iter().map(task).collect();
    }

    /// Tells its launcher, if it has one, what became of the tree.
    pub fn tell(&self, fate: Fate) {
        if let Some(launcher) = &self.launcher {
            launcher::tell(launcher, fate);
        }
    }

    /// Whose handover it is, and which.
    ///
    /// # Errors
    /// When it was not written by [`Self::new`].
    pub fn names(&self) -> io::Result<(AppId, CheckpointId)> {
        let app = self.app.parse().map_err(io::Error::other)?;
        Ok((app, self.id.parse().map_err(io::Error::other)?))
    }

    /// The directory of handover `id` below `parent`.
    pub fn directory(parent: &Path, id: CheckpointId) -> PathBuf {
        parent.join(format!("{PREFIX}{id}"))
    }

    /// Makes the directory, private to root, and writes what is remembered.
    ///
    /// # Errors
    /// When it exists or cannot be written.
    pub fn create(&self, directory: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
        for name in ["images", "pages"] {
            fs::DirBuilder::new().mode(0o700).create(directory.join(name))?;
        }
        self.write(directory)
    }

    /// Writes what is remembered; it is never seen half written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.as_file().sync_all()?;
        file.persist(directory.join(RECORD)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Every handover below `parent`. One whose directory was being made when its agent died is removed: its tree was not
    /// touched yet.
    ///
    /// # Errors
    /// When the directory cannot be read, or holds what is not understood.
    pub fn all(parent: &Path) -> io::Result<Vec<(PathBuf, Self)>> {
        let entries = match fs::read_dir(parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            match fs::read(entry.path().join(RECORD)) {
                Ok(bytes) => found.push((entry.path(), serde_json::from_slice(&bytes)?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_dir_all(entry.path())?,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}
