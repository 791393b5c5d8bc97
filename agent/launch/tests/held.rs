//! What a launcher holds for page servers.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use migration_launch::{control::Launcher, protocol::Request};

const LIMIT: Duration = Duration::from_secs(60);

/// A launcher that waits for a tree, with this many descriptors allowed at first and at most. Killed when dropped.
struct Waiting(Child);

impl Waiting {
    fn start(control: &Path, soft: u32, hard: u32) -> Self {
        let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_migration-launch"), "--app", "held"]);
        command.arg("--control").arg(control).arg("--restore");
        Self(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn connect(&self, control: &Path) -> Launcher {
        let begun = Instant::now();
        loop {
            match Launcher::connect(control) {
                Ok(launcher) => return launcher,
                Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// How many descriptors it has of this file.
    fn has(&self, file: &Path) -> usize {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap();
        descriptors
            .filter(|entry| fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|to| to == file))
            .count()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Either fails when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hold(launcher: &Launcher, memory: &File) {
    let begun = Instant::now();
    while let Err(error) = launcher.tell(Request::Hold(0), &[memory.as_fd()]) {
        assert!(begun.elapsed() < LIMIT, "{error}");
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn as_much_memory_is_held_as_the_hard_limit_allows() {
    let directory = tempfile::tempdir().unwrap();
    let (control, memory) = (directory.path().join("control"), directory.path().join("memory"));
    let file = File::create(&memory).unwrap();
    let waiting = Waiting::start(&control, 24, 400);
    let launcher = waiting.connect(&control);
    for _ in 0..300 {
        hold(&launcher, &file);
    }
    let begun = Instant::now();
    while waiting.has(&memory) < 300 {
        assert!(begun.elapsed() < LIMIT, "it holds {} of 300", waiting.has(&memory));
        sleep(Duration::from_millis(5));
    }
    launcher.tell(Request::Release, &[]).unwrap();
    let begun = Instant::now();
    while waiting.has(&memory) > 0 {
        assert!(begun.elapsed() < LIMIT, "it still holds {}", waiting.has(&memory));
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn memory_that_there_is_no_room_for_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (control, memory) = (directory.path().join("control"), directory.path().join("memory"));
    let file = File::create(&memory).unwrap();
    let mut waiting = Waiting::start(&control, 24, 24);
    let launcher = waiting.connect(&control);
    for _ in 0..30 {
        hold(&launcher, &file);
    }
    let mut said = String::new();
    BufReader::new(waiting.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("there is no room"), "{said}");
    assert!(waiting.has(&memory) < 30);
}
