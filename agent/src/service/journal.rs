//! What was asked for and how it ended, one small file an operation.
//!
//! A file is replaced as a whole (written beside it, made durable, renamed, the directory made durable), so after any crash
//! it is the old one or the new one. A record without an end is of an operation that was running. Ends are kept for a
//! week, the time in which a call may be repeated.
//!
//! A file that cannot be read is left where it is: nobody can tell what was done under its id any more, so calls with that id
//! are refused.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use migration_proto::agent::{
    CheckpointResult, ErrorDetail, FileRules, HandoverResult, Hook, OperationKind, RestoreResult, Source,
};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{error::AgentError, tree};

/// How long ends are kept. Callers that retry do so within minutes; a week helps people who look for what happened.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The layout of a record; a newer one is not guessed at.
const VERSION: u32 = 1;

const EXTENSION: &str = "json";

/// The name of an operation, chosen by its caller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OperationId(String);

impl FromStr for OperationId {
    type Err = AgentError;

    fn from_str(text: &str) -> Result<Self, AgentError> {
        let fits = (8..=64).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return Ok(Self(text.to_owned()));
        }
        Err(AgentError::Usage(format!("`{text}` is no operation id: 8 to 64 letters, digits, `-` and `_`")))
    }
}

impl TryFrom<String> for OperationId {
    type Error = AgentError;

    fn try_from(text: String) -> Result<Self, AgentError> {
        text.parse()
    }
}

impl From<OperationId> for String {
    fn from(id: OperationId) -> Self {
        id.0
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an operation is to do. Two calls with the same id must agree in all of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What kind.
    pub kind: Kind,
    /// cluster/namespace/app
    pub app: String,
    /// The root of the tree; 0 for a restore, and where a launcher is named, which knows it.
    pub pid: u32,
    /// The checkpoint asked for; empty for the newest, and for dumps.
    pub checkpoint: String,
    /// The strategy's name; empty for dumps that leave a checkpoint and no stopped tree.
    pub strategy: String,
    /// Carry TCP connections.
    pub tcp_established: bool,
    /// Before the freeze, or after the restore.
    pub hook: Option<Hook>,
    /// For how long a restored tree waits for a store; 0 for the default.
    pub patience_s: u64,
    /// Of a restore: how many requests at a time fetch what nobody waits for yet.
    #[serde(default)]
    pub prefetch: Option<u32>,
    /// Of a restore: which run it is to be; 0 for the next one.
    #[serde(default)]
    pub generation: u64,
    /// Of a restore: the machine a tree is stopped on.
    #[serde(default)]
    pub source: Option<Source>,
    /// Control directory of the launcher in front of the tree, or of the one that waits for it; empty for none.
    #[serde(default)]
    pub launcher: String,
    /// Of a dump: which files travel with it.
    #[serde(default)]
    pub files: Option<FileRules>,
    /// Of a pre-checkpoint: on how many it may build.
    #[serde(default)]
    pub max_chain_depth: Option<u32>,
    /// Of a dump: leave TCP connections behind.
    #[serde(default)]
    pub tcp_close: bool,
    /// Of a restore: what becomes of files that are in the way, as the API numbers it; 0 for the default.
    #[serde(default)]
    pub existing_files: i32,
}

impl Spec {
    /// An operation of this kind with this application, of which nothing else is said.
    pub fn new(kind: Kind, app: String) -> Self {
        Self {
            kind,
            app,
            pid: 0,
            checkpoint: String::new(),
            strategy: String::new(),
            tcp_established: false,
            hook: None,
            patience_s: 0,
            prefetch: None,
            generation: 0,
            source: None,
            launcher: String::new(),
            files: None,
            max_chain_depth: None,
            tcp_close: false,
            existing_files: 0,
        }
    }

    /// Whether a tree is stopped, or a stopped one run.
    pub fn hands_over(&self) -> bool {
        matches!(self.strategy.as_str(), "lazy-direct" | "lazy-hybrid")
    }
}

/// What operations do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A checkpoint of a tree that goes on.
    PreCheckpoint,
    /// A checkpoint of a tree that ends.
    FinalDump,
    /// A tree comes back.
    Restore,
}

impl Kind {
    /// Its name in the API.
    pub fn wire(self) -> OperationKind {
        match self {
            Self::PreCheckpoint => OperationKind::PreCheckpoint,
            Self::FinalDump => OperationKind::FinalDump,
            Self::Restore => OperationKind::Restore,
        }
    }

    /// A word for people, programs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::PreCheckpoint => "pre-checkpoint",
            Self::FinalDump => "final-dump",
            Self::Restore => "restore",
        }
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// With a checkpoint.
    Checkpoint(CheckpointResult),
    /// With a tree that runs.
    Restore(RestoreResult),
    /// With a tree that is stopped.
    Handover(HandoverResult),
    /// With nothing changed, or as it says.
    Failed(ErrorDetail),
}

/// The end of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// When.
    pub unix_ms: u64,
    /// How.
    pub outcome: Outcome,
}

/// A process for as long as the machine runs: its pid alone may be given to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    /// Its pid.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub started: u64,
    /// Which run of the machine.
    pub boot: String,
}

impl ProcessName {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: tree::started(pid)?, boot: boot() })
    }

    /// Whether this very process runs.
    pub fn is_alive(&self) -> bool {
        tree::is_alive(self.pid) && Self::of(self.pid).as_ref() == Some(self)
    }
}

/// Which run of the machine this is; see random(4).
pub fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Its name.
    pub id: OperationId,
    /// What it is to do.
    pub spec: Spec,
    /// Whether somebody asked for it who may touch every application.
    pub by_operator: bool,
    /// When it began.
    pub started_unix_ms: u64,
    /// Which run of the machine it began in.
    pub boot: String,
    /// The root of the tree: from the beginning of a dump, from the end of a restore.
    pub tree: Option<ProcessName>,
    /// The checkpoint it makes, or restores once that is known.
    pub checkpoint: Option<String>,
    /// `None` while it runs.
    pub end: Option<End>,
}

impl Record {
    /// The root of the tree that is dumped; 0 if nobody could tell it.
    pub fn pid(&self) -> u32 {
        self.tree.as_ref().map_or(self.spec.pid, |tree| tree.pid)
    }

    /// An operation that begins now.
    pub fn new(id: OperationId, spec: Spec, by_operator: bool) -> Self {
        Self {
            version: VERSION,
            id,
            spec,
            by_operator,
            started_unix_ms: unix_ms(),
            boot: boot(),
            tree: None,
            checkpoint: None,
            end: None,
        }
    }
}

/// Now, in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The directory of records. Only one agent uses it at a time.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    _lock: Flock<fs::File>,
}

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub struct Held {
    /// Records, in no order.
    pub records: Vec<Record>,
    /// Names of files that are no records.
    pub unreadable: Vec<String>,
}

impl Journal {
    /// Opens the journal in `directory`, or makes one.
    ///
    /// # Errors
    /// When another agent uses it, or the directory cannot be used.
    pub fn open(directory: &Path) -> Result<(Self, Held), AgentError> {
        let failed = |verb| AgentError::path(verb, directory);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("create"))?;
        let lock = fs::File::create(directory.join("lock")).map_err(failed("lock"))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| AgentError::Io {
                what: format!("another agent uses {}, or it cannot be locked", directory.display()),
                source: errno.into(),
            })?;
        let journal = Self { directory: directory.to_owned(), _lock: lock };
        let mut held = Held::default();
        for entry in fs::read_dir(directory).map_err(failed("read"))? {
            let path = entry.map_err(failed("read"))?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match read(&path, &name) {
                Ok(record) if is_old(&record) => journal.forget(&record.id),
                Ok(record) => held.records.push(record),
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "a record of the journal cannot be read");
                    held.unreadable.push(name);
                }
            }
        }
        Ok((journal, held))
    }

    /// Writes a record, durably.
    ///
    /// # Errors
    /// When that fails; the record before is still there then, or was replaced all the same.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.as_file().sync_all()?;
        file.persist(self.path(&record.id)).map_err(|error| error.error)?;
        fs::File::open(&self.directory)?.sync_all()
    }

    /// Removes a record. One that stays is removed another time.
    pub fn forget(&self, id: &OperationId) {
        if let Err(error) = fs::remove_file(self.path(id)) {
            tracing::warn!(%id, %error, "an old record of the journal stays");
        }
    }

    fn path(&self, id: &OperationId) -> PathBuf {
        self.directory.join(format!("{id}.{EXTENSION}"))
    }
}

/// Whether nobody will ask for it any more.
pub fn is_old(record: &Record) -> bool {
    let age = |end: &End| Duration::from_millis(unix_ms().saturating_sub(end.unix_ms));
    record.end.as_ref().is_some_and(|end| age(end) > KEPT)
}

fn read(path: &Path, name: &str) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    if record.version != VERSION || record.id.0 != name {
        let what = format!("version {} of operation {}", record.version, record.id);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        let spec = Spec { pid: 7, ..Spec::new(Kind::FinalDump, "local/default/app".into()) };
        Record::new(id.parse().unwrap(), spec, true)
    }

    fn ended(id: &str, unix_ms: u64) -> Record {
        let outcome = Outcome::Checkpoint(CheckpointResult { frozen_ms: Some(1.5), ..Default::default() });
        Record { end: Some(End { unix_ms, outcome }), ..record(id) }
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_and_what_is_old_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, held) = Journal::open(directory.path()).unwrap();
        assert!(held.records.is_empty());
        let (running, mut done) = (record("running-1"), ended("done-0001", unix_ms()));
        let old = ended("old-00001", unix_ms() - KEPT.as_millis() as u64 - 1000);
        for one in [&running, &record("done-0001"), &done, &old] {
            journal.write(one).unwrap();
        }
        drop(journal);

        let (_journal, held) = Journal::open(directory.path()).unwrap();

        let mut records = held.records;
        records.sort_by(|a, b| a.id.cmp(&b.id));
        done.started_unix_ms = records[0].started_unix_ms;
        assert_eq!(records, [done, running]);
        assert!(held.unreadable.is_empty());
        assert!(!directory.path().join("old-00001.json").exists());
    }

    #[test]
    fn a_damaged_a_misplaced_and_a_newer_record_are_named_and_left() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        journal.write(&record("damaged-1")).unwrap();
        journal.write(&record("misplaced")).unwrap();
        journal.write(&Record { version: 2, ..record("newer-001") }).unwrap();
        drop(journal);
        let path = |name: &str| directory.path().join(name);
        let bytes = fs::read(path("damaged-1.json")).unwrap();
        fs::write(path("damaged-1.json"), &bytes[..bytes.len() / 2]).unwrap();
        fs::rename(path("misplaced.json"), path("elsewhere.json")).unwrap();

        let (_journal, held) = Journal::open(directory.path()).unwrap();

        let mut unreadable = held.unreadable;
        unreadable.sort();
        assert_eq!(unreadable, ["damaged-1", "elsewhere", "newer-001"]);
        assert!(held.records.is_empty());
        assert!(path("damaged-1.json").exists());
    }

    #[test]
    fn two_agents_do_not_share_a_journal() {
        let directory = tempfile::tempdir().unwrap();
        let (_first, _) = Journal::open(directory.path()).unwrap();
        let refused = Journal::open(directory.path()).unwrap_err();
        assert!(refused.to_string().contains("another agent"), "{refused}");
    }

    #[test]
    fn an_id_is_a_file_name_and_nothing_else() {
        for bad in ["", "short", "../../etc/passwd", "with space", "dot.dot.dot", &"x".repeat(65)] {
            assert!(bad.parse::<OperationId>().is_err(), "{bad}");
        }
        "01JD0000000000000000000000".parse::<OperationId>().unwrap();
    }

    #[test]
    fn a_process_is_not_taken_for_the_one_that_had_its_pid_before() {
        let here = ProcessName::of(std::process::id()).unwrap();
        assert!(here.is_alive());
        assert!(!ProcessName { started: here.started + 1, ..here.clone() }.is_alive());
        assert!(!ProcessName { boot: "another".into(), ..here }.is_alive());
    }
}
