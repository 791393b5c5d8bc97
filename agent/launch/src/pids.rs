//! High pids for the workload.
//!
//! CRIU gives every restored task its old pid. In a new container the low pids belong to the container's own processes, so
//! a workload that may be moved has to start above them. Pids are given out in turn, and a privileged process can say
//! which comes next; one that cannot uses them up with threads, which count like processes: 10 000 take half a second.
//!
//! Never done where a tree will be restored: what runs there meanwhile would take the pids the tree needs.

use std::{fs, thread};

/// The last pid that was given out in this pid namespace; proc_sys_kernel(5).
const LAST: &str = "/proc/sys/kernel/ns_last_pid";

/// Makes the next pid larger than `base`, if it is not yet.
pub fn raise(base: u32) {
    let last = fs::read_to_string(LAST).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if last.is_some_and(|last| last >= base) || fs::write(LAST, base.to_string()).is_ok() {
        return;
    }
    // Others take pids too, so `base` is reached after at most that many.
    for _ in 0..base {
        let thread = thread::Builder::new().stack_size(16 * 1024).spawn(rustix::thread::gettid);
        match thread.map(thread::JoinHandle::join) {
            Ok(Ok(pid)) if pid.as_raw_nonzero().get().unsigned_abs() < base => {}
            _ => return,
        }
    }
}
