//! Reading the files of a frozen tree into its checkpoint.
//!
//! A file that is as it was at the previous checkpoint, by inode, size and times, is not read at all. Of others every
//! page is read and hashed, and those the previous checkpoint has are not stored again.
//!
//! When the times cannot be trusted: writes through a shared mapping do not always set them (on a tmpfs never, whoever has
//! mapped the file), and a file changed within the last second may be changed again within the same tick of the clock. Such
//! files are noted without identity, and read again the next time.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use criu_rpc::ImageDir;
use lazy_pages::{
    format::{FileEntry, FileKind, FilePolicy, LargeImage, Manifest, ObjectId, pages_of},
    units::{PAGE_SIZE, VirtAddr},
    writer::{CheckpointWriter, ParentPages, SealedPages},
};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use serde::Serialize;

use super::{FilesError, Found, View, attributes, find::FoundFile, status::Status};
use crate::error::AgentError;

/// Images above this are stored as pages: the bundle is made in memory, and is all new every time.
const LARGE_IMAGE: u64 = 1 << 20;

/// CRIU gives a file another name of this form, to find it again by, if its own was deleted but others are left.
const LINK_REMAP: &[u8] = b"link_remap.";

/// Longer than any clock of a file system needs to tell two writes apart.
const SETTLED: Duration = Duration::from_secs(1);

/// Files that travel with a checkpoint.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct FileCounts {
    /// Regular files, directories and symbolic links.
    pub carried: u64,
    /// Bytes of the regular ones.
    pub bytes: u64,
    /// Bytes of these that had to be read; the others had not changed.
    pub read: u64,
}

/// Files that were read.
#[derive(Debug)]
pub struct Captured {
    /// For the manifest.
    pub files: Vec<FileEntry>,
    /// Images that are not for the bundle.
    pub large_images: Vec<LargeImage>,
    /// How many.
    pub counts: FileCounts,
    /// Contents that have not changed, and their pages.
    unchanged: Vec<(u32, u64)>,
}

impl Captured {
    /// Reads the files that were `found` while the tree was frozen, as long as CRIU's images say they are.
    pub fn read(
        writer: &mut CheckpointWriter,
        mut found: Found,
        images: &Path,
        parent: Option<&Manifest>,
        (view, limit): (&View, u64),
    ) -> Result<Self, AgentError> {
        let mut sizes = HashMap::new();
        for file in ImageDir::open(images)?.regular_files()? {
            if file.path.file_name().is_some_and(|name| name.as_bytes().starts_with(LINK_REMAP))
                && let Some(status) =
                    Status::if_there(&view.at(&file.path)).map_err(FilesError::io("look at", &file.path))?
            {
                found.carry(file.path.clone(), view.at(&file.path), status, true);
            }
            sizes.insert(file.path, file.size);
        }
        found.within(limit)?;
        // Under whichever of its names it is mapped.
        let hidden = found.files.values().filter(|file| file.writes_hide);
        let hidden: HashSet<(u64, u64)> =
            hidden.map(|file| (file.status.device, file.status.inode)).collect();
        for file in found.files.values_mut() {
            file.writes_hide = hidden.contains(&(file.status.device, file.status.inode));
        }
        let mut capture = Capture {
            writer,
            numbers: Numbers::new(parent),
            captured: Self {
                files: Vec::new(),
                large_images: Vec::new(),
                counts: FileCounts::default(),
                unchanged: Vec::new(),
            },
            contents: HashMap::new(),
        };
        for (path, file) in found.files {
            let size = sizes.get(&path).copied().flatten().unwrap_or(file.status.size);
            capture.file(path, file, size)?;
        }
        capture.images(images)?;
        Ok(capture.captured)
    }

    /// Takes the contents that have not changed over from the parent.
    pub fn take_over(&self, pages: &mut SealedPages) -> Result<(), AgentError> {
        for &(content, pages_of_it) in &self.unchanged {
            let (object, start) = (ObjectId::File(content), VirtAddr::default());
            pages.inherit(object, &[ParentPages { start, object, image: start, pages: pages_of_it }])?;
        }
        Ok(())
    }
}

/// Whether an image is stored as pages.
pub fn is_large_image(name: &str, size: u64) -> bool {
    // Page maps are completed when all pages are known, and small.
    size > LARGE_IMAGE && name.ends_with(".img") && !name.starts_with("pagemap-")
}

struct Capture<'a, 'p> {
    writer: &'a mut CheckpointWriter,
    numbers: Numbers<'p>,
    captured: Captured,
    /// Number and size of the contents of inodes seen so far.
    contents: HashMap<(u64, u64), (u32, u64)>,
}

impl Capture<'_, '_> {
    fn file(&mut self, path: PathBuf, found: FoundFile, size: u64) -> Result<(), AgentError> {
        let FoundFile { source, status, policy, writes_hide } = found;
        let carried = policy == FilePolicy::Carry;
        let attributes = match carried {
            true => {
                attributes::read(&source, &status).map_err(FilesError::io("read the attributes of", &path))?
            }
            false => attributes::without_xattrs(&status),
        };
        let mut identity = None;
        let (kind, size) = if status.is_directory() {
            (FileKind::Directory, 0)
        } else if status.is_symlink() {
            let target = fs::read_link(&source).map_err(FilesError::io("read", &path))?;
            (FileKind::Symlink { target }, 0)
        } else if carried {
            identity = Some(status.identity())
                .filter(|_| !writes_hide && status.size == size && has_settled(&status));
            let inode = (status.device, status.inode);
            let (content, size) = match self.contents.get(&inode) {
                Some(known) => *known,
                None => {
                    let content = self.content(&path, &source, &status, size, writes_hide)?;
                    self.contents.insert(inode, (content, size));
                    (content, size)
                }
            };
            (FileKind::Regular { content: Some(content) }, size)
        } else {
            (FileKind::Regular { content: None }, size)
        };
        self.captured.counts.carried += u64::from(carried);
        self.captured.files.push(FileEntry { path, kind, policy, size, attributes, identity });
        Ok(())
    }

    /// The number of a file's content, once that is in the checkpoint.
    fn content(
        &mut self,
        path: &Path,
        source: &Path,
        status: &Status,
        size: u64,
        writes_hide: bool,
    ) -> Result<u32, AgentError> {
        let (number, before) = self.numbers.of_path(path);
        self.writer.open(ObjectId::File(number), 0)?;
        self.captured.counts.bytes += size;
        let unchanged = before.is_some_and(|before| {
            before.identity == Some(status.identity())
                && (before.size, before.attributes.modified) == (size, status.modified)
        });
        if unchanged && !writes_hide {
            self.captured.unchanged.push((number, pages_of(size)));
            return Ok(number);
        }
        let file =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(source);
        let file = file.map_err(FilesError::io("open", path))?;
        let now = Status::open(&file).map_err(FilesError::io("look at", path))?;
        if !now.is_same_file(status) || now.size < size {
            return Err(FilesError::Changed { path: path.to_owned() }.into());
        }
        self.captured.counts.read += self.read(&file, path, size)?;
        Ok(number)
    }

    /// Gives `size` bytes of a file to the writer, without its holes; how many those were.
    fn read(&mut self, file: &File, path: &Path, size: u64) -> Result<u64, AgentError> {
        const PAGE: u64 = PAGE_SIZE as u64;
        let mut read = 0;
        let mut at = 0;
        while at < size {
            // A file system that knows no holes, or does not tell, has data everywhere.
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            let mut page = start / PAGE;
            let last = pages_of(end);
            while page < last {
                let buffer = self.writer.buffer(false, VirtAddr::of_page(page), last - page)?;
                let offset = page * PAGE;
                let inside = (buffer.len() as u64).min(size - offset) as usize;
                file.read_exact_at(&mut buffer[..inside], offset).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => FilesError::Changed { path: path.to_owned() },
                    _ => FilesError::io("read", path)(error),
                })?;
                buffer[inside..].fill(0);
                page += (buffer.len() / PAGE_SIZE) as u64;
                read += inside as u64;
                self.writer.filled()?;
            }
            at = last.max(at / PAGE + 1) * PAGE;
        }
        Ok(read)
    }

    /// Images of CRIU's that are too large for the bundle: deleted files, full pipes, what was on a private tmpfs.
    fn images(&mut self, directory: &Path) -> Result<(), AgentError> {
        let entries = fs::read_dir(directory).map_err(AgentError::path("read", directory))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let size = entry.metadata().map_err(AgentError::path("look at", &path))?.len();
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_large_image(&name, size) {
                let content = self.numbers.of_image(&name);
                self.writer.open(ObjectId::File(content), 0)?;
                let file = File::open(&path).map_err(AgentError::path("open", &path))?;
                self.read(&file, &path, size)?;
                self.captured.large_images.push(LargeImage { name, size, content });
            }
        }
        Ok(())
    }
}

/// Whether it was not touched within the last second.
fn has_settled(status: &Status) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = u64::try_from(status.changed.seconds)
        .map(|seconds| Duration::new(seconds, status.changed.nanoseconds));
    changed.is_ok_and(|changed| changed + SETTLED < now)
}

/// Gives out numbers of contents: what the parent has under a path keeps its number, so that pages are compared with
/// those they may be equal to.
struct Numbers<'p> {
    paths: HashMap<&'p Path, (u32, &'p FileEntry)>,
    images: HashMap<&'p str, u32>,
    used: HashSet<u32>,
    next: u32,
}

impl<'p> Numbers<'p> {
    fn new(parent: Option<&'p Manifest>) -> Self {
        let files = parent.iter().flat_map(|parent| &parent.files);
        let images = parent.iter().flat_map(|parent| &parent.large_images);
        let paths: HashMap<_, _> =
            files.filter_map(|file| Some((file.path.as_path(), (file.content()?, file)))).collect();
        let images: HashMap<_, _> = images.map(|image| (image.name.as_str(), image.content)).collect();
        let numbers = paths.values().map(|(number, _)| number).chain(images.values());
        let next = numbers.max().map_or(1, |last| last + 1);
        Self { paths, images, used: HashSet::new(), next }
    }

    /// The number for a path, and the entry whose content has that number in the parent.
    fn of_path(&mut self, path: &Path) -> (u32, Option<&'p FileEntry>) {
        match self.paths.get(path) {
            Some((number, file)) if self.used.insert(*number) => (*number, Some(file)),
            _ => (self.fresh(), None),
        }
    }

    fn of_image(&mut self, name: &str) -> u32 {
        match self.images.get(name) {
            Some(number) if self.used.insert(*number) => *number,
            _ => self.fresh(),
        }
    }

    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }
}
