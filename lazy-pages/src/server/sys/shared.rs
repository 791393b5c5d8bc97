//! Memory that several processes see: a memfd, mapped as words.
//!
//! What always holds: the mapping is exactly as long as the file, which can neither shrink nor grow (it is sealed), so
//! that no access faults; words are atomics, so that whatever another process does at the same time is no data race. What
//! the words mean, and whether they can be believed, is the caller's business.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::FileExt,
    ptr::{NonNull, null_mut},
    sync::atomic::AtomicU64,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mlock, mmap, munmap},
};

const WORD: usize = size_of::<u64>();
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// See the module's description.
#[derive(Debug)]
pub struct SharedWords {
    file: OwnedFd,
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the value until it is dropped, is valid in every thread, and is only ever reached as
// atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes `words` words, all zero. They take memory only where they are written.
    ///
    /// # Errors
    /// When there is no memory or no descriptor for it.
    pub fn create(name: &str, words: usize) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, (words * WORD) as u64)?;
        fcntl_add_seals(&file, SEALS)?;
        Self::map(file, words)
    }

    /// Maps what another process has made with [`Self::create`].
    ///
    /// # Errors
    /// When it is not such a file.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        if !fcntl_get_seals(&file)?.contains(SEALS) {
            return Err(io::Error::other("its length is not sealed"));
        }
        let words = usize::try_from(fstat(&file)?.st_size).unwrap_or(0) / WORD;
        Self::map(file, words)
    }

    fn map(file: OwnedFd, words: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so nothing is mapped over; the length is the file's, which is sealed.
        let base = unsafe { mmap(null_mut(), words * WORD, access, MapFlags::SHARED, &file, 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, base, words })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned to a page, that long, and until `self` is dropped; atomics may be shared.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    /// Keeps these words in memory, so that the kernel can write to them without reading them back from swap.
    ///
    /// # Errors
    /// When the limit of locked memory does not allow it.
    pub fn lock(&self, words: Range<usize>) -> io::Result<()> {
        let words = self.words().get(words).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the range is inside the mapping; locking changes no content.
        Ok(unsafe { mlock(words.as_ptr().cast_mut().cast(), size_of_val(words)) }?)
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, that long, and no reference outlives `self`. It can only fail for another range.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.words * WORD) };
    }
}

/// A file in memory with this content, for other processes to read.
///
/// # Errors
/// When there is no memory or no descriptor for it.
pub fn memory_file(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(file);
    file.write_all_at(content, 0)?;
    fcntl_add_seals(&file, SEALS | SealFlags::WRITE)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_of_one_file_are_the_same_words() {
        let first = SharedWords::create("shared-words", 1024).unwrap();
        let second = SharedWords::open(first.file.try_clone().unwrap()).unwrap();
        assert_eq!(second.words().len(), 1024);
        second.words()[1023].store(7, Ordering::Relaxed);
        assert_eq!(first.words()[1023].load(Ordering::Relaxed), 7);
        first.lock(0..512).unwrap();
        assert!(first.lock(1000..1025).is_err());
    }

    #[test]
    fn a_file_that_could_be_cut_short_is_refused() {
        let file = memfd_create("shared-words", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        assert!(SharedWords::open(file).is_err());
        let file = File::from(memory_file("content", b"12345678").unwrap());
        assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(0).is_err());
    }
}
