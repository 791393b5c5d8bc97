//! Kernel state of all kinds, moved twice: by plain CRIU with images on disk, and through a store with a lazy restore.
//!
//! CRIU's own tests (ZDTM) are small programs that set up one kind of state and check it after they were restored. Those
//! in `programs/` do the same; `programs/program.h` says how they are spoken to. Each is started, checkpointed at some
//! moment, ended, restored and asked whether everything is as it was. What is asserted:
//! - what plain CRIU carries, this project carries;
//! - what plain CRIU refuses, this project refuses, and the program runs on with its state intact;
//! - each program notices when its own state is spoiled, so its word means something.

mod common;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    hash::{BuildHasher, RandomState},
    mem::discriminant,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use common::{
    Fixture, LIMIT,
    programs::{executable, programs},
    text,
};
use migration_harness::{process, sys::in_own_session, table};
use serde_json::Value;
use tempfile::TempDir;

/// Programs at work at once. They wait for each other's children, timers and disks more than they compute.
const WORKERS: usize = 6;

/// The longest a program is left alone before its checkpoint: time for several rounds of whatever it does meanwhile.
const LONGEST_HEAD_START_MS: u64 = 12;

/// How often each program is moved through a store: the second time it is itself something CRIU has built, and its
/// second checkpoint refers to pages of the first.
const MOVES: usize = 2;

/// How many programs must be carried both ways. Fewer means that this machine shows next to nothing.
const CARRIED_AT_LEAST: usize = 25;

/// Every program, with the options both ways need, and the store its checkpoint goes to.
const PROGRAMS: &[Program] = &[
    // Memory.
    local("advised_memory"),
    local("aligned_stack_pointer"),
    s3("anonymous_memory"),
    local("deleted_mapping"),
    local("guard_pages"),
    local("heap"),
    local("huge_pages"),
    local("locked_memory"),
    s3("many_areas"),
    local("memfd"),
    local("private_file_mapping"),
    local("protections"),
    local("registers"),
    local("secret_memory"),
    local("shared_address_space"),
    local("shared_anonymous"),
    local("shared_file_mapping"),
    s3("stack_growth"),
    local("sysv_shared_memory"),
    // Things done while pages are still arriving.
    s3("exec_after_restore"),
    s3("fork_after_restore"),
    s3("kernel_access_after_restore"),
    s3("moved_after_restore"),
    s3("threads_after_restore"),
    // Channels.
    local("empty_datagram"),
    local("epoll"),
    local("eventfd"),
    local("eventfd_semaphore"),
    local("fifo"),
    local("netlink"),
    local("packet_pipe"),
    local("passed_descriptors"),
    local("pipe_to_child"),
    local("pipes"),
    local("socket_options"),
    local("socketpair_dgram"),
    local("socketpair_stream"),
    local("tcp_connection").with(&["--tcp-established"]),
    local("tcp_listener"),
    local("udp"),
    local("unix_listener"),
    local("unix_peer_name"),
    local("unix_peer_outside"),
    local("unix_pending_bytes"),
    local("unix_pending_connection"),
    // Files.
    local("asynchronous_io"),
    local("deleted_file"),
    local("devices"),
    local("directories"),
    local("file_locks"),
    local("file_offsets"),
    local("hard_link"),
    local("inotify"),
    local("io_uring"),
    local("open_file_locks"),
    local("pseudoterminal"),
    local("shared_descriptors"),
    local("working_directory"),
    // Time and signals.
    local("blocked_calls"),
    local("clocks"),
    local("interval_timers"),
    local("pending_signals"),
    local("posix_timers"),
    local("queued_signals"),
    local("restarted_calls"),
    local("signal_handlers"),
    local("signalfd"),
    local("timerfd"),
    local("unread_periodic_timerfd"),
    // Processes and threads.
    local("child_reaping"),
    local("credentials"),
    local("ended_leader"),
    local("forking"),
    local("identity"),
    local("other_group"),
    local("other_user"),
    local("own_namespaces"),
    local("own_userfaultfd"),
    local("parent_death_signal"),
    local("personality"),
    local("pidfd"),
    local("process_attributes"),
    local("resource_limits"),
    local("restartable_sequences"),
    local("robust_mutex"),
    local("scheduling"),
    local("seccomp_filter"),
    local("sessions"),
    local("shared_descriptor_table"),
    local("shared_directory"),
    local("stopped_child"),
    local("thread_attributes"),
    local("threads"),
    local("traced_child"),
    local("zombies"),
];

/// A program and what it needs.
struct Program {
    name: &'static str,
    /// Given to both steps of both ways; CRIU and the agent call it the same.
    options: &'static [&'static str],
    store: Store,
}

#[derive(Clone, Copy, PartialEq)]
enum Store {
    Directory,
    S3,
}

const fn local(name: &'static str) -> Program {
    Program { name, options: &[], store: Store::Directory }
}

const fn s3(name: &'static str) -> Program {
    Program { store: Store::S3, ..local(name) }
}

impl Program {
    const fn with(self, options: &'static [&'static str]) -> Self {
        Self { options, ..self }
    }
}

/// What became of a program.
#[derive(Debug)]
enum Verdict {
    /// It was restored and found everything as it was.
    Carried,
    /// Its checkpoint was refused for this reason; it ran on and found everything as it was.
    Refused(String),
    /// It was restored and found something changed.
    Changed(String),
    /// There was a checkpoint, but not of a kind that could be restored.
    NotRestored(String),
    /// Its checkpoint was refused, and it did not survive that as it was.
    Harmed(String),
    /// This machine lacks what it is about.
    NotHere,
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Refused(_) => "refused, intact",
            Self::Changed(_) => "CHANGED",
            Self::NotRestored(_) => "not restored",
            Self::Harmed(_) => "HARMED",
            Self::NotHere => "not here",
        }
    }

    /// Why it is not [`Self::Carried`].
    fn reason(&self) -> &str {
        match self {
            Self::Refused(reason)
            | Self::Changed(reason)
            | Self::NotRestored(reason)
            | Self::Harmed(reason) => reason,
            Self::Carried | Self::NotHere => "",
        }
    }

    /// Whether it is as good as what plain CRIU does.
    fn keeps_up_with(&self, plain: &Self) -> bool {
        match plain {
            Self::Carried | Self::NotHere => discriminant(self) == discriminant(plain),
            // More than CRIU itself does is welcome: the program has checked it.
            Self::Refused(_) => matches!(self, Self::Refused(_) | Self::Carried),
            Self::Changed(_) | Self::NotRestored(_) | Self::Harmed(_) => !matches!(self, Self::Harmed(_)),
        }
    }
}

/// A way to move a process. Errors are reasons.
trait Way {
    /// Ends the process, or refuses.
    fn checkpoint(&self, program: &Program, pid: i32) -> Result<(), String>;
    /// Brings it back; what an error leaves behind is none of the caller's business.
    fn restore(&self, program: &Program) -> Result<(), String>;
}

/// `criu dump` and `criu restore`, with the options that the agent always gives.
struct PlainCriu {
    images: TempDir,
}

impl PlainCriu {
    fn new() -> Self {
        Self { images: tempfile::tempdir().unwrap() }
    }

    fn run(&self, verb: &str, program: &Program, arguments: &[&str]) -> Result<(), String> {
        let named = std::env::var_os("MIGRATION_CRIU").filter(|path| !path.is_empty());
        let private = PathBuf::from("/opt/criu/bin/criu");
        let criu = named.map(PathBuf::from).or(private.exists().then_some(private));
        let mut command = Command::new(criu.unwrap_or("criu".into()));
        command.args(["--no-default-config", verb, "--log-file", "log", "-v1", "--images-dir"]);
        command.arg(self.images.path()).args(["--file-locks", "--link-remap", "--manage-cgroups=ignore"]);
        command.args(arguments).args(program.options);
        let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if silent.status().unwrap().success() {
            return Ok(());
        }
        let log = fs::read_to_string(self.images.path().join("log")).unwrap_or_default();
        // The first is shown by every CRIU without CAP_SYS_RESOURCE, the other says no more than the exit code.
        let errors = log.lines().filter(|line| {
            line.contains("Error (") && !line.contains("RLIMIT_NOFILE") && !line.ends_with(" FAILED.")
        });
        Err(errors.collect::<Vec<_>>().join("; "))
    }
}

impl Way for PlainCriu {
    fn checkpoint(&self, program: &Program, pid: i32) -> Result<(), String> {
        let pid = pid.to_string();
        let mut arguments = vec!["--tree", &pid];
        if program.options.contains(&"--tcp-established") {
            // Unlike the default it needs no program that may be missing; the agent chooses what is there.
            arguments.extend(["--network-lock", "nftables"]);
        }
        self.run("dump", program, &arguments)
    }

    fn restore(&self, program: &Program) -> Result<(), String> {
        self.run("restore", program, &["--restore-detached"])
    }
}

/// `migration-agent checkpoint` and `migration-agent restore`, by way of a store.
struct ThroughStore {
    fixture: Fixture,
}

impl ThroughStore {
    fn new(store: Store) -> Self {
        let fixture = if store == Store::S3 { Fixture::s3() } else { Fixture::local() };
        Self { fixture }
    }

    fn run(&self, program: &Program, arguments: &[&str]) -> Result<Value, Value> {
        let mut command = self.fixture.agent(arguments);
        let output = command.args(["--json", "--app", program.name]).args(program.options).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| text(&output).into());
        if output.status.success() { Ok(said) } else { Err(said["error"].clone()) }
    }
}

fn message(error: &Value) -> String {
    error["message"].as_str().unwrap_or_default().to_owned()
}

impl Way for ThroughStore {
    fn checkpoint(&self, program: &Program, pid: i32) -> Result<(), String> {
        let before = self.fixture.manifests().len();
        match self.run(program, &["checkpoint", "--pid", &pid.to_string()]) {
            Ok(_) => Ok(()),
            Err(error) => {
                assert_eq!(error["left"], format!("process {pid} runs on"), "{}: {error}", program.name);
                assert_eq!(self.fixture.manifests().len(), before, "{}: refused, but stored", program.name);
                Err(message(&error))
            }
        }
    }

    fn restore(&self, program: &Program) -> Result<(), String> {
        let restored = self.run(program, &["restore", "--strategy", "lazy-storage", "--detach"]);
        restored.map(drop).map_err(|error| message(&error))
    }
}

/// A running program. Everything it has started ends with this value.
struct Running {
    directory: TempDir,
    pid: i32,
}

impl Running {
    /// Starts it and waits until its state is set up; `None` if this machine lacks what it is about.
    fn start(program: &Program, argument: Option<&str>) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("state-").tempdir().unwrap();
        let mut command = Command::new(executable(program.name));
        command.arg(directory.path()).args(argument).current_dir(directory.path());
        command.env_clear().env("STARTED_WITH", "this");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pid = in_own_session(&mut command).spawn().unwrap().id() as i32;
        let running = Self { directory, pid };
        let said = running.wait_for("ready").unwrap_or_else(|why| panic!("{}: {why}", program.name));
        match said.as_str() {
            "ready\n" => Some(running),
            said if said.starts_with("not here: ") => None,
            said => panic!("{}: {said}", program.name),
        }
    }

    /// Asks it whether everything is as it was. An error is what it complains about.
    fn check(&self) -> Result<(), String> {
        fs::write(self.directory.path().join("check"), "").unwrap();
        match self.wait_for("result")?.as_str() {
            "ok\n" => Ok(()),
            complaints => Err(complaints.trim_end().to_owned()),
        }
    }

    fn wait_for(&self, file: &str) -> Result<String, String> {
        let path = self.directory.path().join(file);
        let mut is_running = true;
        process::wait_until(LIMIT, || {
            // Looked at before the file: what was written just before the end still counts.
            is_running = process::is_running(self.pid);
            path.exists() || !is_running
        });
        fs::read_to_string(&path).map_err(|_| {
            let complaints = fs::read_to_string(self.directory.path().join("complaints")).unwrap_or_default();
            let what = if is_running { "does not answer" } else { "has ended" };
            format!("it {what} without `{file}`; it said: `{}`", complaints.trim_end())
        })
    }

    /// Waits until it can be checkpointed again. Of processes that come and go only those there now count.
    fn wait_resident(&self) {
        for pid in process::tree(self.pid) {
            if let Err(error) = process::wait_resident(pid, LIMIT) {
                assert!(!process::is_running(pid), "{error}");
            }
        }
    }

    /// Whether a process belongs to this program: all of them have its directory as an argument.
    fn owns(&self, pid: i32) -> bool {
        process::arguments(pid)
            .iter()
            .any(|argument| argument == self.directory.path().as_os_str().as_bytes())
    }

    fn is_gone(&self, pids: &BTreeSet<i32>) -> bool {
        collect_orphans();
        pids.iter().all(|&pid| process::wait_gone(pid, LIMIT))
            && !process::all().into_iter().any(|pid| self.owns(pid))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        process::end_all(|pid| self.owns(pid));
        process::wait_gone(self.pid, LIMIT);
        collect_orphans();
    }
}

/// Collects the children that ended programs have left to this process. Their executables are named for it.
fn collect_orphans() {
    for child in process::children(std::process::id() as i32) {
        if process::state(child) == Some('Z')
            && process::name(child).is_some_and(|name| name.starts_with("state-"))
        {
            process::reap(child);
        }
    }
}

/// Some moment of what the program does while it waits.
fn let_it_run() {
    let random = RandomState::new().hash_one(0);
    thread::sleep(Duration::from_micros(random % (LONGEST_HEAD_START_MS * 1000)));
}

/// Moves a program and asks it about its state.
fn moved(program: &Program, way: &dyn Way, times: usize, argument: Option<&str>) -> Verdict {
    let Some(running) = Running::start(program, argument) else { return Verdict::NotHere };
    for time in 0..times {
        if time > 0 {
            running.wait_resident();
        }
        let_it_run();
        let pids = process::tree(running.pid).into_iter().collect();
        if let Err(reason) = way.checkpoint(program, running.pid) {
            return match running.check() {
                Ok(()) => Verdict::Refused(reason),
                Err(complaint) => Verdict::Harmed(format!("{complaint} (refused: {reason})")),
            };
        }
        assert!(running.is_gone(&pids), "{}: something of it goes on after its checkpoint", program.name);
        if let Err(reason) = way.restore(program) {
            assert!(!process::is_running(running.pid), "{}: a failed restore left it running", program.name);
            return Verdict::NotRestored(reason);
        }
    }
    match running.check() {
        Ok(()) => Verdict::Carried,
        Err(complaint) => Verdict::Changed(complaint),
    }
}

/// What one program came to, both ways.
struct Outcome {
    program: &'static Program,
    plain: Verdict,
    ours: Verdict,
}

fn outcome(program: &'static Program) -> Outcome {
    Outcome {
        program,
        plain: moved(program, &PlainCriu::new(), 1, None),
        ours: moved(program, &ThroughStore::new(program.store), MOVES, None),
    }
}

/// Does something for every program, several at a time; results are in the order of the programs.
fn for_each_program<T: Send>(act: impl Fn(&'static Program) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(program) = PROGRAMS.get(index) else { return done };
            done.push((index, act(program)));
        }
    };
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn what_criu_carries_comes_through_a_store_and_what_it_refuses_is_left_intact() {
    process::become_subreaper().unwrap();
    let outcomes = for_each_program(outcome);

    let mut rows = vec![["program", "plain CRIU", "ours"].map(str::to_owned).to_vec()];
    rows.extend(outcomes.iter().map(|outcome| {
        let (plain, ours) = (outcome.plain.word(), outcome.ours.word());
        [outcome.program.name, plain, ours].map(str::to_owned).to_vec()
    }));
    println!("{}", table::layout(&rows));
    for outcome in &outcomes {
        for (way, verdict) in [("plain CRIU", &outcome.plain), ("ours", &outcome.ours)] {
            if !verdict.reason().is_empty() {
                println!("{}, {way}: {}: {}", outcome.program.name, verdict.word(), verdict.reason());
            }
        }
    }

    let behind = outcomes.iter().filter(|outcome| !outcome.ours.keeps_up_with(&outcome.plain));
    let behind: Vec<_> = behind.map(|outcome| outcome.program.name).collect();
    assert!(behind.is_empty(), "plain CRIU does better with {}", behind.join(", "));
    let carried =
        |outcome: &&Outcome| matches!((&outcome.plain, &outcome.ours), (Verdict::Carried, Verdict::Carried));
    let carried = outcomes.iter().filter(carried).count();
    assert!(carried >= CARRIED_AT_LEAST, "only {carried} programs were carried both ways");
}

#[test]
fn every_program_notices_when_its_state_is_spoiled() {
    process::become_subreaper().unwrap();
    let blind = for_each_program(|program| {
        let untouched = Running::start(program, None)?.check();
        let spoiled = Running::start(program, Some("sabotage"))?.check();
        match (untouched, spoiled) {
            (Ok(()), Err(_)) => None,
            (untouched, spoiled) => {
                Some(format!("{}: untouched {untouched:?}, spoiled {spoiled:?}", program.name))
            }
        }
    });
    let blind: Vec<String> = blind.into_iter().flatten().collect();
    assert!(blind.is_empty(), "{}", blind.join("\n"));
}

#[test]
fn a_state_that_is_spoiled_after_the_restore_is_reported() {
    process::become_subreaper().unwrap();
    let program = local("anonymous_memory");
    let verdict = moved(&program, &ThroughStore::new(program.store), 1, Some("sabotage"));
    assert!(matches!(verdict, Verdict::Changed(_)), "{verdict:?}");
}

#[test]
fn every_program_is_in_the_table() {
    let sources = fs::read_dir(programs()).unwrap().map(|entry| entry.unwrap().path());
    let sources: BTreeSet<String> = sources
        .filter(|path| path.extension() == Some(OsStr::new("c")))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let listed: Vec<String> = PROGRAMS.iter().map(|program| program.name.to_owned()).collect();
    assert_eq!(listed.len(), sources.len(), "a program is in the table twice, or not at all");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), sources);
}
