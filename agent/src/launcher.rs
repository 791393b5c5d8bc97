//! What the agent and the launcher in front of a workload tell each other while the workload comes or goes.
//!
//! The rule is the launcher's, see [`migration_launch::watch`]: its container must not end, and so start the workload a
//! second time, when a checkpoint ended it. So it is told before the dump begins and again when the checkpoint exists,
//! before CRIU ends the tree. What it is not told leaves it waiting, which is the safe side.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use lazy_pages::server::Anchor;

use migration_launch::{
    LaunchError,
    control::Launcher,
    protocol::{Request, State},
};

use crate::{client, error::AgentError, tree};

/// A launcher that waits for a tree.
#[derive(Debug)]
pub struct Waiting {
    launcher: Launcher,
    directory: PathBuf,
    /// The same, for a page server.
    text: String,
}

impl Waiting {
    /// Finds the one with this control directory.
    ///
    /// # Errors
    /// When none answers, or it does not wait for a tree.
    pub fn connect(directory: &Path) -> Result<Self, AgentError> {
        let (launcher, state) = connect(directory)?;
        match state {
            State::Waits | State::Moved => {
                let text = client::wire_path(directory)?;
                Ok(Self { launcher, directory: directory.to_owned(), text })
            }
            _ => Err(unsuitable(directory, format!("it does not wait for a tree: it says `{state}`"))),
        }
    }

    /// The process whose container the tree is to run in.
    pub fn pid(&self) -> u32 {
        self.launcher.pid()
    }

    /// Its control directory.
    pub(crate) fn directory(&self) -> &str {
        &self.text
    }

    /// The standard streams of that container.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn streams(&self) -> Result<[OwnedFd; 3], AgentError> {
        self.launcher.streams().map_err(failed(&self.directory))
    }

    /// Hands a tree over that is about to run.
    ///
    /// # Errors
    /// When the launcher is gone or no longer waits. The tree must not run then: nobody would end it with its container.
    pub(crate) fn hand_over(&self, root: u32) -> Result<(), AgentError> {
        self.launcher.ask(Request::Runs(root)).map(drop).map_err(failed(&self.directory))
    }

    /// Tells how the tree's root has ended.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn ended(&self, status: migration_launch::ExitStatus) -> Result<(), AgentError> {
        self.launcher.ask(Request::Ended(status.0)).map(drop).map_err(failed(&self.directory))
    }
}

/// A launcher whose tree is being moved away. Dropped before [`Self::committed`], it is told that the tree stays.
#[derive(Debug)]
pub(crate) struct Leaving {
    launcher: Launcher,
    directory: PathBuf,
    committed: bool,
}

impl Leaving {
    /// Says that a checkpoint begins that ends the tree with this root.
    pub(crate) fn begin(directory: &Path, root: u32) -> Result<Self, AgentError> {
        let (launcher, state) = connect(directory)?;
        if !matches!(state, State::Runs(pid) | State::Leaves(pid) if pid == root) {
            return Err(unsuitable(
                directory,
                format!("it is not in front of pid {root}: it says `{state}`"),
            ));
        }
        launcher.ask(Request::Leaving).map_err(failed(directory))?;
        Ok(Self { launcher, directory: directory.to_owned(), committed: false })
    }

    /// Leaves it to whoever ends or keeps the tree to tell; see [`tell`].
    pub(crate) fn not_decided_yet(mut self) {
        self.committed = true;
    }

    /// Says that the checkpoint exists.
    pub(crate) fn committed(&mut self) {
        self.committed = true;
        // It waits for somebody who knows, then. The checkpoint exists whatever it knows.
        if let Err(error) = self.launcher.ask(Request::Left) {
            let launcher = self.directory.display();
            tracing::warn!(%launcher, %error, "the launcher does not know yet that its tree has been moved");
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.launcher.ask(Request::Stays)
        {
            let launcher = self.directory.display();
            tracing::warn!(%launcher, %error, "the launcher does not know that its tree stays");
        }
    }
}

/// The launcher with this control directory, as a fourth that holds a restored tree's descriptors.
///
/// # Errors
/// When none answers.
pub fn anchor(directory: &str) -> io::Result<Arc<dyn Anchor>> {
    let launcher = Launcher::connect(Path::new(directory)).and_then(|launcher| {
        launcher.keep_at_exec()?;
        Ok(launcher)
    });
    Ok(Arc::new(Held { launcher: launcher.map_err(io::Error::other)? }))
}

/// The page server's connection is that of its guardians too, as they share all descriptors: it ends with the last of them.
#[derive(Debug)]
struct Held {
    launcher: Launcher,
}

impl Anchor for Held {
    fn hold(&self, memory: BorrowedFd<'_>, process: Option<(u32, BorrowedFd<'_>)>) {
        let pid = process.map_or(0, |(pid, _)| pid);
        let descriptors: Vec<_> =
            [Some(memory), process.map(|(_, pidfd)| pidfd)].into_iter().flatten().collect();
        if let Err(error) = self.launcher.tell(Request::Hold(pid), &descriptors) {
            tracing::error!(pid, %error, "the launcher does not hold this memory: only the page server and its guardians do");
        }
    }

    fn release(&self) {
        if let Err(error) = self.launcher.tell(Request::Release, &[]) {
            tracing::error!(%error, "the launcher was not told that it needs to hold nothing any more");
        }
    }
}

/// What became of a tree whose checkpoint had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is, or can be, somewhere else.
    Left,
    /// It goes on here, or has ended here.
    Stays,
}

/// Tells the launcher with this control directory what became of its tree. One that cannot be told goes on waiting.
pub(crate) fn tell(directory: &Path, fate: Fate) {
    let request = match fate {
        Fate::Left => Request::Left,
        Fate::Stays => Request::Stays,
    };
    let told = Launcher::connect(directory).and_then(|launcher| launcher.ask(request));
    if let Err(error) = told {
        tracing::warn!(launcher = %directory.display(), %error, ?fate, "the launcher does not know what became of its tree");
    }
}

/// The root of the tree that the launcher with this control directory is in front of.
///
/// # Errors
/// When none answers, or it has no tree.
pub fn root_of(directory: &Path) -> Result<u32, AgentError> {
    match connect(directory)?.1 {
        State::Runs(pid) | State::Leaves(pid) => Ok(pid),
        state => Err(unsuitable(directory, format!("it has no tree: it says `{state}`"))),
    }
}

/// What is behind a launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The root of the tree, if it lives.
    pub root: Option<u32>,
    /// A checkpoint or a handover under way may end it at any moment, or has stopped it.
    pub leaves: bool,
}

/// What the launcher with this control directory is in front of.
///
/// # Errors
/// When none answers.
pub fn behind(directory: &Path) -> Result<Behind, AgentError> {
    let (root, leaves) = match connect(directory)?.1 {
        State::Runs(pid) => (Some(pid), false),
        State::Leaves(pid) => (Some(pid), true),
        State::Undecided | State::Moved | State::Waits => (None, false),
    };
    Ok(Behind { root: root.filter(|pid| tree::is_alive(*pid)), leaves })
}

fn connect(directory: &Path) -> Result<(Launcher, State), AgentError> {
    let launcher = Launcher::connect(directory).map_err(failed(directory))?;
    let state = launcher.ask(Request::Status).map_err(failed(directory))?;
    Ok((launcher, state))
}

fn failed(directory: &Path) -> impl FnOnce(LaunchError) -> AgentError {
    |error| unsuitable(directory, error.to_string())
}

fn unsuitable(directory: &Path, reason: String) -> AgentError {
    AgentError::Launcher { directory: directory.to_owned(), reason }
}
