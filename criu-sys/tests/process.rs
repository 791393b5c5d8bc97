//! What a child inherits.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::{Command, Stdio},
};

use criu_sys::process::{Isolation, isolate};

/// A descriptor that survives `exec`, as those of careless libraries do.
fn stray_descriptor() -> OwnedFd {
    let null = File::open("/dev/null").unwrap();
    // SAFETY: duplicates an open descriptor to the lowest free number from 50; nobody else owns the result.
    unsafe { OwnedFd::from_raw_fd(libc::fcntl(null.as_raw_fd(), libc::F_DUPFD, 50)) }
}

fn run(shell: &str, isolation: Isolation) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", shell]).stdin(Stdio::null());
    isolate(&mut command, isolation);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A field of the child's own `/proc/self/status`.
fn status_field(field: &str, isolation: Isolation) -> String {
    let text = run("exec cat /proc/self/status", isolation);
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn only_the_listed_descriptors_survive() {
    let stray = stray_descriptor();
    assert!(stray.as_raw_fd() >= 50);
    let (mut reader, writer) = io::pipe().unwrap();
    let mut isolation = Isolation::new();
    let kept = isolation.keep(writer.into()).unwrap();
    let list = "for n in $(seq 0 1023); do test -e /proc/$$/fd/$n && echo $n; done; true";
    let listed = run(&format!("echo hello >/proc/self/fd/{kept}; {list}"), isolation);
    let numbers: Vec<i32> = listed.lines().map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2, kept]);
    // The parent's copy is closed with the command, so the pipe has an end.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
}

#[test]
fn blocked_signals_are_unblocked() {
    // SAFETY: blocks a signal in this thread only, through live locals; the thread ends with the test.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigaddset(&mut set, libc::SIGUSR1);
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()), 0);
    }
    assert_eq!(u64::from_str_radix(&status_field("SigBlk:", Isolation::new()), 16).unwrap(), 0);
}

#[test]
fn a_new_session_is_led_by_the_child() {
    let mut isolation = Isolation::new();
    isolation.new_session();
    // Fields 1 and 6 of /proc/PID/stat: process id and session.
    assert_eq!(run("set -- $(cat /proc/$$/stat); test $1 = $6 && echo leads", isolation), "leads\n");
    let shared = run("set -- $(cat /proc/$$/stat); test $1 = $6 && echo leads; true", Isolation::new());
    assert_eq!(shared, "");
}

#[test]
fn the_child_dies_with_the_thread_that_asked_for_it() {
    let child = std::thread::spawn(|| {
        let mut isolation = Isolation::new();
        isolation.parent_death_signal(libc::SIGKILL);
        let mut command = Command::new("sleep");
        command.arg("1000");
        isolate(&mut command, isolation);
        command.spawn().unwrap()
    });
    let status = child.join().unwrap().wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
}

#[test]
fn a_program_that_cannot_be_run_is_an_error_of_spawn() {
    let mut isolation = Isolation::new();
    isolation.keep(File::open("/dev/null").unwrap().into()).unwrap();
    let mut command = Command::new("/nonexistent/program");
    isolate(&mut command, isolation);
    assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn libcriu_says_that_a_binary_cannot_be_asked() {
    let missing = criu_sys::criu::version_of("/nonexistent/criu".as_ref());
    assert!(missing.is_err(), "{missing:?}");
}
