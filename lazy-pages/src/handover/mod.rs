//! Handing a process over before its memory has left the machine.
//!
//! The tree is stopped, everything but its memory is in the store, and the manifest says of each page where it *would* be:
//! in packs that do not exist. Whoever reads them asks the machine the tree is on ([`PageSource`]); [`HandoverStore`] puts the
//! two behind one [`ObjectStore`](crate::store::ObjectStore), so that the page server serves a handover like any checkpoint.
//!
//! What always holds:
//! - A handover is not a checkpoint: it has keys of its own and is worth nothing without the stopped tree. A checkpoint of
//!   the same id may be committed later, from the same stopped tree; from then on every page is in the store as well, and
//!   [`HandoverStore`] takes it from there when the source cannot be reached.
//! - A frame's bytes come with the hash that was computed where they were read, and are verified like all others before
//!   a process sees them. What a source does not have, or cannot read, is an error; it never becomes zeros.

mod layout;
mod store;

pub use self::{
    layout::{FrameMap, Laid, ObjectPages, Piece, is_handover, lay_out, pack_of},
    store::{HandoverStore, PageSource, append_hash},
};
