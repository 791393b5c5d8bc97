//! The page sink: CRIU's stream of pages goes into the checkpoint writer while the tree is frozen.
//!
//! Nothing here allocates or locks for each page: a page's bytes go from the socket straight into the writer's buffer.
//! When the sink fails it returns, which closes the socket: CRIU then gives up the dump and lets the tree go on.

use std::{collections::HashMap, os::unix::net::UnixStream};

use criu_rpc::{PageObject, PageStream, Record, Version, images::PagemapEntry};
use lazy_pages::{
    units::{PAGE_SIZE, VirtAddr},
    writer::{CheckpointWriter, SealedPages},
};

use crate::{dumped_images::object_id, error::AgentError, progress::Progress};

/// What the sink has when CRIU has sent its last page.
pub struct ReceivedPages {
    /// The pages, packed.
    pub pages: SealedPages,
    /// The page map of each object, and the number of its pages file.
    pub entries: HashMap<PageObject, (u32, Vec<PagemapEntry>)>,
}

/// Gives CRIU's end of the page socket a larger buffer, so that it and the sink seldom wait for each other. A kernel that
/// grants less only costs some speed.
pub fn widen(socket: &UnixStream) {
    const BUFFER: usize = 4 << 20;
    if nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::SndBuf, &BUFFER);
    }
}

/// Takes CRIU's page stream into the writer, at memory speed. When it fails it returns, which closes the socket: CRIU
/// then gives up the dump and lets the tree go on.
pub fn receive_pages(
    socket: UnixStream,
    version: Version,
    mut writer: CheckpointWriter,
    progress: &Progress,
) -> Result<ReceivedPages, AgentError> {
    let mut stream = PageStream::new(socket, version);
    let mut entries: HashMap<PageObject, (u32, Vec<PagemapEntry>)> = HashMap::new();
    let mut current = None;
    // Numbers of pages files are free to choose as long as they differ.
    let mut pages_id = 0;
    loop {
        match stream.next()? {
            Record::Open(object) => {
                pages_id += 1;
                writer.open(object_id(object), pages_id)?;
                current = Some(object);
                entries.insert(object, (pages_id, Vec::new()));
            }
            Record::Pages { vaddr, pages, lazy } => {
                let mut address = VirtAddr::containing(vaddr);
                let mut left = pages;
                while left > 0 {
                    let buffer = writer.buffer(lazy, address, left)?;
                    let filled = (buffer.len() / PAGE_SIZE) as u64;
                    stream.read_pages(buffer)?;
                    writer.filled()?;
                    address = address.add(filled);
                    left -= filled;
                    progress.add_bytes(filled * PAGE_SIZE as u64);
                }
                if let Some((_, known)) = current.and_then(|object| entries.get_mut(&object)) {
                    note(known, PagemapEntry { vaddr, pages, lazy, present: !lazy });
                }
            }
            Record::End => return Err(AgentError::NoCommit),
            Record::Close => {
                // This only ends the transfer: the dump is committed or given up in answer to `post-dump`.
                stream.finish(0)?;
                let pages = writer.finish_pages()?;
                return Ok(ReceivedPages { pages, entries });
            }
        }
    }
}

/// Adds an entry, joined to the previous one where they touch.
fn note(entries: &mut Vec<PagemapEntry>, next: PagemapEntry) {
    if let Some(last) = entries.last_mut()
        && last.lazy == next.lazy
        && last.vaddr + last.pages * PAGE_SIZE as u64 == next.vaddr
    {
        last.pages += next.pages;
        return;
    }
    entries.push(next);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_touch_are_joined_only_if_both_are_lazy_or_both_are_not() {
        let entry =
            |page, pages, lazy| PagemapEntry { vaddr: page * PAGE_SIZE as u64, pages, lazy, present: !lazy };
        let mut known = Vec::new();
        for next in [entry(1, 2, true), entry(3, 1, true), entry(4, 1, false), entry(6, 1, false)] {
            note(&mut known, next);
        }
        assert_eq!(known, [entry(1, 3, true), entry(4, 1, false), entry(6, 1, false)]);
    }
}
