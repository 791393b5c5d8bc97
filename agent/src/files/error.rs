//! Why files could not be carried or put back.

use std::{io, path::PathBuf};

use lazy_pages::format::invariants::MAX_FILES;

/// Why files could not be carried or put back. Until it is returned, nothing has been changed, or all that was is as it
/// was before.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Carrying them would take more than is allowed.
    #[error(
        "the files of the tree have {total} bytes in all, {limit} are allowed; the largest is {} with {size}",
        path.display()
    )]
    TooLarge {
        /// The largest one.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// Bytes of all that would be carried.
        total: u64,
        /// The limit.
        limit: u64,
    },
    /// More files than a checkpoint can hold.
    #[error("{count} files would travel with the checkpoint, {MAX_FILES} are possible")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// CRIU keeps the content of a deleted file in the work directory for the time of the dump.
    #[error("the deleted files of the tree have {needed} bytes, and the work directory has room for {room}")]
    NoRoom {
        /// Bytes of deleted files.
        needed: u64,
        /// Bytes free.
        room: u64,
    },
    /// The user listed a path that is not there, or not below the tree's root.
    #[error("{} cannot be carried: {reason}", path.display())]
    NotListable {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file changed in a way that a frozen tree cannot have caused.
    #[error("{} became shorter or was replaced while it was read, by somebody outside of the tree", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Files that were not carried are missing, or are others than the tree had open.
    #[error("files that the checkpoint needs are not as they were: {}", problems.join("; "))]
    NotTheSame {
        /// Each in words.
        problems: Vec<String>,
    },
    /// A file would have to be replaced, and that was forbidden.
    #[error("files differ from those of the checkpoint: {}", list(paths))]
    WouldReplace {
        /// Which.
        paths: Vec<PathBuf>,
    },
    /// Something that is no file is where one is to be put.
    #[error("{} is in the way of what the checkpoint holds there", path.display())]
    InTheWay {
        /// It.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl FilesError {
    /// For `map_err` on system calls.
    pub fn io<E: Into<io::Error>>(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// A word for programs; stable across versions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "files-too-large",
            Self::TooMany { .. } => "too-many-files",
            Self::NoRoom { .. } => "no-room",
            Self::NotListable { .. } => "path-not-listable",
            Self::Changed { .. } => "file-changed",
            Self::NotTheSame { .. } => "files-not-the-same",
            Self::WouldReplace { .. } => "would-replace-files",
            Self::InTheWay { .. } => "file-in-the-way",
            Self::Io { .. } => "file-io",
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::TooLarge { .. } => Some(
                "allow more with `--file-limit`; or leave files where they are with `--same PATH`, `--files same` or `--files ignore`",
            ),
            Self::TooMany { .. } => Some("list fewer directories with `--path`"),
            Self::NoRoom { .. } => Some("give a larger work directory with `--work-dir`"),
            Self::NotListable { .. } => Some("list a path that exists in the tree's own file system"),
            Self::Changed { .. } => {
                Some("retry; if somebody else writes to it all the time, use `--same PATH`")
            }
            Self::NotTheSame { .. } => {
                Some("bring them here as they were, or take a checkpoint that carries them (`--path PATH`)")
            }
            Self::WouldReplace { .. } => {
                Some("move them away, or use `--existing-files set-aside` or `replace`")
            }
            Self::InTheWay { .. } => Some("move it away, then retry"),
            Self::Io { .. } => None,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
