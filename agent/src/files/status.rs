//! What the kernel says of a file, and which mounts hold files at all.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::Path,
};

use lazy_pages::format::{FileIdentity, Timestamp};
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

use super::FilesError;

/// What the kernel says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub device: u64,
    pub inode: u64,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Bytes on the medium.
    pub allocated: u64,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub mount: u64,
}

impl Status {
    /// Of what `path` leads to, through a symbolic link at its end. The links in `/proc/PID/fd` lead to what is open.
    pub fn followed(path: &Path) -> io::Result<Self> {
        Self::of(statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?)
    }

    /// Of what is at `path`.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::of(statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?)
    }

    /// Of what is at `path`, if there is anything.
    pub fn if_there(path: &Path) -> io::Result<Option<Self>> {
        match Self::at(path) {
            Ok(status) => Ok(Some(status)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Of an open file.
    pub fn open(file: &File) -> io::Result<Self> {
        Self::of(statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?)
    }

    fn of(raw: Statx) -> io::Result<Self> {
        let time =
            |time: rustix::fs::StatxTimestamp| Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
        Ok(Self {
            device: u64::from(raw.stx_dev_major) << 32 | u64::from(raw.stx_dev_minor),
            inode: raw.stx_ino,
            mode: raw.stx_mode.into(),
            links: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            size: raw.stx_size,
            allocated: raw.stx_blocks.saturating_mul(512),
            modified: time(raw.stx_mtime),
            changed: time(raw.stx_ctime),
            mount: raw.stx_mnt_id,
        })
    }

    fn type_is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }

    pub fn is_regular(&self) -> bool {
        self.type_is(libc::S_IFREG)
    }

    pub fn is_directory(&self) -> bool {
        self.type_is(libc::S_IFDIR)
    }

    pub fn is_symlink(&self) -> bool {
        self.type_is(libc::S_IFLNK)
    }

    /// Whether it is the same file, whatever has become of it.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Bytes it takes to carry it: holes are free.
    pub fn weight(&self) -> u64 {
        self.size.min(self.allocated)
    }

    /// What tells later that it is the same file in the same state.
    pub fn identity(&self) -> FileIdentity {
        FileIdentity { device: self.device, inode: self.inode, changed: self.changed }
    }
}

/// File systems whose files are views of the kernel, or devices.
const PSEUDO: [&str; 21] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// File systems whose files live in memory: a write through a shared mapping sets no time.
const MEMORY: [&str; 2] = ["ramfs", "tmpfs"];

/// What is mounted somewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pseudo,
    Memory,
    Other,
}

/// The mounts of a namespace.
pub struct Mounts(HashMap<u64, Kind>);

impl Mounts {
    /// Reads a mountinfo file; proc_pid_mountinfo(5).
    pub fn read(path: &Path) -> Result<Self, FilesError> {
        // Paths in it need not be UTF-8; numbers and types are.
        let text = fs::read(path).map_err(FilesError::io("read", path))?;
        let text = String::from_utf8_lossy(&text);
        let mount = |line: &str| {
            let id = line.split(' ').next()?.parse().ok()?;
            let kind = match line.split_once(" - ")?.1.split(' ').next()? {
                kind if PSEUDO.contains(&kind) => Kind::Pseudo,
                kind if MEMORY.contains(&kind) => Kind::Memory,
                _ => Kind::Other,
            };
            Some((id, kind))
        };
        Ok(Self(text.lines().filter_map(mount).collect()))
    }

    /// Whether files of this mount can be carried: it is one of them, and not a view of the kernel.
    pub fn hold(&self, status: &Status) -> bool {
        self.0.get(&status.mount).is_some_and(|kind| *kind != Kind::Pseudo)
    }

    /// Whether a file of this mount can change without its times telling.
    pub fn hide_writes(&self, status: &Status) -> bool {
        self.0.get(&status.mount) == Some(&Kind::Memory)
    }
}
