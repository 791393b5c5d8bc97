//! Starting a child that inherits exactly what it is meant to.
//!
//! What always holds for a child started after [`isolate`]:
//! - Of the parent's descriptors only 0, 1, 2 (as set on the `Command`) and those of [`Isolation::keep`] survive `exec`,
//!   whatever flags the others carry. Stray descriptors break dumps of the child and keep other people's pipes open.
//! - No signal is blocked, and SIGCHLD has its default action. CRIU needs both; an ignored SIGCHLD is inherited otherwise.
//! - Asked for, it is in the namespaces and control groups of another process before its program is executed: the program's
//!   path, its loader and libraries are those found there.
//!
//! A failure of any step is an error of `Command::spawn`, and no child is left behind. Between `fork` and `exec` only
//! system calls are made: nothing is allocated, no lock is taken, so it is safe in a process with threads.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// Number of the first descriptor that is not standard input, output or error.
const FIRST_EXTRA: RawFd = 3;

/// What a child keeps of its parent's world, beyond standard input, output and error.
#[derive(Debug, Default)]
pub struct Isolation {
    kept: Vec<OwnedFd>,
    parent_death_signal: Option<i32>,
    new_session: bool,
    namespaces: Option<(OwnedFd, i32)>,
    groups: Vec<OwnedFd>,
}

impl Isolation {
    /// Nothing is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the child have `descriptor`, and returns the number under which it will find it, to be put on its command line
    /// or in its environment. The parent's copy closes when the `Command` is dropped.
    ///
    /// The number is the descriptor's own: moving it to a chosen one could hit the pipe over which the standard library
    /// learns that `exec` failed.
    ///
    /// # Errors
    /// When `descriptor` is one of 0, 1, 2 and cannot be duplicated to a number of its own.
    pub fn keep(&mut self, descriptor: OwnedFd) -> io::Result<RawFd> {
        let descriptor = if descriptor.as_raw_fd() < FIRST_EXTRA {
            duplicate_above_stdio(&descriptor)?
        } else {
            descriptor
        };
        let number = descriptor.as_raw_fd();
        self.kept.push(descriptor);
        Ok(number)
    }

    /// Sends `signal` to the child when the *thread* that spawned it ends. If the parent is gone before that could be
    /// arranged, the child does not start.
    pub fn parent_death_signal(&mut self, signal: i32) -> &mut Self {
        self.parent_death_signal = Some(signal);
        self
    }

    /// Makes the child the leader of a session and of a process group of its own, without a terminal.
    pub fn new_session(&mut self) -> &mut Self {
        self.new_session = true;
        self
    }

    /// Puts the child into those namespaces of the process behind `pidfd` that `kinds` names, a set of `CLONE_NEW*` flags;
    /// setns(2). Its current directory is the root of the mount namespace then.
    pub fn enter(&mut self, pidfd: OwnedFd, kinds: i32) -> &mut Self {
        self.namespaces = Some((pidfd, kinds));
        self
    }

    /// Puts the child into the control group whose `cgroup.procs` this is, open for writing.
    pub fn join_group(&mut self, processes: OwnedFd) -> &mut Self {
        self.groups.push(processes);
        self
    }
}

/// Arranges that children spawned from `command` are isolated. To be called once for a command, and the command dropped
/// after the spawn: until then the parent's copies of the kept descriptors stay open.
pub fn isolate(command: &mut Command, isolation: Isolation) {
    // SAFETY: getpid has no preconditions.
    let parent = unsafe { libc::getpid() };
    let Isolation { kept, parent_death_signal, new_session, namespaces, groups } = isolation;
    let in_child = move || -> io::Result<()> {
        if new_session {
            // SAFETY: setsid has no preconditions. A child just forked leads no process group, so it cannot fail.
            check(unsafe { libc::setsid() })?;
        }
        if let Some(signal) = parent_death_signal {
            die_with_parent(signal, parent)?;
        }
        reset_signals()?;
        for group in &groups {
            join(group)?;
        }
        if let Some((pidfd, kinds)) = &namespaces {
            // SAFETY: takes two numbers.
            check(unsafe { libc::setns(pidfd.as_raw_fd(), *kinds) })?;
        }
        // Closing now would also close the pipe that tells the parent why `exec` failed, so closing is left to `exec`.
        // SAFETY: marks descriptors close-on-exec and touches no memory.
        check(unsafe {
            libc::syscall(libc::SYS_close_range, FIRST_EXTRA, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        } as i32)?;
        for descriptor in &kept {
            // SAFETY: F_SETFD on a descriptor owned by this closure.
            check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) })?;
        }
        Ok(())
    };
    // SAFETY: `in_child` makes only async-signal-safe system calls and does not allocate, lock or panic.
    unsafe { command.pre_exec(in_child) };
}

fn duplicate_above_stdio(descriptor: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: duplicates a descriptor that is open.
    let number = check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST_EXTRA) })?;
    // SAFETY: fcntl just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Runs in the child.
fn die_with_parent(signal: i32, parent: libc::pid_t) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) })?;
    // SAFETY: getppid has no preconditions.
    if unsafe { libc::getppid() } != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Runs in the child.
fn join(group: &OwnedFd) -> io::Result<()> {
    // Its own pid to the kernel, in whatever namespace.
    const SELF: &[u8] = b"0";
    // SAFETY: the buffer is valid for as many bytes as are named.
    match unsafe { libc::write(group.as_raw_fd(), SELF.as_ptr().cast(), SELF.len()) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs in the child.
fn reset_signals() -> io::Result<()> {
    // SAFETY: all-zero is a valid `sigset_t` and a valid `sigaction` (default action, empty mask, no flags); the pointers
    // are to live locals.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        check(libc::sigaction(libc::SIGCHLD, &default, std::ptr::null_mut()))?;
    }
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    // `last_os_error` only reads errno; it does not allocate.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
