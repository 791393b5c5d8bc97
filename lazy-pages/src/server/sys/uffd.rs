//! A userfaultfd descriptor.
//!
//! What always holds: a [`Uffd`] is a real userfaultfd, non-blocking, and reports forks, moves, removals and unmappings
//! (a descriptor that does not is refused, because memory would silently lose track of its data). Results of the
//! copying calls are passed on as the kernel gives them; what to do about each is decided in `space`.
//!
//! Closing the last descriptor of a userfaultfd makes every page that is still missing zero. So dropping a `Uffd` is a
//! decision: it is right once nothing is missing or the address space is gone.
//!
//! Numbers and layouts are those of `linux/userfaultfd.h`.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    ioctl::{Opcode, Updater, ioctl, opcode},
};

use super::process::{duplicate, keep_at_exec, take_over};
use crate::units::{PAGE_SIZE, VirtAddr};

/// Events CRIU asks for: fork, remap, remove, unmap.
const NEEDED_FEATURES: u64 = 0x4e;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

const UFFDIO: u8 = 0xaa;
const WAKE: Opcode = opcode::read::<Range>(UFFDIO, 2);
const COPY: Opcode = opcode::read_write::<Copy>(UFFDIO, 3);
const ZEROPAGE: Opcode = opcode::read_write::<ZeroPage>(UFFDIO, 4);
const WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(UFFDIO, 6);

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

/// What the kernel reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for this page.
    Fault(VirtAddr),
    /// The process has forked; this is the number of the descriptor of the child's address space.
    Fork(RawFd),
    /// Pages have moved.
    Remap {
        /// From here,
        from: VirtAddr,
        /// to here,
        to: VirtAddr,
        /// this many.
        pages: u64,
    },
    /// The process has given up the content (`MADV_DONTNEED`) or the mapping itself.
    Remove {
        /// First address.
        start: VirtAddr,
        /// First address after it.
        end: VirtAddr,
    },
}

/// What came of filling pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The first `n` pages, at least one, were filled and whoever waits for them was woken. Fewer than asked for is no
    /// failure: go on with the next.
    Pages(u64),
    /// Nothing was done: the first page is in memory already.
    Present,
    /// Nothing was done: an event has to be read first.
    EventPending,
    /// Nothing was done: the range is not inside one area this descriptor serves.
    NoArea,
    /// Nothing was done: the address space does not exist any more.
    Gone,
    /// Nothing was done: no memory for the process.
    NoMemory,
    /// The kernel refused for a reason that never happens to correct calls.
    Failed(Errno),
}

/// A userfaultfd of a process being restored.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.0
    }
}

impl Uffd {
    /// Takes a descriptor that came from outside.
    ///
    /// # Errors
    /// Gives the descriptor back when it is not a userfaultfd that reports all needed events: closing it is a decision.
    pub fn adopt(fd: OwnedFd) -> Result<Self, (OwnedFd, String)> {
        match Self::check(fd.as_fd()) {
            Ok(()) => Ok(Self(fd)),
            Err(reason) => Err((fd, reason)),
        }
    }

    /// Takes the descriptor of a forked child, which came with the report of the fork, or one of a page server that has
    /// ended. Nobody else may have taken it.
    ///
    /// # Errors
    /// When there is no userfaultfd of that number.
    pub fn take_over(number: RawFd) -> io::Result<Self> {
        if !is_userfaultfd(number) {
            return Err(io::Error::other(format!("descriptor {number} is not a userfaultfd")));
        }
        let fd = take_over(number)?;
        // Whatever program this process becomes needs it too.
        keep_at_exec(number)?;
        // Inherited from how the parent's was made; only one made blocking needs this.
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    /// Another descriptor of the one with this number, whoever owns it.
    ///
    /// # Errors
    /// When there is no userfaultfd of that number.
    pub fn duplicate(number: RawFd) -> io::Result<Self> {
        let fd = duplicate(number)?;
        if !is_userfaultfd(fd.as_raw_fd()) {
            return Err(io::Error::other(format!("descriptor {number} is not a userfaultfd")));
        }
        Ok(Self(fd))
    }

    fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
        let raw = fd.as_raw_fd();
        if !is_userfaultfd(raw) {
            return Err("it is not a userfaultfd".to_owned());
        }
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{raw}")).map_err(|e| e.to_string())?;
        let features = info
            .lines()
            .find_map(|line| line.strip_prefix("API:"))
            .and_then(|api| api.trim().split(':').nth(1))
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .ok_or("the kernel does not tell its features")?;
        if features & NEEDED_FEATURES != NEEDED_FEATURES {
            return Err(format!("it has features {features:#x}, {NEEDED_FEATURES:#x} are needed"));
        }
        let flags = fcntl_getfl(fd).map_err(|e| e.to_string())?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|e| e.to_string())
    }

    /// Copies `bytes` (whole pages) to `start`, which is all or nothing for each page.
    pub fn copy(&self, start: VirtAddr, bytes: &[u8]) -> Filled {
        debug_assert!(!bytes.is_empty() && bytes.len().is_multiple_of(PAGE_SIZE));
        let src = bytes.as_ptr() as u64;
        let mut arg = Copy { dst: start.get(), src, len: bytes.len() as u64, mode: 0, copy: 0 };
        // SAFETY: `arg` is the structure this request takes and lives through the call; the kernel only reads
        // `bytes`, and writes nothing in this process but `arg.copy`.
        let result = unsafe { ioctl(&self.0, Updater::<COPY, _>::new(&mut arg)) };
        filled(result, arg.copy, arg.len)
    }

    /// Fills `pages` pages from `start` with zeros.
    pub fn zero(&self, start: VirtAddr, pages: u64) -> Filled {
        let len = pages * PAGE_SIZE as u64;
        let mut arg = ZeroPage { range: Range { start: start.get(), len }, mode: 0, zeropage: 0 };
        // SAFETY: `arg` is the structure this request takes and lives through the call; the kernel writes nothing in
        // this process but `arg.zeropage`.
        let result = unsafe { ioctl(&self.0, Updater::<ZEROPAGE, _>::new(&mut arg)) };
        filled(result, arg.zeropage, len)
    }

    /// Wakes whoever waits for a page of `start .. end`; a page that is still missing faults anew. Addresses without
    /// memory are fine.
    pub fn wake(&self, start: VirtAddr, end: VirtAddr) {
        let mut arg = Range { start: start.get(), len: end.get() - start.get() };
        // SAFETY: `arg` is the structure this request takes and lives through the call.
        let result = unsafe { ioctl(&self.0, Updater::<WAKE, _>::new(&mut arg)) };
        debug_assert_eq!(result, Ok(()), "waking {start}..{end}");
    }

    /// Whether the address space still exists.
    pub fn is_alive(&self) -> bool {
        // Lifting write protection needs an area registered for it, and CRIU registers none: the call finds nothing to
        // do whatever is mapped there, but only after it has got hold of the address space.
        let range = Range { start: 1 << 30, len: PAGE_SIZE as u64 };
        let mut arg = WriteProtect { range, mode: 0 };
        // SAFETY: `arg` is the structure this request takes and lives through the call.
        let result = unsafe { ioctl(&self.0, Updater::<WRITEPROTECT, _>::new(&mut arg)) };
        result != Err(Errno::SRCH)
    }

    /// Reads what there is into `messages`, up to [`BATCH`] of them, and returns how many. None means that nothing is
    /// pending. The kernel writes to that memory directly, so that a message which was taken off the descriptor is there
    /// whatever becomes of this process.
    ///
    /// # Errors
    /// When the kernel cannot deliver, for example for want of a descriptor for a forked child.
    pub fn read(&self, messages: &[AtomicU64]) -> io::Result<usize> {
        let base = messages.as_ptr().cast_mut().cast::<libc::c_void>();
        loop {
            // SAFETY: the kernel writes at most `messages`, which are atomics, so they may change under a shared reference.
            let length = unsafe { libc::read(self.0.as_raw_fd(), base, size_of_val(messages)) };
            if let Ok(length) = usize::try_from(length) {
                return Ok(length / MESSAGE);
            }
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }
}

const MESSAGE: usize = 32;
/// Words of a message.
pub const MESSAGE_WORDS: usize = MESSAGE / 8;
/// Messages taken in one read.
pub const BATCH: usize = 32;

impl Event {
    /// What a message says; `None` if it is empty or unknown.
    pub fn of(message: &[AtomicU64]) -> Option<Self> {
        let word = |at: usize| message.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let address = |at| VirtAddr::containing(word(at));
        match word(0).to_ne_bytes()[0] {
            EVENT_PAGEFAULT => Some(Self::Fault(address(2))),
            EVENT_FORK => Some(Self::Fork(word(1) as u32 as RawFd)),
            EVENT_REMAP => {
                let pages = word(3) / PAGE_SIZE as u64;
                Some(Self::Remap { from: address(1), to: address(2), pages })
            }
            EVENT_REMOVE | EVENT_UNMAP => Some(Self::Remove { start: address(1), end: address(2) }),
            _ => None,
        }
    }
}

/// Whether the open descriptor of that number is a userfaultfd.
pub fn is_userfaultfd(number: RawFd) -> bool {
    fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|target| target.as_os_str() == USERFAULTFD)
}

/// What `/proc/self/fd` says of a userfaultfd.
pub const USERFAULTFD: &str = "anon_inode:[userfaultfd]";

fn filled(result: Result<(), Errno>, done: i64, wanted: u64) -> Filled {
    let pages = |bytes: u64| Filled::Pages(bytes / PAGE_SIZE as u64);
    match result {
        Ok(()) => pages(wanted),
        Err(Errno::AGAIN) if done > 0 => pages(done as u64),
        Err(Errno::AGAIN) => Filled::EventPending,
        Err(Errno::EXIST) => Filled::Present,
        Err(Errno::NOENT) => Filled::NoArea,
        Err(Errno::SRCH) => Filled::Gone,
        Err(Errno::NOMEM) => Filled::NoMemory,
        Err(other) => Filled::Failed(other),
    }
}
