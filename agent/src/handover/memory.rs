//! The memory of a stopped tree, by the frames of its handover.
//!
//! What always holds: what is given is what the process held when it was stopped, with its hash. A page that cannot be read
//! is an error, and so is one of a file that somebody else has changed since: its tree could not, being stopped. Nothing is
//! cached; each frame is read when it is asked for, by any number of threads at once.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
};

use bytes::{Bytes, BytesMut};
use criu_rpc::images::PagemapEntry;
use lazy_pages::{
    format::{FRAME_HASH, FRAME_PAGES, Manifest, ObjectId},
    handover::{FrameMap, Piece, append_hash},
    ids::PackId,
    units::{PAGE_SIZE, VirtAddr},
};

use crate::pagemap;

/// Where an object's pages are.
#[derive(Debug)]
enum Place {
    /// In the task itself: `/proc/PID/mem`.
    Task(File),
    /// In one of CRIU's pages files, which hold shared memory, one entry after another.
    Image { file: File, entries: Vec<(PagemapEntry, u64)> },
    /// In a file that belongs to it.
    Content(Content),
}

/// A file whose content belongs to a stopped tree.
#[derive(Debug)]
pub struct Content {
    /// Where it is.
    pub file: File,
    /// How much of it belongs to the tree.
    pub size: u64,
    /// When it was written to last, seconds and nanoseconds, if that tells of every write.
    pub modified: Option<(i64, i64)>,
}

/// See the module's description.
#[derive(Debug)]
pub struct StoppedMemory {
    map: FrameMap,
    places: Vec<Place>,
}

impl StoppedMemory {
    /// The memory that `manifest` describes. `shared` gives the pagemap of a shared object and the file that its pages are in,
    /// `content` a content of files.
    ///
    /// # Errors
    /// When a task is gone, or a file is missing.
    pub fn open(
        manifest: &Manifest,
        mut shared: impl FnMut(u64) -> io::Result<(Vec<PagemapEntry>, File)>,
        mut content: impl FnMut(u32) -> io::Result<Content>,
    ) -> io::Result<Self> {
        let place = |object: ObjectId| match object {
            ObjectId::Task(pid) => File::open(format!("/proc/{pid}/mem")).map(Place::Task),
            ObjectId::Shared(id) => shared(id).map(|(entries, file)| {
                let mut offset = 0;
                let with_offset = |entry: PagemapEntry| {
                    let at = offset;
                    offset += entry.pages * PAGE_SIZE as u64;
                    (entry, at)
                };
                Place::Image { file, entries: entries.into_iter().map(with_offset).collect() }
            }),
            ObjectId::File(number) => content(number).map(Place::Content),
        };
        let places = manifest.objects.iter().map(|map| map.id).map(place).collect::<io::Result<_>>()?;
        Ok(Self { map: FrameMap::new(manifest), places })
    }

    /// The frames that make up these bytes of a pack.
    ///
    /// # Errors
    /// When they are not whole frames of the handover.
    pub fn frames(&self, pack: PackId, offset: u64, length: u64) -> io::Result<Range<u32>> {
        self.map.frames(pack, offset, length).ok_or_else(|| {
            let what = format!("pack {pack} has no frames from {offset} for {length} bytes");
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })
    }

    /// A frame's pages, followed by their hash.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_frame(&self, frame: u32) -> io::Result<Bytes> {
        let mut bytes = BytesMut::with_capacity(FRAME_PAGES * PAGE_SIZE + FRAME_HASH);
        for piece in self.map.pieces(frame) {
            let at = bytes.len();
            bytes.resize(at + piece.pages as usize * PAGE_SIZE, 0);
            self.read_piece(piece, &mut bytes[at..])?;
        }
        append_hash(&mut bytes, 0);
        Ok(bytes.freeze())
    }

    /// Reads pages that lie next to each other.
    ///
    /// # Errors
    /// When they are not all there.
    pub fn read_piece(&self, piece: Piece, bytes: &mut [u8]) -> io::Result<()> {
        match &self.places[piece.object] {
            // Past the end of what is mapped, and after the end of the task, there is nothing: an error.
            Place::Task(memory) => memory.read_exact_at(bytes, piece.start.get()),
            Place::Image { file, entries } => read_image(file, entries, piece.start, bytes),
            Place::Content(content) => content.read(piece.start.get(), bytes),
        }
    }
}

impl Content {
    /// Reads pages, of which the last may reach beyond the end.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let inside = self.size.saturating_sub(offset).min(bytes.len() as u64) as usize;
        self.file.read_exact_at(&mut bytes[..inside], offset)?;
        bytes[inside..].fill(0);
        let now = self.file.metadata()?;
        match self.modified {
            Some(modified) if modified != (now.mtime(), now.mtime_nsec()) => {
                Err(io::Error::other("a file of the stopped tree was changed by somebody else"))
            }
            _ => Ok(()),
        }
    }
}

fn read_image(
    file: &File,
    entries: &[(PagemapEntry, u64)],
    start: VirtAddr,
    mut bytes: &mut [u8],
) -> io::Result<()> {
    let mut at = start.get();
    let mut next = entries.partition_point(|(entry, _)| pagemap::end(entry) <= at);
    while !bytes.is_empty() {
        let known = entries.get(next).filter(|(entry, _)| entry.vaddr <= at);
        let (entry, offset) =
            known.ok_or_else(|| io::Error::other(format!("no image has the page at {at:#x}")))?;
        let length = bytes.len().min((pagemap::end(entry) - at) as usize);
        let (now, rest) = bytes.split_at_mut(length);
        file.read_exact_at(now, offset + (at - entry.vaddr))?;
        (bytes, at, next) = (rest, at + length as u64, next + 1);
    }
    Ok(())
}
