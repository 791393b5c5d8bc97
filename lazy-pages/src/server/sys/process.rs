//! Processes that share one table of descriptors.
//!
//! A child made by [`clone_sharing_descriptors`] is a copy of its parent like one made by fork(2), except that both have
//! the *same* descriptors from then on: what one opens the other has too, and nothing is closed by the end of one of them
//! while the other lives (`CLONE_FILES`, clone(2)). That holds also for a descriptor which the kernel opens by itself,
//! such as the one that comes with the report of a fork.
//!
//! What always holds: a descriptor is owned by the Rust value of one process. Who wants a dead process's descriptors
//! calls [`take_over`], once for each.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::fcntl_getfl,
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
};

/// Makes a child that shares this process's descriptors. `None` in the child, its pid in the parent.
///
/// # Errors
/// When the process has other threads, whose locks the child would find locked for ever, or the kernel refuses.
pub fn clone_sharing_descriptors() -> io::Result<Option<u32>> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads cannot be copied"));
    }
    let mut flags = libc::CLONE_FILES | libc::SIGCHLD;
    let mut thread_id = std::ptr::null_mut();
    // glibc keeps the thread's id in memory and the kernel knows where; as fork(3) does, it is set to the child's.
    if cfg!(target_env = "gnu")
        && let Ok(Some(address)) = rustix::thread::get_clear_child_tid_address()
    {
        thread_id = address.as_ptr();
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    // SAFETY: without CLONE_VM the child has memory of its own, and this is the only thread: all locks are free. The new
    // stack is 0, the copy of this one. The kernel writes only to the child's copy of the C library's own field.
    // The order of the arguments is x86-64's and arm64's up to the third; the last two are swapped there.
    let result = unsafe {
        #[cfg(target_arch = "x86_64")]
        let result = libc::syscall(libc::SYS_clone, flags, 0, 0, thread_id, 0);
        #[cfg(not(target_arch = "x86_64"))]
        let result = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, thread_id);
        result
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid as u32)),
    }
}

/// Makes a child that shares this process's descriptors, whatever threads this process has. The child waits until
/// `released` has one of the bits of `mask`, and then ends; or until the process of `pidfd` has ended, and then becomes `program`. It allocates
/// nothing, takes no lock, and calls nothing but the kernel: what other threads were doing does not matter to it.
///
/// # Errors
/// When the kernel refuses.
pub fn clone_holder(
    pidfd: &OwnedFd,
    (released, mask): (&AtomicU64, u64),
    program: &str,
    arguments: &[OsString],
) -> io::Result<()> {
    let program = CString::new(program)?;
    let arguments: Vec<CString> = arguments
        .iter()
        .map(|argument| CString::new(argument.as_encoded_bytes()))
        .collect::<Result<_, _>>()?;
    let mut pointers = vec![program.as_ptr()];
    pointers.extend(arguments.iter().map(|argument| argument.as_ptr()));
    pointers.push(std::ptr::null());
    let watched = pidfd.as_raw_fd();
    let mut signals = std::mem::MaybeUninit::uninit();
    // SAFETY: the C library only fills the set.
    unsafe { libc::sigfillset(signals.as_mut_ptr()) };
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child has memory of its own, a copy of this thread's stack included. Until it ends or
    // executes, it makes system calls only, on memory that was prepared before, so that no lock another thread held in the
    // moment of the copy is ever waited for. `pointers` ends with null and points to strings that live as long.
    unsafe {
        match libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            _ => return Ok(()),
        }
        libc::sigprocmask(libc::SIG_SETMASK, signals.as_ptr(), std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, c"lazy-holder".as_ptr());
        loop {
            let mut fds = libc::pollfd { fd: watched, events: libc::POLLIN, revents: 0 };
            if libc::poll(&raw mut fds, 1, 10) > 0 {
                break;
            }
            if released.load(Ordering::Acquire) & mask != 0 {
                libc::_exit(0);
            }
        }
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, signals.as_ptr(), std::ptr::null_mut());
        libc::execv(program.as_ptr(), pointers.as_ptr());
        libc::_exit(1)
    }
}

/// Takes over a descriptor of a process that shared this table and has ended. Nobody else may have taken it.
///
/// # Errors
/// When it is not open.
pub fn take_over(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: only looked at; a number that is not open is an error of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfl(fd)?;
    // SAFETY: open, and its owner has ended.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Duplicates a descriptor by its number, whoever owns it.
///
/// # Errors
/// When it is not open.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: only looked at for the time of the call; a number that is not open is an error of it.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// Lets a descriptor survive exec(2).
///
/// # Errors
/// When it is not open.
pub fn keep_at_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: only a flag is changed; a number that is not open is an error of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(fd)?;
    Ok(fcntl_setfd(fd, flags - FdFlags::CLOEXEC)?)
}

/// Every open descriptor of this table, with what it is in the words of `/proc/self/fd`.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn open_descriptors() -> io::Result<Vec<(RawFd, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Gone again: the directory's own.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        found.push((number, target.to_string_lossy().into_owned()));
    }
    Ok(found)
}

/// The pid a pidfd is of; `None` if it is not a pidfd or its process was collected.
pub fn pid_of(pidfd: impl AsFd) -> Option<u32> {
    let number = pidfd.as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_is_not_copied() {
        // The test runner has a thread of its own.
        assert!(clone_sharing_descriptors().is_err());
    }

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        for number in [-1, 1 << 19] {
            assert!(take_over(number).is_err() && duplicate(number).is_err());
        }
    }

    #[test]
    fn a_duplicate_is_another_descriptor_of_the_same_file() {
        let file = fs::File::open("/dev/null").unwrap();
        let other = duplicate(file.as_raw_fd()).unwrap();
        assert_ne!(other.as_raw_fd(), file.as_raw_fd());
        let known = open_descriptors().unwrap();
        assert!(known.contains(&(other.as_raw_fd(), "/dev/null".into())));
    }
}
