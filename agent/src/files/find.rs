//! Which files a tree depends on, by what `/proc` says of it.
//!
//! Done twice: before the freeze, to refuse early what will not do, and while the tree is frozen, when the answer is
//! complete and stays true.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map::Entry},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use lazy_pages::format::{FilePolicy, invariants::MAX_FILES};

use super::{
    FileRules, FilesError, OpenFiles,
    status::{Mounts, Status},
    view::{View, namespace},
};
use crate::tree::Tree;

/// What the kernel appends to the name of a file that has lost it.
const DELETED: &[u8] = b" (deleted)";

/// A file, directory or symbolic link that a checkpoint has to speak of.
#[derive(Clone, Debug)]
pub struct FoundFile {
    /// What leads to it, whatever happens to its name.
    pub source: PathBuf,
    pub status: Status,
    pub policy: FilePolicy,
    /// It can be written to without its times telling.
    pub writes_hide: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Found {
    /// By path.
    pub files: BTreeMap<PathBuf, FoundFile>,
    /// Bytes of each file that is open and has lost its name, with that name.
    deleted: BTreeMap<(u64, u64), (PathBuf, u64)>,
}

impl Found {
    /// Bytes of open files without a name; CRIU puts them into its images.
    pub fn deleted_bytes(&self) -> u64 {
        self.deleted.values().map(|(_, bytes)| bytes).sum()
    }

    /// Adds a file that is carried.
    pub fn carry(&mut self, path: PathBuf, source: PathBuf, status: Status, writes_hide: bool) {
        self.add(path, FoundFile { source, status, policy: FilePolicy::Carry, writes_hide });
    }

    fn add(&mut self, path: PathBuf, file: FoundFile) {
        match self.files.entry(path) {
            Entry::Vacant(entry) => drop(entry.insert(file)),
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                known.policy = known.policy.max(file.policy);
                known.writes_hide |= file.writes_hide;
            }
        }
    }

    /// # Errors
    /// When carrying it takes more than `limit` bytes, or there are too many files.
    pub fn within(&self, limit: u64) -> Result<(), FilesError> {
        if self.files.len() > MAX_FILES {
            return Err(FilesError::TooMany { count: self.files.len() });
        }
        let mut weights: BTreeMap<(u64, u64), (&Path, u64)> = BTreeMap::new();
        for (path, FoundFile { status, policy, .. }) in &self.files {
            if *policy == FilePolicy::Carry && status.is_regular() {
                weights.insert((status.device, status.inode), (path, status.weight()));
            }
        }
        weights.extend(self.deleted.iter().map(|(file, (path, bytes))| (*file, (path.as_path(), *bytes))));
        let total: u64 = weights.values().map(|(_, bytes)| bytes).sum();
        match weights.values().max_by_key(|(_, bytes)| bytes) {
            Some(&(path, size)) if total > limit => {
                Err(FilesError::TooLarge { path: path.to_owned(), size, total, limit })
            }
            _ => Ok(()),
        }
    }
}

/// Finds the files of `tree`, whose paths mean what `view` says, and those that are listed.
///
/// # Errors
/// When a listed path cannot be carried, or `/proc` cannot be read.
pub fn find(tree: &Tree, rules: &FileRules, view: &View) -> Result<Found, FilesError> {
    let same = rules.same.iter().map(|path| view.canonical(path).unwrap_or_else(|_| path.clone())).collect();
    let (mounts, namespace) = (Mounts::read(&view.mountinfo())?, view.namespace());
    let mut search = Search { rules, view, same, mounts, namespace, found: Found::default() };
    for &pid in tree.tasks().keys() {
        search.task(pid)?;
    }
    if !rules.listed.is_empty() {
        refuse_other_root(tree.root(), view, &rules.listed[0])?;
    }
    for path in &rules.listed {
        search.listed(path)?;
    }
    search.parents()?;
    Ok(search.found)
}

/// A listed path is looked up in the view's file system, so that has to be the tree's.
fn refuse_other_root(pid: u32, view: &View, path: &Path) -> Result<(), FilesError> {
    let of = |process: &Path, what: &str| {
        let link = process.join(what);
        fs::metadata(&link).map(|meta| (meta.dev(), meta.ino())).map_err(FilesError::io("read", link))
    };
    let process = PathBuf::from(format!("/proc/{pid}"));
    for (what, name) in [("ns/mnt", "mount namespace"), ("root", "root directory")] {
        if of(view.process(), what)? != of(&process, what)? {
            let reason =
                format!("process {pid} has a {name} of its own, and paths mean something else there");
            return Err(FilesError::NotListable { path: path.to_owned(), reason });
        }
    }
    Ok(())
}

struct Search<'a> {
    rules: &'a FileRules,
    view: &'a View,
    same: Vec<PathBuf>,
    mounts: Mounts,
    /// The mount namespace of the view.
    namespace: Option<PathBuf>,
    found: Found,
}

impl Search<'_> {
    fn task(&mut self, pid: u32) -> Result<(), FilesError> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let namespace = namespace(&process);
        if namespace != self.namespace {
            if namespace.is_none() {
                return Ok(());
            }
            tracing::warn!(pid, "files of this process are not carried: it has a mount namespace of its own");
            return Ok(());
        }
        for link in ["cwd", "root"] {
            self.open(process.join(link), false)?;
        }
        for entry in entries(&process.join("fd"))? {
            self.open(entry, false)?;
        }
        let mut seen = HashSet::new();
        let maps = process.join("maps");
        let text = match fs::read(&maps) {
            Ok(text) => text,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(FilesError::io("read", maps)(error)),
        };
        let text = String::from_utf8_lossy(&text);
        for line in text.lines() {
            let fields: Vec<&str> = line.splitn(6, ' ').collect();
            let [range, access, _, device, inode, file] = fields[..] else { continue };
            let shared = access.ends_with('s');
            // A library is mapped in several pieces, all alike. Shared ones may differ in what the file was opened for:
            // one that may write is enough.
            let key = (device, inode, file, shared);
            if inode != "0" && !is_memory(file) && !seen.contains(&key) {
                // The names in map_files have no leading zeros.
                let name =
                    range.split('-').map(|end| end.trim_start_matches('0')).collect::<Vec<_>>().join("-");
                let writable = self.open(process.join("map_files").join(name), shared)?;
                if writable || !shared {
                    seen.insert(key);
                }
            }
        }
        Ok(())
    }

    /// A link to something open or mapped; whether the tree may write to it. A private mapping never writes.
    fn open(&mut self, link: PathBuf, shared_mapping: bool) -> Result<bool, FilesError> {
        let looked = Status::followed(&link).and_then(|status| {
            Ok((status, fs::read_link(&link)?, fs::symlink_metadata(&link)?.mode() & libc::S_IWUSR != 0))
        });
        let (status, name, writable) = match looked {
            Ok(seen) => seen,
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(FilesError::io("look at", link)(error)),
        };
        if !(status.is_regular() || status.is_directory()) || !self.mounts.hold(&status) {
            return Ok(false);
        }
        let is_mapping = link.parent().is_some_and(|parent| parent.ends_with("map_files"));
        let writable = writable && status.is_regular() && (shared_mapping || !is_mapping);
        let there = Status::if_there(&self.view.at(&name)).map_err(FilesError::io("look at", &name))?;
        if there.is_some_and(|there| there.is_same_file(&status)) {
            if name == Path::new("/") {
                return Ok(false);
            }
            let policy = match self.rules.open {
                _ if self.is_same(&name) => Some(FilePolicy::Same).filter(|_| status.is_regular()),
                _ if !writable => Some(FilePolicy::Expect),
                OpenFiles::Carry => Some(FilePolicy::Carry),
                OpenFiles::Same => Some(FilePolicy::Same),
                OpenFiles::Ignore => None,
            };
            if let Some(policy) = policy {
                let writes_hide = writable && shared_mapping || self.mounts.hide_writes(&status);
                self.found.add(name, FoundFile { source: link, status, policy, writes_hide });
            }
        } else if status.is_regular() && status.links == 0 {
            let name = without_mark(&name);
            // CRIU puts it back beside where it was, and then removes its name.
            self.parents_of(&name)?;
            self.found.deleted.insert((status.device, status.inode), (name, status.weight()));
        }
        Ok(writable)
    }

    fn is_same(&self, path: &Path) -> bool {
        self.same.iter().any(|same| path.starts_with(same))
    }

    /// A path the user lists, and everything below it on the same mount.
    fn listed(&mut self, path: &Path) -> Result<(), FilesError> {
        let not_listable = |reason: String| FilesError::NotListable { path: path.to_owned(), reason };
        let root = self.view.canonical(path).map_err(|error| not_listable(error.to_string()))?;
        let top = Status::at(&self.view.at(&root)).map_err(|error| not_listable(error.to_string()))?;
        if !self.mounts.hold(&top) || root == Path::new("/") {
            return Err(not_listable("it is a view of the kernel, or the root of everything".into()));
        }
        if !(top.is_regular() || top.is_directory()) {
            return Err(not_listable("it is neither a file nor a directory".into()));
        }
        let mut left = vec![(root, top)];
        while let Some((path, status)) = left.pop() {
            if self.is_same(&path) {
                continue;
            }
            if status.is_directory() && status.mount == top.mount {
                for entry in entries(&self.view.at(&path))? {
                    match Status::if_there(&entry).map_err(FilesError::io("look at", &entry))? {
                        Some(status) => left.push((self.view.shown(&entry), status)),
                        None => continue,
                    }
                }
            } else if !(status.is_regular() || status.is_symlink() || status.is_directory()) {
                tracing::warn!(path = %path.display(), "not carried: it is a socket, a device or a named pipe");
                continue;
            }
            if self.found.files.len() > MAX_FILES {
                return Err(FilesError::TooMany { count: self.found.files.len() });
            }
            let writes_hide = self.mounts.hide_writes(&status);
            let source = self.view.at(&path);
            self.found.carry(path, source, status, writes_hide);
        }
        Ok(())
    }

    /// The directories that carried files are in: they may be missing where those are put back.
    fn parents(&mut self) -> Result<(), FilesError> {
        let carried = self.found.files.iter().filter(|(_, file)| file.policy == FilePolicy::Carry);
        let carried: Vec<PathBuf> = carried.map(|(path, _)| path.clone()).collect();
        carried.iter().try_for_each(|path| self.parents_of(path))
    }

    fn parents_of(&mut self, path: &Path) -> Result<(), FilesError> {
        for parent in path.ancestors().skip(1).filter(|parent| parent.parent().is_some()) {
            if self.found.files.get(parent).is_some_and(|known| known.policy == FilePolicy::Carry) {
                break;
            }
            let source = self.view.at(parent);
            match Status::if_there(&source).map_err(FilesError::io("look at", parent))? {
                Some(status) if status.is_directory() => {
                    self.found.carry(parent.to_owned(), source, status, false);
                }
                _ => continue,
            }
        }
        Ok(())
    }
}

/// What is in a directory, sorted; nothing if it is gone.
fn entries(directory: &Path) -> Result<BTreeSet<PathBuf>, FilesError> {
    let read = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    match read {
        Err(error) if is_gone(&error) => Ok(BTreeSet::new()),
        other => other.map_err(FilesError::io("read", directory)),
    }
}

/// Shared memory, as `/proc/PID/maps` names it: CRIU carries that as memory, and there can be a lot of it.
fn is_memory(name: &str) -> bool {
    let name = name.trim_start();
    name.ends_with(" (deleted)")
        && ["/dev/zero", "/memfd:", "/SYSV"].iter().any(|kind| name.starts_with(kind))
}

/// A process, descriptor or file that ended meanwhile; of a zombie `/proc` says as much.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn without_mark(name: &Path) -> PathBuf {
    let bytes = name.as_os_str().as_bytes();
    OsStr::from_bytes(bytes.strip_suffix(DELETED).unwrap_or(bytes)).into()
}
