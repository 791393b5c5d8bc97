//! Files that belong to memory: without them a restored process would go on with a log that lacks what it wrote, or a
//! database it does not know.
//!
//! | file | at the checkpoint | at the restore |
//! |---|---|---|
//! | open for writing, or mapped so that writes reach it | carried, unless [`FileRules`] say otherwise | put back |
//! | below a path the user lists | carried: files, directories, symbolic links | put back |
//! | without a name (deleted while open) | in CRIU's images | by CRIU |
//! | on a volume both machines see ([`FileRules::same`]) | its size and time of modification | refused if they differ |
//! | only read: programs, libraries, data, directories | its size | refused if it is missing or differs in size |
//!
//! What always holds:
//! - Content is read while the tree is frozen, so it fits the memory it belongs to; through the descriptor the tree
//!   has, so that it is that file and no other. The page cache is what read(2) sees: dirty pages of shared mappings count.
//! - All that is carried is together at most [`FileRules::limit`] long, or there is no checkpoint and the tree runs on.
//! - A restore destroys nothing: a file that differs keeps its content under another name until the tree runs, and
//!   afterwards unless asked otherwise. A restore that fails puts everything back as it was (`put_back`).
//!
//! A tree behind a launcher is in a container, and its paths are those it sees there ([`View`]). Files of any other mount
//! namespace are left to CRIU, as are those in `/proc` and the like, and sockets, devices and named pipes, which have no
//! content.

mod attributes;
mod capture;
mod check;
mod error;
mod find;
mod put_back;
mod status;
mod view;

use std::{path::PathBuf, str::FromStr};

use serde::Serialize;

pub use self::{
    capture::{Captured, FileCounts, Listed, is_large_image},
    error::FilesError,
    find::{Found, find},
    put_back::PutBackReport,
    view::View,
};
use crate::error::AgentError;

/// What a tree sees: its container's files if there is a launcher in front of it. Without one its namespaces are CRIU's to carry.
///
/// # Errors
/// When there is no such process.
pub fn view_of(launched: bool, root: u32) -> Result<View, FilesError> {
    if launched { View::of(root) } else { Ok(View::own()) }
}

/// Bytes that may be carried unless more is asked for: a process whose log is longer should say so.
pub const DEFAULT_FILE_LIMIT: u64 = 1 << 30;

/// Which files travel with a checkpoint.
#[derive(Debug, Clone)]
pub struct FileRules {
    /// Files and directories that are carried whatever the tree has open. Everything below a directory, but not beyond
    /// the mount it is on.
    pub listed: Vec<PathBuf>,
    /// What becomes of files the tree has open for writing.
    pub open: OpenFiles,
    /// Files at or below these are not carried: a restore finds them as they were or refuses.
    pub same: Vec<PathBuf>,
    /// Bytes that may be carried in all.
    pub limit: u64,
}

impl Default for FileRules {
    fn default() -> Self {
        Self { listed: Vec::new(), open: OpenFiles::Carry, same: Vec::new(), limit: DEFAULT_FILE_LIMIT }
    }
}

/// What becomes of files the tree has open for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenFiles {
    /// They travel with the checkpoint.
    Carry,
    /// They have to be there, unmodified, where it is restored.
    Same,
    /// They are the user's business; CRIU still demands that they have the same size.
    Ignore,
}

impl FromStr for OpenFiles {
    type Err = AgentError;

    fn from_str(text: &str) -> Result<Self, AgentError> {
        match text {
            "carry" => Ok(Self::Carry),
            "same" => Ok(Self::Same),
            "ignore" => Ok(Self::Ignore),
            _ => Err(AgentError::Usage(format!("`{text}` is not one of carry, same and ignore"))),
        }
    }
}

/// What becomes of a file that is where one is to be put back, and differs from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExistingFiles {
    /// It stays beside the other as `NAME.before-CHECKPOINT`. An empty one does not.
    SetAside,
    /// It is removed once the tree runs.
    Replace,
    /// Nothing is restored.
    Refuse,
}

impl FromStr for ExistingFiles {
    type Err = AgentError;

    fn from_str(text: &str) -> Result<Self, AgentError> {
        match text {
            "set-aside" => Ok(Self::SetAside),
            "replace" => Ok(Self::Replace),
            "refuse" => Ok(Self::Refuse),
            _ => Err(AgentError::Usage(format!("`{text}` is not one of set-aside, replace and refuse"))),
        }
    }
}
