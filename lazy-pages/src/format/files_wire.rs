//! Files as messages and back. The rules are checked elsewhere; here only what a message can say and a value cannot.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use migration_proto::checkpoint::{self as proto, file::Policy};

use crate::format::{
    Attributes, FileEntry, FileIdentity, FileKind, FilePolicy, LargeImage, ManifestError, Timestamp,
    wire::{invalid, missing},
};

/// The type of a file within `st_mode`; stat(2).
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

pub(super) fn file_to_proto(file: &FileEntry) -> proto::File {
    let (kind, content, target) = match &file.kind {
        FileKind::Regular { content } => (REGULAR, content.unwrap_or(0), Vec::new()),
        FileKind::Directory => (DIRECTORY, 0, Vec::new()),
        FileKind::Symlink { target } => (SYMLINK, 0, target.as_os_str().as_bytes().to_vec()),
    };
    let policy = match file.policy {
        FilePolicy::Carry => Policy::Carry,
        FilePolicy::Same => Policy::Same,
        FilePolicy::Expect => Policy::Expect,
    };
    let attributes = &file.attributes;
    let xattr =
        |(name, value): &(Vec<u8>, Vec<u8>)| proto::Xattr { name: name.clone(), value: value.clone() };
    proto::File {
        path: file.path.as_os_str().as_bytes().to_vec(),
        mode: kind | attributes.permissions,
        policy: policy.into(),
        content,
        size: file.size,
        uid: attributes.uid,
        gid: attributes.gid,
        modified: Some(time_to_proto(attributes.modified)),
        target,
        xattrs: attributes.xattrs.iter().map(xattr).collect(),
        identity: file.identity.map(|identity| proto::Identity {
            device: identity.device,
            inode: identity.inode,
            changed: Some(time_to_proto(identity.changed)),
        }),
    }
}

pub(super) fn file_from_proto(file: proto::File) -> Result<FileEntry, ManifestError> {
    let policy = match file.policy() {
        Policy::Carry => FilePolicy::Carry,
        Policy::Same => FilePolicy::Same,
        Policy::Expect => FilePolicy::Expect,
        Policy::Unspecified => return Err(invalid("a file is of unknown policy")),
    };
    let kind = match file.mode & TYPE {
        REGULAR => FileKind::Regular { content: Some(file.content).filter(|content| *content != 0) },
        DIRECTORY => FileKind::Directory,
        SYMLINK => FileKind::Symlink { target: OsString::from_vec(file.target.clone()).into() },
        other => return Err(invalid(format!("a file is of unknown type {other:#o}"))),
    };
    let stray_content = file.content != 0 && !matches!(kind, FileKind::Regular { .. });
    let stray_target = !file.target.is_empty() && !matches!(kind, FileKind::Symlink { .. });
    if stray_content || stray_target {
        return Err(invalid("a file has what its type has not"));
    }
    let identity = match file.identity {
        None => None,
        Some(proto::Identity { device, inode, changed }) => {
            Some(FileIdentity { device, inode, changed: time_from_proto(changed)? })
        }
    };
    Ok(FileEntry {
        path: OsString::from_vec(file.path).into(),
        kind,
        policy,
        size: file.size,
        attributes: Attributes {
            permissions: file.mode & !TYPE,
            uid: file.uid,
            gid: file.gid,
            modified: time_from_proto(file.modified)?,
            xattrs: file.xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
        },
        identity,
    })
}

pub(super) fn image_to_proto(image: &LargeImage) -> proto::LargeImage {
    proto::LargeImage { name: image.name.clone(), size: image.size, content: image.content }
}

pub(super) fn image_from_proto(image: proto::LargeImage) -> LargeImage {
    LargeImage { name: image.name, size: image.size, content: image.content }
}

fn time_to_proto(time: Timestamp) -> proto::Timestamp {
    proto::Timestamp { seconds: time.seconds, nanoseconds: time.nanoseconds }
}

fn time_from_proto(time: Option<proto::Timestamp>) -> Result<Timestamp, ManifestError> {
    let time = time.ok_or_else(|| missing("a time of a file"))?;
    Ok(Timestamp { seconds: time.seconds, nanoseconds: time.nanoseconds })
}
