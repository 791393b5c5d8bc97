//! Who may register: the event loop's part that talks to CRIU.
//!
//! What always holds: a connection that has not registered anything can do no harm, whatever it sends. The first one that
//! registers a task of this checkpoint owns the restore; from then on, whatever goes wrong on it is a failed restore,
//! and its tasks are killed rather than left to run on zeros. So is a task that hands over its descriptor and cannot be
//! served. Nothing that was sent goes unread: a descriptor that waits in a socket is a task's memory, and closing the
//! socket would make zeros of it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    event::epoll,
    net::{Shutdown, shutdown},
};

use super::{EventLoop, Refused, Source, mark};
use crate::server::{
    journal::{MAX_CONNECTIONS, Number, Phase, Record},
    page_state::PageState,
    registration::{Connection, Message},
    space::Space,
    sys::uffd::{Uffd, is_userfaultfd},
    tree,
};

impl EventLoop {
    /// Takes new connections.
    pub(super) fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                // The latter once it is shut down.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::InvalidInput) =>
                {
                    return;
                }
                Err(error) => {
                    tracing::warn!("a connection cannot be accepted: {error}");
                    return;
                }
            };
            match Connection::new(stream) {
                Ok(connection) => {
                    self.close_oldest_connection();
                    self.journal.add_connection(connection.as_fd().as_raw_fd());
                    self.add_connection(connection);
                }
                Err(error) => tracing::warn!("a connection was refused: {error}"),
            }
        }
    }

    /// Descriptors must be left for what matters: children of the restored processes bring one each.
    fn close_oldest_connection(&mut self) {
        if self.connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.connections.keys().filter(|id| Some(**id) != self.owner).min().copied()
        {
            tracing::warn!("too many connections: one that has not registered a task is closed");
            self.hear_out(oldest);
        }
    }

    /// Lets nobody register any more but whoever restores already, and has seen everything that was sent until then when it
    /// returns.
    pub(super) fn close_admission(&mut self) {
        let _ = epoll::delete(&self.epoll, &self.listener);
        let _ = shutdown(&self.listener, Shutdown::Both);
        self.accept();
        let others = self.connections.keys().filter(|id| Some(**id) != self.owner);
        for id in others.copied().collect::<Vec<_>>() {
            self.hear_out(id);
        }
    }

    /// Closes a connection after the last that was sent on it. The peer can send no more from the moment that this begins.
    fn hear_out(&mut self, id: u64) {
        if let Some(connection) = self.connections.get(&id) {
            let _ = shutdown(connection, Shutdown::Both);
            self.read_connection(id);
        }
    }

    fn close_connection(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            // Before its number means something else.
            self.journal.remove_connection(connection.as_fd().as_raw_fd());
        }
    }

    /// Listens to a connection from now on. Returns its number.
    pub(super) fn add_connection(&mut self, connection: Connection) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        self.watch(connection.as_fd(), Source::Connection(id));
        self.connections.insert(id, connection);
        id
    }

    /// Does what a connection says.
    pub(super) fn read_connection(&mut self, id: u64) {
        while let Some(message) = self.connections.get_mut(&id).and_then(Connection::next) {
            let last = matches!(message, Message::Closed);
            let outcome = match message {
                Message::Task { pid, sender, uffd } => self.register(id, pid, sender, uffd),
                Message::Zombie { pid } => self.register_zombie(id, pid),
                Message::Finished if self.owner == Some(id) => self.restore_finished(),
                Message::Finished => Err("the end of a restore that has not begun".to_owned()),
                Message::Malformed(what) => Err(format!("not CRIU's protocol: {what}")),
                Message::Closed if self.owner == Some(id) && !self.restored => {
                    Err("CRIU closed the connection before all tasks were ready".to_owned())
                }
                Message::Closed => Ok(()),
            };
            let failed = outcome.is_err();
            match outcome {
                Ok(()) => {}
                Err(reason) if self.owner == Some(id) && !self.restored => {
                    self.restore_failure.get_or_insert(reason);
                }
                Err(reason) => tracing::warn!("a connection was closed: {reason}"),
            }
            if last || failed {
                self.close_connection(id);
            }
        }
    }

    /// A task hands over its descriptor. The first one makes its connection the owner of the restore; from then on a
    /// mistake is a failed restore, before it only a connection to be closed.
    fn register(&mut self, connection: u64, pid: u32, sender: u32, fd: OwnedFd) -> Result<(), String> {
        let uffd = match Uffd::adopt(fd) {
            Ok(uffd) => uffd,
            Err((fd, reason)) => {
                self.refuse(sender, fd);
                return Err(format!("the descriptor of task {pid} cannot be used: {reason}"));
            }
        };
        let known = self.check_task(connection, pid, sender);
        if self.owner.is_none() && known.is_ok() {
            self.begin_restore(connection);
        }
        if self.owner != Some(connection) {
            self.refuse(sender, uffd.into());
            return known.map(|_| ());
        }
        // It is our restore now: whatever is wrong with this task, it must not run on with zeros.
        let pidfd = tree::open(sender);
        let watched = pidfd.as_ref().ok().and_then(|pidfd| pidfd.try_clone().ok());
        if let Ok(pidfd) = pidfd {
            self.writer.append(Record::Process { pid: sender, pidfd: pidfd.as_raw_fd() });
            self.tree.add(sender, pidfd);
        }
        match (known, watched) {
            (Ok(object), Some(pidfd)) => {
                self.watch(pidfd.as_fd(), Source::Process(u64::from(sender)));
                self.pidfds.insert(u64::from(sender), pidfd);
                self.registered.insert(pid);
                let state = PageState::new(&self.filler.layout.manifest().objects[object]);
                tracing::debug!(pid, sender, missing = state.missing_pages(), "a task has registered");
                let id = self.filler.spaces.next_id();
                let number = uffd.as_fd().as_raw_fd();
                self.writer.append(Record::Task {
                    space: id,
                    object,
                    uffd: number,
                    image_pid: pid,
                    pid: sender,
                });
                let space = self.filler.spaces.add(Space::new(id, object, uffd, state));
                self.filler.frames().expect_again(&self.filler.layout, object);
                self.watch(space.uffd().as_fd(), Source::Space(space.id));
                self.anchor(&space, Some(sender));
                Ok(())
            }
            // It ran and ended before this thread came to read about it.
            (Ok(_), None) if !uffd.is_alive() => {
                self.registered.insert(pid);
                Ok(())
            }
            (known, _) => {
                self.writer.append(Record::Foreign { uffd: uffd.as_fd().as_raw_fd() });
                self.foreign.push(uffd);
                Err(known.err().unwrap_or_else(|| format!("task {pid} cannot be watched")))
            }
        }
    }

    /// Ends a task whose descriptor nobody will answer.
    fn refuse(&mut self, sender: u32, fd: OwnedFd) {
        if is_userfaultfd(fd.as_raw_fd())
            && let Ok(pidfd) = tree::open(sender)
        {
            tracing::error!(pid = sender, "a process is killed: its memory is not served from here");
            tree::kill(sender, &pidfd);
            self.refused.push(Refused { pidfd, _uffd: fd });
        }
    }

    /// This connection restores, and no other.
    fn begin_restore(&mut self, connection: u64) {
        self.owner = Some(connection);
        if let Some(connection) = self.connections.get(&connection) {
            self.journal.set_owner(connection.as_fd().as_raw_fd());
        }
        // Also where the first one is a zombie, which has no memory.
        mark(&self.journal, Number::Registered);
        self.journal.enter(Phase::Restoring);
    }

    fn check_task(&self, connection: u64, pid: u32, sender: u32) -> Result<usize, String> {
        if self.restored || self.owner.is_some_and(|owner| owner != connection) {
            return Err(format!("task {pid} belongs to a second restore; this server serves one"));
        }
        if sender == 0 {
            return Err(format!("task {pid} is not visible in this server's pid namespace"));
        }
        if self.registered.contains(&pid) {
            return Err(format!("task {pid} registers twice"));
        }
        let manifest = self.filler.layout.manifest();
        if !manifest.tasks.iter().any(|task| task.pid == pid && !task.dead) {
            return Err(format!("checkpoint {} has no live task {pid}", manifest.id));
        }
        let object = self.filler.layout.object_of_task(pid);
        object.ok_or_else(|| format!("checkpoint {} has no memory of task {pid}", manifest.id))
    }

    fn register_zombie(&mut self, connection: u64, pid: u32) -> Result<(), String> {
        let manifest = self.filler.layout.manifest();
        if !manifest.tasks.iter().any(|task| task.pid == pid && task.dead) {
            return Err(format!("checkpoint {} has no dead task {pid}", manifest.id));
        }
        if self.owner.is_none() {
            self.begin_restore(connection);
        }
        if self.owner != Some(connection) {
            return Err(format!("zombie {pid} belongs to a second restore; this server serves one"));
        }
        Ok(())
    }

    fn restore_finished(&mut self) -> Result<(), String> {
        let manifest = self.filler.layout.manifest();
        for task in manifest.tasks.iter().filter(|task| !task.dead && !self.registered.contains(&task.pid)) {
            let object = self.filler.layout.object_of_task(task.pid);
            // Its memory would be zero, and nobody would ask.
            if object.is_some_and(|object| !manifest.objects[object].vmas.is_empty()) {
                return Err(format!("task {} runs without having registered its memory", task.pid));
            }
        }
        self.restored = true;
        mark(&self.journal, Number::Restored);
        self.journal.enter(Phase::Running);
        tracing::debug!(tasks = self.registered.len(), "the restore is finished");
        self.filler.start_background();
        Ok(())
    }
}
