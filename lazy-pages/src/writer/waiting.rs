//! Unchanged pages of which it is not known yet whether their frame in the parent is kept: copies, so that they can be
//! stored again.
//!
//! Frames of pages that changed here and there reach over many windows, so their pages have to wait for long. There are
//! about as many such frames at a time as the chain has generations; what is more than [`MAX_PAGES`] is not waited for.

use std::collections::BTreeMap;

use crate::{format::PageHash, units::PAGE_SIZE};

/// Pages that wait at most: 16 MiB.
const MAX_PAGES: usize = 4096;

/// An unchanged page.
#[derive(Debug)]
pub(super) struct Held {
    /// Its number.
    pub number: u64,
    /// Position in the frame.
    pub at: u32,
    pub hash: PageHash,
    pub bytes: Box<[u8]>,
}

/// Waiting pages, lazy or eager ones, by the last page number and the number of their frame.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    frames: BTreeMap<(u64, u32), Vec<Held>>,
    pages: usize,
}

impl Waiting {
    /// `last` is the number of the last page of the frame.
    pub fn hold(&mut self, last: u64, frame: u32, page: Held) {
        debug_assert_eq!(page.bytes.len(), PAGE_SIZE);
        self.pages += 1;
        self.frames.entry((last, frame)).or_default().push(page);
    }

    /// What waits for this frame.
    pub fn take(&mut self, last: u64, frame: u32) -> Vec<Held> {
        let taken = self.frames.remove(&(last, frame)).unwrap_or_default();
        self.pages -= taken.len();
        taken
    }

    /// A frame that waits for no page beyond `come`.
    pub fn due(&self, come: u64) -> Option<u32> {
        self.frames
            .first_key_value()
            .map(|(key, _)| *key)
            .filter(|(last, _)| *last <= come)
            .map(|(_, frame)| frame)
    }

    /// The frame that would have to wait longest, if too many pages are waiting.
    pub fn too_many(&self) -> Option<u32> {
        let longest = self.frames.last_key_value().map(|((_, frame), _)| *frame);
        longest.filter(|_| self.pages > MAX_PAGES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Held {
        Held { number, at: 0, hash: PageHash([0; 16]), bytes: vec![0; PAGE_SIZE].into() }
    }

    #[test]
    fn frames_are_due_in_the_order_in_which_they_are_complete() {
        let mut waiting = Waiting::default();
        for (last, frame) in [(30, 1), (10, 2), (20, 3)] {
            waiting.hold(last, frame, page(last - 5));
        }
        assert_eq!(waiting.due(9), None);
        assert_eq!(waiting.due(25), Some(2));
        assert_eq!(waiting.take(10, 2).len(), 1);
        assert_eq!(waiting.take(10, 2).len(), 0);
        assert_eq!(waiting.due(25), Some(3));
    }

    #[test]
    fn when_too_many_wait_the_one_that_waits_longest_is_named() {
        let mut waiting = Waiting::default();
        for number in 0..MAX_PAGES as u64 {
            waiting.hold(100_000 - number / 64, number as u32 / 64, page(number));
        }
        assert_eq!(waiting.too_many(), None);
        waiting.hold(1, 7777, page(0));
        assert_eq!(waiting.too_many(), Some(0));
        assert_eq!(waiting.take(100_000, 0).len(), 64);
        assert_eq!(waiting.too_many(), None);
    }
}
