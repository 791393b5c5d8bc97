//! The address spaces being served: one for each task that registered, one for each child forked since.
//!
//! Ascending by number. A forked child is added before another thread can copy to its parent again (its parent's events
//! are read exclusively), so whoever goes through the list upwards and asks for the next after each one misses no
//! child that still lacks a page its parent lacked when it was visited.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{
    format::FrameIndex,
    server::{
        frames::Layout,
        space::{Space, SpaceId},
    },
};

/// See the module's description.
#[derive(Debug, Default)]
pub struct Spaces(RwLock<List>);

#[derive(Debug, Default)]
struct List {
    spaces: Vec<Arc<Space>>,
    next: u64,
}

impl Spaces {
    /// Adds an address space, whose number must be [`Self::next_id`] or a later one.
    pub fn add(&self, space: Space) -> Arc<Space> {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        debug_assert!(space.id.0 >= list.next);
        list.next = space.id.0 + 1;
        let space = Arc::new(space);
        list.spaces.push(Arc::clone(&space));
        space
    }

    /// Numbers below this one are taken, by address spaces that are not here any more.
    pub fn continue_from(&self, next: SpaceId) {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        list.next = list.next.max(next.0);
    }

    /// The one with this number, unless it has ended.
    pub fn get(&self, id: SpaceId) -> Option<Arc<Space>> {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let at = list.spaces.binary_search_by_key(&id, |space| space.id).ok()?;
        Some(Arc::clone(&list.spaces[at]))
    }

    /// The first address space of `object` from number `from` on.
    pub fn next_of(&self, object: usize, from: SpaceId) -> Option<Arc<Space>> {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let first = list.spaces.partition_point(|space| space.id < from);
        list.spaces[first..].iter().find(|space| space.object == object).cloned()
    }

    /// The number the next one will get.
    pub fn next_id(&self) -> SpaceId {
        SpaceId(self.0.read().unwrap_or_else(PoisonError::into_inner).next)
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).spaces.is_empty()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Space>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).spaces.clone()
    }

    /// Drops those that have ended, and returns them.
    pub fn reap(&self) -> Vec<Arc<Space>> {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (gone, alive) = list.spaces.drain(..).partition(|space| space.probe_gone());
        list.spaces = alive;
        gone
    }

    /// Lets go of all of them.
    pub fn close(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).spaces.clear();
    }

    /// Whether some address space misses a page of `frame`.
    pub fn need(&self, layout: &Layout, frame: FrameIndex) -> bool {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        layout.uses_of(frame).any(|(object, run, _)| {
            let mut spaces = list.spaces.iter().filter(|space| space.object == object);
            spaces.any(|space| space.state().missing_in_image(run.start, run.pages).is_some())
        })
    }

    /// Stored pages missing in all of them.
    pub fn missing_pages(&self) -> u64 {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        list.spaces.iter().map(|space| space.state().missing_pages()).sum()
    }
}
