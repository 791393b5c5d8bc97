//! Alone in its file, because it changes how the whole process treats its children.

use std::process::{Command, Stdio};

use criu_sys::process::{Isolation, isolate};

#[test]
fn an_ignored_sigchld_is_not_inherited() {
    let ignored_by_child = |isolated: bool| {
        let mut command = Command::new("cat");
        command.arg("/proc/self/status").stdin(Stdio::null()).stdout(Stdio::piped());
        if isolated {
            isolate(&mut command, Isolation::new());
        }
        let mut output = command.spawn().unwrap().stdout.take().unwrap();
        let text = std::io::read_to_string(&mut output).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim().to_owned();
        u64::from_str_radix(&line, 16).unwrap() & (1 << (libc::SIGCHLD - 1)) != 0
    };
    // SAFETY: sets a disposition that needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    assert!(ignored_by_child(false), "the test itself works");
    assert!(!ignored_by_child(true));
}
