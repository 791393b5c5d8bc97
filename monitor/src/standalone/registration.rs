//! Which applications there are, and where their processes are.
//!
//! On the command line: `NAME=PID`, `NAME=pidfile:PATH`, `NAME=launcher:DIR`. In a directory, one JSON file each, `*.json`:
//!
//! ```json
//! {"app": "cache", "launcher": "/run/migration"}
//! {"app": "prod/web", "pidFile": "/run/web.pid", "tcpEstablished": true, "paths": ["/var/lib/web"]}
//! ```
//!
//! Files whose name begins with a dot are left alone, so that one can be written under such a name and then renamed.

use std::{fs, io, path::Path, path::PathBuf, str::FromStr};

use serde::Deserialize;

/// Longest registration, in bytes.
const LONGEST: u64 = 64 << 10;

/// An application of this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Application {
    /// Its name: app, namespace/app or cluster/namespace/app.
    pub app: String,
    /// Its processes.
    pub target: Target,
    /// Whether to carry established TCP connections.
    pub tcp_established: bool,
    /// Files and directories that are carried whether open or not.
    pub paths: Vec<String>,
}

/// Where an application's processes are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The root of the tree.
    Pid(u32),
    /// A file with the pid of the root, read when it is needed.
    PidFile(PathBuf),
    /// The control directory of the launcher in front of the tree.
    Launcher(PathBuf),
}

/// Not an application.
#[derive(Debug, thiserror::Error)]
pub enum InvalidApplication {
    /// On the command line.
    #[error("`{0}` is no application: NAME=PID, NAME=pidfile:PATH or NAME=launcher:DIR")]
    Argument(String),
    /// A file that cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// A file that is something else.
    #[error("not a registration: {0}")]
    Json(#[from] serde_json::Error),
    /// A registration that does not say where the processes are, or says it twice.
    #[error("one of `pid`, `pidFile` and `launcher` is needed")]
    Target,
    /// A name that is none.
    #[error("`app` is empty")]
    Name,
    /// Longer than any registration.
    #[error("longer than {LONGEST} bytes")]
    TooLong,
}

impl FromStr for Application {
    type Err = InvalidApplication;

    fn from_str(text: &str) -> Result<Self, InvalidApplication> {
        let invalid = || InvalidApplication::Argument(text.to_owned());
        let (app, target) = text.split_once('=').filter(|(app, _)| !app.is_empty()).ok_or_else(invalid)?;
        let path =
            |path: &str| Some(PathBuf::from(path)).filter(|path| path.is_absolute()).ok_or_else(invalid);
        let target = match target.split_once(':') {
            Some(("launcher", directory)) => Target::Launcher(path(directory)?),
            Some(("pidfile", file)) => Target::PidFile(path(file)?),
            Some(_) => return Err(invalid()),
            None => Target::Pid(target.parse().ok().filter(|pid| *pid > 1).ok_or_else(invalid)?),
        };
        Ok(Self { app: app.to_owned(), target, tcp_established: false, paths: Vec::new() })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Registration {
    app: String,
    pid: Option<u32>,
    pid_file: Option<PathBuf>,
    launcher: Option<PathBuf>,
    #[serde(default)]
    tcp_established: bool,
    #[serde(default)]
    paths: Vec<String>,
}

impl Registration {
    fn check(self) -> Result<Application, InvalidApplication> {
        let Self { app, pid, pid_file, launcher, tcp_established, paths } = self;
        if app.is_empty() {
            return Err(InvalidApplication::Name);
        }
        let target = match (pid, pid_file, launcher) {
            (Some(pid), None, None) => Target::Pid(pid),
            (None, Some(file), None) => Target::PidFile(file),
            (None, None, Some(directory)) => Target::Launcher(directory),
            _ => return Err(InvalidApplication::Target),
        };
        Ok(Application { app, target, tcp_established, paths })
    }
}

/// The registrations in a directory, and what is wrong with those that are none. One bad file hides no other.
pub(super) fn read(directory: &Path) -> (Vec<Application>, Vec<String>) {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) => return (Vec::new(), vec![format!("{}: {error}", directory.display())]),
    };
    let (mut all, mut complaints) = (Vec::new(), Vec::new());
    let mut paths: Vec<PathBuf> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read_one(&path) {
            Ok(application) => all.push(application),
            Err(error) => complaints.push(format!("{}: {error}", path.display())),
        }
    }
    (all, complaints)
}

fn read_one(path: &Path) -> Result<Application, InvalidApplication> {
    if fs::metadata(path)?.len() > LONGEST {
        return Err(InvalidApplication::TooLong);
    }
    serde_json::from_slice::<Registration>(&fs::read(path)?)?.check()
}

/// The pid in a file.
pub(super) fn pid_in(file: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(file)?;
    let pid = text.trim_ascii().parse().ok().filter(|pid| *pid > 1);
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "holds no pid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_is_named_with_a_pid_a_file_or_a_launcher() {
        let target = |text: &str| text.parse::<Application>().unwrap().target;
        assert_eq!(target("cache=4711"), Target::Pid(4711));
        assert_eq!(target("cache=pidfile:/run/c.pid"), Target::PidFile("/run/c.pid".into()));
        assert_eq!(target("prod/ns/cache=launcher:/run/m"), Target::Launcher("/run/m".into()));
        for bad in ["", "cache", "=1", "cache=", "cache=1", "cache=x", "cache=launcher:m", "cache=pid:7"] {
            assert!(bad.parse::<Application>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_registration_is_told_of_and_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("a.json", r#"{"app": "a", "launcher": "/run/a"}"#);
        write("b.json", r#"{"app": "b", "pidFile": "/run/b", "tcpEstablished": true, "paths": ["/x"]}"#);
        write("c.json", r#"{"app": "c", "pid": 7, "launcher": "/run/c"}"#);
        write("d.json", r#"{"app": "d"}"#);
        write("e.json", "{");
        write("f.json", r#"{"app": "f", "pid": 7, "color": "red"}"#);
        write(".g.json", "{");
        write("h.txt", "{");
        let (all, complaints) = read(directory.path());
        let names: Vec<&str> = all.iter().map(|one| one.app.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(all[1].tcp_established);
        assert_eq!(all[1].paths, ["/x"]);
        assert_eq!(complaints.len(), 4, "{complaints:?}");
        assert_eq!(read(&directory.path().join("none")).1.len(), 1);
    }
}
