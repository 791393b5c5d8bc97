//! A redis server of one's own, and the little of its protocol that is needed to fill and question it.
//!
//! The server listens on a free port of loopback, writes nothing to disk but a log, and can be checkpointed: it is in a
//! session of its own and has no descriptors from here. A connection cannot be checkpointed with it: a [`Client`] is
//! closed by both ends when its drop returns. As with workloads, a [`Server`] stands for the process id and port
//! whatever happens in between, and its drop ends whatever runs under them, restored or not.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::pattern::{Mix, fill};
use crate::process;
use crate::sys::{PAGE_SIZE, in_own_session};

/// Longest time one answer may take; a digest of some gigabytes takes seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Longest time a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Commands sent before their answers are read: enough to keep the server busy, little enough for socket buffers.
const PIPELINE: usize = 64;
/// Bytes of a loaded value.
const VALUE: usize = 1024;
/// Longest answer accepted, in bytes: redis itself allows half a gigabyte.
const MAX_ANSWER: usize = 1 << 29;

/// A running redis server.
pub struct Server {
    folder: TempDir,
    port: u16,
    pid: i32,
    front: Option<Child>,
}

impl Server {
    /// Starts a server in a session of its own.
    ///
    /// # Errors
    /// When redis-server is not installed or does not start.
    pub fn start() -> io::Result<Self> {
        Self::start_with(&[], Stdio::null(), Stdio::null())
    }

    /// Starts a server with words before its command line, such as `migration-agent run --app NAME --`; what stands
    /// there must give it a session of its own.
    ///
    /// # Errors
    /// When the command or redis-server is not installed or does not start.
    pub fn start_with(prefix: &[OsString], stdout: Stdio, stderr: Stdio) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("redis-").tempdir()?;
        let port = process::free_port()?;
        let mut words = prefix.to_vec();
        words.push("redis-server".into());
        words.extend(options(folder.path(), Ipv4Addr::LOCALHOST, port));

        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        if prefix.is_empty() {
            in_own_session(&mut command);
        }
        let front = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", Path::new(&words[0]).display()))
        })?;
        let mut server = Server { folder, port, pid: 0, front: Some(front) };
        server.pid = server.wait_for_start()?;
        Ok(server)
    }

    fn wait_for_start(&mut self) -> io::Result<i32> {
        let end = Instant::now() + START_LIMIT;
        loop {
            let ended = self.front.as_mut().map(|front| front.try_wait()).transpose()?.flatten();
            match self.client() {
                Ok(mut client) => return client.server_pid(),
                Err(error) if ended.is_some() || Instant::now() >= end => {
                    let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                    let last = log.lines().last().unwrap_or("no log");
                    let text = format!("redis-server does not answer ({error}; {ended:?}): {last}");
                    return Err(io::Error::new(error.kind(), text));
                }
                Err(_) => std::thread::sleep(process::POLL),
            }
        }
    }

    /// Process id of the server.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Port it listens on, on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Takes the process that was started: the server, or what stood before it on the command line.
    pub fn take_front(&mut self) -> Option<Child> {
        self.front.take()
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn client(&self) -> io::Result<Client> {
        Client::connect(self.port, ANSWER_LIMIT)
    }
}

/// The arguments of a server that has `folder` and listens at this address.
pub fn options(folder: &Path, address: Ipv4Addr, port: u16) -> Vec<OsString> {
    let (port, address) = (port.to_string(), address.to_string());
    let words: [&str; 18] = [
        "--port",
        &port,
        "--bind",
        &address,
        "--daemonize",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
        "--enable-debug-command",
        "local",
        // Its arguments are how a restored server is told from a stranger with the same process id.
        "--set-proc-title",
        "no",
        "--loglevel",
        "notice",
        "--logfile",
        "log",
    ];
    let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    words.extend(["--dir".into(), folder.into()]);
    words
}

impl Drop for Server {
    fn drop(&mut self) {
        let folder = self.folder.path().as_os_str().as_bytes().to_vec();
        process::end_all(|pid| {
            process::name(pid).as_deref() == Some("redis-server") && process::arguments(pid).contains(&folder)
        });
        if let Some(front) = &mut self.front {
            let pid = front.id() as i32;
            if !process::wait_until(Duration::from_secs(2), || !matches!(front.try_wait(), Ok(None))) {
                let _ = process::end(pid);
                let _ = front.wait();
            }
        }
    }
}

/// An answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A word, such as `OK`.
    Status(String),
    /// A number.
    Integer(i64),
    /// Bytes, or that there are none.
    Bulk(Option<Vec<u8>>),
}

/// What was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Number of keys.
    pub keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// A connection to a server.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects to a server on loopback; no answer may take longer than `limit`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(port: u16, limit: Duration) -> io::Result<Self> {
        Self::connect_to((Ipv4Addr::LOCALHOST, port).into(), limit)
    }

    /// Connects to a server anywhere.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect_to(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// When the connection breaks, the server answers with an error or with something that is not its protocol.
    pub fn command(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.stream.get_mut().write_all(&encode(words))?;
        self.reply()
    }

    /// Whether it answers at all.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn ping(&mut self) -> io::Result<()> {
        self.expect_status(&[b"PING"], "PONG")
    }

    /// Stores a value.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.expect_status(&[b"SET", key, value], "OK")
    }

    /// Looks up a value.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn get(&mut self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self.command(&[b"GET", key])? {
            Reply::Bulk(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// Number of keys.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn keys(&mut self) -> io::Result<u64> {
        match self.command(&[b"DBSIZE"])? {
            Reply::Integer(keys) => u64::try_from(keys).map_err(io::Error::other),
            other => Err(unexpected(&other)),
        }
    }

    /// `DEBUG DIGEST`: a hash over every key and value, for which the server reads all its data.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn digest(&mut self) -> io::Result<String> {
        match self.command(&[b"DEBUG", b"DIGEST"])? {
            Reply::Status(digest) if digest.len() == 40 => Ok(digest),
            other => Err(unexpected(&other)),
        }
    }

    /// Process id of the server, as it sees it itself.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn server_pid(&mut self) -> io::Result<i32> {
        let Reply::Bulk(Some(text)) = self.command(&[b"INFO", b"server"])? else {
            return Err(io::Error::other("redis: INFO without text"));
        };
        let text = String::from_utf8_lossy(&text);
        let pid = text.lines().find_map(|line| line.strip_prefix("process_id:"));
        pid.and_then(|pid| pid.trim().parse().ok())
            .ok_or_else(|| io::Error::other("redis: INFO without process_id"))
    }

    /// Stores keys numbered from `first` until their values come to `bytes`. Contents follow from the number and compress
    /// to about one half.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn load(&mut self, first: u64, bytes: u64) -> io::Result<Loaded> {
        let count = bytes.div_ceil(VALUE as u64);
        let mut next = first;
        while next < first + count {
            let batch = (first + count - next).min(PIPELINE as u64);
            let mut out = Vec::with_capacity(PIPELINE * (VALUE + 64));
            for number in next..next + batch {
                out.extend(encode(&[b"SET", key(number).as_bytes(), &value(number)]));
            }
            self.stream.get_mut().write_all(&out)?;
            for _ in 0..batch {
                match self.reply()? {
                    Reply::Status(status) if status == "OK" => {}
                    other => return Err(unexpected(&other)),
                }
            }
            next += batch;
        }
        Ok(Loaded { keys: count, bytes: count * VALUE as u64 })
    }

    fn expect_status(&mut self, words: &[&[u8]], wanted: &str) -> io::Result<()> {
        match self.command(words)? {
            Reply::Status(status) if status == wanted => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = Vec::new();
        (&mut self.stream).take(1 << 16).read_until(b'\n', &mut line)?;
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "redis closed the connection"));
        };
        let text = String::from_utf8_lossy(line).into_owned();
        match text.split_at_checked(1) {
            Some(("+", status)) => Ok(Reply::Status(status.into())),
            Some((":", number)) => number.parse().map(Reply::Integer).map_err(io::Error::other),
            Some(("$", "-1")) => Ok(Reply::Bulk(None)),
            Some(("$", length)) => self.bulk(length).map(|bytes| Reply::Bulk(Some(bytes))),
            Some(("-", error)) => Err(io::Error::other(format!("redis: {error}"))),
            _ => Err(io::Error::new(ErrorKind::InvalidData, format!("not an answer of redis: {text:?}"))),
        }
    }

    fn bulk(&mut self, length: &str) -> io::Result<Vec<u8>> {
        let length: usize = length.parse().map_err(io::Error::other)?;
        if length > MAX_ANSWER {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("an answer of {length} bytes")));
        }
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Until the server has closed its end too, it has a socket that cannot be checkpointed.
        let stream = self.stream.get_ref();
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = io::copy(&mut self.stream, &mut io::sink());
    }
}

fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn unexpected(reply: &Reply) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("redis: unexpected answer {reply:?}"))
}

/// The key with this number, as [`Client::load`] stores it.
pub fn key(number: u64) -> String {
    format!("key:{number:012}")
}

/// The value with this number, as [`Client::load`] stores it.
pub fn value(number: u64) -> [u8; VALUE] {
    let mut page = [0; PAGE_SIZE];
    fill(&mut page, Mix::Half, 1, number, 0);
    // The page's middle, where its random half ends.
    let mut value = [0; VALUE];
    value.copy_from_slice(&page[PAGE_SIZE / 2 - VALUE / 2..PAGE_SIZE / 2 + VALUE / 2]);
    value
}

/// Asks a server on loopback again and again until it answers for the first time; returns when that was. Each attempt
/// waits for an answer as long as there is time: a server that is being restored may accept a connection before it runs.
///
/// # Errors
/// `TimedOut` when it does not answer in time, with the last attempt's error.
pub fn first_reply(port: u16, limit: Duration) -> io::Result<Instant> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let outcome =
            Client::connect(port, left).and_then(|mut client| client.ping().map(|()| Instant::now()));
        match outcome {
            Ok(when) => return Ok(when),
            Err(error) if Instant::now() >= end => {
                return Err(io::Error::new(
                    ErrorKind::TimedOut,
                    format!("no reply within {limit:?}: {error}"),
                ));
            }
            Err(_) => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}
