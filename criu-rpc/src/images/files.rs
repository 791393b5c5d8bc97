//! The files a tree has open or mapped.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use migration_proto::criu::images::{self as wire, FdTypes};

use super::{
    ImageDir,
    reader::{ImageError, Magic, required},
};

const FILES: Magic = Magic::Image(0x5630_3138);
const FDINFO: Magic = Magic::Image(0x5621_3732);
const IDS: Magic = Magic::Image(0x5443_2030);

/// One file with everything CRIU knows about it; an epoll descriptor lists all it watches.
const FILE_LIMIT: u32 = 16 * 1024 * 1024;
const DESCRIPTOR_LIMIT: u32 = 4096;
const IDS_LIMIT: u32 = 4096;

/// A regular file or directory that the tree has open or mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegularFile {
    /// Its id in this set of images.
    pub id: u32,
    /// Its path as the tree saw it.
    pub path: PathBuf,
    /// O_* bits it was opened with.
    pub flags: u32,
    /// Position, in bytes.
    pub position: u64,
    /// Bytes it had; CRIU demands the same when it restores, where it is known.
    pub size: Option<u64>,
    /// Type and permissions (`st_mode`), where they are known.
    pub mode: Option<u32>,
}

impl RegularFile {
    /// Whether it could be written to through this opening.
    pub fn is_writable(&self) -> bool {
        matches!(self.flags as i32 & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
    }
}

/// An end of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipe {
    /// Its id in this set of images.
    pub id: u32,
    /// Inode number, the same for both ends.
    pub inode: u32,
    /// O_* bits.
    pub flags: u32,
}

impl Pipe {
    /// Its name for [`RestoreOptions::inherit_fd`](crate::RestoreOptions::inherit_fd).
    pub fn inherit_key(&self) -> String {
        format!("pipe:[{}]", self.inode)
    }
}

/// An open descriptor of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub fd: u32,
    /// What it refers to: the `id` of a [`RegularFile`] or [`Pipe`], if it is one.
    pub file: u32,
    /// What that is.
    pub kind: DescriptorKind,
}

/// What a descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorKind {
    /// A regular file, a directory, or a device without a state of its own, such as `/dev/null`.
    Regular,
    /// A pipe.
    Pipe,
    /// A terminal.
    Terminal,
    /// Anything else.
    Other,
}

impl ImageDir {
    /// Reads the regular files from `files.img`: open ones, mapped ones and executables.
    ///
    /// # Errors
    /// When it is missing or corrupt.
    pub fn regular_files(&self) -> Result<Vec<RegularFile>, ImageError> {
        let mut entries = self.entries("files.img", FILES)?;
        let mut files = Vec::new();
        while let Some(entry) = entries.next::<wire::FileEntry>(FILE_LIMIT)? {
            let path = entries.path();
            if required(entry.r#type, "type", path)? != FdTypes::Reg as u32 {
                continue;
            }
            let file = required(entry.reg, "reg", path)?;
            files.push(RegularFile {
                id: required(file.id, "id", path)?,
                path: OsString::from_vec(required(file.name, "name", path)?).into(),
                flags: required(file.flags, "flags", path)?,
                position: required(file.pos, "pos", path)?,
                size: file.size,
                mode: file.mode,
            });
        }
        Ok(files)
    }

    /// Reads the ends of pipes from `files.img`.
    ///
    /// # Errors
    /// When it is missing or corrupt.
    pub fn pipes(&self) -> Result<Vec<Pipe>, ImageError> {
        let mut entries = self.entries("files.img", FILES)?;
        let mut pipes = Vec::new();
        while let Some(entry) = entries.next::<wire::FileEntry>(FILE_LIMIT)? {
            let path = entries.path();
            if required(entry.r#type, "type", path)? != FdTypes::Pipe as u32 {
                continue;
            }
            let pipe = required(entry.pipe, "pipe", path)?;
            pipes.push(Pipe {
                id: required(pipe.id, "id", path)?,
                inode: required(pipe.pipe_id, "pipe_id", path)?,
                flags: required(pipe.flags, "flags", path)?,
            });
        }
        Ok(pipes)
    }

    /// Reads the open descriptors of a task. Dead tasks have none.
    ///
    /// # Errors
    /// When its `ids-*.img` or `fdinfo-*.img` is missing or corrupt.
    pub fn descriptors(&self, pid: u32) -> Result<Vec<Descriptor>, ImageError> {
        let (ids, path) =
            self.entries(&format!("ids-{pid}.img"), IDS)?.single::<wire::TaskKobjIdsEntry>(IDS_LIMIT)?;
        let files_id = required(ids.files_id, "files_id", &path)?;
        let mut entries = self.entries(&format!("fdinfo-{files_id}.img"), FDINFO)?;
        let mut descriptors = Vec::new();
        while let Some(entry) = entries.next::<wire::FdinfoEntry>(DESCRIPTOR_LIMIT)? {
            let path = entries.path();
            let kind = required(entry.r#type, "type", path)?;
            descriptors.push(Descriptor {
                fd: required(entry.fd, "fd", path)?,
                file: required(entry.id, "id", path)?,
                kind: match i32::try_from(kind).ok().and_then(|kind| FdTypes::try_from(kind).ok()) {
                    Some(FdTypes::Reg) => DescriptorKind::Regular,
                    Some(FdTypes::Pipe) => DescriptorKind::Pipe,
                    Some(FdTypes::Tty) => DescriptorKind::Terminal,
                    _ => DescriptorKind::Other,
                },
            });
        }
        Ok(descriptors)
    }
}
