//! The protocol in which CRIU hands over the tasks it restores (`criu/uffd.c`).
//!
//! CRIU connects once. For each live task, in any order, come 4 bytes, its pid in the image, and then one byte with the
//! task's userfaultfd attached. For each zombie come 4 bytes, its pid negated. When all are ready to run, 4 bytes say so.
//! Then the connection closes; closing earlier means that the restore failed. Nothing is ever answered.
//!
//! The pid is the one inside the checkpoint's pid namespace. Who the task really is, the kernel tells: each message
//! carries its sender's credentials, and a task sends its descriptor itself.
//!
//! What always holds: never more is read than the next word, so nothing a peer sends can grow here; what is read is
//! either a well-formed message or ends the connection.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};

use crate::server::sys::socket::{Received, receive};

const FINISHED: i32 = i32::from_le_bytes(*b"FTSR");

/// What CRIU says.
#[derive(Debug)]
pub enum Message {
    /// A live task.
    Task {
        /// Its pid in the image.
        pid: u32,
        /// Its pid here; 0 if it is not visible in this pid namespace.
        sender: u32,
        /// Its userfaultfd.
        uffd: OwnedFd,
    },
    /// A zombie.
    Zombie {
        /// Its pid in the image.
        pid: u32,
    },
    /// All tasks are there and begin to run.
    Finished,
    /// The peer is gone.
    Closed,
    /// Not CRIU's protocol.
    Malformed(&'static str),
}

/// A connection from CRIU, or from whoever else found the socket.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    word: [u8; 4],
    have: usize,
    /// The pid whose descriptor comes next.
    pending: Option<u32>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// Accepts `stream`, whose listener passes credentials.
    ///
    /// # Errors
    /// When the peer runs under another user than root or this process's own.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let peer = getsockopt(&stream, PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != rustix::process::geteuid().as_raw() {
            let reason = format!("process {} of user {} may not register tasks", peer.pid(), peer.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        stream.set_nonblocking(true)?;
        Ok(Self { stream, word: [0; 4], have: 0, pending: None })
    }

    /// The next message; `None` when it has not come yet.
    pub fn next(&mut self) -> Option<Message> {
        match self.pending {
            Some(pid) => self.next_descriptor(pid),
            None => self.next_word(),
        }
    }

    fn next_word(&mut self) -> Option<Message> {
        while self.have < self.word.len() {
            let received = match receive(&self.stream, &mut self.word[self.have..]) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return None,
                Err(_) => return Some(Message::Closed),
            };
            if received.fd.is_some() {
                return Some(Message::Malformed("a descriptor where a pid was expected"));
            }
            if received.length == 0 {
                return Some(Message::Closed);
            }
            self.have += received.length;
        }
        self.have = 0;
        match i32::from_ne_bytes(self.word) {
            FINISHED => Some(Message::Finished),
            0 => Some(Message::Malformed("pid 0")),
            pid if pid < 0 => Some(Message::Zombie { pid: pid.unsigned_abs() }),
            pid => {
                self.pending = Some(pid.unsigned_abs());
                self.next()
            }
        }
    }

    fn next_descriptor(&mut self, pid: u32) -> Option<Message> {
        let mut byte = [0];
        match receive(&self.stream, &mut byte) {
            Err(Errno::EAGAIN) => None,
            Err(_) | Ok(Received { length: 0, .. }) => Some(Message::Closed),
            Ok(Received { fd: None, .. }) => Some(Message::Malformed("a pid without a descriptor")),
            Ok(Received { fd: Some(uffd), sender, .. }) => {
                self.pending = None;
                Some(Message::Task { pid, sender, uffd })
            }
        }
    }
}
