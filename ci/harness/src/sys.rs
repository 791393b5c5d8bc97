//! The system calls the workloads are made of: odd mappings, `fork`, the program break, and spawning a process in a
//! session of its own; and an allocator that counts. The only unsafe code of this crate.
//!
//! What always holds: a [`Mapping`] is the only owner of its range and hands out no plain references into it, only
//! copies of pages and atomics, so nothing here depends on memory staying as it is. Touching a page whose protection
//! forbids it kills the process with SIGSEGV, which for a workload under test is the right answer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{Error, Result};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU64;

use libc::{c_int, c_void, off_t};
use nix::unistd::Pid;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
/// Words of a page.
pub const PAGE_WORDS: usize = PAGE_SIZE / 8;
/// The contents of a page.
pub type Page = [u8; PAGE_SIZE];

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

impl Access {
    fn bits(self) -> c_int {
        match self {
            Access::None => libc::PROT_NONE,
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// Who sees what is written to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This process; children get a copy.
    Private,
    /// Everyone who maps the same object, children included.
    Shared,
}

impl Sharing {
    fn bits(self) -> c_int {
        match self {
            Sharing::Private => libc::MAP_PRIVATE,
            Sharing::Shared => libc::MAP_SHARED,
        }
    }
}

/// Advice to the kernel about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Drop the contents now (`MADV_DONTNEED`).
    DontNeed,
    /// Drop the contents when memory is short (`MADV_FREE`).
    Free,
    /// A forked child sees zeros (`MADV_WIPEONFORK`).
    WipeOnFork,
    /// A forked child does not have the range (`MADV_DONTFORK`).
    DontFork,
    /// Use huge pages (`MADV_HUGEPAGE`).
    HugePage,
    /// Fault on access, without a mapping of its own (`MADV_GUARD_INSTALL`, Linux 6.13).
    Guard,
}

impl Advice {
    fn number(self) -> c_int {
        match self {
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::Free => libc::MADV_FREE,
            Advice::WipeOnFork => libc::MADV_WIPEONFORK,
            Advice::DontFork => libc::MADV_DONTFORK,
            Advice::HugePage => libc::MADV_HUGEPAGE,
            Advice::Guard => 102,
        }
    }
}

/// A range of pages of this process.
pub struct Mapping {
    base: NonNull<u8>,
    pages: usize,
    unmap: bool,
}

// SAFETY: a mapping is a range of addresses, which are the same in every thread; contents are only ever copied or
// accessed as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above. Page copies that race with each other may mix old and new bytes, which is what the workloads
// look for; they never produce references.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// New zero pages.
    pub fn anonymous(pages: usize, access: Access, sharing: Sharing) -> Result<Self> {
        Self::map(null_mut(), pages, access, sharing.bits() | libc::MAP_ANONYMOUS, -1)
    }

    /// The first `pages` pages of a file.
    pub fn of_file(file: &File, pages: usize, sharing: Sharing) -> Result<Self> {
        Self::map(null_mut(), pages, Access::Write, sharing.bits(), file.as_raw_fd())
    }

    /// New zero pages at the end of the heap (`brk`). They stay until the process ends.
    pub fn of_break(pages: usize) -> Result<Self> {
        // SAFETY: only ever grows the break; malloc copes with others moving it up. Single caller: workloads have one
        // thread when they do this.
        let old = unsafe { libc::sbrk(((pages + 1) * PAGE_SIZE) as isize) };
        if old as isize == -1 {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new((old as usize).next_multiple_of(PAGE_SIZE) as *mut u8)
            .ok_or(Error::other("no break"))?;
        Ok(Mapping { base, pages, unmap: false })
    }

    fn map(at: *mut c_void, pages: usize, access: Access, flags: c_int, fd: c_int) -> Result<Self> {
        // SAFETY: either `at` is null and the kernel picks a free range, or the caller owns the range at `at`.
        let address = unsafe { libc::mmap(at, pages * PAGE_SIZE, access.bits(), flags, fd, 0 as off_t) };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or(Error::other("mapped at address 0"))?;
        Ok(Mapping { base, pages, unmap: true })
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Address of one of its pages.
    pub fn address(&self, page: usize) -> usize {
        self.pointer(page..page) as usize
    }

    fn pointer(&self, range: Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.pages, "{range:?} is not in 0..{}", self.pages);
        self.base.as_ptr().wrapping_add(range.start * PAGE_SIZE)
    }

    /// Copies a page out.
    pub fn read(&self, page: usize, into: &mut Page) {
        let from = self.pointer(page..page + 1);
        // SAFETY: the page is inside the mapping, `into` is not, and every byte is valid as u8.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), PAGE_SIZE) }
    }

    /// Copies a page in.
    pub fn write(&self, page: usize, from: &Page) {
        let into = self.pointer(page..page + 1);
        // SAFETY: the page is inside the mapping, `from` is not, and no reference to the mapping's bytes exists.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, PAGE_SIZE) }
    }

    /// The words of a page.
    pub fn words(&self, page: usize) -> &[AtomicU64] {
        let base = self.pointer(page..page + 1).cast::<AtomicU64>();
        // SAFETY: page aligned, inside the mapping, which lives as long as the borrow; atomics may be shared.
        unsafe { std::slice::from_raw_parts(base, PAGE_WORDS) }
    }

    /// Changes what a range may be used for.
    pub fn protect(&self, range: Range<usize>, access: Access) -> Result<()> {
        let (base, length) = (self.pointer(range.clone()), range.len() * PAGE_SIZE);
        // SAFETY: the range is inside the mapping.
        check(unsafe { libc::mprotect(base.cast(), length, access.bits()) })
    }

    /// Gives advice about a range.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> Result<()> {
        let (base, length) = (self.pointer(range.clone()), range.len() * PAGE_SIZE);
        // SAFETY: the range is inside the mapping, and nobody relies on its contents.
        check(unsafe { libc::madvise(base.cast(), length, advice.number()) })
    }

    /// Locks all of it into memory.
    pub fn lock(&self) -> Result<()> {
        // SAFETY: the range is the mapping.
        check(unsafe { libc::mlock(self.base.as_ptr().cast(), self.pages * PAGE_SIZE) })
    }

    /// Whether a page is mapped at all.
    pub fn is_mapped(&self, page: usize) -> bool {
        let mut resident = 0_u8;
        // SAFETY: one page of address space is asked about, and one byte is written.
        unsafe { libc::mincore(self.pointer(page..page + 1).cast(), PAGE_SIZE, &raw mut resident) == 0 }
    }

    /// Unmaps a range and maps new zero pages in its place.
    pub fn renew(&self, range: Range<usize>) -> Result<()> {
        let (base, length) = (self.pointer(range.clone()), range.len() * PAGE_SIZE);
        // SAFETY: the range is inside the mapping, and nothing else can be mapped there in between: one thread.
        check(unsafe { libc::munmap(base.cast(), length) })?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let fresh = Self::map(base.cast(), range.len(), Access::Write, flags, -1)?;
        std::mem::forget(fresh);
        Ok(())
    }

    /// Moves the mapping somewhere else and makes it longer.
    pub fn move_and_grow(mut self, pages: usize) -> Result<Self> {
        let goal = Self::map(null_mut(), pages, Access::None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        let (old, new) = (self.pages * PAGE_SIZE, pages * PAGE_SIZE);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the old range is this mapping, the new one was reserved just now and is replaced.
        let moved = unsafe { libc::mremap(self.base.as_ptr().cast(), old, new, flags, goal.base.as_ptr()) };
        if moved == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        self.unmap = false;
        Ok(goal)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.unmap {
            // SAFETY: the mapping owns the range, and nothing refers to it any more.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages * PAGE_SIZE) };
        }
    }
}

fn check(result: c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Splits the process in two. The child gets `None`.
///
/// # Errors
/// When the process has other threads, whose locks the child would inherit locked, and when the kernel refuses.
pub fn fork() -> Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(Error::other("a process with several threads must not fork"));
    }
    // SAFETY: this is the only thread, so no lock is held by anyone who would not exist in the child.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid))),
    }
}

/// Makes the command start in a session of its own, without the descriptors this process happens to have inherited:
/// what a process needs to be checkpointed.
pub fn in_own_session(command: &mut Command) -> &mut Command {
    let prepare = || {
        // SAFETY: two system calls on numbers.
        unsafe {
            if libc::setsid() == -1 {
                return Err(Error::last_os_error());
            }
            // Close-on-exec instead of close: the standard library still needs its own pipe until the exec.
            if libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == -1 {
                return Err(Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes only async-signal-safe system calls and does not allocate.
    unsafe { command.pre_exec(prepare) }
}

/// The system's allocator, which counts what each thread has; see [`peak_memory`].
#[derive(Debug)]
pub struct MeteredAllocator;

thread_local! {
    /// Bytes this thread has now, and the most it had since that was reset. What another thread frees makes it negative.
    static METER: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn meter(more: isize) {
    // It is gone when a thread ends; then nobody asks any more.
    let _ = METER.try_with(|meter| {
        let (now, peak) = meter.get();
        meter.set((now + more, peak.max(now + more)));
    });
}

// SAFETY: every call goes on to the system's allocator as it came. Counting allocates nothing: the cell is initialised
// at compile time and has no destructor.
unsafe impl GlobalAlloc for MeteredAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        meter(layout.size() as isize);
        // SAFETY: the caller's promises are the ones asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        meter(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        meter(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        meter(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Does `work`, and gives the most bytes that this thread had allocated meanwhile beyond those it had before; always 0
/// when [`MeteredAllocator`] is not the program's allocator.
pub fn peak_memory<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = METER.get().0;
    METER.set((before, before));
    let done = work();
    (done, METER.get().1.saturating_sub(before).unsigned_abs())
}
