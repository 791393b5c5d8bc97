//! Programs nobody wrote for this: python3 and redis, moved without their knowledge.

mod common;

use std::{
    fs,
    process::{Command, Stdio},
};

use common::{Fixture, LIMIT, STRATEGIES};
use migration_harness::{process, redis, sys::in_own_session};

/// Fills memory with objects, then answers each request file with a digest over all of them.
const PYTHON: &str = "
import hashlib, os, random, sys, time
folder = sys.argv[1]
data = {i: random.Random(i).randbytes(3000) + bytes(5000) for i in range(4000)}
words = [str(i) * 7 for i in range(100000)]
number = 0
while True:
    time.sleep(0.01)
    if os.path.exists(f'{folder}/ask'):
        digest = hashlib.sha256()
        for i in data: digest.update(data[i])
        for word in words: digest.update(word.encode())
        number += 1
        open(f'{folder}/answer.new', 'w').write(f'{number} {digest.hexdigest()}')
        os.remove(f'{folder}/ask')
        os.rename(f'{folder}/answer.new', f'{folder}/answer')
";

#[test]
fn python_keeps_every_object() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let folder = fixture.path().join("python");
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", PYTHON]).arg(&folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut python = in_own_session(&mut command).spawn().unwrap();
        let pid = python.id() as i32;
        let ask = || {
            fs::write(folder.join("ask"), "").unwrap();
            let answer = folder.join("answer");
            assert!(process::wait_until(LIMIT, || answer.exists()), "python does not answer");
            let text = fs::read_to_string(&answer).unwrap();
            fs::remove_file(answer).unwrap();
            let (number, digest) = text.split_once(' ').unwrap();
            (number.parse::<u64>().unwrap(), digest.to_owned())
        };
        let (_, before) = ask();
        for (strategy, expected) in STRATEGIES.into_iter().zip(2..) {
            fixture.json(&["checkpoint", "--app", "python", "--pid", &pid.to_string()]);
            assert!(process::wait_gone(pid, LIMIT));
            fixture.restore("python", strategy);
            assert_eq!(ask(), (expected, before.clone()), "{strategy}");
            process::wait_resident(pid, LIMIT).unwrap();
        }
        process::end(pid).unwrap();
        let _ = python.wait();
    }
}

#[test]
fn redis_keeps_every_key_and_takes_writes() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let server = redis::Server::start().unwrap();
        let pid = server.pid();
        let mut client = server.client().unwrap();
        client.load(0, 24 << 20).unwrap();
        let mut digest = client.digest().unwrap();
        drop(client);
        for (round, strategy) in STRATEGIES.into_iter().enumerate() {
            fixture.json(&["checkpoint", "--app", "redis", "--pid", &pid.to_string()]);
            assert!(process::wait_gone(pid, LIMIT));
            fixture.restore("redis", strategy);
            let mut client = server.client().unwrap();
            assert_eq!(client.digest().unwrap(), digest, "{strategy}");
            client.set(b"round", round.to_string().as_bytes()).unwrap();
            digest = client.digest().unwrap();
            process::wait_resident(pid, LIMIT).unwrap();
        }
    }
}

#[test]
fn redis_loses_its_clients_and_nothing_else_when_connections_are_left_behind() {
    let fixture = Fixture::local();
    let server = redis::Server::start().unwrap();
    let pid = server.pid();
    let mut client = server.client().unwrap();
    client.load(0, 4 << 20).unwrap();
    let call = ["checkpoint", "--app", "redis", "--pid", &pid.to_string()];
    assert_eq!(fixture.refused(&call)["reason"], "criu", "a connection is not left behind unless asked for");
    client.set(b"before", b"1").unwrap();
    let digest = client.digest().unwrap();
    for strategy in STRATEGIES {
        // One that goes on keeps its clients.
        fixture.json(&[&call[..], &["--tcp-close", "--leave-running"]].concat());
        assert_eq!(client.digest().unwrap(), digest, "{strategy}");
        fixture.json(&[&call[..], &["--tcp-close"]].concat());
        assert!(process::wait_gone(pid, LIMIT));
        fixture.restore("redis", strategy);
        assert!(client.ping().is_err(), "{strategy}: the old connection is closed");
        client = server.client().unwrap();
        assert_eq!(client.digest().unwrap(), digest, "{strategy}");
        process::wait_resident(pid, LIMIT).unwrap();
    }
}

#[test]
fn redis_goes_on_with_its_append_only_file_on_a_machine_that_had_none() {
    let fixture = Fixture::local();
    let server = redis::Server::start().unwrap();
    let pid = server.pid();
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    let mut client = server.client().unwrap();
    client.load(0, 4 << 20).unwrap();
    client.command(&[b"CONFIG", b"SET", b"appendonly", b"yes"]).unwrap();
    let written = || process::children(pid).is_empty() && folder.join("appendonlydir").exists();
    assert!(process::wait_until(LIMIT, written), "the append-only file was not written");
    client.set(b"before", b"1").unwrap();
    drop(client);
    let path = folder.to_str().unwrap().to_owned();
    for (strategy, key) in STRATEGIES.into_iter().zip([b"first", b"other"]) {
        // What it has open is one file of three; to start again it needs all of them.
        fixture.json(&["checkpoint", "--app", "redis", "--pid", &pid.to_string(), "--path", &path]);
        assert!(process::wait_gone(pid, LIMIT));
        fs::remove_dir_all(&folder).unwrap();
        fixture.restore("redis", strategy);
        server.client().unwrap().set(key, b"2").unwrap();
        process::wait_resident(pid, LIMIT).unwrap();
    }
    let mut client = server.client().unwrap();
    let digest = client.digest().unwrap();
    drop(client);
    process::end(pid).unwrap();
    assert!(process::wait_gone(pid, LIMIT));

    let port = process::free_port().unwrap();
    let mut again = Command::new("redis-server");
    again.args(["--appendonly", "yes", "--save", "", "--port", &port.to_string(), "--dir", &path]);
    again.args(["--enable-debug-command", "local"]);
    let mut again = again.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut found = None;
    process::wait_until(LIMIT, || {
        let asked = redis::Client::connect(port, LIMIT).and_then(|mut client| client.digest());
        found = asked.ok();
        // Until all is loaded it answers with what it has.
        found.as_ref() == Some(&digest)
    });
    again.kill().unwrap();
    again.wait().unwrap();
    assert_eq!(found, Some(digest));
}
