//! A userfaultfd descriptor: the only module of this crate with `unsafe` code.
//!
//! What always holds: a [`Uffd`] is a real userfaultfd, non-blocking, and reports forks, moves, removals and unmappings
//! (a descriptor that does not is refused, because memory would silently lose track of its data). Results of the
//! copying calls are passed on as the kernel gives them; what to do about each is decided in `space`.
//!
//! Closing the last descriptor of a userfaultfd makes every page that is still missing zero. So dropping a `Uffd` is a
//! decision: it is right once nothing is missing or the address space is gone.
//!
//! Numbers and layouts are those of `linux/userfaultfd.h`.

#![allow(unsafe_code)]

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    ioctl::{Opcode, Updater, ioctl, opcode},
};

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
#[derive(Debug)]
pub enum Event {
    /// A thread waits for this page.
    Fault(VirtAddr),
    /// The process has forked; this is the child's address space, until somebody takes it.
    Fork(Option<Uffd>),
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

    /// Takes a descriptor the page server has sent, which adopted it before.
    pub fn of_server(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Takes the descriptor of a forked child. It reports what its parent's reports.
    fn of_child(fd: OwnedFd) -> Self {
        if let Ok(flags) = fcntl_getfl(&fd) {
            // Inherited from how the parent's was made; only a descriptor made blocking needs this.
            let _ = fcntl_setfl(&fd, flags | OFlags::NONBLOCK);
        }
        Self(fd)
    }

    fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
        let raw = fd.as_raw_fd();
        let target = fs::read_link(format!("/proc/self/fd/{raw}")).map_err(|e| e.to_string())?;
        if target.as_os_str() != "anon_inode:[userfaultfd]" {
            return Err(format!("it is {}, not a userfaultfd", target.display()));
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

    /// Appends what there is, up to [`BATCH`] events, and returns how many. None means that nothing is pending.
    ///
    /// # Errors
    /// When the kernel cannot deliver, for example for want of a descriptor for a forked child.
    pub fn read(&self, events: &mut Vec<Event>) -> io::Result<usize> {
        let mut buffer = [0; MESSAGE * BATCH];
        let length = loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(length) => break length,
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let messages = buffer[..length].as_chunks::<MESSAGE>().0;
        events.extend(messages.iter().filter_map(parse));
        Ok(messages.len())
    }
}

const MESSAGE: usize = 32;
/// Messages taken in one read.
pub const BATCH: usize = 32;

fn parse(message: &[u8; MESSAGE]) -> Option<Event> {
    let word = |at: usize| message[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let address = |at| VirtAddr::containing(word(at));
    match message[0] {
        EVENT_PAGEFAULT => Some(Event::Fault(address(16))),
        EVENT_FORK => {
            let raw = word(8) as u32 as RawFd;
            // SAFETY: the kernel has just made this descriptor for the reader of the message, nobody else owns it, and
            // each message is parsed once.
            let child = unsafe { OwnedFd::from_raw_fd(raw) };
            Some(Event::Fork(Some(Uffd::of_child(child))))
        }
        EVENT_REMAP => {
            Some(Event::Remap { from: address(8), to: address(16), pages: word(24) / PAGE_SIZE as u64 })
        }
        EVENT_REMOVE | EVENT_UNMAP => Some(Event::Remove { start: address(8), end: address(16) }),
        _ => None,
    }
}

/// What came over a socket.
#[derive(Debug)]
pub struct Received {
    /// Bytes; 0 at the end.
    pub length: usize,
    /// The sender's pid; 0 if it is not visible in this pid namespace.
    pub sender: u32,
    /// The first descriptor that came along.
    pub fd: Option<OwnedFd>,
}

/// Receives at most `buffer` and whatever comes with it from a socket that passes credentials, without waiting.
///
/// # Errors
/// `EAGAIN` when nothing is there; anything else is the end of the connection.
pub fn receive(stream: &UnixStream, buffer: &mut [u8]) -> nix::Result<Received> {
    // Room for one more descriptor than any peer has reason to send.
    let mut control = nix::cmsg_space!([RawFd; 2], UnixCredentials);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    let mut received = Received { length: message.bytes, sender: 0, fd: None };
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmRights(fds) => {
                for fd in fds {
                    // SAFETY: the kernel has just made this descriptor for the receiver of the message, and this loop
                    // is its only owner.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    received.fd.get_or_insert(fd);
                }
            }
            ControlMessageOwned::ScmCredentials(sender) => received.sender = sender.pid().unsigned_abs(),
            _ => {}
        }
    }
    Ok(received)
}

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
