//! libcriu: its constants and the one call that is worth making through it.
//!
//! libcriu is a client of the same RPC that `criu-rpc` speaks, and can express less of it, so sessions do not go through
//! it. Its notion of a version is useful as an independent second opinion.

use std::{
    ffi::{CString, NulError},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
    sync::Mutex,
};

use crate::bindings;

/// Log errors and warnings.
pub const LOG_WARN: i32 = bindings::CRIU_LOG_WARN as i32;

/// Hold packets back with the iptables programs.
pub const NETWORK_LOCK_IPTABLES: i32 = bindings::CRIU_NETWORK_LOCK_IPTABLES as i32;
/// Hold packets back with libnftables.
pub const NETWORK_LOCK_NFTABLES: i32 = bindings::CRIU_NETWORK_LOCK_NFTABLES as i32;

/// Leave control groups alone, both when dumping and when restoring.
pub const CG_MODE_IGNORE: i32 = bindings::CRIU_CG_MODE_IGNORE as i32;
/// CRIU's default: restore membership, and properties of groups that CRIU had to create.
pub const CG_MODE_SOFT: i32 = bindings::CRIU_CG_MODE_SOFT as i32;

/// Version of the libcriu headers this was built with, as `major * 10000 + minor * 100 + sublevel`.
pub const LIBRARY_VERSION: u32 = bindings::CRIU_VERSION_MAJOR * 10_000
    + bindings::CRIU_VERSION_MINOR * 100
    + bindings::CRIU_VERSION_SUBLEVEL;

/// Why libcriu could not tell a version.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The path cannot be handed to C.
    #[error("the path of the criu binary contains a NUL byte")]
    Path(#[from] NulError),
    /// libcriu or the binary failed.
    #[error("libcriu could not ask the criu binary for its version")]
    Request(#[source] io::Error),
}

/// Asks `binary` for its version through libcriu: `major * 10000 + minor * 100 + sublevel`. Blocks until the binary has
/// answered; libcriu sets no limit.
///
/// # Errors
/// When the binary cannot be run or does not answer.
pub fn version_of(binary: &Path) -> Result<u32, VersionError> {
    // libcriu keeps the error of the last call in a global.
    static LIBCRIU: Mutex<()> = Mutex::new(());
    let _serial = LIBCRIU.lock().unwrap_or_else(|poisoned| poisoned.into_inner());

    let binary = CString::new(binary.as_os_str().as_bytes())?;
    let mut options: *mut bindings::criu_opts = ptr::null_mut();
    // SAFETY: `options` is a valid place for the pointer that libcriu allocates.
    if unsafe { bindings::criu_local_init_opts(&mut options) } != 0 || options.is_null() {
        return Err(VersionError::Request(io::Error::from(io::ErrorKind::OutOfMemory)));
    }
    // SAFETY: `options` was initialised above and is freed once, below; libcriu copies the path. Calls are serialised by
    // the lock held.
    let answer = unsafe {
        let answer = match bindings::criu_local_set_service_binary(options, binary.as_ptr()) {
            0 => bindings::criu_local_get_version(options),
            failed => failed,
        };
        bindings::criu_local_free_opts(options);
        answer
    };
    u32::try_from(answer)
        .map_err(|_| VersionError::Request(io::Error::from_raw_os_error(answer.saturating_neg())))
}
