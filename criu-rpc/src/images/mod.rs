//! CRIU's image files: the ones beside the memory are read, pagemap and pages files are read and written.
//!
//! What always holds: magic numbers are checked, every field that is used must be there and make sense, and memory is
//! taken only for bytes that a file really has. What does not fit is [`ImageError::Corrupt`], never a default.
//! Nothing that exists is overwritten.

mod directory;
mod files;
mod memory;
mod pagemap;
mod reader;
mod tasks;

pub use directory::ImageDir;
pub use files::{Descriptor, DescriptorKind, Pipe, RegularFile};
pub use memory::{Mm, VmaEntry};
pub use pagemap::PagemapEntry;
pub use reader::ImageError;
pub use tasks::{DumpStatistics, Inventory, TaskEntry};
