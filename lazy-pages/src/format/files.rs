//! Files in a manifest: those that travel with the checkpoint, and those that must be where it is restored.
//!
//! A carried regular file's content is a memory object of kind [`ObjectId::File`]: pages over its offsets, deduplicated,
//! compressed and verified like any others. Unlike memory, such an object has runs for all of the file and for nothing
//! else: what is not stored is zero (a hole, when it is put back), and nothing is unmentioned. The last page is padded
//! with zeros.
//!
//! Two files of one content are two names of one file (hard links), not two files that happen to be equal.

use std::{
    collections::{HashMap, HashSet},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use crate::{
    format::{Manifest, MemoryMap, ObjectId, bundle::is_plain_name, invariants::MAX_PAGE},
    units::PAGE_SIZE,
};

/// Bytes of a path, of a link's target, of an extended attribute's name and value: what Linux allows.
const MAX_PATH: usize = 4096;
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 64 << 10;

/// A file of the tree's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Where it is: absolute, any bytes.
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// What a restore does about it.
    pub policy: FilePolicy,
    /// Bytes of a regular file; 0 for others.
    pub size: u64,
    /// Owner, permissions, times.
    pub attributes: Attributes,
    /// Tells later that it has not changed since; `None` where that cannot be told.
    pub identity: Option<FileIdentity>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file, with the number of its content if that is carried.
    Regular {
        /// Of the [`ObjectId::File`].
        content: Option<u32>,
    },
    /// A directory. What is in it is said by other entries.
    Directory,
    /// A symbolic link to `target`.
    Symlink {
        /// As readlink(2) gives it.
        target: PathBuf,
    },
}

/// What a restore does about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FilePolicy {
    /// It has to be there, a regular one in the same size: the tree only reads it.
    Expect,
    /// It has to be there and must not have been modified since: it is on a volume that both machines see.
    Same,
    /// It is put back.
    Carry,
}

/// What a file has beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions: the low 12 bits of `st_mode`.
    pub permissions: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content was changed last.
    pub modified: Timestamp,
    /// Extended attributes: name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A time since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

/// Together with size and time of modification: if all of it is as it was, so is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
    /// `st_ctim`, which nobody can set.
    pub changed: Timestamp,
}

/// An image of CRIU's that is too large for the bundle, such as the content of a deleted file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargeImage {
    /// Its plain file name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Number of its content.
    pub content: u32,
}

impl FileEntry {
    /// Number of its content.
    pub fn content(&self) -> Option<u32> {
        match self.kind {
            FileKind::Regular { content } => content,
            FileKind::Directory | FileKind::Symlink { .. } => None,
        }
    }
}

/// Pages that `size` bytes take, the last one filled up with zeros.
pub const fn pages_of(size: u64) -> u64 {
    size.div_ceil(PAGE_SIZE as u64)
}

impl Manifest {
    /// The size of each content, by its number.
    pub fn content_sizes(&self) -> HashMap<u32, u64> {
        let files = self.files.iter().filter_map(|file| Some((file.content()?, file.size)));
        files.chain(self.large_images.iter().map(|image| (image.content, image.size))).collect()
    }
}

/// All rules about files.
pub(super) fn check(manifest: &Manifest) -> Result<(), String> {
    let mut paths = HashSet::new();
    for file in &manifest.files {
        let name = || file.path.display();
        if !is_normal(&file.path) || !paths.insert(&file.path) {
            return Err(format!("file path {:?} is not absolute and normal, or there twice", file.path));
        }
        kind_and_policy_agree(file).map_err(|broken| format!("file {}: {broken}", name()))?;
        attributes_are_possible(file).map_err(|broken| format!("file {}: {broken}", name()))?;
    }
    let mut names = HashSet::new();
    for image in &manifest.large_images {
        if !is_plain_name(&image.name) || !names.insert(&image.name) {
            return Err(format!("image name {:?} is not plain, or there twice", image.name));
        }
    }
    contents_are_whole(manifest)
}

/// Only carried regular files have content; nothing but regular files has a size.
fn kind_and_policy_agree(file: &FileEntry) -> Result<(), String> {
    let carried = file.policy == FilePolicy::Carry;
    let agree = match &file.kind {
        FileKind::Regular { content } => content.is_some() == carried && *content != Some(0),
        FileKind::Directory => file.size == 0,
        FileKind::Symlink { target } => {
            let target = target.as_os_str().as_bytes();
            carried && file.size == 0 && is_text(target, MAX_PATH)
        }
    };
    if agree { Ok(()) } else { Err("its kind, content, size and policy contradict each other".into()) }
}

fn attributes_are_possible(file: &FileEntry) -> Result<(), String> {
    let Attributes { permissions, modified, xattrs, .. } = &file.attributes;
    let times = [Some(*modified), file.identity.map(|identity| identity.changed)];
    let possible = *permissions <= 0o7777
        && times.iter().flatten().all(|time| time.nanoseconds < 1_000_000_000)
        && xattrs.iter().all(|(name, value)| is_text(name, MAX_XATTR_NAME) && value.len() <= MAX_XATTR_VALUE);
    if possible { Ok(()) } else { Err("no file has such attributes".into()) }
}

/// Every content is of some file, and has runs from page 0 to the end of that file without a gap. Files of one content
/// have one size.
fn contents_are_whole(manifest: &Manifest) -> Result<(), String> {
    let sizes = manifest.content_sizes();
    let users = manifest.files.iter().filter_map(|file| Some((file.content()?, file.size)));
    for (content, size) in users {
        if sizes.get(&content) != Some(&size) {
            return Err(format!("files of content {content} have different sizes"));
        }
    }
    let images: HashSet<u32> = manifest.large_images.iter().map(|image| image.content).collect();
    let shared = images.len() != manifest.large_images.len()
        || manifest.files.iter().filter_map(FileEntry::content).any(|content| images.contains(&content));
    if shared {
        return Err("an image shares its content".into());
    }
    let mut there = 0;
    for object in &manifest.objects {
        let ObjectId::File(number) = object.id else { continue };
        let size = *sizes.get(&number).ok_or_else(|| format!("content {number} is of no file"))?;
        if size > MAX_PAGE * PAGE_SIZE as u64 || !covers(object, pages_of(size)) {
            return Err(format!("content {number} is not that of a file of {size} bytes"));
        }
        there += 1;
    }
    if there == sizes.len() { Ok(()) } else { Err("the content of a file is missing".into()) }
}

fn covers(object: &MemoryMap, pages: u64) -> bool {
    let mut end = 0;
    object.runs.iter().all(|run| {
        let follows = run.start.page() == end;
        end = end.saturating_add(run.pages);
        follows
    }) && end == pages
}

fn is_text(bytes: &[u8], most: usize) -> bool {
    !bytes.is_empty() && bytes.len() <= most && !bytes.contains(&0)
}

/// Absolute, not the root, without anything that leads elsewhere than it seems.
fn is_normal(path: &Path) -> bool {
    let normal: PathBuf = path.components().collect();
    let mut components = path.components();
    is_text(path.as_os_str().as_bytes(), MAX_PATH)
        && components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
        && normal.as_os_str() == path.as_os_str()
}
