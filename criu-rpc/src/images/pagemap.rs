//! Which pages of an object there are, and the files their bytes are in.
//!
//! `pages-<n>.img` holds the bytes of all present entries of the pagemap that names it, in its order and nothing else. So
//! a pagemap whose lazy entries are not present goes with a pages file that holds the rest, and CRIU restores from it.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, Write},
    path::PathBuf,
};

use migration_proto::criu::images as wire;
use prost::Message;

use super::{
    ImageDir,
    reader::{Entries, ImageError, Magic, image_header, required},
};
use crate::{PAGE_SIZE, page_stream::PageObject};

const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// An entry has at most five numbers.
const ENTRY_LIMIT: u32 = 128;

const PE_PARENT: u32 = 1;
const PE_LAZY: u32 = 2;
const PE_PRESENT: u32 = 4;

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagemapEntry {
    /// Address of the first page, or offset in a shared object; a multiple of the page size.
    pub vaddr: u64,
    /// Their number.
    pub pages: u64,
    /// A lazy restore leaves them to the page server.
    pub lazy: bool,
    /// Their bytes are in the pages file.
    pub present: bool,
}

impl ImageDir {
    /// Writes the pagemap of an object, for any version of CRIU. `pages_id` names the pages file and has to be different
    /// for each object of a set; see [`Self::create_pages`].
    ///
    /// # Errors
    /// When the file exists or cannot be written, or `entries` are not ascending runs that are lazy or present.
    pub fn write_pagemap(
        &self,
        object: PageObject,
        pages_id: u32,
        entries: &[PagemapEntry],
    ) -> Result<(), ImageError> {
        let path = self.pagemap_path(object);
        let failed = |source| ImageError::Write { path: path.clone(), source };
        let mut end = 0;
        for entry in entries {
            end = check(entry, end).map_err(|reason| ImageError::Corrupt { path: path.clone(), reason })?;
        }
        let mut image = BufWriter::new(create(&path).map_err(failed)?);
        image.write_all(&image_header(PAGEMAP_MAGIC)).map_err(failed)?;
        let mut buffer = Vec::new();
        let head = wire::PagemapHead { pages_id: Some(pages_id) };
        write_entry(&mut image, &mut buffer, &head).map_err(failed)?;
        for entry in entries {
            let flags = if entry.lazy { PE_LAZY } else { 0 } | if entry.present { PE_PRESENT } else { 0 };
            let entry = wire::PagemapEntry {
                vaddr: Some(entry.vaddr),
                // Up to 4.1 the count is here; since 4.2 the other field wins. It fits, see `check`.
                compat_nr_pages: u32::try_from(entry.pages).ok(),
                in_parent: None,
                flags: Some(flags),
                nr_pages: Some(entry.pages),
            };
            write_entry(&mut image, &mut buffer, &entry).map_err(failed)?;
        }
        image.flush().map_err(failed)
    }

    /// Creates the pages file `pages_id`, empty, to be filled with the bytes of all present entries in their order.
    ///
    /// # Errors
    /// When the file exists or cannot be created.
    pub fn create_pages(&self, pages_id: u32) -> Result<File, ImageError> {
        let path = self.pages_path(pages_id);
        create(&path).map_err(|source| ImageError::Write { path, source })
    }

    /// Where the pages file `pages_id` is.
    pub fn pages_path(&self, pages_id: u32) -> PathBuf {
        self.path().join(format!("pages-{pages_id}.img"))
    }

    /// Reads the pagemap of an object: the number of its pages file, and its runs in ascending order, not merged.
    ///
    /// # Errors
    /// When it is missing or corrupt, or refers to pages of a parent checkpoint.
    pub fn read_pagemap(&self, object: PageObject) -> Result<(u32, Vec<PagemapEntry>), ImageError> {
        read_pagemap(self.pagemap_path(object))
    }

    /// Checks that every pages file has exactly the bytes that its pagemap promises. CRIU does not: given too short a file
    /// it never comes to an end.
    ///
    /// # Errors
    /// When a pagemap or pages file is missing or corrupt.
    pub fn check_pages(&self) -> Result<(), ImageError> {
        let list_error = |source| ImageError::Read { path: self.path().to_owned(), source };
        for file in fs::read_dir(self.path()).map_err(list_error)? {
            let file = file.map_err(list_error)?;
            let name = file.file_name();
            if !name.as_encoded_bytes().starts_with(b"pagemap-") {
                continue;
            }
            let (pages_id, runs) = read_pagemap(file.path())?;
            let promised: u64 = runs.iter().filter(|run| run.present).map(|run| run.pages).sum();
            let promised = promised * PAGE_SIZE as u64;
            let path = self.pages_path(pages_id);
            match fs::metadata(&path) {
                Ok(pages) if pages.len() == promised => {}
                Ok(pages) => {
                    let reason =
                        format!("it has {} bytes where its pagemap promises {promised}", pages.len());
                    return Err(ImageError::Corrupt { path, reason });
                }
                // CRIU opens it only if it needs it.
                Err(_) if promised == 0 => {}
                Err(source) => return Err(ImageError::Open { path, source }),
            }
        }
        Ok(())
    }

    fn pagemap_path(&self, object: PageObject) -> PathBuf {
        self.path().join(match object {
            PageObject::Task(pid) => format!("pagemap-{pid}.img"),
            PageObject::Shared(shmid) => format!("pagemap-shmem-{shmid}.img"),
        })
    }
}

fn read_pagemap(path: PathBuf) -> Result<(u32, Vec<PagemapEntry>), ImageError> {
    let mut entries = Entries::open(path, Magic::Image(PAGEMAP_MAGIC))?;
    let head = entries.next::<wire::PagemapHead>(ENTRY_LIMIT)?;
    let pages_id = required(head.and_then(|head| head.pages_id), "pages_id", entries.path())?;
    let mut runs = Vec::new();
    let mut end = 0;
    while let Some(entry) = entries.next::<wire::PagemapEntry>(ENTRY_LIMIT)? {
        let flags = entry.flags.unwrap_or(PE_PRESENT);
        if entry.in_parent == Some(true) || flags & PE_PARENT != 0 {
            let reason = "it refers to pages of a parent checkpoint".to_owned();
            return Err(ImageError::Unsupported { path: entries.path().to_owned(), reason });
        }
        if flags & !(PE_LAZY | PE_PRESENT) != 0 {
            return Err(entries.corrupt(format!("unknown flags {flags:#x}")));
        }
        let count = entry.nr_pages.or(entry.compat_nr_pages.map(u64::from));
        let run = PagemapEntry {
            vaddr: required(entry.vaddr, "vaddr", entries.path())?,
            pages: required(count, "nr_pages", entries.path())?,
            lazy: flags & PE_LAZY != 0,
            present: flags & PE_PRESENT != 0,
        };
        end = check(&run, end).map_err(|reason| entries.corrupt(reason))?;
        runs.push(run);
    }
    Ok((pages_id, runs))
}

/// Checks a run that follows one that ended at `after`; returns its own end.
fn check(run: &PagemapEntry, after: u64) -> Result<u64, String> {
    // Older versions of CRIU count in 32 bits.
    let pages = u32::try_from(run.pages).ok().filter(|&pages| pages != 0);
    let end = pages.and_then(|pages| run.vaddr.checked_add(u64::from(pages) * PAGE_SIZE as u64));
    match end {
        Some(_) if !run.lazy && !run.present => Err(format!("the pages at {:#x} are nowhere", run.vaddr)),
        Some(end) if run.vaddr.is_multiple_of(PAGE_SIZE as u64) && run.vaddr >= after => Ok(end),
        _ => Err(format!("an impossible run of {} pages at {:#x}", run.pages, run.vaddr)),
    }
}

fn create(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

fn write_entry(image: &mut impl Write, buffer: &mut Vec<u8>, entry: &impl Message) -> std::io::Result<()> {
    buffer.clear();
    // A vector grows as needed, so encoding into it cannot fail.
    buffer.extend_from_slice(&(entry.encoded_len() as u32).to_ne_bytes());
    entry.encode(buffer)?;
    image.write_all(buffer)
}
