//! The daemon and its guardian, as processes that can be killed.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lazy_pages::{
    format::Manifest,
    store::{LocalStore, ObjectStore},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{BASE, LIMIT, app, area, checkpoint, restored, runtime};

const B: u64 = BASE;
const PAGES: u64 = 2048;

/// A running `lazy-pages serve`. Killed when dropped.
struct Daemon {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    place: TempDir,
    manifest: Arc<Manifest>,
}

impl Daemon {
    /// Starts serving a checkpoint. `packs_come`: whether its packs can be read at all; if not, reading them never ends.
    fn start(packs_come: bool) -> Self {
        let place = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(place.path().join("store")));
        let manifest = checkpoint(&store, &runtime(), &[(crate::support::PID, vec![area(B, PAGES)])], &[]);
        if !packs_come {
            let packs = place.path().join("store").join(app().as_str()).join("packs");
            for pack in fs::read_dir(packs).unwrap() {
                let pack = pack.unwrap().path();
                fs::remove_file(&pack).unwrap();
                // Nobody ever writes to it.
                assert!(Command::new("mkfifo").arg(&pack).status().unwrap().success());
            }
        }
        let mut child = serve(place.path(), &place.path().join("images")).spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout, place, manifest }
    }

    fn report(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn ready(&mut self) {
        let report = self.report();
        assert_eq!(report["event"], "ready");
        assert_eq!(report["checkpoint"], self.manifest.id.to_string());
        assert_eq!(report["pid"], self.child.id());
    }

    fn images(&self) -> std::path::PathBuf {
        self.place.path().join("images")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn guardian(&self) -> u32 {
        let id = self.child.id();
        let threads = fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
        let children: Vec<u32> = threads
            .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
            .collect();
        assert!(children.len() <= 1, "one guardian: {children:?}");
        children.first().copied().unwrap_or(0)
    }

    fn end(&mut self) -> ExitStatus {
        let asked = Instant::now();
        while asked.elapsed() < LIMIT {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("the daemon should have ended");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(place: &Path, images: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazy-pages"));
    command.args(["serve", "--json", "--app", app().as_str(), "--store"]);
    command.arg(format!("file://{}", place.join("store").display())).arg("--dir").arg(images);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn ended(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat"));
    state.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
        || !Path::new(&format!("/proc/{pid}")).exists()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let asked = Instant::now();
    while !done() {
        assert!(asked.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_daemon_serves_a_restore_and_ends() {
    let mut daemon = Daemon::start(true);
    daemon.ready();
    assert_eq!(fs::read(daemon.images().join("inventory.img")).unwrap(), b"images");
    assert_eq!(fs::read(daemon.images().join("pages-4242.img")).unwrap(), b"", "nothing of it is eager");
    let guardian = daemon.guardian();
    assert_ne!(guardian, 0);
    let mut target = restored(&daemon.images().join("lazy-pages.socket"), &[area(B, PAGES)]);
    target.ok(&format!("check {B} {PAGES} {B}"));
    let report = daemon.report();
    assert_eq!(report["event"], "resident");
    assert_eq!(report["missing_pages"], 0);
    assert_eq!(daemon.end().code(), Some(0));
    assert!(ended(guardian), "the guardian ends with it");
    assert!(!daemon.images().join("lazy-pages.socket").exists());
    target.ok(&format!("check {B} {PAGES} {B}"));
}

#[test]
fn a_daemon_nobody_listens_to_serves_all_the_same() {
    let mut daemon = Daemon::start(true);
    daemon.ready();
    daemon.stdout = None;
    let mut target = restored(&daemon.images().join("lazy-pages.socket"), &[area(B, PAGES)]);
    target.ok(&format!("check {B} {PAGES} {B}"));
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn a_killed_daemon_takes_the_tree_with_it_and_leaves_no_zeros() {
    let mut daemon = Daemon::start(false);
    daemon.ready();
    let mut target = restored(&daemon.images().join("lazy-pages.socket"), &[area(B, PAGES)]);
    // Every process of the tree waits for a page: a thread of each would see zeros if a descriptor closed too early.
    target.tell(&format!("spawn; fork; check {B} 10 {B}"));
    assert_eq!(target.answer(), "ok");
    target.tell(&format!("check {} {PAGES} {B}", B));
    thread::sleep(Duration::from_millis(300));
    let guardian = daemon.guardian();
    daemon.signal(Signal::SIGKILL);
    assert_eq!(daemon.end().signal(), Some(9));
    target.assert_killed();
    wait_for("the guardian ends when the tree has ended", || ended(guardian));
}

#[test]
fn a_terminated_daemon_goes_on_while_pages_are_missing() {
    let mut daemon = Daemon::start(false);
    daemon.ready();
    let mut target = restored(&daemon.images().join("lazy-pages.socket"), &[area(B, PAGES)]);
    target.tell(&format!("check {B} {PAGES} {B}"));
    thread::sleep(Duration::from_millis(200));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        daemon.signal(signal);
        kill(Pid::from_raw(daemon.guardian() as i32), signal).unwrap();
    }
    thread::sleep(Duration::from_millis(400));
    assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon goes on");
    assert!(!ended(target.pid()), "so does the process");
    target.kill();
    assert_eq!(daemon.report()["event"], "gone");
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn a_terminated_daemon_ends_when_nobody_depends_on_it() {
    let mut daemon = Daemon::start(true);
    daemon.ready();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.report()["event"], "cancelled");
    assert_eq!(daemon.end().code(), Some(5));
}

#[test]
fn a_killed_guardian_is_replaced_and_the_new_one_guards() {
    let mut daemon = Daemon::start(false);
    daemon.ready();
    let mut target = restored(&daemon.images().join("lazy-pages.socket"), &[area(B, PAGES)]);
    target.tell(&format!("fork; check {B} {PAGES} {B}"));
    thread::sleep(Duration::from_millis(300));
    let first = daemon.guardian();
    kill(Pid::from_raw(first as i32), Signal::SIGKILL).unwrap();
    wait_for("a new guardian", || ![0, first].contains(&daemon.guardian()));
    thread::sleep(Duration::from_millis(200));
    assert!(!ended(target.pid()));
    daemon.signal(Signal::SIGKILL);
    target.assert_killed();
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let place = tempfile::tempdir().unwrap();
    let failed = |command: &mut Command| {
        let output = command.stderr(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["event"], "failed");
        report["reason"].as_str().unwrap().to_owned()
    };
    let reason = failed(&mut serve(place.path(), &place.path().join("images")));
    assert!(reason.contains("server-test"), "{reason}");

    let daemon = Daemon::start(true);
    let reason = failed(&mut serve(daemon.place.path(), daemon.place.path()));
    assert!(reason.contains("is not empty"), "{reason}");
    let mut unknown = serve(daemon.place.path(), &place.path().join("images"));
    let reason = failed(unknown.args(["--checkpoint", "01JD5M3Q8Z0000000000000000"]));
    assert!(reason.contains("01JD5M3Q8Z0000000000000000"), "{reason}");
}
