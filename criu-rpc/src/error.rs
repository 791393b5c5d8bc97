//! Why CRIU did not do what it was asked, in its own words, with a kind where the words are known, and what to do.

use std::{error::Error, fmt, io, path::PathBuf, process::ExitStatus, time::Duration};

use crate::{images::ImageError, version::Version};

/// What a notification handler fails with.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// The requests made to CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// What version are you?
    Version,
    /// What can this kernel do?
    Features,
    /// Do you work on this kernel?
    Check,
    /// Write the images of a tree.
    Dump,
    /// Rebuild a tree from images.
    Restore,
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "version request",
            Self::Features => "feature check",
            Self::Check => "check",
            Self::Dump => "dump",
            Self::Restore => "restore",
        })
    }
}

/// Why a request to CRIU failed.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// There is no CRIU.
    #[error("no criu binary found: {looked}")]
    NotFound {
        /// Where it was looked for.
        looked: String,
    },
    /// The file that was named cannot be run.
    #[error("{} is not an executable file", path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
    },
    /// It lacks interfaces that are needed.
    #[error("criu {found} at {} is too old, at least {minimum} is needed", path.display())]
    TooOld {
        /// The binary.
        path: PathBuf,
        /// What it is.
        found: Version,
        /// What it should be.
        minimum: Version,
    },
    /// The binary could not be started.
    #[error("cannot start {}", path.display())]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A system call around the session failed.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The options take more room than a message may have.
    #[error("the request takes {bytes} bytes, more than one message to criu may have")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The images were found to be unusable before CRIU was started.
    #[error("the images cannot be restored")]
    Images(#[from] ImageError),
    /// CRIU answered that it failed.
    #[error(transparent)]
    Refused(Box<Failure>),
    /// CRIU ended without an answer.
    #[error("criu ended during {request} without an answer ({status}){}", after_colon(lines))]
    Crashed {
        /// What it was doing.
        request: RequestKind,
        /// How it ended.
        status: ExitStatus,
        /// Its error lines.
        lines: Vec<String>,
    },
    /// CRIU took too long and was ended.
    #[error("criu did not finish {request} within {} s and was ended{}", limit.as_secs_f32(), after_colon(lines))]
    Deadline {
        /// What it was doing.
        request: RequestKind,
        /// The time it had, not counting the time spent in handlers.
        limit: Duration,
        /// Its error lines.
        lines: Vec<String>,
    },
    /// The caller gave the request up, and CRIU was ended.
    #[error("{request} was given up{}", after_colon(lines))]
    GivenUp {
        /// What CRIU was doing.
        request: RequestKind,
        /// Its error lines.
        lines: Vec<String>,
    },
    /// CRIU's answer makes no sense.
    #[error("criu answered {request} with {what}")]
    Protocol {
        /// What was asked.
        request: RequestKind,
        /// What came.
        what: String,
    },
    /// The caller's notification handler failed, and CRIU gave up because of that: a dumped tree runs on, a half restored
    /// one is gone.
    #[error("stopped by a failed notification handler")]
    Handler(#[source] HandlerError),
    /// The caller's notification handler failed at a point where CRIU does not care, and CRIU finished: a restored tree is
    /// running.
    #[error("a notification handler failed, but criu finished")]
    HandlerIgnored(#[source] HandlerError),
}

impl CriuError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { .. } => Some("install CRIU, or name its path with --criu or MIGRATION_CRIU"),
            Self::NotExecutable { .. } => Some("name the criu binary itself with --criu or MIGRATION_CRIU"),
            Self::TooOld { .. } => {
                Some("install a newer CRIU and name its path with --criu or MIGRATION_CRIU")
            }
            Self::Images(_) => Some("check that the directory exists and holds a complete set of images"),
            Self::Refused(failure) => failure.hint(),
            Self::Crashed {
                request: RequestKind::Version | RequestKind::Features | RequestKind::Check,
                ..
            } => Some(
                "this CRIU does not work on this kernel; install a newer one and name it with MIGRATION_CRIU",
            ),
            _ => None,
        }
    }

    /// What CRIU failed on, when it answered that it failed.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Refused(failure) => Some(&failure.cause),
            _ => None,
        }
    }
}

/// CRIU's own account of a failure.
#[derive(Debug)]
pub struct Failure {
    /// What it was asked for.
    pub request: RequestKind,
    /// `cr_errno`, which CRIU sets in a few cases only.
    pub errno: Option<i32>,
    /// What it failed on, if its words are known.
    pub cause: Cause,
    /// Its error lines, the first of which usually name the cause.
    pub lines: Vec<String>,
}

impl Failure {
    pub(crate) fn new(
        request: RequestKind,
        pid: Option<u32>,
        errno: Option<i32>,
        lines: Vec<String>,
    ) -> Self {
        let cause = Cause::recognise(request, pid, errno, &lines);
        Self { request, errno, cause, lines }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match (&self.cause, self.request) {
            // Asked to check, it does not even begin a log.
            (Cause::Unknown, RequestKind::Check) => Some(
                "`criu check` tells why, on a command line where this runs (in a container, often that /proc/sys is read-only); \
                 where the kernel is too new for it, install a newer one and name it with MIGRATION_CRIU",
            ),
            (Cause::Unknown, RequestKind::Version | RequestKind::Features) => Some(
                "this CRIU does not work on this kernel; install a newer one and name it with MIGRATION_CRIU",
            ),
            (cause, _) => cause.hint(),
        }
    }
}

impl Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "criu {} failed: ", self.request)?;
        match (&self.cause, &self.lines[..], self.errno) {
            (Cause::Unknown, [], None) => f.write_str("it gave no reason"),
            (Cause::Unknown, [], Some(errno)) => write!(f, "{}", io::Error::from_raw_os_error(errno)),
            (Cause::Unknown, lines, _) => f.write_str(&joined(lines)),
            (cause, ..) => write!(f, "{cause}"),
        }
    }
}

/// What CRIU failed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Restore: a process or thread that has to be rebuilt under its old id finds the id in use.
    #[error("{} is in use", pid.map_or("a process id".to_owned(), |pid| format!("process id {pid}")))]
    PidTaken {
        /// The id, if CRIU named it.
        pid: Option<u32>,
    },
    /// Dump: there is no such process.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The process that was to be dumped.
        pid: u32,
    },
    /// Restore: a file the tree had open or mapped is not there.
    #[error("{path} is missing")]
    MissingFile {
        /// Its path; CRIU names it without the first `/` in places.
        path: String,
    },
    /// Restore: a file the tree had open or mapped has another size now.
    #[error("{path} has {found} bytes, but had {expected} when it was dumped")]
    FileSizeChanged {
        /// Its path.
        path: String,
        /// Bytes it has now.
        found: u64,
        /// Bytes it had.
        expected: u64,
    },
    /// The directory of images cannot be used, or lacks an image.
    #[error("the image directory cannot be used: {reason}")]
    ImageDirectory {
        /// CRIU's line.
        reason: String,
    },
    /// Dump: resource limits of a task of another user cannot be read.
    #[error("the resource limits of a task cannot be read")]
    ResourceLimits,
    /// Dump: the tree's session leader is not part of the tree.
    #[error("the session leader of process {pid} is outside of the tree")]
    SessionOutside {
        /// The process.
        pid: u32,
    },
    /// The tree uses a terminal that belongs to somebody else.
    #[error("the tree is attached to a terminal: {reason}")]
    Terminal {
        /// CRIU's line.
        reason: String,
    },
    /// Something else; see the error lines.
    #[error("unknown cause")]
    Unknown,
}

impl Cause {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::PidTaken { .. } => {
                "end or reap the process that has the id, or restore in a process id namespace of its own"
            }
            Self::NoSuchProcess { .. } => "name a running process",
            Self::MissingFile { .. } => "put the file back; CRIU's images hold no file contents",
            Self::FileSizeChanged { .. } => "put the file back as it was when the tree was dumped",
            Self::ImageDirectory { .. } => {
                "check that the directory exists and holds a complete set of images"
            }
            Self::ResourceLimits => {
                "the tree runs as another user: grant CAP_SYS_RESOURCE, or run the workload as root"
            }
            Self::SessionOutside { .. } => "start the workload in a session of its own (setsid)",
            Self::Terminal { .. } => "start the workload in a session of its own (setsid) without a terminal",
            Self::Unknown => return None,
        })
    }

    fn recognise(request: RequestKind, pid: Option<u32>, errno: Option<i32>, lines: &[String]) -> Self {
        if let Some(cause) = lines.iter().find_map(|line| Self::from_line(request, line)) {
            return cause;
        }
        match (request, errno, pid) {
            (RequestKind::Restore, Some(libc::EEXIST), _) => Self::PidTaken { pid: None },
            (RequestKind::Dump, Some(libc::ESRCH), Some(pid)) => Self::NoSuchProcess { pid },
            _ => Self::Unknown,
        }
    }

    fn from_line(request: RequestKind, line: &str) -> Option<Self> {
        if let Some(pid) = between(line, "Can't fork for ", ": File exists") {
            return Some(Self::PidTaken { pid: pid.parse().ok() });
        }
        if let Some((path, sizes)) =
            between(line, "File ", ")").and_then(|found| found.split_once(" has bad size "))
        {
            let (found, expected) = sizes.split_once(" (expect ")?;
            let (found, expected) = (found.parse().ok()?, expected.parse().ok()?);
            return Some(Self::FileSizeChanged { path: path.to_owned(), found, expected });
        }
        if request == RequestKind::Restore
            && let Some(path) = between(line, "Can't open file ", " on restore: No such file or directory")
        {
            return Some(Self::MissingFile { path: path.to_owned() });
        }
        if line.contains("Can't open images directory") || line.contains("Can't open dir ") {
            return Some(Self::ImageDirectory { reason: line.to_owned() });
        }
        if line.starts_with("Read ") && line.contains(" expected from ") {
            return Some(Self::ImageDirectory { reason: line.to_owned() });
        }
        if let Some((_, image)) = line.split_once("Unexpected EOF on ") {
            // CRIU treats an image that does not exist as an empty one.
            let image = if image == "(empty-image)" { "an image" } else { image };
            return Some(Self::ImageDirectory { reason: format!("{image} is missing or cut short") });
        }
        if line.contains("Can't get rlimit") {
            return Some(Self::ResourceLimits);
        }
        if line.contains("outside of its pid namespace") {
            let pid = between(line, "session leader of ", "(")?.parse().ok()?;
            return Some(Self::SessionOutside { pid });
        }
        if line.contains("Consider using --shell-job") || line.contains("without correspond master peer") {
            return Some(Self::Terminal { reason: line.to_owned() });
        }
        None
    }
}

/// What stands between two texts in a line; the end is looked for from the right.
fn between<'a>(line: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let after = &line[line.find(start)? + start.len()..];
    Some(&after[..after.rfind(end)?])
}

fn after_colon(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!(": {}", joined(lines)) }
}

/// Enough lines to know, few enough to read.
fn joined(lines: &[String]) -> String {
    const SHOWN: usize = 4;
    lines[..lines.len().min(SHOWN)].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(request: RequestKind, line: &str) -> Cause {
        Failure::new(request, Some(7), None, vec!["something before".to_owned(), line.to_owned()]).cause
    }

    #[test]
    fn known_lines_become_causes_that_name_the_pid_or_file() {
        use RequestKind::{Dump, Restore};
        assert_eq!(cause(Restore, "Can't fork for 42: File exists"), Cause::PidTaken { pid: Some(42) });
        assert_eq!(
            cause(Restore, "File var/log/a (1) has bad size 10 (expect 7)"),
            Cause::FileSizeChanged { path: "var/log/a (1)".to_owned(), found: 10, expected: 7 }
        );
        assert_eq!(
            cause(Restore, "Can't open file var/a: b on restore: No such file or directory"),
            Cause::MissingFile { path: "var/a: b".to_owned() }
        );
        assert_eq!(cause(Dump, "Can't get rlimit 0: Operation not permitted"), Cause::ResourceLimits);
        assert_eq!(
            cause(Dump, "A session leader of 5(5) is outside of its pid namespace"),
            Cause::SessionOutside { pid: 5 }
        );
        assert!(matches!(
            cause(Dump, "The root process 5 is not a session leader. Consider using --shell-job option"),
            Cause::Terminal { .. }
        ));
        assert_eq!(cause(Dump, "anything else"), Cause::Unknown);
    }

    #[test]
    fn error_numbers_decide_when_lines_do_not() {
        let missing = Failure::new(RequestKind::Dump, Some(7), Some(libc::ESRCH), Vec::new());
        assert_eq!(missing.cause, Cause::NoSuchProcess { pid: 7 });
        assert_eq!(missing.to_string(), "criu dump failed: there is no process 7");
        let taken = Failure::new(RequestKind::Restore, None, Some(libc::EEXIST), Vec::new());
        assert_eq!(taken.cause, Cause::PidTaken { pid: None });
    }
}
