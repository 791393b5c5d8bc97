//! The process tree as `/proc` shows it: who is in it, and which of its descriptors lead to the outside.
//!
//! What is read from running processes can be out of date a moment later. It is used to refuse early, with a clear
//! reason, and to name streams. A checkpoint's correctness depends on it only where the tree was read while frozen; see
//! [`arriving`](crate::arriving).

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::PathBuf,
};

use lazy_pages::format::ExternalStream;
use serde::{Deserialize, Serialize};

use crate::error::AgentError;

/// A process tree: a root and everything below it.
#[derive(Debug)]
pub struct Tree {
    root: u32,
    tasks: BTreeMap<u32, Identity>,
}

/// Tells a task from what it was before: it changes when the pid is given to another process, when the task executes
/// another program, and when CRIU has made it what a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// When it was started, in clock ticks since the machine was.
    started: u64,
    /// Addresses of its code and stack, which execve(2) and CRIU's PR_SET_MM set, and nobody else.
    layout: [u64; 3],
}

impl Tree {
    /// Finds the tree below `root`.
    ///
    /// # Errors
    /// [`AgentError::NoSuchProcess`] when there is none or it is a zombie; [`AgentError::ContainsAgent`] when this very
    /// program is in it.
    pub fn of(root: u32) -> Result<Self, AgentError> {
        let gone = || AgentError::NoSuchProcess { pid: root };
        if read_stat(root).ok_or_else(gone)?.state == 'Z' {
            return Err(gone());
        }
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut identities = HashMap::new();
        for pid in all_pids() {
            if let Some(stat) = read_stat(pid) {
                children.entry(stat.parent).or_default().push(pid);
                identities.insert(pid, stat.identity);
            }
        }
        let mut tasks = BTreeMap::new();
        let mut queue = vec![root];
        while let Some(pid) = queue.pop() {
            if let Some(identity) = identities.remove(&pid) {
                tasks.insert(pid, identity);
                queue.extend(children.remove(&pid).unwrap_or_default());
            }
        }
        if !tasks.contains_key(&root) {
            return Err(gone());
        }
        if tasks.contains_key(&std::process::id()) {
            return Err(AgentError::ContainsAgent { pid: root });
        }
        Ok(Self { root, tasks })
    }

    /// Its root.
    pub fn root(&self) -> u32 {
        self.root
    }

    /// Its tasks, zombies included, and who they are.
    pub fn tasks(&self) -> &BTreeMap<u32, Identity> {
        &self.tasks
    }

    /// Whether its root's session was started by somebody outside, as with a job of a shell.
    pub fn session_is_outside(&self) -> bool {
        read_stat(self.root).is_some_and(|stat| !self.tasks.contains_key(&stat.session))
    }

    /// Pipes and terminals at standard input, output and error of any task that lead out of the tree.
    pub fn external_streams(&self) -> Vec<ExternalStream> {
        let mut pipes: BTreeMap<u64, PipeUse> = BTreeMap::new();
        let mut terminals: BTreeMap<String, u32> = BTreeMap::new();
        for &pid in self.tasks.keys() {
            for (fd, path) in descriptors(pid) {
                let Ok(meta) = fs::metadata(&path) else { continue };
                if meta.file_type().is_fifo() && is_anonymous_pipe(&path) {
                    pipes.entry(meta.ino()).or_default().note(fd, opened_for_writing(pid, fd));
                } else if fd <= 2 && is_terminal(&path, &meta) {
                    let key = format!("tty[{:x}:{:x}]", meta.rdev(), meta.dev());
                    let lowest = terminals.entry(key).or_insert(fd);
                    *lowest = fd.min(*lowest);
                }
            }
        }
        let pipes = pipes.into_iter().filter_map(|(inode, pipe)| {
            let stdio = pipe.leads_outside_as()?;
            Some(ExternalStream { key: format!("pipe:[{inode}]"), stdio })
        });
        pipes.chain(terminals.into_iter().map(|(key, stdio)| ExternalStream { key, stdio })).collect()
    }
}

/// Which ends of one pipe the tree holds.
#[derive(Default)]
struct PipeUse {
    read: bool,
    write: bool,
    stdio: Option<u32>,
}

impl PipeUse {
    fn note(&mut self, fd: u32, writing: bool) {
        if writing {
            self.write = true;
        } else {
            self.read = true;
        }
        if fd <= 2 {
            self.stdio = Some(self.stdio.map_or(fd, |known| known.min(fd)));
        }
    }

    /// The standard stream this pipe is, if its other end is held by nobody in the tree.
    fn leads_outside_as(&self) -> Option<u32> {
        self.stdio.filter(|_| self.read != self.write)
    }
}

fn is_anonymous_pipe(link: &PathBuf) -> bool {
    fs::read_link(link).is_ok_and(|target| target.to_string_lossy().starts_with("pipe:["))
}

fn is_terminal(link: &PathBuf, meta: &fs::Metadata) -> bool {
    meta.file_type().is_char_device()
        && fs::read_link(link).is_ok_and(|target| {
            let target = target.to_string_lossy();
            target.starts_with("/dev/pts/") || target.starts_with("/dev/tty")
        })
}

fn opened_for_writing(pid: u32, fd: u32) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0);
    flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect()
}

/// Every pid there is.
pub fn all_pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The name of a process for messages: its command and what it is.
pub fn describe(pid: u32) -> Option<String> {
    let stat = read_stat(pid)?;
    Some(match stat.state {
        'Z' => format!("`{}` (dead, but not yet collected by its parent {})", stat.command, stat.parent),
        _ => format!("`{}`", stat.command),
    })
}

/// Whether the process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    read_stat(pid).is_some_and(|stat| stat.state != 'Z')
}

/// Whether the process is stopped, as by `SIGSTOP`.
pub fn is_stopped(pid: u32) -> bool {
    read_stat(pid).is_some_and(|stat| stat.state == 'T')
}

/// Who the process is; `None` if there is none.
pub fn identity(pid: u32) -> Option<Identity> {
    read_stat(pid).map(|stat| stat.identity)
}

/// When a process that is no zombie was started, in clock ticks since the machine was: with its pid, that names it until the
/// next boot.
pub fn started(pid: u32) -> Option<u64> {
    read_stat(pid).filter(|stat| stat.state != 'Z').map(|stat| stat.identity.started)
}

/// Whether somebody traces a process, as CRIU does while it dumps or rebuilds it.
pub fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// The command of a process, as the kernel has it.
pub fn command(pid: u32) -> Option<String> {
    read_stat(pid).map(|stat| stat.command)
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    read_stat(pid).map(|stat| stat.parent)
}

struct Stat {
    command: String,
    state: char,
    parent: u32,
    session: u32,
    identity: Identity,
}

/// Reads `/proc/PID/stat`; see proc_pid_stat(5). The command may contain anything, so fields start after the last `)`.
fn read_stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = text.rsplit_once(") ")?;
    let command = head.split_once('(')?.1.to_owned();
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    // Fields 22, 26, 27 and 28; the session is field 6.
    let mut number = |skip| fields.nth(skip)?.parse().ok();
    let identity = Identity { started: number(15)?, layout: [number(3)?, number(0)?, number(0)?] };
    Some(Stat { command, state, parent, session, identity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_its_own_tree_and_so_refused() {
        let refused = Tree::of(std::process::id());
        assert!(matches!(refused, Err(AgentError::ContainsAgent { .. })), "{refused:?}");
    }

    #[test]
    fn a_child_is_alone_in_its_tree_and_its_piped_output_leads_outside() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let inode = fs::metadata(format!("/proc/{}/fd/1", child.id())).unwrap().ino();
        let tree = Tree::of(child.id()).unwrap();
        let streams = tree.external_streams();
        let outside = tree.session_is_outside();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(tree.tasks.len(), 1);
        assert_eq!(streams, [ExternalStream { key: format!("pipe:[{inode}]"), stdio: 1 }]);
        assert!(outside, "its session is this test's");
    }

    #[test]
    fn a_pid_nobody_has_is_refused() {
        let refused = Tree::of(u32::MAX / 2);
        assert!(matches!(refused, Err(AgentError::NoSuchProcess { .. })), "{refused:?}");
    }
}
