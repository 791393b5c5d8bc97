//! Addresses and sizes with their units in the type.

use std::fmt;

/// Bytes in a page. Other page sizes are refused when a checkpoint is written or opened.
pub const PAGE_SIZE: usize = 4096;

/// A virtual address in a task, or an offset inside a shared memory object. Always a multiple of [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// The page that contains `address`.
    pub const fn containing(address: u64) -> Self {
        Self(address & !(PAGE_SIZE as u64 - 1))
    }

    /// The page with this number (`address / PAGE_SIZE`).
    pub const fn of_page(number: u64) -> Self {
        Self(number * PAGE_SIZE as u64)
    }

    /// Bytes from address zero.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// `address / PAGE_SIZE`.
    pub const fn page(self) -> u64 {
        self.0 / PAGE_SIZE as u64
    }

    /// The address `pages` pages further up.
    pub const fn add(self, pages: u64) -> Self {
        Self(self.0 + pages * PAGE_SIZE as u64)
    }

    /// Pages from `lower` to here; `lower` must not be above.
    pub const fn pages_from(self, lower: Self) -> u64 {
        (self.0 - lower.0) / PAGE_SIZE as u64
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
