//! How frames are compressed, as a user says it.

use std::{fmt, str::FromStr};

use crate::format::Codec;

/// How frames are compressed. What does not become smaller by a tenth is stored plain in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As far as it is faster than the store: not at all, lz4, or zstd.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// By lz4.
    Lz4,
    /// By zstd of a level from 1 to 22. The tree is frozen meanwhile.
    Zstd(i32),
}

impl Compression {
    /// zstd's fastest ordinary level.
    const FAST: i32 = 1;

    /// The codec that is used whatever happens.
    pub(super) fn codec(self) -> Option<Codec> {
        match self {
            Self::Auto => None,
            Self::None => Some(Codec::None),
            Self::Lz4 => Some(Codec::Lz4),
            Self::Zstd(_) => Some(Codec::Zstd),
        }
    }

    /// The level that zstd uses when it is used.
    pub(super) fn level(self) -> i32 {
        match self {
            Self::Zstd(level) => level,
            _ => Self::FAST,
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd(Self::FAST)),
            _ => text
                .strip_prefix("zstd:")
                .and_then(|level| level.parse().ok())
                .filter(|level| (1..=22).contains(level))
                .map(Self::Zstd)
                .ok_or_else(|| {
                    "it is auto, none, lz4, zstd, or zstd:LEVEL with a level from 1 to 22".to_owned()
                }),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_again() {
        let all = [
            Compression::Auto,
            Compression::None,
            Compression::Lz4,
            Compression::Zstd(1),
            Compression::Zstd(22),
        ];
        for compression in all {
            assert_eq!(compression.to_string().parse(), Ok(compression));
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(1)));
        for wrong in ["", "gzip", "zstd:", "zstd:0", "zstd:23", "zstd:-1", "LZ4"] {
            assert!(wrong.parse::<Compression>().is_err(), "{wrong}");
        }
    }
}
