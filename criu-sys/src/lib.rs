//! libcriu and libcompel for Rust, and the few safe wrappers over them that the workspace needs.
//!
//! Everything here that other crates see is safe to call. Policy does not belong here: which processes are stopped, which
//! system calls are run in them and what a child inherits is the caller's business.
//!
//! - [`criu`]: libcriu's constants, the version of its headers, and the version of a CRIU binary as libcriu sees it.
//! - [`compel`]: runs system calls inside another process.
//! - [`process`]: starts a child that inherits exactly what it is meant to.

pub mod compel;
pub mod criu;
pub mod process;

/// What bindgen made of the headers.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    dead_code,
    unsafe_op_in_unsafe_fn,
    clippy::all
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}
