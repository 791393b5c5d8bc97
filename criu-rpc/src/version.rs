//! CRIU's version, on which its wire formats depend.

use std::fmt;

/// Version of a CRIU binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub sublevel: u32,
}

impl Version {
    /// The oldest version that can do what is asked of it: the path of the image directory by name, logging to standard
    /// error and no network lock came with 3.19. Whether a version works on this kernel is a question for
    /// [`Criu::check`](crate::Criu::check).
    pub const MINIMUM: Self = Self { major: 3, minor: 19, sublevel: 0 };

    /// The first version whose page-server records and pagemap entries count pages in 64 bits.
    pub const WIDE_PAGE_COUNTS: Self = Self { major: 4, minor: 2, sublevel: 0 };

    /// `major * 10000 + minor * 100 + sublevel`, as libcriu counts.
    pub const fn as_number(self) -> u32 {
        self.major * 10_000 + self.minor * 100 + self.sublevel
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, sublevel } = self;
        match sublevel {
            0 => write!(f, "{major}.{minor}"),
            _ => write!(f, "{major}.{minor}.{sublevel}"),
        }
    }
}
