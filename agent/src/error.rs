//! What can go wrong, said so that a person knows what happened and what to do next, and a program can tell cases apart.

use std::{io, path::PathBuf};

use criu_rpc::{CriuError, ImageError, PageStreamError};
use lazy_pages::{
    catalog::CatalogError,
    format::bundle::BundleError,
    ids::{AppId, CheckpointId},
    materialize::MaterializeError,
    reader::ReadError,
    server::SnapshotError,
    store::StoreError,
    verify::VerifyError,
    writer::{ParentError, WriteError},
};
use migration_launch::LaunchError;

use crate::files::FilesError;

/// Why an operation of the agent failed. Nothing it says happened is guessed: a checkpoint that fails leaves the process
/// running, a restore that fails leaves the checkpoint as it was.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The pid names no process, or one that is already dead.
    #[error("there is no process with pid {pid}")]
    NoSuchProcess {
        /// The pid asked for.
        pid: u32,
    },
    /// The tree contains this program itself, which cannot freeze itself.
    #[error("the tree of pid {pid} contains this program")]
    ContainsAgent {
        /// The pid asked for.
        pid: u32,
    },
    /// Memory of the process is served through userfaultfd, but not by a page server of this program; a dump would lose the
    /// pages that have not arrived.
    #[error(
        "memory of pid {pid} is served through userfaultfd by a program other than this: pages that have not arrived would be lost"
    )]
    StillLazy {
        /// The task that waits for pages.
        pid: u32,
    },
    /// Pages of the tree still arrive from a checkpoint of another application.
    #[error("pid {pid} is still being restored as {served}, and cannot be checkpointed as {asked} yet")]
    OtherApplication {
        /// The pid asked for.
        pid: u32,
        /// Whose checkpoint it is restored from.
        served: AppId,
        /// Whose checkpoint it was to be.
        asked: AppId,
    },
    /// The process was restored between the first look at it and the freeze.
    #[error("pid {pid} was being restored when the checkpoint began")]
    RestoredMeanwhile {
        /// The task that waits for pages.
        pid: u32,
    },
    /// Pages of the tree still arrive, and where they belong is not known for certain.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The checkpoint that pages of the tree still arrive from cannot be built on.
    #[error("pages of the tree still arrive from checkpoint {checkpoint}, which cannot be used in {store}")]
    Served {
        /// The checkpoint it is restored from.
        checkpoint: CheckpointId,
        /// The store the new checkpoint was to be in.
        store: String,
        /// Why not.
        source: Box<ParentError>,
    },
    /// Pages of the tree still arrive, so they cannot be read out of it.
    #[error(
        "pages of pid {pid} still arrive from the store, so its memory cannot be handed over yet; it can be checkpointed"
    )]
    StillArriving {
        /// The root of the tree.
        pid: u32,
    },
    /// More memory than a handover can describe.
    #[error("the tree has more memory than can be handed over")]
    TooLarge,
    /// Somebody else has claimed the generation and has not said that nothing of it runs.
    #[error(
        "generation {generation} runs on {host}, or will; the tree here stays stopped until it is known that nothing of it runs there"
    )]
    RunsElsewhere {
        /// The machine.
        host: String,
        /// What it has claimed.
        generation: u64,
    },
    /// A stopped tree was to be ended before anybody had taken it over.
    #[error("nobody has taken handover {id} over; its tree stays stopped")]
    NotHandedOver {
        /// The handover.
        id: CheckpointId,
    },
    /// A stopped tree was killed and is still there.
    #[error("the tree of pid {pid} was killed and has not ended yet")]
    NotEnded {
        /// Its root.
        pid: u32,
    },
    /// The tree of this handover was taken back or ended.
    #[error("handover {id} is over: its tree is not stopped any more")]
    HandoverOver {
        /// The handover.
        id: CheckpointId,
    },
    /// Somebody has let a stopped tree run: its memory may not be what was handed over.
    #[error("the tree of pid {pid}, which handover {id} had stopped, has run: somebody sent it SIGCONT")]
    HasRun {
        /// The handover.
        id: CheckpointId,
        /// Its root.
        pid: u32,
    },
    /// A pid that the restored tree needs belongs to somebody else.
    #[error("pid {pid} is taken by {by}, and the restored tree needs it")]
    PidTaken {
        /// The pid.
        pid: u32,
        /// The process that has it.
        by: String,
    },
    /// The application has no checkpoint.
    #[error("application {app} has no checkpoint in {store}")]
    NoCheckpoint {
        /// The application.
        app: AppId,
        /// The store.
        store: String,
    },
    /// The application has checkpoints, but not this one.
    #[error("application {app} has no checkpoint {id} in {store}")]
    UnknownCheckpoint {
        /// The application.
        app: AppId,
        /// The checkpoint asked for.
        id: CheckpointId,
        /// The store.
        store: String,
    },
    /// The checkpoint was taken on a machine this one cannot stand in for.
    #[error("the checkpoint needs {needs}; this machine has {has}")]
    WrongMachine {
        /// What it was taken on.
        needs: String,
        /// What is here.
        has: String,
    },
    /// Only root may freeze and rebuild processes.
    #[error("this needs root")]
    NotRoot,
    /// The kernel gives no userfaultfd to us.
    #[error("this kernel does not offer userfaultfd, which restoring on demand needs")]
    NoUserfaultfd,
    /// CRIU did not do what it was asked.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// CRIU's images could not be read or written.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// CRIU's stream of pages broke off or made no sense.
    #[error(transparent)]
    PageStream(#[from] PageStreamError),
    /// The archive of CRIU's images could not be made or read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The store did not do what it was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A checkpoint could not be found or deleted.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A checkpoint could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Files could not be carried or put back.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Images that are too large for the bundle could not be written.
    #[error(transparent)]
    Materialize(#[from] MaterializeError),
    /// A checkpoint is not complete.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The process that serves the pages of a lazy restore failed.
    #[error("the page server failed: {reason}")]
    PageServer {
        /// What it said.
        reason: String,
    },
    /// CRIU committed the dump although the checkpoint had been given up; cannot happen unless CRIU breaks its protocol.
    #[error("CRIU ended the dump without asking for the commit")]
    NoCommit,
    /// CRIU's flags of a page and of the area around it contradict each other.
    #[error(
        "CRIU's dump contradicts itself about {object} at {address:#x}: is it to be restored on demand or not?"
    )]
    LazyDisagreement {
        /// Whose memory.
        object: String,
        /// Where.
        address: u64,
    },
    /// CRIU failed after the checkpoint had been committed.
    #[error("checkpoint {checkpoint} is complete, but CRIU failed afterwards: {reason}")]
    AfterCommit {
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// What CRIU said.
        reason: String,
    },
    /// What was to be called before a freeze, or after a restore, failed.
    #[error("the {event} hook failed: {reason}")]
    Hook {
        /// Which one.
        event: &'static str,
        /// How.
        reason: String,
    },
    /// It was given up before it was too late for that.
    #[error("cancelled")]
    Cancelled,
    /// An agent that was asked refused, or failed.
    #[error("{message}")]
    Service {
        /// Its word for programs.
        reason: String,
        /// What happened.
        message: String,
        /// What it left as it was.
        left: String,
        /// What it says can be done.
        hint: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A directory this program needs cannot be used.
    #[error("no usable work directory: {reason}")]
    WorkDirectory {
        /// The directories tried and why they were not taken.
        reason: String,
    },
    /// A workload could not be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The launcher in front of the tree, or that is to be, cannot take part.
    #[error("the launcher at {}: {reason}", directory.display())]
    Launcher {
        /// Its control directory.
        directory: PathBuf,
        /// What it says, or what came instead of an answer.
        reason: String,
    },
    /// A control group a tree is to be restored into is out of reach.
    #[error("cannot put a process into the control group `{group}` of pid {pid}: {reason}")]
    ForeignGroup {
        /// Who is in it.
        pid: u32,
        /// Its line in `/proc/PID/cgroup`.
        group: String,
        /// Why not.
        reason: String,
    },
    /// A setting is missing or contradictory.
    #[error("{0}")]
    Usage(String),
}

impl AgentError {
    /// For `map_err` on operating system calls.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For `map_err` on file system calls.
    pub(crate) fn path(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what: format!("cannot {verb} {}", path.display()), source }
    }

    /// A word for programs; stable across versions.
    pub fn reason(&self) -> &str {
        match self {
            Self::NoSuchProcess { .. } => "no-such-process",
            Self::StillArriving { .. } => "still-arriving",
            Self::TooLarge => "too-large",
            Self::RunsElsewhere { .. } => "runs-elsewhere",
            Self::NotHandedOver { .. } => "not-handed-over",
            Self::NotEnded { .. } => "not-ended",
            Self::HandoverOver { .. } => "handover-over",
            Self::HasRun { .. } => "has-run",
            Self::ContainsAgent { .. } => "contains-agent",
            Self::StillLazy { .. } => "still-lazy",
            Self::OtherApplication { .. } => "other-application",
            Self::RestoredMeanwhile { .. } => "restored-meanwhile",
            Self::Snapshot(_) => "snapshot",
            Self::Served { .. } => "served-checkpoint",
            Self::PidTaken { .. } => "pid-taken",
            Self::NoCheckpoint { .. } => "no-checkpoint",
            Self::UnknownCheckpoint { .. } => "unknown-checkpoint",
            Self::WrongMachine { .. } => "wrong-machine",
            Self::NotRoot => "not-root",
            Self::NoUserfaultfd => "no-userfaultfd",
            Self::Criu(_) => "criu",
            Self::Images(_) => "images",
            Self::PageStream(_) => "page-stream",
            Self::Bundle(_) => "bundle",
            Self::Store(_) => "store",
            Self::Write(_) => "write",
            Self::Catalog(_) => "catalog",
            Self::Read(_) => "read",
            Self::Files(error) => error.reason(),
            Self::Materialize(_) => "images",
            Self::Verify(_) => "verify",
            Self::PageServer { .. } => "page-server",
            Self::NoCommit => "criu-protocol",
            Self::LazyDisagreement { .. } => "lazy-disagreement",
            Self::AfterCommit { .. } => "after-commit",
            Self::Cancelled => "cancelled",
            Self::Hook { .. } => "hook",
            Self::Service { reason, .. } => reason,
            Self::Io { .. } => "io",
            Self::WorkDirectory { .. } => "work-directory",
            Self::Launch(_) => "launch",
            Self::Launcher { .. } => "launcher",
            Self::ForeignGroup { .. } => "foreign-group",
            Self::Usage(_) => "usage",
        }
    }

    /// The store's part in it.
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error)
            | Self::Catalog(CatalogError::Store(error))
            | Self::Read(ReadError::Store(error) | ReadError::Catalog(CatalogError::Store(error))) => {
                Some(error)
            }
            Self::Write(WriteError::Store(error)) => Some(error),
            Self::Served { source, .. } => match &**source {
                ParentError::Store(error) | ParentError::Catalog(CatalogError::Store(error)) => Some(error),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether it says that data in the store is not what had been stored.
    pub fn is_damage(&self) -> bool {
        let manifest = |error: &CatalogError| matches!(error, CatalogError::Manifest { .. });
        match self {
            Self::Bundle(_) | Self::Verify(VerifyError::Damaged { .. }) => true,
            Self::Catalog(error) | Self::Read(ReadError::Catalog(error)) => manifest(error),
            Self::Read(error) | Self::Verify(VerifyError::Read(error)) => matches!(
                error,
                ReadError::Frame(_)
                    | ReadError::BundleChanged
                    | ReadError::Bundle(_)
                    | ReadError::HashesChanged
            ),
            Self::Served { source, .. } => {
                matches!(&**source, ParentError::Catalog(error) if manifest(error))
            }
            _ => false,
        }
    }

    /// What was left as it was, where the error itself knows.
    pub fn left(&self) -> Option<&str> {
        match self {
            Self::Service { left, .. } => Some(left.as_str()).filter(|left| !left.is_empty()),
            _ => None,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoSuchProcess { .. } => {
                "look the pid up with `ps`; a pid inside a container is not the host's"
            }
            Self::ContainsAgent { .. } => {
                "checkpoint the workload itself, not the shell or service that runs this"
            }
            Self::StillLazy { .. } => {
                "if another program restores it, wait until that is done, then retry; a program that uses userfaultfd itself cannot be checkpointed"
            }
            Self::OtherApplication { served, .. } => {
                return Some(format!("use `--app {served}`, or wait until its pages are there, then retry"));
            }
            Self::RestoredMeanwhile { .. } => "retry: it can be checkpointed although it is being restored",
            Self::Snapshot(_) => "wait until its pages are there, then retry",
            Self::Served { source, .. }
                if matches!(**source, ParentError::Catalog(CatalogError::UnknownCheckpoint { .. })) =>
            {
                "use the store it is restored from, or wait until its pages are there, then retry"
            }
            Self::PidTaken { .. } => {
                "end that process, or restore on another machine or in another pid namespace"
            }
            Self::NoCheckpoint { .. } => "`migration-agent list` shows what the store holds",
            Self::UnknownCheckpoint { app, .. } => {
                return Some(format!("`migration-agent list --app {app}` shows them"));
            }
            Self::Hook { .. } => "correct the hook, or let its failure be ignored, then retry",
            Self::WrongMachine { .. } => "restore it on a machine of the same kind",
            Self::NotRoot => "run it as root: freezing and rebuilding processes needs it",
            Self::NoUserfaultfd => {
                "use `--strategy full`, or a kernel built with CONFIG_USERFAULTFD; `migration-agent check` tells more"
            }
            Self::Service { hint, .. } => return Some(hint.clone()).filter(|hint| !hint.is_empty()),
            Self::Launcher { .. } => {
                "look whether the workload's container runs, and with which `--control` directory"
            }
            Self::ForeignGroup { .. } => {
                "the agent needs the host's control groups mounted, writable, and must not be in a control group namespace of its own"
            }
            Self::WorkDirectory { .. } => "give one with --work-dir; a tmpfs is best",
            Self::Catalog(CatalogError::Leased { .. }) => {
                "let the restore or checkpoint that uses it end; what a crash left behind expires after a day"
            }
            Self::Catalog(CatalogError::Pinned { app, name, .. }) => {
                return Some(format!("`migration-agent unpin --app {app} --name {name}`, then retry"));
            }
            Self::Catalog(CatalogError::PinTaken { app, name }) => {
                return Some(format!(
                    "use another name, or `migration-agent unpin --app {app} --name {name}` first"
                ));
            }
            Self::Catalog(CatalogError::UnknownPin { app, .. }) => {
                return Some(format!("`migration-agent list --app {app}` shows what is pinned"));
            }
            Self::Catalog(CatalogError::DeleteUnderWay { .. }) => {
                "retry when that has ended; what a crash left behind expires after an hour"
            }
            Self::Criu(error) => return error.hint().map(str::to_owned),
            Self::Files(error) => return error.hint().map(str::to_owned),
            _ => return self.store_error().and_then(store_hint),
        };
        Some(hint.to_owned())
    }
}

fn store_hint(error: &StoreError) -> Option<String> {
    let hint = match error {
        StoreError::NoSuchStore { .. } => "create the bucket, or correct its name in the store address",
        StoreError::Denied { .. } => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or name a profile in the store address"
        }
        StoreError::NoConditionalCreate { .. } => {
            "use a store that honours `If-None-Match: *` (S3, MinIO), or a directory: file:///path"
        }
        StoreError::Unavailable { .. } => {
            "check the endpoint in the store address and the network, then retry"
        }
        StoreError::InvalidUrl { .. } => {
            "use file:///dir or s3://bucket/prefix?endpoint=http://host:port&region=us-east-1&path-style=true"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// An error and its causes, without repeating a cause that is already part of the text.
pub fn chain(error: &AgentError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
