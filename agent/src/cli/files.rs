//! Which files travel with a process, as it is typed.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use migration_agent::{DEFAULT_FILE_LIMIT, FileRules, OpenFiles};

#[derive(Debug, Args)]
pub struct FileOptions {
    /// Carry this file or directory too, whether open or not; can be given several times
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,
    /// Files open for writing: `carry` them, expect them to be the `same` where it is restored, or `ignore` them
    #[arg(long, default_value = "carry", value_name = "carry|same|ignore")]
    pub files: OpenFiles,
    /// Do not carry what is here, because it is on a volume that is seen from everywhere: a restore wants it unmodified;
    /// can be given several times
    #[arg(long, value_name = "PATH")]
    pub same: Vec<PathBuf>,
    /// Refuse to carry more bytes than this in all
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(DEFAULT_FILE_LIMIT))]
    pub file_limit: ByteSize,
}

impl FileOptions {
    /// What was typed.
    pub fn rules(&self) -> FileRules {
        let (listed, same) = (self.path.clone(), self.same.clone());
        FileRules { listed, open: self.files, same, limit: self.file_limit.0 }
    }
}

/// A number of bytes, typed with or without a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(u64);

const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = UNITS.iter().find_map(|(unit, bytes)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*bytes)
        });
        size.map(Self).ok_or_else(|| format!("`{text}` is no size: use 800MiB, 5GiB or a number of bytes"))
    }
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = UNITS.iter().find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes));
        let (unit, bytes) = unit.unwrap_or(&("", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown_alike() {
        for (text, bytes) in
            [("1GiB", 1 << 30), ("1500MiB", 1500 << 20), ("7", 7), ("0", 0), ("2TiB", 2 << 40)]
        {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size, size.to_string().as_str()), (ByteSize(bytes), text));
        }
        for nonsense in ["", "GiB", "1GB", "-1", "99999999TiB", "1.5GiB"] {
            assert!(nonsense.parse::<ByteSize>().is_err(), "{nonsense}");
        }
    }
}
