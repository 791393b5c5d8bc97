//! The daemon as a process: what it says, how it ends.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lazy_pages::{
    format::{Manifest, Vma},
    record::{PagesRecord, Record},
    server::{
        Role,
        status::{self, DaemonStatus},
    },
    store::{self, ObjectStore},
};
use migration_harness::s3::{S3Options, S3Server};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{BASE, LIMIT, PID, Target, app, area, checkpoint, restored, runtime};

const B: u64 = BASE;
const PAGES: u64 = 2048;

/// A running `lazy-pages serve` of one checkpoint or several. All of its processes are killed when it is dropped.
pub struct Daemon {
    pub child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    pub place: TempDir,
    pub server: Option<S3Server>,
    pub manifest: Arc<Manifest>,
}

impl Daemon {
    /// Serves a checkpoint from a directory. `packs_come`: whether its packs can be read at all; if not, reading them never
    /// ends.
    pub fn local(packs_come: bool) -> Self {
        let place = tempfile::tempdir().unwrap();
        let url = format!("file://{}", place.path().join("store").display());
        let daemon = |place| Self::start(place, None, &url, &[area(B, PAGES)], 1, |_| {});
        if packs_come {
            return daemon(place);
        }
        let prepared = Self::prepare(&url, &[area(B, PAGES)]);
        let packs = place.path().join("store").join(app().as_str()).join("packs");
        for pack in fs::read_dir(packs).unwrap() {
            let pack = pack.unwrap().path();
            fs::remove_file(&pack).unwrap();
            // Nobody ever writes to it.
            assert!(Command::new("mkfifo").arg(&pack).status().unwrap().success());
        }
        Self::serve(place, None, &url, prepared, 1, |_| {})
    }

    /// Serves a checkpoint of these areas from an S3 server of its own, `restores` times at once.
    pub fn s3(areas: &[Vma], restores: usize, more: impl FnOnce(&mut Command)) -> Self {
        let place = tempfile::tempdir().unwrap();
        let objects = place.path().join("objects");
        fs::create_dir(&objects).unwrap();
        let server = S3Server::start(&objects, S3Options::default()).unwrap();
        let url = server.url("checkpoints");
        // Only this test program's own; each test runs with the same keys.
        Self::start(place, Some(server), &url, areas, restores, more)
    }

    /// What is kept about how the pages came, of a daemon that has ended.
    pub fn pages_record(&self) -> PagesRecord {
        let found =
            Command::new("find").arg(self.place.path()).args(["-name", "pages.json"]).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let [path] = found.lines().collect::<Vec<_>>()[..] else { panic!("not one record: {found:?}") };
        PagesRecord::decode(&fs::read(path).unwrap()).unwrap()
    }

    fn start(
        place: TempDir,
        server: Option<S3Server>,
        url: &str,
        areas: &[Vma],
        restores: usize,
        more: impl FnOnce(&mut Command),
    ) -> Self {
        let manifest = match &server {
            Some(server) => Self::prepare_s3(server, url, areas),
            None => Self::prepare(url, areas),
        };
        Self::serve(place, server, url, manifest, restores, more)
    }

    fn prepare(url: &str, areas: &[Vma]) -> Arc<Manifest> {
        let store: Arc<dyn ObjectStore> = store::open(&url.parse().unwrap()).unwrap();
        checkpoint(&store, &runtime(), &[(PID, areas.to_vec())], &[])
    }

    fn prepare_s3(server: &S3Server, url: &str, areas: &[Vma]) -> Arc<Manifest> {
        let keys = lazy_pages::store::StaticCredentials {
            access_key: server.access_key.clone(),
            secret_key: server.secret_key.clone(),
            session_token: None,
        };
        let lazy_pages::store::StoreUrl::S3(config) = url.parse().unwrap() else { panic!("{url} is not S3") };
        let runtime = runtime();
        let _context = runtime.enter();
        let store: Arc<dyn ObjectStore> =
            Arc::new(lazy_pages::store::S3Store::with_credentials(config, keys).unwrap());
        checkpoint(&store, &runtime, &[(PID, areas.to_vec())], &[])
    }

    fn serve(
        place: TempDir,
        server: Option<S3Server>,
        url: &str,
        manifest: Arc<Manifest>,
        restores: usize,
        more: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = serve(url);
        for number in 0..restores {
            command.args(["--app", app().as_str(), "--dir"]).arg(images(place.path(), number));
        }
        if let Some(server) = &server {
            command
                .env("AWS_ACCESS_KEY_ID", &server.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
        }
        more(&mut command);
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout, place, server, manifest }
    }

    /// The next thing it says.
    pub fn report(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// The next thing it says that is not about a takeover.
    pub fn report_but_takeovers(&mut self) -> Value {
        loop {
            let report = self.report();
            if report["event"] != "taken-over" {
                return report;
            }
        }
    }

    pub fn ready(&mut self) {
        let report = self.report();
        assert_eq!(report["event"], "ready", "{report}");
        assert_eq!(report["checkpoint"], self.manifest.id.to_string());
        assert_eq!(report["guardian"], self.child.id());
        let status = self.status().unwrap();
        assert_eq!(report["pid"], status.server.unwrap());
    }

    pub fn images(&self) -> PathBuf {
        images(self.place.path(), 0)
    }

    pub fn socket(&self) -> PathBuf {
        self.images().join("lazy-pages.socket")
    }

    pub fn socket_of(&self, number: usize) -> PathBuf {
        images(self.place.path(), number).join("lazy-pages.socket")
    }

    /// A process that has registered these areas and was let run.
    pub fn restored(&self, areas: &[Vma]) -> Target {
        restored(&self.socket(), areas)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// How it says things stand; `None` when none of its processes is left.
    pub fn status(&self) -> Option<DaemonStatus> {
        let found = status::find().unwrap().into_iter().map(|daemon| daemon.status());
        let mut mine =
            found.filter(|daemon| daemon.restores.iter().any(|one| one.directory == self.images()));
        mine.next()
    }

    /// The process of this role; waits for it.
    pub fn pid(&self, role: Role) -> u32 {
        let asked = Instant::now();
        loop {
            let found = self.status().and_then(|status| match role {
                Role::Server => status.server,
                Role::Guardian => status.guardian,
                Role::Standby => status.standby,
            });
            if let Some(pid) = found {
                return pid;
            }
            assert!(asked.elapsed() < LIMIT, "there is no {role:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills the processes of these roles at once: none of them sees another's death.
    pub fn kill(&self, roles: &[Role]) {
        let pids: Vec<Pid> = roles.iter().map(|&role| Pid::from_raw(self.pid(role) as i32)).collect();
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for &pid in &pids {
                let _ = kill(pid, signal);
            }
        }
    }

    pub fn end(&mut self) -> ExitStatus {
        let asked = Instant::now();
        while asked.elapsed() < LIMIT {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("the daemon should have ended");
    }

    /// Waits until none of its processes is left.
    pub fn assert_gone(&self) {
        wait_for("processes of the daemon are left", || self.status().is_none());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Those that are killed may be replaced before the others are.
        while let Some(status) = self.status() {
            for pid in [status.guardian, status.standby, status.server].into_iter().flatten() {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn images(place: &Path, number: usize) -> PathBuf {
    place.join(format!("images-{number}"))
}

fn serve(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazy-pages"));
    command.args(["serve", "--json", "--store", url]).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

pub fn ended(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat"));
    state.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
        || !Path::new(&format!("/proc/{pid}")).exists()
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let asked = Instant::now();
    while !done() {
        assert!(asked.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_daemon_serves_a_restore_and_ends() {
    let mut daemon = Daemon::local(true);
    daemon.ready();
    assert_eq!(fs::read(daemon.images().join("inventory.img")).unwrap(), b"images");
    assert_eq!(fs::read(daemon.images().join("pages-4242.img")).unwrap(), b"", "nothing of it is eager");
    let standby = daemon.pid(Role::Standby);
    let mut target = daemon.restored(&[area(B, PAGES)]);
    target.ok(&format!("check {B} {PAGES} {B}"));
    let report = daemon.report();
    assert_eq!(report["event"], "resident");
    assert_eq!(report["app"], app().as_str());
    assert_eq!(report["missing_pages"], 0);
    assert_eq!(daemon.end().code(), Some(0));
    assert!(ended(standby), "the standby ends with it");
    daemon.assert_gone();
    assert!(!daemon.socket().exists());
    target.ok(&format!("check {B} {PAGES} {B}"));
}

#[test]
fn a_daemon_nobody_listens_to_serves_all_the_same() {
    let mut daemon = Daemon::local(true);
    daemon.ready();
    daemon.stdout = None;
    let mut target = daemon.restored(&[area(B, PAGES)]);
    target.ok(&format!("check {B} {PAGES} {B}"));
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn a_terminated_daemon_goes_on_while_pages_are_missing() {
    let mut daemon = Daemon::local(false);
    daemon.ready();
    let mut target = daemon.restored(&[area(B, PAGES)]);
    target.tell(&format!("check {B} {PAGES} {B}"));
    thread::sleep(Duration::from_millis(200));
    let processes = [Role::Server, Role::Guardian, Role::Standby].map(|role| daemon.pid(role));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        for pid in processes {
            kill(Pid::from_raw(pid as i32), signal).unwrap();
        }
    }
    thread::sleep(Duration::from_millis(400));
    assert!(!processes.into_iter().any(ended), "the daemon goes on");
    assert!(!ended(target.pid()), "so does the process");
    target.kill();
    assert_eq!(daemon.report()["event"], "gone");
    assert_eq!(daemon.end().code(), Some(0));
    daemon.assert_gone();
}

#[test]
fn the_guardian_and_its_standby_can_do_little_and_the_server_what_it_could_before() {
    let mut daemon = Daemon::local(true);
    daemon.ready();
    let field = |pid: u32, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().to_owned()
    };
    let effective = |pid| u64::from_str_radix(&field(pid, "CapEff:"), 16).unwrap();
    const CAP_KILL: u64 = 1 << 5;
    for role in [Role::Guardian, Role::Standby] {
        assert_eq!(effective(daemon.pid(role)), CAP_KILL, "{role:?}");
        assert_eq!(field(daemon.pid(role), "Threads:"), "1", "{role:?}");
    }
    assert_eq!(effective(daemon.pid(Role::Server)), effective(std::process::id()));
    // Also of one that takes the place of another.
    daemon.kill(&[Role::Guardian, Role::Server]);
    wait_for("all are there again", || {
        daemon
            .status()
            .is_some_and(|now| now.server.is_some() && now.guardian.is_some() && now.standby.is_some())
    });
    assert_eq!(effective(daemon.pid(Role::Guardian)), CAP_KILL);
    assert_eq!(effective(daemon.pid(Role::Server)), effective(std::process::id()));
}

#[test]
fn a_terminated_daemon_ends_when_nobody_depends_on_it() {
    let mut daemon = Daemon::local(true);
    daemon.ready();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.report()["event"], "cancelled");
    assert_eq!(daemon.end().code(), Some(5));
    daemon.assert_gone();
}

#[test]
fn what_was_sent_before_a_daemon_was_told_to_end_is_served() {
    // Whether it looks at the socket or at the signal first is the kernel's choice: several times.
    for _ in 0..10 {
        let mut daemon = Daemon::local(true);
        daemon.ready();
        let server = Pid::from_raw(daemon.pid(Role::Server) as i32);
        kill(server, Signal::SIGSTOP).unwrap();
        let mut target = Target::start(&daemon.socket());
        target.map(&[area(B, PAGES)]);
        target.tell(&format!("arm; pid {PID}; send; finish; check {B} {PAGES} {B}"));
        thread::sleep(Duration::from_millis(20));
        kill(server, Signal::SIGTERM).unwrap();
        kill(server, Signal::SIGCONT).unwrap();
        assert_eq!(target.answer(), "ok");
        assert_eq!(daemon.report()["event"], "resident");
        assert_eq!(daemon.end().code(), Some(0));
    }
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let place = tempfile::tempdir().unwrap();
    let failed = |command: &mut Command, directory: &Path| {
        command.args(["--app", app().as_str(), "--dir"]).arg(directory);
        let output = command.stderr(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["event"], "failed");
        report["reason"].as_str().unwrap().to_owned()
    };
    let nothing = format!("file://{}", place.path().join("store").display());
    let reason = failed(&mut serve(&nothing), &place.path().join("images"));
    assert!(reason.contains("server-test"), "{reason}");

    let daemon = Daemon::local(true);
    let url = format!("file://{}", daemon.place.path().join("store").display());
    let reason = failed(&mut serve(&url), daemon.place.path());
    assert!(reason.contains("is not empty"), "{reason}");
    let mut unknown = serve(&url);
    let reason =
        failed(unknown.args(["--checkpoint", "01JD5M3Q8Z0000000000000000"]), &place.path().join("images"));
    assert!(reason.contains("01JD5M3Q8Z0000000000000000"), "{reason}");
}

#[test]
fn a_server_that_is_killed_before_anybody_depends_on_it_is_replaced() {
    let mut daemon = Daemon::local(true);
    daemon.ready();
    daemon.kill(&[Role::Server]);
    assert_eq!(daemon.report()["event"], "taken-over");
    let mut target = daemon.restored(&[area(B, PAGES)]);
    target.ok(&format!("check {B} {PAGES} {B}"));
    assert_eq!(daemon.report()["event"], "resident");
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn a_daemon_all_of_whose_processes_are_killed_before_a_restore_leaves_nothing() {
    let mut daemon = Daemon::local(true);
    daemon.ready();
    daemon.kill(&[Role::Guardian, Role::Standby, Role::Server]);
    assert_eq!(daemon.end().signal(), Some(9));
    daemon.assert_gone();
}
