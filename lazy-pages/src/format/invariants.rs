//! The rules of a manifest as named predicates. [`check`] runs them all: after a manifest is decoded, before one is
//! encoded. A manifest that breaks one is never used and never written.

use std::collections::HashSet;

use crate::{
    format::{
        Codec, FRAME_HASH, FRAME_PAGES, FrameEntry, Manifest, MemoryMap, ObjectId, Run, Source,
        bundle::MAX_PACKED,
        files,
        hash::PageHash,
        manifest::{FrameIndex, ManifestError},
    },
    ids::PackId,
    units::VirtAddr,
};

/// Page numbers end here, so that the address after the last page still fits 64 bits.
pub const MAX_PAGE: u64 = (1 << 52) - 1;

/// Bytes in a pack at most; also keeps every offset far from overflow.
pub const MAX_PACK: u64 = 1 << 32;

/// Tasks at most: twice what Linux allows a machine by default.
pub const MAX_TASKS: usize = 1 << 16;

/// Files at most: a directory of more is not what an open process depends on.
pub const MAX_FILES: usize = 1 << 17;

/// Extended attributes of all files at most.
pub const MAX_XATTRS: usize = 2 * MAX_FILES;

/// Images outside the bundle at most.
pub const MAX_LARGE_IMAGES: usize = 1 << 12;

/// Address spaces, shared objects and contents of files at most.
pub const MAX_OBJECTS: usize = 2 * MAX_TASKS + MAX_FILES;

/// Flags of a CPU at most; today's have some two hundred.
pub const MAX_CPU_FEATURES: usize = 4096;

/// Streams shared with the outside at most: each stands for one of three descriptors, under as many names as there are
/// terminals and pipes.
pub const MAX_STREAMS: usize = 4096;

/// Characters in any text of a manifest: kernel release, CPU flag, command, stream key.
pub const MAX_TEXT: usize = 4096;

type Rule = Result<(), String>;

/// Every rule, over the whole manifest.
///
/// # Errors
/// [`ManifestError::Invalid`] naming the first rule that is broken, and where.
pub fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    let rules = || -> Rule {
        counts_are_bounded(manifest)?;
        only_full_checkpoints_have_no_depth(manifest)?;
        packs_are_sorted_and_used(manifest)?;
        frames_are_sorted_and_inside_their_packs(manifest)?;
        frames_are_all_in_one_kind_of_place(manifest)?;
        tasks_form_a_tree(manifest)?;
        live_tasks_and_only_they_have_memory(manifest)?;
        files::check(manifest)?;
        let mut used = vec![false; manifest.frames.len()];
        for object in &manifest.objects {
            let mut rules = || -> Rule {
                vmas_are_sorted(object)?;
                runs_are_sorted(object)?;
                runs_and_vmas_agree(object)?;
                stored_runs_are_inside_their_frames(object, manifest, &mut used)
            };
            rules().map_err(|broken| format!("{:?}: {broken}", object.id))?;
        }
        if let Some(unused) = used.iter().position(|used| !used) {
            return Err(format!("no run refers to frame {unused}"));
        }
        hashes_cover_stored_pages(manifest)?;
        texts_are_short(manifest)
    };
    rules().map_err(ManifestError::Invalid)
}

/// Tasks, objects, CPU flags and streams are not more than anybody has, and the bundle can be unpacked.
pub fn counts_are_bounded(manifest: &Manifest) -> Rule {
    for (count, most, what) in [
        (manifest.tasks.len(), MAX_TASKS, "tasks"),
        (manifest.objects.len(), MAX_OBJECTS, "objects"),
        (manifest.host.cpu_features.len(), MAX_CPU_FEATURES, "CPU features"),
        (manifest.streams.len(), MAX_STREAMS, "streams"),
        (manifest.files.len(), MAX_FILES, "files"),
        (
            manifest.files.iter().map(|file| file.attributes.xattrs.len()).sum(),
            MAX_XATTRS,
            "extended attributes",
        ),
        (manifest.large_images.len(), MAX_LARGE_IMAGES, "large images"),
    ] {
        if count > most {
            return Err(format!("{count} {what}, {most} are allowed"));
        }
    }
    if manifest.bundle.length > MAX_PACKED {
        return Err(format!("a bundle of {} bytes, {MAX_PACKED} are allowed", manifest.bundle.length));
    }
    Ok(())
}

/// A checkpoint without a parent builds on none, one with a parent at least on that.
pub fn only_full_checkpoints_have_no_depth(manifest: &Manifest) -> Rule {
    match (manifest.parent, manifest.depth) {
        (None, 0) | (Some(_), 1..) => Ok(()),
        (None, depth) => Err(format!("it has no parent, and builds on {depth} checkpoints")),
        (Some(parent), 0) => Err(format!("its parent is {parent}, and it builds on no checkpoint")),
    }
}

/// Packs ascend by id, are not empty nor absurdly large, and every one holds a frame.
pub fn packs_are_sorted_and_used(manifest: &Manifest) -> Rule {
    if !manifest.packs.is_sorted_by(|a, b| a.id < b.id) {
        return Err("packs are not in ascending order".into());
    }
    let mut frames = manifest.frames.iter().peekable();
    for pack in &manifest.packs {
        if pack.length == 0 || pack.length > MAX_PACK {
            return Err(format!("pack {} has {} bytes", pack.id, pack.length));
        }
        if frames.peek().is_none_or(|frame| frame.pack != pack.id) {
            return Err(format!("pack {} holds no frame", pack.id));
        }
        while frames.next_if(|frame| frame.pack == pack.id).is_some() {}
    }
    match frames.next() {
        Some(stray) => Err(format!("pack {} of a frame is unknown or out of order", stray.pack)),
        None => Ok(()),
    }
}

/// Within a pack frames ascend and do not overlap; the last one ends inside the pack; sizes fit page count and codec.
pub fn frames_are_sorted_and_inside_their_packs(manifest: &Manifest) -> Rule {
    if manifest.frames.len() > u32::MAX as usize {
        return Err("more frames than can be numbered".into());
    }
    let mut end_of_last: Option<(PackId, u64)> = None;
    for (index, frame) in manifest.frames.iter().enumerate() {
        let plain = frame.plain_length() as u64;
        let stored = u64::from(frame.stored_length);
        let sound = match frame.codec {
            Codec::None => stored == plain,
            Codec::Lz4 | Codec::Zstd => 0 < stored && stored < plain,
            Codec::AtSource => stored == plain + FRAME_HASH as u64 && frame.hash == [0; FRAME_HASH],
        };
        if frame.pages == 0 || frame.pages as usize > FRAME_PAGES || !sound {
            return Err(format!("frame {index} of {} pages takes {stored} bytes", frame.pages));
        }
        let floor = end_of_last.filter(|(pack, _)| *pack == frame.pack).map_or(0, |(_, end)| end);
        if frame.offset < floor || frame.offset > MAX_PACK {
            return Err(format!("frame {index} overlaps the one before it"));
        }
        end_of_last = Some((frame.pack, frame.stored_end()));
        let pack = manifest.packs.binary_search_by_key(&frame.pack, |pack| pack.id);
        if pack.is_ok_and(|at| frame.stored_end() > manifest.packs[at].length) {
            return Err(format!("frame {index} ends after its pack"));
        }
    }
    Ok(())
}

/// Either all pages are in packs, or all are still where the process was: a handover. Needs nothing.
pub fn frames_are_all_in_one_kind_of_place(manifest: &Manifest) -> Rule {
    let at_source = |frame: &&FrameEntry| frame.codec == Codec::AtSource;
    match manifest.frames.iter().filter(at_source).count() {
        0 => Ok(()),
        count if count == manifest.frames.len() => Ok(()),
        count => Err(format!("{count} of {} frames are not in a store", manifest.frames.len())),
    }
}

/// There is a task; pids are unique and not zero; every task but the first comes after its parent.
pub fn tasks_form_a_tree(manifest: &Manifest) -> Rule {
    let mut seen = HashSet::new();
    for task in &manifest.tasks {
        if task.pid == 0 || (!seen.is_empty() && !seen.contains(&task.parent_pid)) {
            return Err(format!("task {} comes before its parent {}", task.pid, task.parent_pid));
        }
        if !seen.insert(task.pid) {
            return Err(format!("task {} is there twice", task.pid));
        }
    }
    if seen.is_empty() { Err("there is no task".into()) } else { Ok(()) }
}

/// Every live task has exactly one memory map, no other has one; no object and no `pages_id` is there twice.
pub fn live_tasks_and_only_they_have_memory(manifest: &Manifest) -> Rule {
    let mut missing: HashSet<u32> =
        manifest.tasks.iter().filter(|task| !task.dead).map(|task| task.pid).collect();
    let mut others = HashSet::new();
    let mut pages_ids = HashSet::new();
    for object in &manifest.objects {
        let expected = match object.id {
            ObjectId::Task(pid) => missing.remove(&pid),
            ObjectId::Shared(_) | ObjectId::File(_) => others.insert(object.id),
        };
        if !expected {
            return Err(format!("{:?} is there twice, or is no live task", object.id));
        }
        let sound = match object.id {
            ObjectId::File(_) => object.pages_id == 0,
            ObjectId::Task(_) | ObjectId::Shared(_) => pages_ids.insert(object.pages_id),
        };
        if !sound {
            return Err(format!("pages id {} is there twice, or is of a file", object.pages_id));
        }
    }
    match missing.into_iter().min() {
        Some(pid) => Err(format!("live task {pid} has no memory")),
        None => Ok(()),
    }
}

/// Areas ascend, are not empty and do not overlap; only tasks have any.
pub fn vmas_are_sorted(object: &MemoryMap) -> Rule {
    if !matches!(object.id, ObjectId::Task(_)) && !object.vmas.is_empty() {
        return Err("what is no task has areas".into());
    }
    let mut floor = VirtAddr::default();
    for vma in &object.vmas {
        if vma.start < floor || vma.end <= vma.start || vma.end.page() > MAX_PAGE {
            return Err(format!("area {}-{} is empty or overlaps another", vma.start, vma.end));
        }
        floor = vma.end;
    }
    Ok(())
}

/// Runs ascend, are not empty, do not overlap and stay inside the address range.
pub fn runs_are_sorted(object: &MemoryMap) -> Rule {
    let mut floor = 0;
    for run in &object.runs {
        let start = run.start.page();
        let end = start.checked_add(run.pages).filter(|end| *end <= MAX_PAGE);
        match end {
            Some(end) if run.pages > 0 && start >= floor => floor = end,
            _ => return Err(format!("the run at {} is empty or overlaps another", run.start)),
        }
    }
    Ok(())
}

/// No run crosses the edge of an area, every page of every area is in a run, and stored pages outside of all areas are
/// eager, since nothing would ever serve them. Needs [`vmas_are_sorted`] and [`runs_are_sorted`].
pub fn runs_and_vmas_agree(object: &MemoryMap) -> Rule {
    let outside = |run: &Run| match run.source {
        Source::Stored { eager: false, .. } => Err(format!("nothing would restore the run at {}", run.start)),
        _ => Ok(()),
    };
    let mut runs = object.runs.iter().peekable();
    for vma in &object.vmas {
        while let Some(run) = runs.next_if(|run| run.start < vma.start) {
            if run.end() > vma.start {
                return Err(format!("the run at {} crosses the start of an area", run.start));
            }
            outside(run)?;
        }
        let mut covered = vma.start;
        while let Some(run) = runs.next_if(|run| run.start < vma.end) {
            if run.start != covered {
                return Err(format!("nothing is said about {covered}"));
            }
            covered = run.end();
        }
        if covered != vma.end {
            return Err(format!("nothing is said about {covered}, or the run before it leaves its area"));
        }
    }
    runs.try_for_each(outside)
}

/// Stored runs lie inside the frame they name. Marks those frames in `used`. Needs [`runs_are_sorted`].
pub fn stored_runs_are_inside_their_frames(
    object: &MemoryMap,
    manifest: &Manifest,
    used: &mut [bool],
) -> Rule {
    for run in &object.runs {
        let Source::Stored { frame: FrameIndex(index), first, .. } = run.source else { continue };
        let Some(frame) = manifest.frames.get(index as usize) else {
            return Err(format!("the run at {} is in frame {index}, which does not exist", run.start));
        };
        if u64::from(first) + run.pages > u64::from(frame.pages) {
            return Err(format!("the run at {} is not inside frame {index}", run.start));
        }
        used[index as usize] = true;
    }
    Ok(())
}

/// The hashes object has one hash for each stored page.
pub fn hashes_cover_stored_pages(manifest: &Manifest) -> Rule {
    let expected = manifest.stored_pages() * PageHash::BYTES as u64;
    if manifest.page_hashes.length != expected {
        return Err(format!("hashes take {} bytes, not {expected}", manifest.page_hashes.length));
    }
    Ok(())
}

/// Texts have at most [`MAX_TEXT`] bytes; streams name one of the three standard descriptors.
pub fn texts_are_short(manifest: &Manifest) -> Rule {
    let host = &manifest.host;
    let texts = [&host.kernel, &host.architecture].into_iter().chain(&host.cpu_features);
    let texts = texts.chain(manifest.tasks.iter().map(|task| &task.command));
    let mut texts = texts.chain(manifest.streams.iter().map(|stream| &stream.key));
    if texts.any(|text| text.len() > MAX_TEXT) {
        return Err(format!("a text has more than {MAX_TEXT} bytes"));
    }
    match manifest.streams.iter().find(|stream| stream.stdio > 2 || stream.key.is_empty()) {
        Some(stream) => Err(format!("stream `{}` stands for descriptor {}", stream.key, stream.stdio)),
        None => Ok(()),
    }
}
