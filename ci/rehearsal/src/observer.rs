//! What a client notices: one write after the other, each with a number, to whichever pod of the application answers.
//!
//! Redis counts (`INCR`), so that an answer tells whether everything that was acknowledged is still there, and whether anybody else
//! counted: two copies that run at once would each have numbers of their own.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use migration_harness::redis::Reply;

use crate::{
    Failure,
    application::{Application, addresses as addresses_of},
    cluster, redis,
};

/// Key of the count.
const COUNT: &[u8] = b"observed";
/// A write, in redis' protocol.
const WRITE: &[u8] = b"*2\r\n$4\r\nINCR\r\n$8\r\nobserved\r\n";
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(2);
/// An answer that takes longer counts as none, and the connection is given up: a process that is stopped to be handed over takes
/// connections and says nothing. Whether the write happens after all, the next answer tells.
const LIMIT: Duration = Duration::from_millis(500);
/// How long the first answer may take.
const FIRST: Duration = Duration::from_secs(10);
/// How often pods are looked for.
const LOOK: Duration = Duration::from_millis(300);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Connections that failed or broke.
    pub errors: u64,
    /// The longest time between two acknowledged writes, and when it ended.
    pub longest: Option<(Duration, SystemTime)>,
    /// The last number that was acknowledged.
    pub last: i64,
    /// Writes that were acknowledged and are not there any more: made after the checkpoint it went on from.
    pub lost: i64,
    /// What must not be.
    pub wrong: Option<String>,
}

/// A client at work.
pub struct Observer {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<thread::JoinHandle<()>>,
    name: String,
}

impl Observer {
    /// Begins to write. With `may_go_back`, an application that goes on from a checkpoint may have forgotten what came after it.
    pub fn start(application: &Application, may_go_back: bool) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let addresses: BTreeSet<SocketAddr> = application.addresses()?.into_iter().collect();
        let addresses = Arc::new(Mutex::new(addresses));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let looks = {
            let (stop, addresses) = (Arc::clone(&stop), Arc::clone(&addresses));
            let (name, port) = (application.name.clone(), application.port);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // An API server that does not answer changes nothing about where pods are.
                    if let Ok(found) = addresses_of(&name, port) {
                        *lock(&addresses) = found.into_iter().collect();
                    }
                    thread::sleep(LOOK);
                }
            }
        };
        let writes = {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || write(&stop, &addresses, &seen, may_go_back)
        };
        let threads = vec![thread::spawn(looks), thread::spawn(writes)];
        let observer = Self { stop, seen, threads, name: application.name.clone() };
        cluster::until(FIRST, "a first write", || Ok((observer.seen().writes > 0).then_some(())))?;
        Ok(observer)
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Ends it, once it has written something after whatever happened, and says what was seen.
    pub fn finish(mut self) -> Result<Seen, Failure> {
        let before = self.seen().writes;
        cluster::until(Duration::from_secs(60), &format!("{} answers again", self.name), || {
            Ok((self.seen().writes > before + 10).then_some(()))
        })?;
        self.end();
        let seen = self.seen();
        match &seen.wrong {
            None => Ok(seen),
            Some(wrong) => Err(format!("{}: {wrong}", self.name).into()),
        }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that has panicked has said so.
            _ = thread.join();
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Takes the observer's own key away again and compares all other data with what it was. A write that was given up may still be on its
/// way where a link was cut, and make the key anew.
pub fn compare_without(application: &Application, digest: &str) -> Result<(), Failure> {
    let forget = || Ok::<_, Failure>(redis::client(application)?.command(&[b"DEL", COUNT])?);
    forget()?;
    loop {
        let result = redis::compare(application, digest);
        if result.is_ok() || forget()? == Reply::Integer(0) {
            return result;
        }
    }
}

/// A connection that is let go without waiting for the other end, which may be stopped.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Writes once, and says which write that was.
    fn count(&mut self) -> io::Result<i64> {
        self.0.get_mut().write_all(WRITE)?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let number = line.strip_prefix(':').and_then(|number| number.trim_end().parse().ok());
        number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(stop: &AtomicBool, addresses: &Mutex<BTreeSet<SocketAddr>>, seen: &Mutex<Seen>, may_go_back: bool) {
    let mut connection: Option<Connection> = None;
    let mut silent: Option<SocketAddr> = None;
    let mut acknowledged: Option<Instant> = None;
    // Writes whose answer did not come: each of them may have happened.
    let mut open = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(peer) = &mut connection else {
            let mut known: Vec<SocketAddr> = lock(addresses).iter().copied().collect();
            // Where nobody answered is asked last.
            known.sort_by_key(|address| Some(*address) == silent);
            connection = known.into_iter().find_map(|address| {
                silent = Some(address);
                Connection::open(address).ok()
            });
            if connection.is_none() {
                lock(seen).errors += 1;
                thread::sleep(PAUSE);
            }
            continue;
        };
        let answer = peer.count();
        let now = Instant::now();
        let mut seen = lock(seen);
        match answer {
            Ok(number) => {
                let expected = seen.last + 1..=seen.last + 1 + open;
                let fits = expected.contains(&number) || may_go_back && number <= seen.last;
                if !fits {
                    let text = format!("write {number} was acknowledged after {}", seen.last);
                    seen.wrong.get_or_insert(text);
                }
                seen.lost += (seen.last + 1 - number).max(0);
                seen.last = number;
                seen.writes += 1;
                if let Some(before) = acknowledged.replace(now) {
                    let gap = now - before;
                    if seen.longest.is_none_or(|(longest, _)| gap > longest) {
                        seen.longest = Some((gap, SystemTime::now()));
                    }
                }
                open = 0;
            }
            Err(_) => {
                seen.errors += 1;
                open += 1;
                connection = None;
            }
        }
        drop(seen);
        thread::sleep(PAUSE);
    }
}
