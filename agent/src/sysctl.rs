//! `/proc/sys` of the agent's own container.
//!
//! Container runtimes mount it read-only, also for containers with every capability the agent asks for. CRIU's own check then
//! fails, because it wants to write `kernel/ns_last_pid`. Whoever may mount may take that back, for these mounts alone: no other
//! container sees it, and the settings of the whole kernel are left as they are.

use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    mount::{MountFlags, mount_remount},
};

const SETTINGS: &str = "/proc/sys";

/// Makes it writable if it is not. Where that cannot be done everything goes on without, and `check` says what is missing.
pub fn make_writable() {
    let read_only = |path| statvfs(path).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    // If all of /proc is read-only, it is no runtime that wants these protected.
    if !read_only(SETTINGS) || read_only("/proc") {
        return;
    }
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(errno) = mount_remount(SETTINGS, flags, "") {
        tracing::warn!(path = SETTINGS, error = %errno, "stays read-only");
    }
}
