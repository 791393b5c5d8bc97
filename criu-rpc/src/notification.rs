//! The points of a dump or restore at which CRIU stops and asks whether to go on.

use migration_proto::criu::rpc::CriuNotify;

/// A point at which CRIU waits for its caller. Where a failed handler makes CRIU give up is said for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// Dump, before the tree is frozen. Failing ends the dump.
    PreDump,
    /// Dump, everything written, the tree still frozen. Failing ends the dump and the tree goes on running; after success
    /// nothing can stop CRIU from killing it, unless it is to be left running.
    PostDump,
    /// Dump of a tree with its own network namespace, before packets are held back. Failing ends the dump.
    NetworkLock,
    /// Packets may pass again.
    NetworkUnlock,
    /// Dump, the tree frozen, before its descriptors are looked at.
    QueryExternalFiles,
    /// Restore, before anything is created. Failing ends the restore.
    PreRestore,
    /// Restore, namespaces of the root created, it being the process `pid`. Failing ends the restore.
    SetupNamespaces {
        /// Process id as CRIU sees it.
        pid: u32,
    },
    /// Restore, namespaces complete. Failing ends the restore.
    PostSetupNamespaces,
    /// Restore, all tasks rebuilt, none runs yet. Failing ends the restore and kills them.
    PostRestore {
        /// Process id of the root as CRIU sees it.
        pid: u32,
    },
    /// Restore, tasks about to run. Failing is ignored by CRIU.
    PreResume,
    /// Restore, tasks run. Failing is ignored by CRIU.
    PostResume,
    /// Any other point.
    Other(String),
}

impl Notification {
    /// `None` when a promised process id is missing.
    pub(crate) fn from_wire(notify: CriuNotify) -> Option<Self> {
        let script = notify.script.unwrap_or_default();
        let pid = || notify.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid != 0);
        Some(match script.as_str() {
            "pre-dump" => Self::PreDump,
            "post-dump" => Self::PostDump,
            "network-lock" => Self::NetworkLock,
            "network-unlock" => Self::NetworkUnlock,
            "query-ext-files" => Self::QueryExternalFiles,
            "pre-restore" => Self::PreRestore,
            "setup-namespaces" => Self::SetupNamespaces { pid: pid()? },
            "post-setup-namespaces" => Self::PostSetupNamespaces,
            "post-restore" => Self::PostRestore { pid: pid()? },
            "pre-resume" => Self::PreResume,
            "post-resume" => Self::PostResume,
            _ => Self::Other(script),
        })
    }
}
