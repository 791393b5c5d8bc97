//! The areas of a task's address space.

use std::ops::Range;

use migration_proto::criu::images as wire;
use prost::Message;

use super::{
    ImageDir,
    reader::{ImageError, Magic, each_field, required},
};
use crate::PAGE_SIZE;

const MM: Magic = Magic::Image(0x5749_2820);
/// Room for a million areas, sixteen times the kernel's default limit.
const MM_LIMIT: u32 = 64 * 1024 * 1024;
/// Field of `mm_entry` that repeats `vma_entry`.
const VMAS: u64 = 14;

/// Bits of `vma_entry.status`.
const STATUS_VSYSCALL: u32 = 1 << 2;
const STATUS_VDSO: u32 = 1 << 3;
const STATUS_VVAR: u32 = 1 << 12;
const STATUS_GUARD: u32 = 1 << 16;

/// A task's address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mm {
    /// Id of its executable among [`ImageDir::regular_files`].
    pub executable: u32,
    /// Its areas, ascending. CRIU's guard regions, which are parts of areas, are left out.
    pub vmas: Vec<VmaEntry>,
}

/// An area of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmaEntry {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Bytes from the start of what is mapped.
    pub offset: u64,
    /// Id of the shared memory object, or of the file.
    pub shmid: u64,
    /// PROT_* bits.
    pub prot: u32,
    /// MAP_* bits.
    pub flags: u32,
    /// CRIU's classification, a bit field.
    pub status: u32,
    /// Which MADV_* advice is in force, a bit for each value.
    pub madv: u64,
}

impl VmaEntry {
    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Whether CRIU leaves pages of this area that are marked lazy to a page server: private anonymous memory that is not
    /// locked and not made of huge pages, and is not one of the kernel's own areas.
    pub fn is_lazy(&self) -> bool {
        let flag = |flag: i32| self.flags & flag as u32 != 0;
        flag(libc::MAP_ANONYMOUS)
            && flag(libc::MAP_PRIVATE)
            && !flag(libc::MAP_LOCKED)
            && !flag(libc::MAP_HUGETLB)
            && self.status & (STATUS_VSYSCALL | STATUS_VDSO | STATUS_VVAR) == 0
    }

    /// Whether a forked child sees zeros here (MADV_WIPEONFORK).
    pub fn wipe_on_fork(&self) -> bool {
        self.advised(libc::MADV_WIPEONFORK)
    }

    /// Whether a forked child does not have this area (MADV_DONTFORK).
    pub fn dont_fork(&self) -> bool {
        self.advised(libc::MADV_DONTFORK)
    }

    /// Whether it grows down by itself, like the main stack.
    pub fn grows_down(&self) -> bool {
        self.flags & libc::MAP_GROWSDOWN as u32 != 0
    }

    fn advised(&self, advice: i32) -> bool {
        self.madv & (1 << advice) != 0
    }
}

impl ImageDir {
    /// Reads `mm-<pid>.img`. Dead tasks have none.
    ///
    /// # Errors
    /// When it is missing or corrupt.
    pub fn mm(&self, pid: u32) -> Result<Mm, ImageError> {
        let mut entries = self.entries(&format!("mm-{pid}.img"), MM)?;
        let path = entries.path().to_owned();
        let corrupt = |reason: String| ImageError::Corrupt { path: path.clone(), reason };
        let bytes = entries.next_bytes(MM_LIMIT)?.ok_or_else(|| corrupt("it has no entry".to_owned()))?;

        let mm = wire::MmEntry::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
        let mut vmas: Vec<VmaEntry> = Vec::new();
        each_field(bytes, VMAS, |bytes| {
            let vma = wire::VmaEntry::decode(bytes).map_err(|error| error.to_string())?;
            let vma = from_wire(vma).ok_or("an area lacks a field or is not made of pages")?;
            if vma.status & STATUS_GUARD != 0 {
                return Ok(());
            }
            if vmas.last().is_some_and(|before| before.end > vma.start) {
                return Err(format!("the area at {:#x} overlaps the one before", vma.start));
            }
            vmas.push(vma);
            Ok(())
        })
        .map_err(corrupt)?;
        Ok(Mm { executable: required(mm.exe_file_id, "exe_file_id", &path)?, vmas })
    }
}

fn from_wire(vma: wire::VmaEntry) -> Option<VmaEntry> {
    let vma = VmaEntry {
        start: vma.start?,
        end: vma.end?,
        offset: vma.pgoff?,
        shmid: vma.shmid?,
        prot: vma.prot?,
        flags: vma.flags?,
        status: vma.status?,
        // CRIU leaves it out when no advice is in force.
        madv: vma.madv.unwrap_or(0),
    };
    let whole_pages = (vma.start | vma.end).is_multiple_of(PAGE_SIZE as u64);
    (vma.start < vma.end && whole_pages).then_some(vma)
}
