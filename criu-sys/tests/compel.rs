//! System calls inside real processes.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use criu_sys::compel::{CompelError, InjectedProcess};

/// A process that answers every line with itself: `cat`.
struct Echo {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Echo {
    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut echo = Self { child, input, output: BufReader::new(output) };
        echo.assert_answers();
        echo
    }

    fn assert_answers(&mut self) {
        self.input.write_all(b"are you there\n").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "are you there\n");
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn state(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find(|line| line.starts_with("State:")).unwrap().to_owned()
}

#[test]
fn getpid_run_in_a_child_returns_its_pid_and_the_child_goes_on() {
    let mut echo = Echo::spawn(&mut Command::new("cat"));
    let pid = echo.child.id();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    for _ in 0..3 {
        let mut process = InjectedProcess::stop(pid).unwrap();
        assert!(state(pid).contains('t'), "{}", state(pid));
        assert_eq!(process.syscall(libc::SYS_getpid, [0; 6]).unwrap(), i64::from(pid));
        assert_eq!(process.syscall(libc::SYS_getppid, [0; 6]).unwrap(), i64::from(std::process::id()));
        // A failing call is a result, too.
        let failed = process.syscall(libc::SYS_close, [9_999, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(failed, -i64::from(libc::EBADF));
        process.resume().unwrap();
        echo.assert_answers();
    }
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/maps")).unwrap(),
        maps,
        "nothing is left in the process"
    );
}

#[test]
fn a_process_goes_on_when_it_is_dropped() {
    let mut echo = Echo::spawn(&mut Command::new("cat"));
    drop(InjectedProcess::stop(echo.child.id()).unwrap());
    echo.assert_answers();
}

#[test]
fn every_thread_is_stopped_meanwhile() {
    let program = "import sys,threading,time\n\
                   for _ in range(4): threading.Thread(target=lambda: time.sleep(1e6), daemon=True).start()\n\
                   def spin():\n while True: pass\n\
                   threading.Thread(target=spin, daemon=True).start()\n\
                   for line in sys.stdin: print(line, end='', flush=True)";
    let mut echo = Echo::spawn(Command::new("python3").args(["-u", "-c", program]));
    let pid = echo.child.id();
    let mut process = InjectedProcess::stop(pid).unwrap();
    let threads: Vec<u32> = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(threads.len(), 6);
    assert!(threads.iter().all(|&thread| state(thread).contains('t')));
    assert_eq!(process.syscall(libc::SYS_getpid, [0; 6]).unwrap(), i64::from(pid));
    process.resume().unwrap();
    echo.assert_answers();
}

#[test]
fn a_process_that_was_stopped_by_a_signal_stays_stopped() {
    let mut echo = Echo::spawn(&mut Command::new("cat"));
    let pid = echo.child.id();
    signal(pid, "-STOP");
    while !state(pid).contains('T') {
        std::thread::yield_now();
    }
    let mut process = InjectedProcess::stop(pid).unwrap();
    assert_eq!(process.syscall(libc::SYS_getpid, [0; 6]).unwrap(), i64::from(pid));
    process.resume().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(state(pid).contains('T'), "{}", state(pid));
    signal(pid, "-CONT");
    echo.assert_answers();
}

#[test]
fn what_cannot_be_traced_is_an_error() {
    assert!(matches!(InjectedProcess::stop(std::process::id()), Err(CompelError::OwnProcess)));
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let gone = InjectedProcess::stop(child.id());
    assert!(matches!(gone, Err(CompelError::Stop { pid, .. }) if pid == child.id()), "{gone:?}");
}

fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}
