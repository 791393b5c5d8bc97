//! The socket on which a launcher and an agent of the same machine meet.
//!
//! A launcher creates it in its control directory, for its own user. Requests are taken only from that user and from root:
//! whoever can use it gets the workload's streams and decides how its container ends. A process that connects and says
//! nothing holds up nobody.

use std::{
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::Mode,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
        listen, recvmsg, sendmsg, socket_with, sockopt,
    },
};

use crate::{
    error::LaunchError,
    protocol::{Answer, LIMIT, NotUnderstood, Request, State},
};

/// Name of the socket in the control directory.
pub const SOCKET: &str = "launch.sock";
/// Agents that may be connected and not yet noticed.
const BACKLOG: i32 = 16;
/// Standard input, output and error.
const STREAMS: usize = 3;
/// A launcher has nothing else to do than to answer.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A launcher's end, before anybody has connected.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Creates the socket in `directory`, and the directory if there is none. What a launcher that is gone has left is
    /// replaced.
    pub fn bind(directory: &Path) -> Result<Self, LaunchError> {
        const WHAT: &str = "cannot make the control socket";
        fs::create_dir_all(directory).map_err(LaunchError::io("cannot make the control directory"))?;
        let path = directory.join(SOCKET);
        match connected(&path) {
            Ok(_) => return Err(LaunchError::AlreadyControlled { path }),
            Err(Errno::NOENT) => {}
            Err(_) => {
                fs::remove_file(&path).map_err(LaunchError::io("cannot remove an old control socket"))?
            }
        }
        let socket =
            unconnected(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map_err(LaunchError::io(WHAT))?;
        let address = SocketAddrUnix::new(&path).map_err(LaunchError::io(WHAT))?;
        // No other thread makes files meanwhile: there is none.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = bind(&socket, &address);
        rustix::process::umask(umask);
        bound.and_then(|()| listen(&socket, BACKLOG)).map_err(LaunchError::io(WHAT))?;
        Ok(Self { socket, path })
    }

    /// The next agent; `None` if there is none, or if it has no business here.
    pub fn accept(&self) -> Option<Connection> {
        let socket = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
        let peer = sockopt::socket_peercred(&socket).ok()?;
        (peer.uid.is_root() || peer.uid == rustix::process::geteuid())
            .then_some(Connection { socket, holds: false })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What came from an agent.
pub(crate) enum Received {
    Request(Request, Vec<OwnedFd>),
    NotUnderstood,
    /// It is gone.
    Closed,
}

/// A launcher's end of a conversation.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// A page server's, which has handed descriptors over.
    pub holds: bool,
}

impl Connection {
    pub fn receive(&self) -> Received {
        match receive::<Request>(self.socket.as_fd()) {
            Ok((Some(Ok(request)), descriptors)) => Received::Request(request, descriptors),
            Ok((Some(Err(_)), _)) => Received::NotUnderstood,
            Err(Errno::AGAIN | Errno::INTR) => Received::NotUnderstood,
            Ok((None, _)) | Err(_) => Received::Closed,
        }
    }

    /// Answers. One that does not read its answers is no reason to wait.
    pub fn answer(&self, answer: Answer, descriptors: &[BorrowedFd<'_>]) {
        let _ = send(self.socket.as_fd(), &answer.to_string(), descriptors);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An agent's end.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
    pid: u32,
}

impl Launcher {
    /// Connects to the launcher whose control directory this is.
    ///
    /// # Errors
    /// When none answers there.
    pub fn connect(directory: &Path) -> Result<Self, LaunchError> {
        let socket =
            connected(&directory.join(SOCKET)).map_err(LaunchError::io("cannot reach the launcher"))?;
        let peer =
            sockopt::socket_peercred(&socket).map_err(LaunchError::io("cannot learn the launcher's pid"))?;
        let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
        Ok(Self { socket, pid })
    }

    /// Its pid. What it runs in is what the workload is to run in.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks or tells; gives what the launcher is doing afterwards.
    ///
    /// # Errors
    /// When it refuses, or is gone.
    pub fn ask(&self, request: Request) -> Result<State, LaunchError> {
        self.converse(request).map(|(state, _)| state)
    }

    /// The standard streams of its container.
    ///
    /// # Errors
    /// When it refuses, or is gone.
    pub fn streams(&self) -> Result<[OwnedFd; STREAMS], LaunchError> {
        let (_, descriptors) = self.converse(Request::Streams)?;
        descriptors.try_into().map_err(|_| LaunchError::Protocol("it handed over no streams".to_owned()))
    }

    /// Tells something, with descriptors beside it, and does not wait for an answer.
    ///
    /// # Errors
    /// When it is gone, or does not listen.
    pub fn tell(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), LaunchError> {
        const WHAT: &str = "cannot tell the launcher";
        send(self.socket.as_fd(), &request.to_string(), descriptors).map_err(LaunchError::io(WHAT))
    }

    /// Lets the connection survive that this process becomes another program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep_at_exec(&self) -> Result<(), LaunchError> {
        rustix::io::fcntl_setfd(&self.socket, rustix::io::FdFlags::empty())
            .map_err(LaunchError::io("cannot keep the connection to the launcher"))
    }

    fn converse(&self, request: Request) -> Result<(State, Vec<OwnedFd>), LaunchError> {
        const WHAT: &str = "cannot talk to the launcher";
        send(self.socket.as_fd(), &request.to_string(), &[]).map_err(LaunchError::io(WHAT))?;
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut polled, Some(&PATIENCE)).map_err(LaunchError::io(WHAT))? == 0 {
            return Err(LaunchError::io(WHAT)(Errno::TIMEDOUT));
        }
        let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
        match receive::<Answer>(self.socket.as_fd()).map_err(LaunchError::io(WHAT))? {
            (Some(Ok(Answer::State(state))), descriptors) => Ok((state, descriptors)),
            (Some(Ok(Answer::Refused(state))), _) => {
                Err(LaunchError::Protocol(format!("`{request}` while it says `{state}`")))
            }
            (Some(Err(_)), _) => Err(LaunchError::Protocol(format!("its answer to `{request}`"))),
            (None, _) => Err(LaunchError::io(WHAT)(gone())),
        }
    }
}

fn unconnected(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn connected(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = unconnected(SocketFlags::CLOEXEC)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn send(socket: BorrowedFd<'_>, text: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    let parts = [io::IoSlice::new(text.as_bytes())];
    // Nobody waits for one that does not read.
    sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// A message, and the descriptors beside it.
type Heard<M> = (Option<Result<M, NotUnderstood>>, Vec<OwnedFd>);

/// The next message, or `None` when the other end is closed.
fn receive<M: FromStr<Err = NotUnderstood>>(socket: BorrowedFd<'_>) -> Result<Heard<M>, Errno> {
    let mut bytes = [0; LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.bytes == 0 {
        return Ok((None, descriptors));
    }
    let message = match std::str::from_utf8(&bytes[..received.bytes]) {
        Ok(text) => text.parse(),
        Err(_) => Err(NotUnderstood),
    };
    Ok((Some(message), descriptors))
}
