//! The readers, one a file.

pub mod bundle;
pub mod frame;
pub mod images;
pub mod leases;
pub mod manifest;
pub mod names;
pub mod page_stream;
pub mod registration;
