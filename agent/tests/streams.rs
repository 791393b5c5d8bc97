//! A workload started by `run`: its streams, signals and exit code, before and after it was moved.

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Stdio},
    thread::sleep,
    time::Duration,
};

use common::{Fixture, LIMIT};
use migration_harness::process;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const COUNTER: &str =
    "trap 'exit 3' TERM; n=0; while :; do n=$((n+1)); echo tick $n; echo tock $n >&2; sleep 0.02; done";

/// Reads lines until one starts with `word`; the number after it.
fn next_number(lines: &mut impl BufRead, word: &str) -> u64 {
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the stream ended");
        if let Some(number) = line.trim().strip_prefix(word) {
            return number.trim().parse().unwrap();
        }
    }
}

fn read_pid(fixture: &Fixture) -> i32 {
    let path = fixture.path().join("pid");
    assert!(process::wait_until(LIMIT, || path.exists()));
    let pid = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    std::fs::remove_file(path).unwrap();
    pid
}

fn output(child: &mut Child) -> BufReader<ChildStdout> {
    BufReader::new(child.stdout.take().unwrap())
}

#[test]
fn pipes_signals_and_the_exit_code_survive_a_move() {
    let fixture = Fixture::local();
    let pid_file = fixture.path().join("pid");
    let pid_file = pid_file.to_str().unwrap();
    let mut run = fixture
        .agent(&["run", "--app", "app", "--pid-file", pid_file, "--", "sh", "-c", COUNTER])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = read_pid(&fixture);
    let mut ticks = output(&mut run);
    let mut tocks = BufReader::new(run.stderr.take().unwrap());
    next_number(&mut ticks, "tick");
    next_number(&mut tocks, "tock");

    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid.to_string()]);
    let status = run.wait().unwrap();
    assert_eq!(status.code(), Some(137), "the workload was ended by the checkpoint");
    common::collect_orphans();
    let mut last = 0;
    for line in ticks.lines() {
        last = line.unwrap().strip_prefix("tick ").unwrap().parse().unwrap();
    }

    let mut front = fixture
        .agent(&["restore", "--app", "app", "--pid-file", pid_file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(read_pid(&fixture), pid);
    let mut ticks = output(&mut front);
    let mut tocks = BufReader::new(front.stderr.take().unwrap());
    let next = next_number(&mut ticks, "tick");
    assert!(next == last + 1 || next == last + 2, "went on with {next} after {last}");
    next_number(&mut tocks, "tock");

    kill(Pid::from_raw(front.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(front.wait().unwrap().code(), Some(3), "the workload's own answer to SIGTERM");
}

#[test]
fn a_detached_workload_goes_on_in_the_output_file() {
    let fixture = Fixture::local();
    let pid_file = fixture.path().join("pid");
    let mut run = fixture
        .agent(&["run", "--app", "app", "--pid-file", pid_file.to_str().unwrap(), "--", "sh", "-c", COUNTER])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = read_pid(&fixture);
    let mut ticks = output(&mut run);
    next_number(&mut ticks, "tick");
    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid.to_string()]);
    run.wait().unwrap();
    common::collect_orphans();

    // What an earlier one has written there stays.
    let log = fixture.path().join("output");
    std::fs::write(&log, "before\n").unwrap();
    let restored = fixture.json(&["restore", "--app", "app", "--detach", "--output", log.to_str().unwrap()]);
    assert_eq!(restored["output"].as_str().map(std::path::Path::new), Some(log.as_path()));
    let lines = |word: &str| -> Vec<u64> {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
    };
    let grown = process::wait_until(LIMIT, || lines("tick").len() > 20 && lines("tock").len() > 20);
    process::end(pid).unwrap();
    process::wait_gone(pid, LIMIT);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(grown, "{text}");
    // Neither stream is written over the other, or over what was there.
    let (ticks, tocks) = (lines("tick"), lines("tock"));
    for numbers in [&ticks, &tocks] {
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{text}");
    }
    assert_eq!(text.lines().count(), 1 + ticks.len() + tocks.len(), "{text}");
    assert!(text.starts_with("before\n"), "{text}");
}

#[test]
fn a_terminal_survives_a_move() {
    let fixture = Fixture::local();
    let pid_file = fixture.path().join("pid");
    let pid_file = pid_file.to_str().unwrap();
    let start = |arguments: &[&str]| {
        let pty = nix::pty::openpty(None, None).unwrap();
        let stream = || Stdio::from(pty.slave.try_clone().unwrap());
        let child =
            fixture.agent(arguments).stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        (child, BufReader::new(std::fs::File::from(pty.master)), pty.slave)
    };
    let (mut run, mut screen, _slave) =
        start(&["run", "--app", "app", "--pid-file", pid_file, "--", "sh", "-c", COUNTER]);
    let pid = read_pid(&fixture);
    let before = next_number(&mut screen, "tick");
    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid.to_string()]);
    run.wait().unwrap();
    common::collect_orphans();

    let (mut front, mut screen, _slave) = start(&["restore", "--app", "app", "--pid-file", pid_file]);
    assert_eq!(read_pid(&fixture), pid);
    let after = next_number(&mut screen, "tick");
    assert!(after > before);
    kill(Pid::from_raw(front.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(front.wait().unwrap().code(), Some(3));
}

#[test]
fn run_ends_with_the_exit_code_of_the_workload() {
    let fixture = Fixture::local();
    let ends = |script: &str| {
        fixture
            .agent(&["run", "--app", "app", "--", "sh", "-c", script])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(ends("exit 7"), Some(7));
    assert_eq!(ends("kill -9 $$"), Some(137));
    let unwritable = ["run", "--app", "app", "--pid-file", "/nonexistent/pid", "--", "sh", "-c", "exit 8"];
    let status = fixture.agent(&unwritable).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(8), "a pid file is not worth a workload");
    let mut waiting = fixture
        .agent(&[
            "run",
            "--app",
            "app",
            "--",
            "sh",
            "-c",
            "trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    output(&mut waiting).read_line(&mut line).unwrap();
    sleep(Duration::from_millis(20));
    kill(Pid::from_raw(waiting.id() as i32), Signal::SIGUSR1).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(9));
}
