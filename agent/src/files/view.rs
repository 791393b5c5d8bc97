//! Where a tree's paths lead to: the same place as this program's, or somewhere in a container.
//!
//! A container's files are reached through `/proc/PID/root` of a process in it; see proc_pid_root(5). The kernel follows a
//! symbolic link with an absolute target from the root of whoever asks, so a path is used this way only when no
//! directory in it is a link, and what a link leads to is found by openat2(2), which can be told another root.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::FilesError;

/// A file system as a tree sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// The process in it.
    process: PathBuf,
    /// Its root directory; `None` for this program's.
    root: Option<PathBuf>,
}

impl View {
    /// What this program sees.
    pub fn own() -> Self {
        Self { process: "/proc/self".into(), root: None }
    }

    /// What a process in a container sees; this program's view if it sees the same.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> Result<Self, FilesError> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let link = process.join("ns/mnt");
        let theirs = fs::read_link(&link).map_err(FilesError::io("read", link))?;
        if Self::own().namespace() == Some(theirs) {
            return Ok(Self::own());
        }
        let root = process.join("root");
        Ok(Self { process, root: Some(root) })
    }

    /// Which mount namespace it is.
    pub fn namespace(&self) -> Option<PathBuf> {
        namespace(&self.process)
    }

    /// Where its mounts are listed.
    pub fn mountinfo(&self) -> PathBuf {
        self.process.join("mountinfo")
    }

    /// What in `/proc` belongs to it.
    pub fn process(&self) -> &Path {
        &self.process
    }

    /// How this program reaches what the tree calls `path`, in whose directories there is no link.
    pub fn at(&self, path: &Path) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// What the tree calls what this program reaches by `path`.
    pub fn shown(&self, path: &Path) -> PathBuf {
        match self.root.as_ref().and_then(|root| path.strip_prefix(root).ok()) {
            Some(below) => Path::new("/").join(below),
            None => path.to_owned(),
        }
    }

    /// The path without links, as the tree would call it.
    pub fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        match &self.root {
            None => fs::canonicalize(path),
            Some(_) => {
                let found = self.open(path, ResolveFlags::IN_ROOT)?;
                fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
            }
        }
    }

    /// Refuses a path that a link in one of its directories could lead out of the container.
    pub fn refuse_links(&self, path: &Path) -> Result<(), FilesError> {
        let Some(directory) = path.parent().filter(|_| self.root.is_some()) else { return Ok(()) };
        match self.open(directory, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS) {
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                let problem = format!("{} is behind a symbolic link", path.display());
                Err(FilesError::NotTheSame { problems: vec![problem] })
            }
            // What is missing will be made, below a directory that was looked at for another path.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.refuse_links(directory),
            other => other.map(drop).map_err(FilesError::io("look at", directory)),
        }
    }

    fn open(&self, path: &Path, how: ResolveFlags) -> io::Result<OwnedFd> {
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(openat2(root, path, flags, Mode::empty(), how | ResolveFlags::NO_MAGICLINKS)?)
    }
}

/// Which mount namespace a process is in; a dead one is in none.
pub fn namespace(process: &Path) -> Option<PathBuf> {
    fs::read_link(process.join("ns/mnt")).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory that stands for a container's root.
    fn view_of(root: &Path) -> View {
        View { process: "/proc/self".into(), root: Some(root.to_owned()) }
    }

    #[test]
    fn a_path_is_the_same_there_and_back() {
        let view = view_of(Path::new("/proc/7/root"));
        assert_eq!(view.at(Path::new("/var/log/a")), Path::new("/proc/7/root/var/log/a"));
        assert_eq!(view.shown(Path::new("/proc/7/root/var/log/a")), Path::new("/var/log/a"));
        assert_eq!(view.shown(Path::new("/elsewhere")), Path::new("/elsewhere"));
        assert_eq!(View::own().at(Path::new("/var")), Path::new("/var"));
    }

    #[test]
    fn no_link_leads_out_of_the_container() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("data/inner")).unwrap();
        symlink("/data", root.join("link")).unwrap();
        symlink("../..", root.join("data/up")).unwrap();
        let view = view_of(&root);

        assert_eq!(view.canonical(Path::new("/link/inner")).unwrap(), root.join("data/inner"));
        assert_eq!(view.canonical(Path::new("/data/up")).unwrap(), root);
        view.refuse_links(Path::new("/data/inner/file")).unwrap();
        view.refuse_links(Path::new("/data/new/deep/file")).unwrap();
        for behind in ["/link/file", "/link/new/file", "/data/up/etc/file"] {
            let refused = view.refuse_links(Path::new(behind)).unwrap_err();
            assert!(refused.to_string().contains("behind a symbolic link"), "{behind}: {refused}");
        }
    }

    #[test]
    fn a_process_that_sees_what_this_one_does_has_no_view_of_its_own() {
        assert!(View::of(std::process::id()).unwrap().root.is_none());
        assert!(View::of(u32::MAX >> 1).is_err());
    }
}
