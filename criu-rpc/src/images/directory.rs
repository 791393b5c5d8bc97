//! A directory of images.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::reader::{Entries, ImageError, Magic};

/// A directory of images. Opening it reads nothing; every method reads or writes the files it needs.
#[derive(Clone, Debug)]
pub struct ImageDir {
    path: PathBuf,
}

impl ImageDir {
    /// Opens a directory that CRIU has written, or is about to write.
    ///
    /// # Errors
    /// When it is not a directory.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let open_error = |source| ImageError::Open { path: path.to_owned(), source };
        if !fs::metadata(path).map_err(open_error)?.is_dir() {
            return Err(open_error(std::io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { path: path.to_owned() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn entries(
        &self,
        name: &str,
        magic: Magic,
    ) -> Result<Entries<std::io::BufReader<fs::File>>, ImageError> {
        Entries::open(self.path.join(name), magic)
    }
}
