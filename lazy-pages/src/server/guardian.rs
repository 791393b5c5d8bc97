//! The guardian: a tiny process that makes sure that a page server which dies takes the restored processes with it.
//!
//! When the last descriptor of a userfaultfd closes, the kernel turns every page that is still missing into zeros. So a
//! second process holds a duplicate of each descriptor, sent to it before the server answers the first fault on it.
//! The server dismisses the guardian when all pages are there. If the server's end of the socket closes without that, it
//! has died: the guardian kills the tree and lets go only when every address space has ended.
//!
//! What always holds: a duplicate is closed only after the server's word or after its address space has ended. A
//! descriptor still in the socket when the server dies is held by the socket. Between the kernel's reporting of a fork
//! and the sending of the child's descriptor lie a few microseconds in which only the server has it.
//!
//! The socket is the guardian's standard input, a `SOCK_SEQPACKET` pair. Messages are five bytes: a tag and a pid
//! (0 where it means nothing), with one descriptor where the tag says so.

use std::{
    ffi::OsString,
    fmt,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::SigSet;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use crate::server::{limits::raise_descriptor_limit, tree::Tree, uffd::Uffd};

const MESSAGE: usize = 5;
/// Hold this userfaultfd.
const HOLD: u8 = b'H';
/// This process belongs to the tree.
const WATCH: u8 = b'W';
/// Everything is there.
const DONE: u8 = b'D';
/// The guardian's only message: it is listening.
const READY: u8 = b'R';

/// How long the guardian may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How to start a guardian: a program that calls [`run`] with its standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardianCommand {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl fmt::Display for GuardianCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", arg.display()))
    }
}

/// The server's side of a running guardian.
#[derive(Debug)]
pub struct Guardian {
    socket: OwnedFd,
    child: Child,
}

impl Guardian {
    /// Starts a guardian and waits until it listens.
    ///
    /// # Errors
    /// When it cannot be started, ends, or does not listen in time.
    pub fn start(command: &GuardianCommand) -> io::Result<Self> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(&command.program)
            .args(&command.args)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("`{command}` cannot be started: {error}"))
            })?;
        let mut guardian = Self { socket, child };
        let failure = match wait_readable(guardian.socket.as_fd(), START_TIMEOUT)? {
            true => match receive(guardian.socket.as_fd())? {
                Some(message) if message.tag == READY => return Ok(guardian),
                _ => format!("`{command}` is not a guardian"),
            },
            false => format!("`{command}` does not answer"),
        };
        // Whatever it is, it is a child of ours and holds nothing yet.
        let _ = guardian.child.kill();
        let _ = guardian.child.wait();
        Err(io::Error::other(failure))
    }

    /// Its end of life shows as a hang-up here.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// From now on the guardian holds `uffd` too.
    ///
    /// # Errors
    /// When the guardian has died.
    pub fn hold(&self, uffd: &Uffd) -> io::Result<()> {
        self.send(HOLD, 0, Some(uffd.as_fd()))
    }

    /// From now on the guardian knows this process.
    ///
    /// # Errors
    /// When the guardian has died.
    pub fn watch(&self, pid: u32, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        self.send(WATCH, pid, Some(pidfd))
    }

    /// Everything is there, or nobody is left to miss it: the guardian lets go and ends.
    pub fn dismiss(mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        if self.send(DONE, 0, None).is_err() {
            tracing::debug!("the guardian had ended before");
        }
        let asked = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && asked.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// After its death: what it ended with.
    pub fn bury(mut self) -> String {
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    fn send(&self, tag: u8, pid: u32, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut message = [tag; MESSAGE];
        message[1..].copy_from_slice(&pid.to_le_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct Message {
    tag: u8,
    pid: u32,
    fd: Option<OwnedFd>,
}

/// The next message; `None` when the other side has ended. Waits for it.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let mut bytes = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => break 0,
            Err(error) => return Err(error.into()),
        }
    };
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let [tag, pid @ ..] = bytes;
    Ok((length == MESSAGE).then(|| Message { tag, pid: u32::from_le_bytes(pid), fd }))
}

fn wait_readable(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How a guardian's service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The server needed it no more.
    Dismissed,
    /// The server died; the tree has been killed.
    TreeKilled,
}

/// A guardian's life: holds what it is sent over `socket` until the server dismisses it or dies. Meant to be all that its
/// process does: blocks all signals, starts a session of its own, leaves the working directory.
///
/// # Errors
/// When `socket` is not a socket of a server. Once it holds something, it does not give up.
pub fn run(socket: OwnedFd) -> io::Result<Service> {
    // A terminal's hang-up or interrupt is for the server, and a service manager's SIGTERM too: ending early would
    // leave the tree unguarded. SIGKILL remains.
    SigSet::all().thread_block()?;
    // Fails for the leader of a process group, which has its own session or is started by hand.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    raise_descriptor_limit();

    let greeting = [READY, 0, 0, 0, 0];
    rustix::net::send(&socket, &greeting, SendFlags::NOSIGNAL)?;

    let mut held = Vec::new();
    let mut tree = Tree::default();
    loop {
        // Forked children come and go; descriptors of those that went are of no use.
        if !wait_readable(socket.as_fd(), Duration::from_secs(1)).unwrap_or(true) {
            held.retain(Uffd::is_alive);
            continue;
        }
        match receive(socket.as_fd()) {
            Ok(Some(Message { tag: HOLD, fd: Some(fd), .. })) => held.push(Uffd::of_server(fd)),
            Ok(Some(Message { tag: WATCH, pid, fd: Some(fd) })) => tree.add(pid, fd),
            Ok(Some(Message { tag: DONE, .. })) => return Ok(Service::Dismissed),
            Ok(Some(Message { tag, .. })) => {
                tracing::error!(tag, "the guardian got a message it does not know")
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!("the guardian cannot hear its server: {error}");
                break;
            }
        }
    }
    if !held.is_empty() {
        let spaces = held.len();
        tracing::error!(spaces, "the page server died before all pages were there; its processes are killed");
    }
    until_gone(|| {
        tree.kill();
        held.retain(Uffd::is_alive);
        held.len()
    });
    Ok(Service::TreeKilled)
}

/// Repeats `kill`, which kills whatever it can find and returns how many address spaces are left, until none is. Takes
/// as long as that takes: a process that cannot be found waits for its missing pages meanwhile, which is better than
/// zeros.
pub(super) fn until_gone(mut kill: impl FnMut() -> usize) {
    const FIRST: Duration = Duration::from_millis(1);
    const LAST: Duration = Duration::from_secs(1);
    const REPORT: Duration = Duration::from_secs(10);
    let mut pause = FIRST;
    let mut reported = Instant::now();
    loop {
        let left = kill();
        if left == 0 {
            return;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LAST);
        if reported.elapsed() > REPORT {
            reported = Instant::now();
            tracing::error!(left, "address spaces whose processes cannot be killed are held; they wait");
        }
    }
}
