//! Pages that are taken over from the parent unseen: of a tree that is still being restored from it, those that have not
//! arrived.
//!
//! They are recorded as if they had been received and found unchanged, so nothing of them is read or stored. A page that
//! was received stays as received: only the frozen tree knows whether it has changed since it arrived.

use std::ops::Range;

use super::{
    SealedPages, WriteError,
    packer::{Pages, Piece, Place},
    parent::KnownPage,
};
use crate::{
    format::{ObjectId, invariants::MAX_PAGE},
    units::VirtAddr,
};

/// Pages of a new checkpoint that its parent has, perhaps of another object and at other addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentPages {
    /// Where they belong in the new checkpoint.
    pub start: VirtAddr,
    /// Whose memory they are in the parent.
    pub object: ObjectId,
    /// Where they are in it.
    pub image: VirtAddr,
    /// How many.
    pub pages: u64,
}

impl ParentPages {
    /// Their numbers in the new checkpoint.
    fn numbers(&self) -> Result<Range<u64>, WriteError> {
        let checked = |address: VirtAddr| {
            let end = address.page().checked_add(self.pages).filter(|end| *end <= MAX_PAGE);
            end.ok_or(WriteError::AddressRange { address, pages: self.pages })
        };
        checked(self.image)?;
        Ok(self.start.page()..checked(self.start)?)
    }
}

/// Pages that were taken over and are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// The first one, in the new checkpoint.
    pub start: VirtAddr,
    /// How many.
    pub pages: u64,
}

impl SealedPages {
    /// Takes over those of `ranges` that were not received as pages of `object`, and returns them, ascending, without
    /// those that are zero: a page nothing is said about is zero. Inside a lazily restored area they will be
    /// lazy, elsewhere eager. To be called once for an object.
    ///
    /// # Errors
    /// When there is no parent or it does not know one of the pages, two of `ranges` overlap, they leave the address
    /// range, or `object` was not opened. The checkpoint can only be given up then.
    pub fn inherit(
        &mut self,
        object: ObjectId,
        ranges: &[ParentPages],
    ) -> Result<Vec<TakenOver>, WriteError> {
        let parent = self.target.parent.as_deref().ok_or(WriteError::NoParent(object))?;
        let position = self.positions.get(&object).copied();
        let position = position.ok_or(WriteError::NeverOpened(object))?;
        if self.packed.objects.len() <= position {
            self.packed.objects.resize_with(position + 1, Pages::default);
        }
        let pages = &mut self.packed.objects[position];
        let received = received(&pages.pieces);
        let mut ranges = ranges.to_vec();
        ranges.sort_unstable_by_key(|range| range.start);

        let mut taken: Vec<TakenOver> = Vec::new();
        let mut end = 0;
        for range in &ranges {
            let numbers = range.numbers()?;
            if numbers.start < end {
                return Err(WriteError::PageTwice { object, page: range.start });
            }
            end = numbers.end;
            let not_in_parent = |image| {
                move || WriteError::NotInParent { object: range.object, page: VirtAddr::of_page(image) }
            };
            let mut known = parent.pages_of(range.object).ok_or_else(not_in_parent(range.image.page()))?;
            for number in gaps(&received, numbers.clone()).flatten() {
                let image = range.image.page() + (number - numbers.start);
                match known.find(image).ok_or_else(not_in_parent(image))? {
                    KnownPage::Zero => {}
                    KnownPage::Stored(stored) => {
                        let place = Place::Parent { frame: stored.frame, first: stored.page };
                        pages.note(number, true, place, pages.hashes.len());
                        pages.hashes.push(stored.hash);
                        note(&mut taken, VirtAddr::of_page(number));
                    }
                }
            }
        }
        let count: u64 = taken.iter().map(|taken| taken.pages).sum();
        self.packed.counts.total += count;
        self.packed.counts.unchanged += count;
        Ok(taken)
    }
}

/// The numbers of all pages received, ascending.
fn received(pieces: &[Piece]) -> Vec<Range<u64>> {
    let mut numbers: Vec<_> = pieces.iter().map(|piece| piece.page..piece.page + piece.pages).collect();
    numbers.sort_unstable_by_key(|numbers| numbers.start);
    numbers
}

/// What of `within` is in none of `taken`, which ascend.
fn gaps(taken: &[Range<u64>], within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = taken.partition_point(|range| range.end <= within.start);
    let inside = taken[first..].iter().take_while(move |range| range.start < within.end);
    let ends = inside.clone().map(|range| range.start).chain([within.end]);
    let starts = [within.start].into_iter().chain(inside.map(|range| range.end));
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| gap.start < gap.end)
}

/// Adds a page above all others.
fn note(taken: &mut Vec<TakenOver>, page: VirtAddr) {
    match taken.last_mut() {
        Some(last) if last.start.add(last.pages) == page => last.pages += 1,
        _ => taken.push(TakenOver { start: page, pages: 1 }),
    }
}
