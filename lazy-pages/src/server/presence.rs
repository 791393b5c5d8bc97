//! Which pages of a process are in memory, as the kernel tells (`/proc/PID/pagemap`, proc_pid_pagemap(5)).
//!
//! A page that is here must not be fetched again: not because it could be written over (the kernel refuses that), but
//! because a server that takes over would have to fetch all that its predecessor had fetched.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::units::VirtAddr;

const ENTRY: usize = 8;
/// In memory, or in swap.
const PRESENT: u64 = 1 << 63 | 1 << 62;
/// Entries of one read.
const CHUNK: u64 = 1 << 14;

/// The page map of one process.
#[derive(Debug)]
pub struct Presence(File);

impl Presence {
    /// Opens the page map of a process.
    ///
    /// # Errors
    /// When there is no such process, or it may not be looked at.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/pagemap"))?))
    }

    /// The stretches of `pages` pages from `start` that are there: first page and number of pages of each.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn present(&self, start: VirtAddr, pages: u64) -> io::Result<Vec<(VirtAddr, u64)>> {
        let mut found: Vec<(VirtAddr, u64)> = Vec::new();
        let mut buffer = vec![0; pages.min(CHUNK) as usize * ENTRY];
        let mut done = 0;
        while done < pages {
            let count = (pages - done).min(CHUNK);
            let buffer = &mut buffer[..count as usize * ENTRY];
            self.0.read_exact_at(buffer, start.add(done).page() * ENTRY as u64)?;
            for (at, entry) in buffer.as_chunks::<ENTRY>().0.iter().enumerate() {
                if u64::from_ne_bytes(*entry) & PRESENT == 0 {
                    continue;
                }
                let page = start.add(done + at as u64);
                match found.last_mut() {
                    Some((first, length)) if first.add(*length) == page => *length += 1,
                    _ => found.push((page, 1)),
                }
            }
            done += count;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_SIZE;

    #[test]
    fn pages_that_were_written_are_present_and_others_are_not() {
        // Large enough that the allocator maps it anew.
        let mut memory = vec![0_u8; 64 * 1024 * 1024];
        let base = (memory.as_ptr() as usize).next_multiple_of(PAGE_SIZE);
        let offset = base - memory.as_ptr() as usize;
        // Far apart, so that no huge page joins them.
        for page in [1000, 1001, 9000] {
            memory[offset + page * PAGE_SIZE] = 1;
        }
        let start = VirtAddr::containing(base as u64);
        let presence = Presence::open(std::process::id()).unwrap();
        let found = presence.present(start, 12_000).unwrap();
        let holds = |page: u64| {
            found
                .iter()
                .any(|(first, pages)| (first.page()..first.page() + pages).contains(&(start.page() + page)))
        };
        assert!(holds(1000) && holds(1001) && holds(9000));
        assert!(!holds(5000) && !holds(11_999), "{found:?}");
        assert!(memory[offset] == 0);
    }
}
