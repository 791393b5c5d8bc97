//! Applications as they come out of their packages, each with something in its memory that is compared after it has moved.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::steps::{expect, one_pod};
use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{kubectl, until},
    http,
    manifest::{APPLICATIONS, CONTAINER, Manifest},
    timeline::Timeline,
};

/// Values that are stored in those that keep values.
const VALUES: usize = 300;
/// Bytes of each.
const SIZE: usize = 10_000;
/// Where nginx, Node.js and Java listen.
const HTTP: u16 = 8080;
/// Where Debian puts it; as with libraries, a package that was not configured has no alternatives.
const JAVA: &str = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java";
/// Where Debian puts what alternatives would point to.
const BLAS: &str = "/usr/lib/x86_64-linux-gnu/blas:/usr/lib/x86_64-linux-gnu/lapack";

pub fn applications(strategy: &str) -> Result<(), Failure> {
    let new = |name, command: &[&'static str], port| Manifest {
        strategy,
        ..Manifest::new(name, APPLICATIONS, command, port)
    };
    let mut timeline = Timeline::begin("applications move, one after the other");
    let mut failed = Vec::new();
    for (manifest, state) in [
        (new("memcached", &["memcached", "-u", "root", "-m", "64"], 11211), State::Memcached),
        (new("nginx", &["nginx", "-c", "/applications/nginx.conf"], HTTP), State::Nginx),
        (new("numpy", &["python3", "/applications/job.py"], 0).with("LD_LIBRARY_PATH", BLAS), State::Numpy),
        (new("node", &["node", "/applications/server.js"], HTTP), State::Map),
        (new("java", &[JAVA, "-XX:+UseSerialGC", "/applications/Server.java"], HTTP), State::Map),
    ] {
        // One that cannot be moved does not keep others from being tried.
        if let Err(error) = move_one(&manifest, &state, &mut timeline) {
            timeline.note(format!("{}: {error}", manifest.name));
            failed.push(manifest.name);
        }
    }
    expect(failed.is_empty(), &format!("not moved, or not as they were: {}", failed.join(", ")))
}

fn move_one(manifest: &Manifest<'_>, state: &State, timeline: &mut Timeline) -> Result<(), Failure> {
    let app = Application::start(manifest)?;
    state.make(&app)?;
    let before = state.look(&app)?;
    let source = app.status()?.node().to_owned();
    app.trigger("rehearsal")?;
    let status = app.wait_until_moved("")?;
    expect(status.node() != source, "it has not left its node")?;
    let after = state.look(&app)?;
    state.compare(&before, &after)?;
    timeline.migration(&app.name, &status);
    timeline.note(format!("{}: {}", app.name, state.describe()));
    one_pod(&app)
}

/// What an application has that must be the same afterwards.
enum State {
    Memcached,
    Nginx,
    Numpy,
    Map,
}

impl State {
    fn describe(&self) -> String {
        match self {
            Self::Memcached | Self::Map => format!("{VALUES} values as they were"),
            Self::Nginx => "the same content from the same processes".to_owned(),
            Self::Numpy => "its numbers went on where they were, and the sum is right".to_owned(),
        }
    }

    fn make(&self, app: &Application) -> Result<(), Failure> {
        let address = until(PATIENCE, &format!("{} has an address", app.name), || Ok(Some(app.address()?)))?;
        match self {
            Self::Memcached => (0..VALUES).try_for_each(|number| remember(address, number)),
            Self::Map => (0..VALUES)
                .try_for_each(|number| http::put(address, &format!("/{number}"), value(number).as_bytes())),
            Self::Nginx => Ok(()),
            Self::Numpy => until(PATIENCE, "it has begun to compute", || {
                Ok(kubectl(&["logs", app.status()?.pod(), "-c", CONTAINER])?
                    .contains("step 10 ")
                    .then_some(()))
            }),
        }
    }

    /// All of it, as text.
    fn look(&self, app: &Application) -> Result<String, Failure> {
        let address = app.address()?;
        match self {
            Self::Memcached => {
                let all: Result<Vec<_>, Failure> =
                    (0..VALUES).map(|number| recall(address, number)).collect();
                Ok(all?.concat())
            }
            Self::Map => {
                let all: Result<Vec<_>, Failure> =
                    (0..VALUES).map(|number| http::get(address, &format!("/{number}"))).collect();
                Ok(String::from_utf8(all?.concat())?)
            }
            Self::Nginx => {
                let pod = app.status()?.pod().to_owned();
                let pids = kubectl(&["exec", &pod, "-c", CONTAINER, "--", "pgrep", "-x", "nginx"])?;
                Ok(pids + &String::from_utf8(http::get(address, "/numbers")?)?)
            }
            Self::Numpy => Ok(app.status()?.pod().to_owned()),
        }
    }

    fn compare(&self, before: &str, after: &str) -> Result<(), Failure> {
        match self {
            Self::Memcached | Self::Map => {
                let wanted: String = (0..VALUES).map(value).collect();
                expect(before == wanted && after == wanted, "values are not what was stored")
            }
            Self::Nginx => {
                let numbers: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
                expect(before.ends_with(&numbers), "it has not served its file")?;
                expect(before == after, "it serves something else, or by other processes")
            }
            Self::Numpy => {
                let log = until(PATIENCE, "its result", || {
                    let log = kubectl(&["logs", after, "-c", CONTAINER])?;
                    Ok(log.contains("result ").then_some(log))
                })?;
                expect(before != after && !log.contains("step 1 "), "it has begun anew")?;
                expect(log.lines().any(|line| line == format!("result {}", sum())), "its result is wrong")
            }
        }
    }
}

fn value(number: usize) -> String {
    let unit = format!("value {number} of an application that moves; ");
    unit.repeat(SIZE / unit.len())
}

fn remember(address: SocketAddr, number: usize) -> Result<(), Failure> {
    let value = value(number);
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    stream.get_mut().set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream.get_mut(), "set key{number} 0 0 {}\r\n{value}\r\n", value.len())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    expect(line == "STORED\r\n", &format!("memcached: {line}"))
}

fn recall(address: SocketAddr, number: usize) -> Result<String, Failure> {
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    stream.get_mut().set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream.get_mut(), "get key{number}\r\n")?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let size = line.trim_end().rsplit(' ').next().and_then(|size| size.parse().ok());
    let mut value = vec![0; size.ok_or_else(|| format!("memcached: {line}"))?];
    stream.read_exact(&mut value)?;
    Ok(String::from_utf8(value)?)
}

/// What `job.py` computes: every number of 0 to n-1 goes through x -> ax + b so many times, modulo 2^64; this is their sum.
fn sum() -> u64 {
    const NUMBERS: u64 = 1 << 21;
    const STEPS: u32 = 400;
    let (mut factor, mut term) = (1_u64, 0_u64);
    for _ in 0..STEPS {
        factor = factor.wrapping_mul(6_364_136_223_846_793_005);
        term = term.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    let first = NUMBERS / 2 * (NUMBERS - 1);
    factor.wrapping_mul(first).wrapping_add(term.wrapping_mul(NUMBERS))
}
