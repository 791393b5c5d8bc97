//! Receiving descriptors and their sender's credentials over a socket.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};

/// `SCM_MAX_FD`, unix(7).
const MAX_DESCRIPTORS: usize = 253;

/// What came over a socket.
#[derive(Debug)]
pub struct Received {
    /// Bytes; 0 at the end.
    pub length: usize,
    /// The sender's pid; 0 if it is not visible in this pid namespace.
    pub sender: u32,
    /// The first descriptor that came along. Others are closed.
    pub fd: Option<OwnedFd>,
}

/// Receives at most `buffer` and whatever comes with it from a socket that passes credentials, without waiting.
///
/// # Errors
/// `EAGAIN` when nothing is there; anything else is the end of the connection.
pub fn receive(stream: &UnixStream, buffer: &mut [u8]) -> nix::Result<Received> {
    // Room for as many descriptors as a message can carry, so that none is lost track of.
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS], UnixCredentials);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    let mut received = Received { length: message.bytes, sender: 0, fd: None };
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmRights(fds) => {
                for fd in fds {
                    // SAFETY: the kernel has just made this descriptor for the receiver of the message, and this loop
                    // is its only owner.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    received.fd.get_or_insert(fd);
                }
            }
            ControlMessageOwned::ScmCredentials(sender) => received.sender = sender.pid().unsigned_abs(),
            _ => {}
        }
    }
    Ok(received)
}
