//! Putting files back before the tree that has them open is rebuilt.
//!
//! | step | after a failure here | after a crash here |
//! |---|---|---|
//! | compare with what is there | nothing was touched | the same |
//! | make missing directories | they are removed | they stay, empty |
//! | write new files beside the old, and sync them | they are removed | they stay, under names of their own, until the next restore |
//! | give each old file a second name, then rename the new one over it | the old ones get their names back | some files are new, some old; what was replaced has its second name |
//! | CRIU rebuilds the tree | the same | the same |
//! | the tree runs: the second names stay, or are removed if asked for | | |
//!
//! At no moment a path that had a file has none, and at no moment content that was there is gone. A file that is the
//! one of the checkpoint already, by inode and times or by its content, is left alone, so that whoever else has it open
//! goes on with the same file. What is in a directory beside the checkpoint's files stays.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

use lazy_pages::{
    format::{
        Attributes, FRAME_PAGES, FileEntry, FileKind, FilePolicy, Manifest, MemoryMap, ObjectId, PageHash,
        Source, hash_pages,
    },
    handover::is_handover,
    materialize::{MaterializeError, write_contents},
    reader::{Checkpoint, ReadError},
    units::PAGE_SIZE,
};
use rustix::{
    fs::{CWD, RenameFlags, SeekFrom, renameat_with, seek, syncfs},
    io::Errno,
};
use serde::Serialize;

use super::{ExistingFiles, FilesError, View, attributes, check::refuse_other_files, status::Status};
use crate::{agent::Agent, error::AgentError, tree};

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PutBackReport {
    /// Regular files, directories and symbolic links that were made or replaced.
    pub written: u64,
    /// Those that were there as they should be.
    pub unchanged: u64,
    /// Where the content of replaced files is now; for people, since a path need not be text.
    pub set_aside: Vec<String>,
}

/// Files that were put back. Dropping it makes all as it was before; [`PutBack::keep`] is for when the tree runs.
#[derive(Debug)]
pub struct PutBack {
    existing: ExistingFiles,
    view: View,
    /// In the order done.
    undo: Vec<Undo>,
    /// New files that have not got their names yet.
    unnamed: Vec<PathBuf>,
    report: PutBackReport,
}

#[derive(Debug)]
enum Undo {
    /// There was nothing.
    Remove(PathBuf),
    RemoveDirectory(PathBuf),
    /// There was what now has the other name.
    Rename {
        aside: PathBuf,
        path: PathBuf,
    },
    SetAttributes(PathBuf, Attributes),
}

/// What is to be done about a carried file.
enum Todo {
    Nothing,
    /// Its content is right.
    SetAttributes(Attributes),
    /// There is nothing of that name.
    Make,
    /// There is another file.
    Replace,
}

impl Agent {
    /// Checks the files that were not carried, then puts back those that were, where `view` has them.
    ///
    /// # Errors
    /// Any; then all files are as they were.
    pub(crate) fn put_files_back(
        &self,
        checkpoint: &Checkpoint,
        existing: ExistingFiles,
        view: View,
    ) -> Result<PutBack, AgentError> {
        let manifest = checkpoint.manifest();
        refuse_other_files(manifest, &view)?;
        let carried = manifest.files.iter().filter(|file| file.policy == FilePolicy::Carry);
        carried.clone().try_for_each(|file| view.refuse_links(&file.path))?;
        // From here on as this program reaches them.
        let reached = carried.map(|file| FileEntry { path: view.at(&file.path), ..file.clone() });
        let reached: Vec<FileEntry> = reached.collect();
        let mut files: Vec<&FileEntry> = reached.iter().collect();
        // Directories come before what is in them.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut contents = Contents { agent: self, checkpoint, hashes: None };
        let mut todo = Vec::with_capacity(files.len());
        for file in files {
            todo.push((file, contents.todo(file)?));
        }
        if existing == ExistingFiles::Refuse {
            let others = todo.iter().filter(|(_, todo)| matches!(todo, Todo::Replace));
            let paths: Vec<PathBuf> = others.map(|(file, _)| view.shown(&file.path)).collect();
            if !paths.is_empty() {
                return Err(FilesError::WouldReplace { paths }.into());
            }
        }
        let report = PutBackReport::default();
        let mut done = PutBack { existing, view, undo: Vec::new(), unnamed: Vec::new(), report };
        done.work(self, checkpoint, &todo)?;
        Ok(done)
    }
}

impl PutBack {
    fn work(
        &mut self,
        agent: &Agent,
        checkpoint: &Checkpoint,
        todo: &[(&FileEntry, Todo)],
    ) -> Result<(), AgentError> {
        let id = checkpoint.manifest().id.to_string();
        let mut made = Vec::new();
        for (file, todo) in todo.iter().filter(|(file, _)| file.kind == FileKind::Directory) {
            if let Todo::Make = todo {
                fs::create_dir(&file.path).map_err(FilesError::io("make the directory", &file.path))?;
                self.undo.push(Undo::RemoveDirectory(file.path.clone()));
                made.push(*file);
            }
        }
        let others = || todo.iter().filter(|(file, _)| file.kind != FileKind::Directory);
        let changed = others().filter(|(_, todo)| matches!(todo, Todo::Make | Todo::Replace));
        let places: BTreeSet<&Path> = changed.clone().filter_map(|(file, _)| file.path.parent()).collect();
        places.iter().for_each(|place| remove_leftovers(place, &id));

        // A name that holds each content already, here or among the new ones.
        let mut names: HashMap<u32, PathBuf> = HashMap::new();
        for (file, todo) in others() {
            if let (Some(content), Todo::Nothing | Todo::SetAttributes(_)) = (file.content(), todo) {
                names.insert(content, file.path.clone());
            }
        }
        let (mut renames, mut contents) = (Vec::new(), Vec::new());
        let (mut written, mut others_of) = (Vec::new(), Vec::new());
        for (file, todo) in changed {
            let new = new_name(&file.path, &id, self.unnamed.len());
            self.unnamed.push(new.clone());
            match &file.kind {
                FileKind::Symlink { target } => {
                    symlink(target, &new).map_err(FilesError::io("make a symbolic link at", &new))?;
                    attributes::set(&new, &file.attributes)
                        .map_err(FilesError::io("set the attributes of", &new))?;
                }
                FileKind::Regular { content: Some(content) } => match names.get(content) {
                    Some(name) => others_of.push((name.clone(), new.clone())),
                    None => {
                        names.insert(*content, new.clone());
                        contents.push((*content, file.size, new.clone()));
                        written.push((file, new.clone()));
                    }
                },
                FileKind::Regular { content: None } | FileKind::Directory => continue,
            }
            renames.push((file, matches!(todo, Todo::Replace), new));
        }
        // Complete and durable before anybody can see them.
        match agent.block_on(write_contents(checkpoint, &contents)) {
            Err(MaterializeError::Write { path, source }) => {
                return Err(FilesError::io("write", path)(source).into());
            }
            other => other?,
        }
        for (file, new) in &written {
            attributes::set(new, &file.attributes).map_err(FilesError::io("set the attributes of", new))?;
        }
        let new: Vec<&Path> = written.iter().map(|(_, new)| new.as_path()).collect();
        make_durable(&new)?;
        for (name, new) in others_of {
            fs::hard_link(&name, &new).map_err(FilesError::io("make another name of", &name))?;
        }
        for (file, replaces, new) in renames {
            self.name(&file.path, replaces, &new, &id)?;
            self.report.written += 1;
        }
        self.unnamed.clear();
        for (file, todo) in todo {
            match todo {
                Todo::SetAttributes(before) => {
                    self.undo.push(Undo::SetAttributes(file.path.clone(), before.clone()));
                    attributes::set(&file.path, &file.attributes)
                        .map_err(FilesError::io("set the attributes of", &file.path))?;
                    self.report.written += 1;
                }
                Todo::Nothing => self.report.unchanged += 1,
                Todo::Make | Todo::Replace => {}
            }
        }
        // Innermost first: what is done in a directory sets its time.
        for file in made.iter().rev() {
            attributes::set(&file.path, &file.attributes)
                .map_err(FilesError::io("set the attributes of", &file.path))?;
            self.report.written += 1;
        }
        let above = made.iter().filter_map(|file| file.path.parent());
        places.into_iter().chain(above).collect::<BTreeSet<_>>().into_iter().try_for_each(sync)?;
        Ok(())
    }

    /// Gives a new file the name it is for. What has that name gets another one first.
    fn name(&mut self, path: &Path, replaces: bool, new: &Path, id: &str) -> Result<(), FilesError> {
        if !replaces {
            // Should a file have appeared meanwhile, it is not ours to replace.
            let named = match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
                // Network file systems do not know this way.
                Err(Errno::INVAL) => fs::hard_link(new, path).and_then(|()| fs::remove_file(new)),
                other => other.map_err(io::Error::from),
            };
            named.map_err(FilesError::io("give its name to", path))?;
            self.undo.push(Undo::Remove(path.to_owned()));
            return Ok(());
        }
        let aside = self.set_aside(path, id)?;
        self.undo.push(Undo::Rename { aside, path: path.to_owned() });
        fs::rename(new, path).map_err(FilesError::io("replace", path))
    }

    /// Another name for a file that will lose its own.
    fn set_aside(&self, path: &Path, id: &str) -> Result<PathBuf, FilesError> {
        let mut number = 1;
        loop {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".before-{id}"));
            if number > 1 {
                name.push(format!(".{number}"));
            }
            let aside = PathBuf::from(name);
            match fs::hard_link(path, &aside) {
                Ok(()) => return Ok(aside),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(FilesError::io("set aside", path)(error)),
            }
        }
    }

    /// The tree runs: the files are its own now.
    pub fn keep(mut self) -> PutBackReport {
        for undo in std::mem::take(&mut self.undo) {
            let Undo::Rename { aside, .. } = undo else { continue };
            let is_empty = Status::at(&aside).is_ok_and(|status| status.is_regular() && status.size == 0);
            let kept = !is_empty && self.existing != ExistingFiles::Replace;
            if !kept && let Err(error) = fs::remove_file(&aside) {
                tracing::warn!(file = %aside.display(), %error, "a file that was replaced stays behind");
            }
            if kept {
                self.report.set_aside.push(self.view.shown(&aside).display().to_string());
            }
        }
        std::mem::take(&mut self.report)
    }
}

impl Drop for PutBack {
    fn drop(&mut self) {
        let gone = |result: io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(file = %path.display(), %error, "a file could not be made as it was before");
            }
            _ => {}
        };
        for new in self.unnamed.drain(..) {
            gone(fs::remove_file(&new), &new);
        }
        for undo in self.undo.drain(..).rev() {
            match undo {
                Undo::Remove(path) => gone(fs::remove_file(&path), &path),
                Undo::RemoveDirectory(path) => gone(fs::remove_dir(&path), &path),
                Undo::Rename { aside, path } => {
                    gone(fs::rename(&aside, &path), &path);
                    // rename(2) does nothing if both are names of one file.
                    gone(fs::remove_file(&aside), &aside);
                }
                Undo::SetAttributes(path, before) => gone(attributes::set(&path, &before), &path),
            }
        }
    }
}

/// A content, and which of the hashes of all stored pages is the first of its own.
type ByNumber<'a> = HashMap<u32, (&'a MemoryMap, usize)>;

/// The checkpoint's contents, to compare with.
struct Contents<'a> {
    agent: &'a Agent,
    checkpoint: &'a Checkpoint,
    /// Of all stored pages, and each content with where its hashes start; once they were needed.
    hashes: Option<(Vec<PageHash>, ByNumber<'a>)>,
}

impl Contents<'_> {
    fn todo(&mut self, file: &FileEntry) -> Result<Todo, AgentError> {
        let path = &file.path;
        let Some(status) = Status::if_there(path).map_err(FilesError::io("look at", path))? else {
            return Ok(Todo::Make);
        };
        match &file.kind {
            // A link to one will do: what is in it is found.
            FileKind::Directory if Status::followed(path).is_ok_and(|there| there.is_directory()) => {
                return Ok(Todo::Nothing);
            }
            FileKind::Directory => {}
            _ if status.is_directory() => {}
            FileKind::Symlink { target } => {
                let same = status.is_symlink() && fs::read_link(path).is_ok_and(|there| there == *target);
                return Ok(if same { Todo::Nothing } else { Todo::Replace });
            }
            FileKind::Regular { content } => {
                if !status.is_regular() {
                    return Ok(Todo::Replace);
                }
                let untouched = file.identity == Some(status.identity())
                    && (status.size, status.modified) == (file.size, file.attributes.modified);
                if untouched {
                    return Ok(Todo::Nothing);
                }
                let same = match content {
                    // There are no hashes to compare with before the content is here.
                    Some(_) if is_handover(self.checkpoint.manifest()) => false,
                    Some(content) => {
                        status.size == file.size && self.is_content_of(path, *content, file.size)?
                    }
                    None => false,
                };
                if !same {
                    return Ok(Todo::Replace);
                }
                let there = attributes::read(path, &status);
                let there = there.map_err(FilesError::io("read the attributes of", path))?;
                return Ok(if there == file.attributes { Todo::Nothing } else { Todo::SetAttributes(there) });
            }
        }
        Err(FilesError::InTheWay { path: path.clone() }.into())
    }

    /// Whether the file at `path`, of the right size, holds this content.
    fn is_content_of(&mut self, path: &Path, content: u32, size: u64) -> Result<bool, AgentError> {
        let (hashes, objects) = match &mut self.hashes {
            Some(known) => known,
            empty => {
                let hashes = self.agent.block_on(self.checkpoint.page_hashes())?;
                empty.insert((hashes, contents(self.checkpoint.manifest())))
            }
        };
        let unknown = || ReadError::NoSuchObject(ObjectId::File(content));
        let (object, first) = objects.get(&content).copied().ok_or_else(unknown)?;
        let expected = hashes.get(first..).unwrap_or_default();
        let open =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let open = open.map_err(FilesError::io("open", path))?;
        Ok(holds(&open, object, expected, size).map_err(FilesError::io("read", path))?)
    }
}

/// Whether `file` holds `size` bytes that are the content of `object`, whose stored pages have these hashes.
fn holds(file: &File, object: &MemoryMap, mut expected: &[PageHash], size: u64) -> io::Result<bool> {
    let mut buffer = vec![0; FRAME_PAGES * PAGE_SIZE];
    let mut hashes = Vec::new();
    for run in &object.runs {
        let end = run.end().get().min(size);
        let mut at = run.start.get();
        while at < end {
            if run.source == Source::Zero {
                // Holes of the file are zero without being read.
                match seek(file, SeekFrom::Data(at)) {
                    Ok(data) => at = at.max(data),
                    Err(Errno::NXIO) => at = end,
                    Err(_) => {}
                }
                if at >= end {
                    break;
                }
            }
            let inside = (end - at).min(buffer.len() as u64) as usize;
            match file.read_exact_at(&mut buffer[..inside], at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                other => other?,
            }
            let padded = inside.next_multiple_of(PAGE_SIZE);
            buffer[inside..padded].fill(0);
            if run.source == Source::Zero {
                if buffer[..inside].iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
            } else {
                hashes.clear();
                hash_pages(&buffer[..padded], &mut hashes);
                let Some((of_these, rest)) = expected.split_at_checked(hashes.len()) else {
                    return Ok(false);
                };
                if of_these != hashes {
                    return Ok(false);
                }
                expected = rest;
            }
            at += inside as u64;
        }
    }
    Ok(true)
}

fn contents(manifest: &Manifest) -> ByNumber<'_> {
    let mut next = 0;
    let mut found = HashMap::new();
    for object in &manifest.objects {
        if let ObjectId::File(content) = object.id {
            found.insert(content, (object, next));
        }
        next += object.stored_pages() as usize;
    }
    found
}

/// Names of new files: `.migration-CHECKPOINT-PID-NUMBER`.
const NEW: &str = ".migration-";

fn new_name(path: &Path, id: &str, number: usize) -> PathBuf {
    path.with_file_name(format!("{NEW}{id}-{}-{number}", std::process::id()))
}

/// Removes new files that a restore of this checkpoint which is no more has left in a directory.
fn remove_leftovers(directory: &Path, id: &str) {
    let prefix = format!("{NEW}{id}-");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker =
            name.to_str().and_then(|name| name.strip_prefix(&prefix)?.split('-').next()?.parse().ok());
        if maker.is_some_and(|pid: u32| pid == std::process::id() || !tree::is_alive(pid)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// More files than this are synced with everything else on their file system, which takes less time than one by one.
const MANY: usize = 64;

/// Makes the contents of new files durable.
fn make_durable(files: &[&Path]) -> Result<(), FilesError> {
    let mut synced = BTreeSet::new();
    for path in files {
        let mut sync = || {
            let file = File::open(path)?;
            if files.len() <= MANY {
                return file.sync_all();
            }
            if synced.insert(Status::open(&file)?.device) { Ok(syncfs(&file)?) } else { Ok(()) }
        };
        sync().map_err(FilesError::io("write", *path))?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
fn sync(directory: &Path) -> Result<(), FilesError> {
    let open = File::open(directory).map_err(FilesError::io("open", directory))?;
    match open.sync_all() {
        // Not every file system can, and those have nothing to sync.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other.map_err(FilesError::io("write", directory)),
    }
}
