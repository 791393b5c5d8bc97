//! One request to one `criu swrk` process.
//!
//! What always holds:
//! - The process inherits standard input and output on `/dev/null`, standard error on a pipe to here, the socket and the
//!   descriptors the request names, and an environment of `PATH` alone: nothing on the machine or in the caller's
//!   environment changes how CRIU behaves.
//! - It is always reaped, on every path out of here, panics of a handler included.
//! - Everything CRIU may wait for is bounded, except handlers, whose time is not counted.
//!
//! How it ends early: the socket is closed first and the process gets [`GRACE`] to undo what it did (an interrupted dump
//! cleans its code out of the tree and lets it run on; an interrupted restore kills what it built), then it is killed.
//! The same happens by itself when this process dies, because its end of the socket closes then: hence no parent-death
//! signal, which would leave CRIU's code inside a tree that was being dumped. After a kill, tasks of a half restored tree
//! can remain.

use std::{
    env,
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use criu_sys::process::{Isolation, isolate};
use migration_proto::criu::rpc::{CriuReq, CriuReqType, CriuResp};
use prost::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    error::{CriuError, Failure, HandlerError, RequestKind},
    log::Log,
    notification::Notification,
};

/// The time CRIU has to undo a request, or to exit after its answer. Undoing takes milliseconds; what takes longer hangs.
const GRACE: Duration = Duration::from_secs(5);
/// Room for the largest answer; CRIU's error text ends at 1 KiB.
const ANSWER_LIMIT: usize = 64 * 1024;
/// Room for a request with thousands of options. Beyond the kernel's default a request would be refused.
const SEND_BUFFER: usize = 4 * 1024 * 1024;
/// Where programs that CRIU runs are looked for if the caller has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a caller does at a notification.
pub(crate) type Handler<'a> = &'a mut dyn FnMut(&Notification) -> Result<(), HandlerError>;

/// A running `criu swrk`.
pub(crate) struct Session {
    request: RequestKind,
    /// Closed to tell CRIU that nobody listens any more.
    socket: Option<OwnedFd>,
    child: Child,
    /// `None` once the process has been reaped.
    pidfd: Option<OwnedFd>,
    /// `None` once CRIU and everything it started has closed it.
    stderr: Option<OwnedFd>,
    log: Log,
    /// A pipe whose other end is closed when nobody wants an answer any more.
    pub(crate) gives_up: Option<OwnedFd>,
}

impl Session {
    /// Starts `criu swrk` from `binary`. `page_socket` is the number, among what `isolation` keeps, of the socket on which it
    /// serves the pages of a lazy dump.
    pub(crate) fn start(
        binary: &Path,
        request: RequestKind,
        work_dir: Option<&Path>,
        page_socket: Option<i32>,
        mut isolation: Isolation,
    ) -> Result<Self, CriuError> {
        let system = |what| move |source: Errno| CriuError::System { what, source: source.into() };
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(system("create a socket for criu"))?;
        // Privileged callers may pass the system's limit. Without the privilege large requests are refused when they are
        // sent, which is soon enough.
        let _ = sockopt::set_socket_send_buffer_size_force(&ours, SEND_BUFFER);
        let theirs = isolation
            .keep(theirs)
            .map_err(|source| CriuError::System { what: "keep a descriptor for criu", source })?;

        let mut command = Command::new(binary);
        command.arg("--no-default-config");
        if let Some(work_dir) = work_dir {
            command.arg("--work-dir").arg(work_dir);
        }
        // There is no field of the request for it.
        if let Some(socket) = page_socket {
            command.arg("--ps-socket").arg(socket.to_string());
        }
        command.arg("swrk").arg(theirs.to_string());
        command.env_clear().env("PATH", env::var_os("PATH").as_deref().unwrap_or(OsStr::new(DEFAULT_PATH)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        isolate(&mut command, isolation);
        let mut child =
            command.spawn().map_err(|source| CriuError::Spawn { path: binary.to_owned(), source })?;
        // Closes this side's copies of what the child was given.
        drop(command);

        let stderr = child.stderr.take().map(OwnedFd::from);
        let pidfd = Pid::from_raw(child.id() as i32)
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(system("watch the criu process"));
        let (pidfd, failed) = match pidfd {
            Ok(pidfd) => (Some(pidfd), None),
            Err(failed) => (None, Some(failed)),
        };
        let mut session =
            Self { request, socket: Some(ours), child, pidfd, stderr, log: Log::default(), gives_up: None };
        if let Some(failed) = failed {
            session.kill();
            return Err(failed);
        }
        if let Some(stderr) = &session.stderr {
            rustix::io::ioctl_fionbio(stderr, true).map_err(system("prepare the pipe for criu's log"))?;
        }
        Ok(session)
    }

    /// Sends the request and waits for its answer; `limit` bounds the time CRIU takes. `pid` is what a dump is about.
    pub(crate) fn run(
        mut self,
        message: &CriuReq,
        pid: Option<u32>,
        limit: Duration,
        handler: Handler<'_>,
    ) -> Result<CriuResp, CriuError> {
        let mut left = limit;
        let mut refused: Option<HandlerError> = None;
        self.send(message)?;
        let answer = loop {
            let Some(answer) = self.receive(&mut left, limit)? else {
                return Err(match refused {
                    Some(source) => CriuError::Handler(source),
                    None => self.crashed(),
                });
            };
            if answer.r#type != Some(CriuReqType::Notify.into()) {
                break answer;
            }
            let notification = answer
                .notify
                .and_then(Notification::from_wire)
                .ok_or_else(|| self.protocol("a notification without its process id"))?;
            tracing::debug!(?notification, "criu waits");
            let outcome = match refused {
                Some(_) => false,
                None => handler(&notification).map_err(|source| refused = Some(source)).is_ok(),
            };
            let reply = CriuReq {
                r#type: CriuReqType::Notify.into(),
                notify_success: Some(outcome),
                ..CriuReq::default()
            };
            self.send(&reply)?;
        };
        let success = answer.success.ok_or_else(|| self.protocol("neither success nor failure"))?;
        // CRIU exits after its answer; its log is complete then.
        self.wait_for_exit();
        match (success, refused) {
            (true, None) if answer.r#type == Some(message.r#type) => Ok(answer),
            (true, None) => Err(self.protocol(&format!("an answer of type {:?}", answer.r#type))),
            (true, Some(source)) => Err(CriuError::HandlerIgnored(source)),
            (false, Some(source)) => Err(CriuError::Handler(source)),
            (false, None) => {
                let failure = Failure::new(self.request, pid, answer.cr_errno, self.take_lines());
                Err(CriuError::Refused(Box::new(failure)))
            }
        }
    }

    fn send(&mut self, message: &CriuReq) -> Result<(), CriuError> {
        let bytes = message.encode_to_vec();
        let Some(socket) = &self.socket else {
            return Err(self.protocol("a closed socket"));
        };
        loop {
            return match send(socket, &bytes, SendFlags::NOSIGNAL) {
                Ok(_) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(Errno::MSGSIZE | Errno::NOBUFS) => Err(CriuError::TooLarge { bytes: bytes.len() }),
                // CRIU is gone; reading says more.
                Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
                Err(source) => {
                    Err(CriuError::System { what: "send a request to criu", source: source.into() })
                }
            };
        }
    }

    /// The next message, or `None` when CRIU has closed its end. Takes the time it waited off `left`.
    fn receive(&mut self, left: &mut Duration, limit: Duration) -> Result<Option<CriuResp>, CriuError> {
        loop {
            let started = Instant::now();
            let readable = self.wait(Waited::Socket, *left)?;
            *left = left.saturating_sub(started.elapsed());
            if readable {
                break;
            }
            if self.is_given_up() {
                self.end();
                return Err(CriuError::GivenUp { request: self.request, lines: self.take_lines() });
            }
            if left.is_zero() {
                self.end();
                return Err(CriuError::Deadline { request: self.request, limit, lines: self.take_lines() });
            }
        }
        let mut buffer = vec![0; ANSWER_LIMIT];
        let Some(socket) = &self.socket else {
            return Ok(None);
        };
        let length = match recv(socket, &mut buffer[..], RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
            // The last: CRIU has ended, and a task that it had not finished still has its end open.
            Ok((_, 0)) | Err(Errno::CONNRESET | Errno::AGAIN) => return Ok(None),
            Ok((_, length)) => length,
            Err(source) => {
                return Err(CriuError::System { what: "read criu's answer", source: source.into() });
            }
        };
        let bytes =
            buffer.get(..length).ok_or_else(|| self.protocol(&format!("a message of {length} bytes")))?;
        match CriuResp::decode(bytes) {
            Ok(answer) => Ok(Some(answer)),
            Err(_) => Err(self.protocol("bytes that are no message")),
        }
    }

    /// Waits until `what` is ready, keeping the log from filling its pipe. Returns `false` after at most `limit`, possibly
    /// earlier.
    fn wait(&mut self, what: Waited, limit: Duration) -> Result<bool, CriuError> {
        let target = match what {
            Waited::Socket => &self.socket,
            Waited::Exit => &self.pidfd,
        };
        let Some(target) = target else {
            return Ok(true);
        };
        // The end of CRIU is an end of waiting for whatever it might say, too.
        let exit = self.pidfd.as_ref().unwrap_or(target);
        let mut polled = vec![PollFd::new(target, PollFlags::IN), PollFd::new(exit, PollFlags::IN)];
        if let Some(stderr) = &self.stderr {
            polled.push(PollFd::new(stderr, PollFlags::IN));
        }
        if let (Waited::Socket, Some(gives_up)) = (&what, &self.gives_up) {
            polled.push(PollFd::new(gives_up, PollFlags::empty()));
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(CriuError::System { what: "wait for criu", source: source.into() }),
        }
        let ready = polled[..2].iter().any(|polled| !polled.revents().is_empty());
        let logged = self.stderr.is_some() && !polled[2].revents().is_empty();
        if logged {
            self.drain_log();
        }
        Ok(ready)
    }

    fn is_given_up(&self) -> bool {
        let Some(gives_up) = &self.gives_up else { return false };
        let mut polled = [PollFd::new(gives_up, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok() && !polled[0].revents().is_empty()
    }

    fn drain_log(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(stderr) = &self.stderr {
            match rustix::io::read(stderr.as_fd(), &mut buffer[..]) {
                Ok(0) => self.stderr = None,
                Ok(length) => self.log.push(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nothing more can be learnt from it.
                Err(_) => self.stderr = None,
            }
        }
    }

    /// Ends CRIU, gently at first, and reaps it.
    fn end(&mut self) {
        self.socket = None;
        self.wait_for_exit();
    }

    /// Waits for CRIU to exit by itself, kills it if it does not, and reaps it.
    fn wait_for_exit(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + GRACE;
        while self.pidfd.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wait(Waited::Exit, left) {
                Ok(true) => break,
                Ok(false) if !left.is_zero() => {}
                _ => return self.kill(),
            }
        }
        self.reap()
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        // It has not been reaped, so its id is still its own.
        let _ = self.child.kill();
        self.reap()
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        // Fails only when somebody else in this process waits for every child, and was faster.
        let status = self.child.wait().ok();
        self.pidfd = None;
        self.drain_log();
        status
    }

    fn crashed(&mut self) -> CriuError {
        let status = self.wait_for_exit().unwrap_or(ExitStatus::from_raw(0));
        CriuError::Crashed { request: self.request, status, lines: self.take_lines() }
    }

    fn protocol(&self, what: &str) -> CriuError {
        CriuError::Protocol { request: self.request, what: what.to_owned() }
    }

    fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log).into_lines()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.pidfd.is_some() {
            self.end();
        }
    }
}

/// What [`Session::wait`] waits for.
#[derive(Clone, Copy)]
enum Waited {
    Socket,
    Exit,
}
