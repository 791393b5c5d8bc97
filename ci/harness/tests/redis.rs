//! The redis driver against a real server.

use std::time::{Duration, Instant};

use migration_harness::redis::{Client, Server, first_reply, key, value};
use migration_harness::{process, redis};

#[test]
fn loaded_data_is_there_and_the_digest_tells_it_apart() {
    let server = Server::start().unwrap();
    let mut client = server.client().unwrap();
    let empty = client.digest().unwrap();
    let loaded = client.load(0, 4 << 20).unwrap();
    assert_eq!((loaded.keys, loaded.bytes), (4096, 4 << 20));
    assert_eq!(client.keys().unwrap(), 4096);
    assert_eq!(client.get(key(17).as_bytes()).unwrap().unwrap(), value(17));
    assert_eq!(client.get(b"absent").unwrap(), None);
    let full = client.digest().unwrap();
    assert_ne!(full, empty);
    client.set(b"one", b"more").unwrap();
    assert_ne!(client.digest().unwrap(), full);
    assert!(process::memory(server.pid(), "VmRSS").unwrap() > 4 << 20);
}

#[test]
fn equal_data_has_an_equal_digest_in_another_server() {
    let digest = || {
        let server = Server::start().unwrap();
        let mut client = server.client().unwrap();
        client.load(0, 1 << 20).unwrap();
        client.digest().unwrap()
    };
    assert_eq!(digest(), digest());
}

#[test]
fn a_dropped_client_leaves_no_socket_behind_in_the_server() {
    let server = Server::start().unwrap();
    let sockets = || {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().flatten();
        entries
            .filter(|e| e.path().read_link().is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
            .count()
    };
    let before = sockets();
    let mut client = server.client().unwrap();
    client.ping().unwrap();
    assert_eq!(sockets(), before + 1);
    drop(client);
    assert_eq!(sockets(), before);
}

#[test]
fn errors_of_the_server_are_errors() {
    let server = Server::start().unwrap();
    let error = server.client().unwrap().command(&[b"NO-SUCH-COMMAND"]).unwrap_err();
    assert!(error.to_string().contains("unknown command"), "{error}");
}

#[test]
fn the_first_reply_is_waited_for_only_so_long() {
    let port = process::free_port().unwrap();
    let begin = Instant::now();
    assert!(first_reply(port, Duration::from_millis(100)).is_err());
    assert!(begin.elapsed() < Duration::from_secs(5));
    let server = Server::start().unwrap();
    assert!(first_reply(server.port(), Duration::from_secs(5)).unwrap() > begin);
}

#[test]
fn a_dropped_server_is_gone() {
    let server = Server::start().unwrap();
    let (pid, port) = (server.pid(), server.port());
    drop(server);
    assert!(!process::is_running(pid));
    assert!(Client::connect(port, Duration::from_secs(1)).is_err());
    assert!(redis::first_reply(port, Duration::from_millis(50)).is_err());
}
