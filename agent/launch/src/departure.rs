//! What a launcher that is started again has to know: that its workload was moved away, or may have been.
//!
//! A container that ends is started again, whatever ended it: a probe, the memory limit, the machine's next start. Its
//! launcher would start the application a second time beside the one that was moved. So it writes down in its control directory
//! that the workload leaves, before anybody may end it, and a launcher that finds this starts nothing.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

const LEAVES: &str = "leaves";
const MOVED: &str = "moved";

/// How far a workload has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// A checkpoint that ends it had begun.
    Leaves,
    /// That is committed.
    Moved,
}

impl Departure {
    /// What the launcher before has written down.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn read(control: &Path) -> io::Result<Option<Self>> {
        for (name, departure) in [(MOVED, Self::Moved), (LEAVES, Self::Leaves)] {
            if fs::exists(control.join(name))? {
                return Ok(Some(departure));
            }
        }
        Ok(None)
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// When that fails. It may have been written all the same.
    pub fn write(self, control: &Path) -> io::Result<()> {
        File::create(self.path(control))?;
        File::open(control)?.sync_all()
    }

    /// The workload is here.
    ///
    /// # Errors
    /// When that cannot be written down; the launcher would wait the next time.
    pub fn forget(control: &Path) -> io::Result<()> {
        for departure in [Self::Leaves, Self::Moved] {
            match fs::remove_file(departure.path(control)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(control)?.sync_all()
    }

    fn path(self, control: &Path) -> PathBuf {
        control.join(match self {
            Self::Leaves => LEAVES,
            Self::Moved => MOVED,
        })
    }
}
