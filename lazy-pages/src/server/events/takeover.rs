//! Going on where another server ended.
//!
//! What always holds: an address space that was served is served again, or the tree is killed; a page that is there is not
//! filled again; and every thread that waits, whether or not the dead server had read its fault, faults anew, because all
//! are woken.

use std::{
    io,
    os::fd::{AsFd, IntoRawFd, OwnedFd},
    sync::Arc,
};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::{EventLoop, Source};
use crate::{
    server::{
        journal::{Number, Phase, Snapshot},
        page_state::Content,
        presence::Presence,
        registration::Connection,
        replay::Replayed,
        space::{Space, SpaceId},
        sys::{
            process::{pid_of, take_over},
            uffd::{BATCH, Event, Uffd, is_userfaultfd},
        },
        tree,
    },
    units::VirtAddr,
};

/// All addresses a userfaultfd can have threads waiting at, on every supported architecture.
const LOWEST: VirtAddr = VirtAddr::containing(1 << 16);
const HIGHEST: VirtAddr = VirtAddr::containing((1 << 47) - 4096);

impl EventLoop {
    /// Takes over the service of processes that run, or are being restored.
    ///
    /// # Errors
    /// When the journal cannot be replayed, or a descriptor is not what it says.
    pub fn take_over(&mut self) -> io::Result<()> {
        let snapshot = self.journal.snapshot()?;
        let replayed = Replayed::new(&snapshot, self.filler.layout.manifest())?;
        // All are looked at before any is taken: one that was taken is closed with this value if another is refused.
        let uffds = replayed.spaces.values().map(|space| space.uffd).chain(replayed.foreign.iter().copied());
        for number in uffds {
            if !is_userfaultfd(number) {
                return Err(io::Error::other(format!("descriptor {number} is not a userfaultfd")));
            }
        }
        self.filler.count(Number::Takeovers, 1);
        self.journal.trace().taken_over(self.journal.age());
        self.registered = replayed.registered;
        for (&pidfd, &pid) in &replayed.processes {
            self.adopt_process(pid, pidfd);
        }
        for &uffd in &replayed.foreign {
            self.foreign.push(Uffd::take_over(uffd)?);
        }
        let mut spaces = Vec::new();
        for (id, known) in replayed.spaces {
            let uffd = Uffd::take_over(known.uffd)?;
            let space = self.filler.spaces.add(Space::new(id, known.object, uffd, known.state));
            self.filler.frames().expect_again(&self.filler.layout, space.object);
            self.watch(space.uffd().as_fd(), Source::Space(space.id));
            spaces.push((space, known.pid));
        }
        self.filler.spaces.continue_from(SpaceId(replayed.next));
        self.apply_staged(&snapshot);
        for (space, pid) in &spaces {
            if let Some(pid) = pid {
                self.note_present(space, *pid);
            }
        }
        self.restored = self.journal.phase() == Phase::Running;
        if !self.restored {
            self.adopt_connections();
        }
        // Children may have been forked that nobody has looked for yet.
        self.forked = true;
        for (space, pid) in &spaces {
            self.anchor(space, *pid);
        }
        for space in self.filler.spaces.all() {
            space.uffd().wake(LOWEST, HIGHEST);
        }
        let missing = self.filler.spaces.missing_pages();
        tracing::info!(spaces = spaces.len(), missing, "another page server's work is taken over");
        if self.restored {
            self.filler.start_background();
        }
        Ok(())
    }

    /// Listens on to whoever was connected. If the dead server had read a part of what CRIU says and not yet recorded it, the
    /// rest makes no sense, and the restore fails.
    fn adopt_connections(&mut self) {
        for number in self.journal.connections() {
            let Ok(socket) = take_over(number) else { continue };
            if !is_unix_stream(&socket) {
                // Another of the dead server's: its number has been used again.
                let _ = socket.into_raw_fd();
                continue;
            }
            let Ok(connection) = Connection::new(socket.into()) else { continue };
            let id = self.add_connection(connection);
            if self.journal.owner() == Some(number) {
                self.owner = Some(id);
            }
        }
        if self.owner.is_none() && self.journal.phase() == Phase::Restoring {
            self.restore_failure = Some("CRIU's connection was lost with the page server".to_owned());
        }
    }

    fn adopt_process(&mut self, pid: u32, number: i32) {
        // The number means something else if that process has ended and its pidfd was closed.
        let Ok(pidfd) = take_over(number) else { return };
        if pid_of(&pidfd) != Some(pid) {
            let _ = pidfd.into_raw_fd();
            return;
        }
        if tree::has_ended(pidfd.as_fd()) {
            return;
        }
        if let Ok(watched) = pidfd.try_clone() {
            self.watch(watched.as_fd(), Source::Process(u64::from(pid)));
            self.pidfds.insert(u64::from(pid), watched);
        }
        self.tree.add(pid, pidfd);
    }

    /// What the dead server had read and not applied, forks among it.
    fn apply_staged(&mut self, snapshot: &Snapshot) {
        for &(id, event) in &snapshot.staged {
            let Some(space) = self.filler.spaces.get(id) else { continue };
            space.exclusively(|space| self.apply(space, event));
        }
        self.writer.commit();
    }

    /// Takes pages that are in memory for what they are, so that they are not fetched again.
    ///
    /// Valid only if no page has moved or gone while the kernel was asked: then a page found at an address is the one the
    /// state says belongs there. Otherwise the events are applied and the kernel is asked once more. If that goes on, the
    /// pages stay "missing": they are fetched, and found to be there.
    fn note_present(&mut self, space: &Arc<Space>, pid: u32) {
        const TRIES: u32 = 8;
        let Ok(presence) = Presence::open(pid) else { return };
        for _ in 0..TRIES {
            let settled = space.exclusively(|space| {
                let missing: Vec<_> = space
                    .state()
                    .extents()
                    .filter(|extent| extent.content != Content::Installed)
                    .map(|extent| (extent.start, extent.pages))
                    .collect();
                let mut present = Vec::new();
                for (start, pages) in missing {
                    present.extend(presence.present(start, pages).ok()?);
                }
                if !self.no_event_is_pending(space) {
                    return None;
                }
                for (start, pages) in present {
                    space.state().install(start, pages);
                }
                Some(())
            });
            if settled.is_some() || space.probe_gone() {
                return;
            }
        }
    }

    /// Reads what there is. Faults are dropped: whoever waits is woken afterwards. Whether nothing changed the map.
    fn no_event_is_pending(&mut self, space: &Space) -> bool {
        let mut nothing = true;
        loop {
            self.record_dropped(space);
            let read = self.writer.read(space.id, space.uffd());
            let count = read.unwrap_or(0);
            for at in 0..count {
                match self.writer.message(at) {
                    Some(Event::Fault(_)) | None => {}
                    Some(event) => {
                        nothing = false;
                        self.apply(space, event);
                    }
                }
            }
            self.writer.commit();
            if count < BATCH {
                return nothing;
            }
        }
    }
}

fn is_unix_stream(socket: &OwnedFd) -> bool {
    sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(socket) == Ok(false)
}
