//! What CRIU wrote beside the pages: read while the tree is frozen, completed, and made ready to be stored.

use std::{collections::HashMap, fs, path::Path};

use bytes::Bytes;
use criu_rpc::{ImageDir, PageObject, images::PagemapEntry};
use lazy_pages::{
    format::{ObjectId, Task, Vma, bundle},
    units::{PAGE_SIZE, VirtAddr},
    writer::TakenOver,
};

use crate::{error::AgentError, files::is_large_image, pagemap};

/// What CRIU wrote beside the pages, read while the tree is frozen.
pub struct DumpedImages {
    /// Every task, parents before children.
    pub tasks: Vec<Task>,
    /// The areas of each task that a restore may fill on demand.
    pub vmas: HashMap<ObjectId, Vec<Vma>>,
    /// The archive of all images but pages and large ones.
    pub bundle: Bytes,
}

impl DumpedImages {
    /// Reads the images and completes them with the page maps of a lazy restore: CRIU leaves those to its page server. In
    /// them are the pages CRIU sent and those taken over from the parent.
    pub fn read(
        path: &Path,
        entries: &HashMap<PageObject, (u32, Vec<PagemapEntry>)>,
        taken: &HashMap<ObjectId, Vec<TakenOver>>,
    ) -> Result<Self, AgentError> {
        let directory = ImageDir::open(path)?;
        let mut tasks = Vec::new();
        let mut vmas = HashMap::new();
        for task in directory.tasks()? {
            if !task.dead {
                let mm = directory.mm(task.pid)?;
                let lazy = mm.vmas.iter().filter(|vma| vma.is_lazy()).map(|vma| Vma {
                    start: VirtAddr::containing(vma.start),
                    end: VirtAddr::containing(vma.end),
                    wipe_on_fork: vma.wipe_on_fork(),
                    dont_fork: vma.dont_fork(),
                    grows_down: vma.grows_down(),
                });
                vmas.insert(ObjectId::Task(task.pid), lazy.collect());
            }
            tasks.push(Task {
                pid: task.pid,
                parent_pid: task.parent.unwrap_or(0),
                threads: task.threads.len() as u32,
                dead: task.dead,
                command: task.command,
            });
        }
        for (object, (pages_id, entries)) in entries {
            let areas = vmas.get(&object_id(*object)).map_or(&[][..], Vec::as_slice);
            let taken = taken.get(&object_id(*object)).map_or(&[][..], Vec::as_slice);
            agree(*object, entries, areas)?;
            directory.write_pagemap(*object, *pages_id, &pagemap::of_restore(entries, taken, areas))?;
        }
        let files = fs::read_dir(path).map_err(AgentError::path("read", path))?;
        let mut archive = Vec::new();
        for file in files.flatten() {
            let Ok(name) = file.file_name().into_string() else { continue };
            // The pages of every object are in packs; statistics describe this dump, not the process.
            let size = file.metadata().map_err(AgentError::path("look at", file.path()))?.len();
            if !name.ends_with(".img") || is_large_image(&name, size) {
                continue;
            }
            let content = fs::read(file.path()).map_err(AgentError::path("read", file.path()))?;
            archive.push(bundle::File { name, content: content.into() });
        }
        Ok(Self { tasks, vmas, bundle: bundle::pack(archive)? })
    }
}

/// CRIU decides twice what is lazy: when it dumps a page, and when it restores the area. A page that it left to be lazy
/// outside of every such area is a sign that the areas are not what they seem; no such dump is committed.
fn agree(object: PageObject, entries: &[PagemapEntry], vmas: &[Vma]) -> Result<(), AgentError> {
    for entry in entries.iter().filter(|entry| entry.lazy) {
        let (start, end) = (entry.vaddr, entry.vaddr + entry.pages * PAGE_SIZE as u64);
        let first = vmas.partition_point(|vma| vma.end.get() <= start);
        let mut covered = start;
        for vma in vmas[first..].iter().take_while(|vma| vma.start.get() < end) {
            if vma.start.get() > covered {
                break;
            }
            covered = vma.end.get();
        }
        if covered < end {
            return Err(AgentError::LazyDisagreement { object: format!("{object:?}"), address: start });
        }
    }
    Ok(())
}

/// The format's name for CRIU's memory object.
pub fn object_id(object: PageObject) -> ObjectId {
    match object {
        PageObject::Task(pid) => ObjectId::Task(pid),
        PageObject::Shared(id) => ObjectId::Shared(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    fn vma(start: u64, end: u64) -> Vma {
        Vma {
            start: VirtAddr::of_page(start),
            end: VirtAddr::of_page(end),
            wipe_on_fork: false,
            dont_fork: false,
            grows_down: false,
        }
    }

    fn agrees(page: u64, pages: u64, lazy: bool) -> bool {
        let entry = PagemapEntry { vaddr: page * PAGE, pages, lazy, present: !lazy };
        agree(PageObject::Task(1), &[entry], &[vma(10, 20), vma(20, 30), vma(40, 50)]).is_ok()
    }

    #[test]
    fn a_lazy_page_must_lie_in_a_lazy_area() {
        assert!(agrees(10, 10, true));
        assert!(agrees(15, 10, true), "across two areas that touch");
        assert!(!agrees(9, 2, true));
        assert!(!agrees(29, 2, true));
        assert!(!agrees(29, 12, true), "across a gap");
        assert!(agrees(30, 10, false));
        assert!(agrees(12, 1, false), "a stack pointer at the start of a page makes it so");
        assert!(agrees(60, 1, false));
        assert!(!agrees(60, 1, true));
    }
}
