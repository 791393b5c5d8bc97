//! The page map of an object, put together from what CRIU sent and what was taken over from the parent.

use criu_rpc::images::PagemapEntry;
use lazy_pages::{
    format::Vma,
    units::{PAGE_SIZE, VirtAddr},
    writer::TakenOver,
};

/// Adds an entry, joined to the previous one where they touch and say the same.
pub fn append(entries: &mut Vec<PagemapEntry>, next: PagemapEntry) {
    if let Some(last) = entries.last_mut()
        && (last.lazy, last.present) == (next.lazy, next.present)
        && end(last) == next.vaddr
    {
        last.pages += next.pages;
        return;
    }
    entries.push(next);
}

/// The address after the last page of `entry`.
pub fn end(entry: &PagemapEntry) -> u64 {
    entry.vaddr + entry.pages * PAGE_SIZE as u64
}

/// The map for a restore: the pages `sent` and those `taken` over, lazy where they lie in an area that is restored on
/// demand, elsewhere present.
///
/// The area decides, not what CRIU said when it sent a page: it takes the pages of a whole task for eager when the stack
/// pointer of one of its threads happens to be at the start of a page (`is_stack()` in `criu/mem.c`), and restores
/// them on demand all the same if the map says so.
pub fn of_restore(sent: &[PagemapEntry], taken: &[TakenOver], vmas: &[Vma]) -> Vec<PagemapEntry> {
    let sent = sent.iter().map(|entry| (VirtAddr::containing(entry.vaddr), entry.pages));
    let mut all = Vec::new();
    for (start, pages) in sent.chain(taken.iter().map(|taken| (taken.start, taken.pages))) {
        let (mut start, end) = (start, start.add(pages));
        let first = vmas.partition_point(|vma| vma.end <= start);
        let inside = vmas[first..].iter().take_while(|vma| vma.start < end);
        let edges = inside.flat_map(|vma| [(vma.start, false), (vma.end, true)]);
        for (edge, lazy) in edges.chain([(end, false)]) {
            let edge = edge.clamp(start, end);
            if start < edge {
                let pages = edge.pages_from(start);
                all.push(PagemapEntry { vaddr: start.get(), pages, lazy, present: !lazy });
            }
            start = edge;
        }
    }
    all.sort_unstable_by_key(|entry| entry.vaddr);
    let mut joined = Vec::with_capacity(all.len());
    all.into_iter().for_each(|entry| append(&mut joined, entry));
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(page: u64, pages: u64, lazy: bool) -> PagemapEntry {
        PagemapEntry { vaddr: page * PAGE_SIZE as u64, pages, lazy, present: !lazy }
    }

    fn vma(start: u64, end: u64) -> Vma {
        Vma {
            start: VirtAddr::of_page(start),
            end: VirtAddr::of_page(end),
            wipe_on_fork: false,
            dont_fork: false,
            grows_down: false,
        }
    }

    fn taken(page: u64, pages: u64) -> TakenOver {
        TakenOver { start: VirtAddr::of_page(page), pages }
    }

    #[test]
    fn entries_that_touch_are_joined_only_if_both_are_lazy_or_both_are_not() {
        let mut known = Vec::new();
        for next in [entry(1, 2, true), entry(3, 1, true), entry(4, 1, false), entry(6, 1, false)] {
            append(&mut known, next);
        }
        assert_eq!(known, [entry(1, 3, true), entry(4, 1, false), entry(6, 1, false)]);
    }

    #[test]
    fn pages_taken_over_fill_the_gaps_and_are_lazy_where_they_can_be() {
        let sent = [entry(5, 1, false), entry(10, 2, true), entry(25, 1, true)];
        let vmas = [vma(10, 20), vma(20, 30), vma(40, 42)];
        let all = of_restore(&sent, &[taken(6, 4), taken(12, 10), taken(35, 10)], &vmas);
        let expected = [
            entry(5, 5, false),
            entry(10, 12, true),
            entry(25, 1, true),
            entry(35, 5, false),
            entry(40, 2, true),
            entry(42, 3, false),
        ];
        assert_eq!(all, expected);
        assert_eq!(of_restore(&sent, &[], &vmas), sent);
        assert_eq!(of_restore(&[], &[taken(12, 2)], &[]), [entry(12, 2, false)]);
        let eager = [entry(5, 1, false), entry(8, 24, false)];
        assert_eq!(of_restore(&eager, &[], &vmas)[..2], [entry(5, 1, false), entry(8, 2, false)]);
        assert_eq!(of_restore(&eager, &[], &vmas)[2..], [entry(10, 20, true), entry(30, 2, false)]);
        let whole = of_restore(&[], &[taken(8, 24)], &vmas);
        assert_eq!(whole, [entry(8, 2, false), entry(10, 20, true), entry(30, 2, false)]);
    }
}
