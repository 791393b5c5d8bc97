//! Looking at page servers from outside: which there are on this machine, and how far they are.
//!
//! A page server's state is memory with a name, which every process of it has open; whoever may look at their descriptors
//! finds it there. Nobody is asked, so a server that hangs, or is dead, can be looked at too.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use serde::Serialize;

use crate::server::{
    ServerStats,
    daemon::{self, DaemonConfig},
    journal::Phase,
    saved::{CONFIG_NAME, Saved},
    state::{Role, STATE_NAME, State},
};

/// The processes of one page server, and its state.
#[derive(Debug)]
pub struct Daemon {
    pub(super) state: State,
    pub(super) config: DaemonConfig,
}

/// How things stand with one page server.
#[derive(Clone, Debug, Serialize)]
pub struct DaemonStatus {
    /// The process that serves; `None` while it is being replaced.
    pub server: Option<u32>,
    /// The process that starts servers.
    pub guardian: Option<u32>,
    /// The process that becomes the guardian.
    pub standby: Option<u32>,
    /// Servers died again and again: no other is started unless one is attached.
    pub needs_attach: bool,
    /// What it serves.
    pub restores: Vec<RestoreStatus>,
}

/// How things stand with one restore.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreStatus {
    /// Whose checkpoint.
    pub app: String,
    /// Which one, once that is known.
    pub checkpoint: Option<String>,
    /// Where its images were put.
    pub directory: PathBuf,
    /// How far it is: `new`, `preparing`, `listening`, `restoring`, `running` or `over`.
    pub phase: &'static str,
    /// The exit code it ended with, once nothing is left to be done.
    pub outcome: Option<u8>,
    /// Its numbers. Missing pages and waits are those of at most a fifth of a second ago.
    pub stats: ServerStats,
}

/// Every page server of root's or of this process's own user.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn find() -> io::Result<Vec<Daemon>> {
    let mut found: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let name = format!("/memfd:{STATE_NAME}");
    let own = rustix::process::geteuid().as_raw();
    for process in fs::read_dir("/proc")?.flatten() {
        // What anybody else calls a page server's state is not believed.
        if !process.metadata().is_ok_and(|meta| meta.uid() == 0 || meta.uid() == own) {
            continue;
        }
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let path = descriptor.path();
            if fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().starts_with(&name))
                && let Ok(meta) = fs::metadata(&path)
            {
                found.entry((meta.dev(), meta.ino())).or_default().push(path);
            }
        }
    }
    Ok(found.into_values().filter_map(|open| Daemon::open(&open).ok()).collect())
}

impl Daemon {
    /// `open`: where the state is open. Others who look at it, as this process does, are among them.
    fn open(open: &[PathBuf]) -> io::Result<Self> {
        let file = open.iter().find_map(|path| OpenOptions::new().read(true).write(true).open(path).ok());
        let state = State::open(file.ok_or(io::ErrorKind::NotFound)?.into())?;
        let holder =
            ROLES.into_iter().find_map(|role| holder(&state, role)).ok_or(io::ErrorKind::NotFound)?;
        let config = Saved::read(&read_of(holder, state.config())?)?;
        if config.restores.len() != state.journals().len() {
            return Err(io::Error::other("its configuration does not fit its state"));
        }
        Ok(Self { state, config })
    }

    /// The process that has a role, if it lives.
    pub fn holder(&self, role: Role) -> Option<u32> {
        holder(&self.state, role)
    }

    /// A living process with all of its descriptors.
    pub(super) fn member(&self) -> Option<u32> {
        ROLES.into_iter().find_map(|role| self.holder(role))
    }

    /// How things stand.
    pub fn status(&self) -> DaemonStatus {
        let restores = self.config.restores.iter().zip(self.state.journals());
        let restore = |(restore, journal): (&daemon::Restore, &std::sync::Arc<super::journal::Journal>)| {
            RestoreStatus {
                app: restore.app.to_string(),
                checkpoint: journal.checkpoint().map(|(id, _)| id.to_string()),
                directory: restore.directory.clone(),
                phase: name(journal.phase()),
                outcome: journal.outcome().filter(|_| journal.is_finished()),
                stats: ServerStats::of(journal),
            }
        };
        DaemonStatus {
            server: self.holder(Role::Server),
            guardian: self.holder(Role::Guardian),
            standby: self.holder(Role::Standby),
            needs_attach: self.state.is_vacant(),
            restores: restores.map(restore).collect(),
        }
    }

    /// Asks its guardian to go on as `program`, which then starts a server.
    ///
    /// # Errors
    /// When the path is too long.
    pub fn attach(&self, program: &std::path::Path) -> io::Result<()> {
        self.state.request(program)
    }
}

/// The longest-lived first.
const ROLES: [Role; 3] = [Role::Guardian, Role::Standby, Role::Server];

/// The process that has a role, if it lives: its number could mean another process by now, which has no such descriptor.
fn holder(state: &State, role: Role) -> Option<u32> {
    let pid = state.holder(role)?;
    let config = fs::read_link(format!("/proc/{pid}/fd/{}", state.config())).ok()?;
    config.to_string_lossy().starts_with(&format!("/memfd:{CONFIG_NAME}")).then_some(pid)
}

/// A living process other than this one that has a role.
pub(super) fn other_holder(state: &State) -> Option<u32> {
    ROLES.into_iter().filter_map(|role| holder(state, role)).find(|pid| *pid != std::process::id())
}

/// The content of a memory file that another process has open.
pub(super) fn read_of(pid: u32, number: i32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/fd/{number}"))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::New => "new",
        Phase::Preparing => "preparing",
        Phase::Listening => "listening",
        Phase::Restoring => "restoring",
        Phase::Running => "running",
        Phase::Over => "over",
    }
}
