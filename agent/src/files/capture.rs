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

const PAGE: u64 = PAGE_SIZE as u64;

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
        found: Found,
        images: &Path,
        parent: Option<&Manifest>,
        (view, limit): (&View, u64),
    ) -> Result<Self, AgentError> {
        let mut reader = Reader { writer, bytes: 0, read: 0, unchanged: Vec::new() };
        let Taken { files, large_images, carried } = take(found, images, parent, (view, limit), &mut reader)?;
        let counts = FileCounts { carried, bytes: reader.bytes, read: reader.read };
        Ok(Self { files, large_images, counts, unchanged: reader.unchanged })
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

/// Files whose content stays where it is, because the tree that could change it does not run: see
/// [`handover`](crate::handover).
#[derive(Debug, Default)]
pub struct Listed {
    /// For the manifest.
    pub files: Vec<FileEntry>,
    /// Images that are not for the bundle.
    pub large_images: Vec<LargeImage>,
    /// Each content, and the pages of it that are no holes.
    pub contents: Vec<(u32, Vec<(VirtAddr, u64)>)>,
}

impl Listed {
    /// Lists the files that were `found` while the tree was frozen.
    pub fn of(found: Found, images: &Path, rules: (&View, u64)) -> Result<Self, AgentError> {
        let mut lister = Lister { contents: Vec::new() };
        let Taken { files, large_images, .. } = take(found, images, None, rules, &mut lister)?;
        Ok(Self { files, large_images, contents: lister.contents })
    }
}

/// A content that belongs to a checkpoint.
struct Content<'c> {
    number: u32,
    /// As errors name it.
    path: &'c Path,
    /// What leads to it.
    source: &'c Path,
    size: u64,
}

/// What becomes of contents.
trait Take {
    /// That of a file, of which the previous checkpoint has `before` and which can be written to without its times telling
    /// if `writes_hide`.
    fn file(
        &mut self,
        content: &Content<'_>,
        status: &Status,
        before: Option<&FileEntry>,
        writes_hide: bool,
    ) -> Result<(), AgentError>;

    /// That of an image.
    fn image(&mut self, content: &Content<'_>) -> Result<(), AgentError>;
}

/// What is known of files when their contents have been taken.
#[derive(Default)]
struct Taken {
    files: Vec<FileEntry>,
    large_images: Vec<LargeImage>,
    carried: u64,
}

fn take(
    mut found: Found,
    images: &Path,
    parent: Option<&Manifest>,
    (view, limit): (&View, u64),
    take: &mut dyn Take,
) -> Result<Taken, AgentError> {
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
    let hidden: HashSet<(u64, u64)> = hidden.map(|file| (file.status.device, file.status.inode)).collect();
    for file in found.files.values_mut() {
        file.writes_hide = hidden.contains(&(file.status.device, file.status.inode));
    }
    let (numbers, taken, contents) = (Numbers::new(parent), Taken::default(), HashMap::new());
    let mut capture = Capture { take, numbers, taken, contents };
    for (path, file) in found.files {
        let size = sizes.get(&path).copied().flatten().unwrap_or(file.status.size);
        capture.file(path, file, size)?;
    }
    capture.images(images)?;
    Ok(capture.taken)
}

/// Whether an image is stored as pages.
pub fn is_large_image(name: &str, size: u64) -> bool {
    // Page maps are completed when all pages are known, and small.
    size > LARGE_IMAGE && name.ends_with(".img") && !name.starts_with("pagemap-")
}

struct Capture<'t, 'p> {
    take: &'t mut dyn Take,
    numbers: Numbers<'p>,
    taken: Taken,
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
                    let (number, before) = self.numbers.of_path(&path);
                    let content = Content { number, path: &path, source: &source, size };
                    self.take.file(&content, &status, before, writes_hide)?;
                    self.contents.insert(inode, (number, size));
                    (number, size)
                }
            };
            (FileKind::Regular { content: Some(content) }, size)
        } else {
            (FileKind::Regular { content: None }, size)
        };
        self.taken.carried += u64::from(carried);
        self.taken.files.push(FileEntry { path, kind, policy, size, attributes, identity });
        Ok(())
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
                self.take.image(&Content { number: content, path: &path, source: &path, size })?;
                self.taken.large_images.push(LargeImage { name, size, content });
            }
        }
        Ok(())
    }
}

/// Contents go into a checkpoint.
struct Reader<'w> {
    writer: &'w mut CheckpointWriter,
    bytes: u64,
    read: u64,
    unchanged: Vec<(u32, u64)>,
}

impl Take for Reader<'_> {
    fn file(
        &mut self,
        content: &Content<'_>,
        status: &Status,
        before: Option<&FileEntry>,
        writes_hide: bool,
    ) -> Result<(), AgentError> {
        let Content { number, path, size, .. } = *content;
        self.writer.open(ObjectId::File(number), 0)?;
        self.bytes += size;
        let unchanged = before.is_some_and(|before| {
            before.identity == Some(status.identity())
                && (before.size, before.attributes.modified) == (size, status.modified)
        });
        if unchanged && !writes_hide {
            self.unchanged.push((number, pages_of(size)));
            return Ok(());
        }
        let file = open(content, status)?;
        self.read += self.read(&file, path, size)?;
        Ok(())
    }

    fn image(&mut self, content: &Content<'_>) -> Result<(), AgentError> {
        self.writer.open(ObjectId::File(content.number), 0)?;
        let file = File::open(content.source).map_err(AgentError::path("open", content.path))?;
        self.read(&file, content.path, content.size).map(drop)
    }
}

impl Reader<'_> {
    /// Gives `size` bytes of a file to the writer, without its holes; how many those were.
    fn read(&mut self, file: &File, path: &Path, size: u64) -> Result<u64, AgentError> {
        let mut read = 0;
        for (start, pages) in data(file, size) {
            let (mut page, last) = (start.page(), start.page() + pages);
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
        }
        Ok(read)
    }
}

/// Contents stay where they are.
struct Lister {
    contents: Vec<(u32, Vec<(VirtAddr, u64)>)>,
}

impl Take for Lister {
    fn file(
        &mut self,
        content: &Content<'_>,
        status: &Status,
        _: Option<&FileEntry>,
        _: bool,
    ) -> Result<(), AgentError> {
        self.contents.push((content.number, data(&open(content, status)?, content.size)));
        Ok(())
    }

    fn image(&mut self, content: &Content<'_>) -> Result<(), AgentError> {
        let file = File::open(content.source).map_err(AgentError::path("open", content.path))?;
        self.contents.push((content.number, data(&file, content.size)));
        Ok(())
    }
}

/// Opens a file that was looked at before.
fn open(content: &Content<'_>, status: &Status) -> Result<File, FilesError> {
    let Content { path, source, size, .. } = *content;
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(source);
    let file = file.map_err(FilesError::io("open", path))?;
    let now = Status::open(&file).map_err(FilesError::io("look at", path))?;
    if !now.is_same_file(status) || now.size < size {
        return Err(FilesError::Changed { path: path.to_owned() });
    }
    Ok(file)
}

/// The pages of a file's first `size` bytes that are no holes.
fn data(file: &File, size: u64) -> Vec<(VirtAddr, u64)> {
    let mut found: Vec<(VirtAddr, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        // A file system that knows no holes, or does not tell, has data everywhere.
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        let (first, last) = ((start / PAGE).max(at / PAGE), pages_of(end));
        match found.last_mut() {
            Some((begun, pages)) if begun.page() + *pages == first => *pages += last - first,
            _ => found.push((VirtAddr::of_page(first), last - first)),
        }
        at = last.max(at / PAGE + 1) * PAGE;
    }
    found
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
