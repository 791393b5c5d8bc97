//! Owner, permissions, times and extended attributes: read, and set in an order that keeps all of them.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{OpenOptionsExt, PermissionsExt, fchown, lchown},
        },
    },
    path::{Path, PathBuf},
};

use lazy_pages::format::Attributes;
use rustix::{
    fs::{
        AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, XattrFlags, fremovexattr, fsetxattr, futimens,
        getxattr, listxattr, utimensat,
    },
    io::Errno,
};

use super::status::Status;

/// What the file has beside its content. `path` may be a link in `/proc`, which leads to the file; a symbolic link's own
/// extended attributes, which nobody uses, are not read.
pub fn read(path: &Path, status: &Status) -> io::Result<Attributes> {
    let xattrs = if status.is_symlink() { Vec::new() } else { xattrs(path)? };
    Ok(Attributes { xattrs, ..without_xattrs(status) })
}

/// The same for a file that is not carried.
pub fn without_xattrs(status: &Status) -> Attributes {
    Attributes {
        permissions: status.mode & 0o7777,
        uid: status.uid,
        gid: status.gid,
        modified: status.modified,
        xattrs: Vec::new(),
    }
}

/// Gives what is at `path` these attributes. Never those of another file: nobody who may rename files there can turn it
/// to one of his choice.
pub fn set(path: &Path, wanted: &Attributes) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: wanted.modified.seconds,
            tv_nsec: wanted.modified.nanoseconds.into(),
        },
    };
    if fs::symlink_metadata(path)?.is_symlink() {
        lchown(path, Some(wanted.uid), Some(wanted.gid))?;
        return Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?);
    }
    let file =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    // A change of owner clears the set-user-id bit and file capabilities, a change of attributes may set the time.
    fchown(&file, Some(wanted.uid), Some(wanted.gid))?;
    let there = xattrs(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))?;
    for (name, _) in there.iter().filter(|(name, _)| wanted.xattrs.iter().all(|(kept, _)| kept != name)) {
        fremovexattr(&file, OsStr::from_bytes(name))?;
    }
    for (name, value) in wanted.xattrs.iter().filter(|wanted| !there.contains(wanted)) {
        fsetxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty())?;
    }
    file.set_permissions(Permissions::from_mode(wanted.permissions))?;
    Ok(futimens(&file, &times)?)
}

/// Its extended attributes, sorted, without labels of a security module: those are the machine's.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match whole(|buffer| listxattr(path, buffer)) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| is_carried(name)) {
        let value = whole(|buffer| getxattr(path, OsStr::from_bytes(name), buffer))?;
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// What a call puts into a buffer, which is seldom much and at most what Linux gives for one list or value.
fn whole(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    const MOST: usize = 64 << 10;
    let mut buffer = vec![0; 512];
    let length = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(MOST, 0);
            call(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

fn is_carried(name: &[u8]) -> bool {
    let acl = [&b"system.posix_acl_access"[..], b"system.posix_acl_default"];
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.") && !name.starts_with(b"trusted.overlay.")
        || name == b"security.capability"
        || acl.contains(&name)
}
