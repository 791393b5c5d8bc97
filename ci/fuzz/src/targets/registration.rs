//! The socket at which CRIU hands over restored tasks, from outside: a page server waits for a restore, and somebody
//! else finds its socket. The input is a sequence of sends: how many bytes, whether a descriptor that is no userfaultfd
//! comes with them, and the bytes.

use std::{
    fs::File,
    io::{IoSlice, Read},
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use lazy_pages::server::{Limits, PageServer, PageServerConfig};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::manifest::smallest;
use crate::{Target, memory_store::MemoryStore};

/// What is read, is read by a thread of the server; here only the message is made.
pub const TARGET: Target = Target { name: "registration", run, seeds, memory: (1 << 20, 16) };

/// A server has this long to let go of a connection that is of no use.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server all inputs go to: none may do it harm.
struct Served {
    server: PageServer,
    socket: PathBuf,
    nothing: File,
    _runtime: Runtime,
    _directory: TempDir,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("lazy-pages.socket");
        let store = Arc::new(MemoryStore::default());
        let server = PageServer::start(PageServerConfig {
            limits: Limits::for_store(&*store),
            anchor: None,
            store,
            manifest: Arc::new(smallest()),
            listener: UnixListener::bind(&socket).expect("a socket"),
            runtime: runtime.handle().clone(),
        });
        let nothing = File::open("/dev/null").expect("a file");
        Served {
            server: server.expect("a page server"),
            socket,
            nothing,
            _runtime: runtime,
            _directory: directory,
        }
    })
}

fn run(mut input: &[u8]) -> bool {
    let served = served();
    let mut stream = UnixStream::connect(&served.socket).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    while let [head, rest @ ..] = input {
        let length = usize::from(head % 16).min(rest.len());
        let (now, later) = rest.split_at(length);
        input = later;
        let descriptors = [served.nothing.as_raw_fd()];
        let with: &[ControlMessage] =
            if head / 16 % 4 == 3 { &[ControlMessage::ScmRights(&descriptors)] } else { &[] };
        // The server may have had enough already.
        if sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(now)], with, MsgFlags::MSG_NOSIGNAL, None)
            .is_err()
        {
            break;
        }
    }
    drop(stream.shutdown(std::net::Shutdown::Write));
    match read_on(&mut stream) {
        // Bytes it has not read make the end of a connection a reset.
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("the server should have closed the connection without an answer: {other:?}"),
    }
    let ended = served.server.wait_timeout(Duration::ZERO);
    assert!(ended.is_none(), "the server no longer waits for a restore: {ended:?}");
    // Nothing that can be sent without a userfaultfd is a registration.
    false
}

/// The next byte; a signal, such as the fuzzer's own clock, is no answer.
fn read_on(stream: &mut UnixStream) -> std::io::Result<usize> {
    loop {
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let pid = 4242_i32.to_ne_bytes();
    let other = 77_i32.to_ne_bytes();
    let zombie = (-4242_i32).to_ne_bytes();
    let with_descriptor = 0x31;
    vec![
        [&[4][..], &pid, &[with_descriptor, 0]].concat(),
        [&[4][..], &other, &[with_descriptor, 0]].concat(),
        [&[4][..], &zombie, &[4], b"FTSR"].concat(),
        [&[2][..], &pid[..2], &[2], &pid[2..], &[1, 0]].concat(),
        [&[0x34][..], &pid].concat(),
        [&[4][..], b"FTSR"].concat(),
        b"\x0fGET / HTTP/1.0\r".to_vec(),
    ]
}
