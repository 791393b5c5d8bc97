//! What a launched workload finds, compared with one that was started directly, before and after it was moved; and what its
//! launcher does meanwhile.
//!
//! A workload that is launched differs from one that is not in its pid and its parent alone: a container runtime, too,
//! starts its program as the leader of a session. After a move the parent differs, and what CRIU does not carry; see
//! [`NOT_CARRIED`].

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Fixture, LIMIT, container, programs::executable};
use migration_harness::{process, sys::in_own_session};
use migration_launch::{
    control::Launcher,
    protocol::{Request, State},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Gives everything that can be inherited a value that nobody has by chance, then becomes the program.
const PREPARE: &str = r#"
set -e
umask 027
ulimit -n 200
ulimit -c 0
ulimit -s 4096
echo 300 > /proc/self/oom_score_adj
echo 0x23 > /proc/self/coredump_filter
cd "$HOME/inside"
exec 7< "$HOME/file"
read -r line <&7
export INHERITED='a value, with "quotes"'
exec nice -n 3 ionice -c 2 -n 6 chrt -b 0 taskset 1 env --block-signal=USR2 --ignore-signal=WINCH,ALRM \
    setpriv --bounding-set=-sys_boot "$@"
"#;

/// As another user, with capabilities nobody else has. Such a process is not moved in the test: where CAP_SYS_RESOURCE is
/// missing, CRIU cannot look at it.
const OTHER_USER: &str = r#"
exec setpriv --reuid 4711 --regid 4712 --groups 5,6 --inh-caps=-all,+net_raw,+net_bind_service \
    --ambient-caps=-all,+net_raw "$@"
"#;

/// What CRIU neither dumps nor restores: a restored process has these from CRIU. All three are advice to the machine it
/// ran on.
const NOT_CARRIED: [&str; 3] = ["status: Cpus_allowed:", "coredump_filter:", "input and output priority:"];

/// Control groups of the test.
struct Groups(Vec<PathBuf>);

impl Groups {
    /// One of version 1 and one of version 2, as far as they are mounted here.
    fn new(name: &str) -> Self {
        let parents = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let usable = parents.iter().map(Path::new).filter(|parent| parent.join("cgroup.procs").exists());
        let made: Vec<PathBuf> =
            usable.map(|parent| parent.join(format!("{name}-{}", std::process::id()))).collect();
        for group in &made {
            fs::create_dir_all(group).unwrap();
        }
        assert!(!made.is_empty(), "no control groups are mounted here");
        Self(made)
    }

    /// A shell's commands to go there.
    fn join(&self) -> String {
        self.0.iter().map(|group| format!("echo 0 > {}/cgroup.procs\n", group.display())).collect()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in &self.0 {
            process::wait_until(LIMIT, || fs::remove_dir(group).is_ok());
        }
    }
}

/// A directory for the program, and what it inherits.
fn home(fixture: &Fixture, name: &str) -> PathBuf {
    let home = fixture.path().join(name);
    fs::create_dir_all(home.join("inside")).unwrap();
    fs::write(home.join("file"), "first line\nsecond line\n").unwrap();
    // The other user writes there.
    Command::new("chmod").args(["-R", "a+rwx"]).arg(fixture.path()).status().unwrap();
    home
}

/// A shell that runs `script` and gets `words`.
fn shell(script: &str, words: &[&str], home: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(words);
    command.env("HOME", home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn launcher() -> String {
    process::program("migration-launch").unwrap().display().to_string()
}

fn program() -> String {
    executable("launch/surroundings").display().to_string()
}

/// What the program says about itself.
#[track_caller]
fn report(home: &Path) -> Vec<String> {
    let reported = home.join("reported");
    fs::write(home.join("report"), "").unwrap();
    assert!(process::wait_until(LIMIT, || reported.exists()), "there is no report");
    let text = fs::read_to_string(&reported).unwrap();
    fs::remove_file(reported).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Every line of both reports is in the other.
#[track_caller]
fn same(one: &[String], other: &[String], how: &str) {
    let only_in = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    let (missing, added) = (only_in(one, other), only_in(other, one));
    assert!(missing.is_empty() && added.is_empty(), "{how}: missing {missing:#?}, instead {added:#?}");
    assert_eq!(one, other, "{how}: in another order");
}

/// Lets the program end by itself.
fn end(home: &Path) {
    fs::write(home.join("end"), "").unwrap();
}

/// Ends a process and what is below it, whatever becomes of the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let tree = process::tree(self.0.id() as i32);
            for &pid in &tree {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = self.0.wait();
            // What was below it is this process's now.
            tree.into_iter().skip(1).for_each(process::reap);
        }
        let _ = self.0.wait();
    }
}

/// The other end of a workload's streams.
struct Streams {
    ticks: BufReader<ChildStdout>,
    tocks: BufReader<ChildStderr>,
}

impl Streams {
    fn of(child: &mut Child) -> Self {
        let (ticks, tocks) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { ticks: BufReader::new(ticks), tocks: BufReader::new(tocks) }
    }

    #[track_caller]
    fn next(&mut self) -> u64 {
        number_after("tock", &mut self.tocks);
        number_after("tick", &mut self.ticks)
    }
}

#[track_caller]
fn number_after(word: &str, stream: &mut impl BufRead) -> u64 {
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended");
        if let Some(number) = line.trim().strip_prefix(word) {
            return number.trim().parse().unwrap();
        }
    }
}

#[track_caller]
fn exit_code(child: &mut Child) -> Option<i32> {
    let mut status = None;
    let ended = process::wait_until(LIMIT, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(ended, "it does not end");
    status.unwrap().code()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// What the launcher says when it says that.
#[track_caller]
fn wait_for_state(directory: &Path, wanted: impl Fn(State) -> bool) -> State {
    let mut last = None;
    let reached = process::wait_until(LIMIT, || {
        let answer = Launcher::connect(directory).and_then(|launcher| launcher.ask(Request::Status));
        last = answer.ok();
        last.is_some_and(&wanted)
    });
    assert!(reached, "the launcher says {last:?}");
    last.unwrap()
}

fn root(directory: &Path) -> u32 {
    match wait_for_state(directory, |state| matches!(state, State::Runs(_))) {
        State::Runs(pid) => pid,
        _ => unreachable!("just asked for"),
    }
}

#[test]
fn a_launched_workload_finds_what_one_started_directly_finds() {
    let fixture = Fixture::local();
    let groups = Groups::new("direct");
    let agent = env!("CARGO_BIN_EXE_migration-agent");
    let (launcher, program) = (launcher(), program());
    let starts: [(&str, Vec<&str>); 3] = [
        ("directly", vec![]),
        ("by the launcher", vec![&launcher, "--app", "app", "--"]),
        ("by the agent", vec![agent, "launch", "--app=app", "--"]),
    ];
    for who in ["", OTHER_USER] {
        let prepare = match who {
            "" => format!("{}{PREPARE}", groups.join()),
            _ => {
                format!("{}\n{}", groups.join(), PREPARE.replace("\"$@\"", "sh -c \"$OTHER_USER\" sh \"$@\""))
            }
        };
        let mut found = Vec::new();
        for (name, words) in &starts {
            let home = home(&fixture, "home");
            let _ = fs::remove_file(home.join("end"));
            let directory = home.display().to_string();
            let words: Vec<&str> = words
                .iter()
                .copied()
                .chain([program.as_str(), &directory, "an argument", "--", "-x"])
                .collect();
            let mut command = shell(&prepare, &words, &home);
            if !who.is_empty() {
                command.env("OTHER_USER", who);
            }
            let mut started = Ends(in_own_session(&mut command).spawn().unwrap());
            // Nobody reads them here, and they must not fill up.
            let mut streams = Streams::of(&mut started.0);
            streams.next();
            found.push((name, report(&home)));
            end(&home);
            assert_eq!(exit_code(&mut started.0), Some(7), "started {name}");
        }
        let (_, directly) = &found[0];
        for line in ["nice: 3", "descriptor 7: ", "oom_score_adj: 300", "environment: INHERITED=a value"] {
            assert!(directly.iter().any(|found| found.starts_with(line)), "{line} is not in {directly:#?}");
        }
        for (name, found) in &found[1..] {
            same(directly, found, name);
        }
    }
}

#[test]
fn every_signal_arrives_and_the_status_comes_back() {
    let fixture = Fixture::local();
    let ends = |script: &str| {
        let mut command = Command::new(launcher());
        let status = command.args(["--app", "app", "--", "sh", "-c", script]).stderr(Stdio::null()).status();
        status.unwrap().code()
    };
    assert_eq!(ends("exit 5"), Some(5));
    assert_eq!(ends("kill -SEGV $$"), Some(128 + 11));
    assert_eq!(ends("kill -40 $$"), Some(128 + 40));
    assert_eq!(ends("(sleep 0.05; exit 9) & exit 6"), Some(6), "that of the root, not of an orphan");
    let mut missing = Command::new(launcher());
    missing.args(["--app", "app", "--", "/nonexistent"]).stderr(Stdio::null());
    assert_eq!(missing.status().unwrap().code(), Some(127));

    // A shell cannot trap SIGKILL and SIGSTOP, and SIGCHLD is about children of its own.
    let names = "HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM CONT TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";
    let script = format!(
        "for name in {names}; do trap \"echo got $name\" $name; done; echo ready; while :; do sleep 0.01; done"
    );
    let directory = fixture.path().join("control");
    // A shell cannot trap what is ignored when it starts, and whoever runs tests in the background ignores some.
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(launcher());
    command.arg("--control").arg(&directory).args(["--app", "app", "--", "bash", "-c", &script]);
    let mut started = Ends(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(started.0.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(next(), "ready");
    for name in names.split(' ') {
        let number = format!("SIG{name}").parse().unwrap();
        signal(started.0.id(), number);
        assert_eq!(next(), format!("got {name}"));
    }
    let root = root(&directory);
    signal(root, Signal::SIGKILL);
    assert_eq!(exit_code(&mut started.0), Some(137), "nobody has said that it is being moved");
}

#[test]
fn a_root_that_is_killed_while_it_leaves_ends_its_container_only_when_somebody_knows_why() {
    let fixture = Fixture::local();
    let start = |name: &str| {
        let directory = fixture.path().join(name);
        let mut command = Command::new(launcher());
        command.arg("--control").arg(&directory).args(["--app", "app", "--", "sleep", "1000"]);
        (Ends(command.stderr(Stdio::null()).spawn().unwrap()), directory)
    };
    // The agent dies after its checkpoint is committed, or before: nobody can tell.
    let killed_while_leaving = |name: &str| {
        let (started, directory) = start(name);
        let root = root(&directory);
        let agent = Launcher::connect(&directory).unwrap();
        assert_eq!(agent.ask(Request::Leaving).unwrap(), State::Leaves(root));
        drop(agent);
        signal(root, Signal::SIGKILL);
        wait_for_state(&directory, |state| state == State::Undecided);
        (started, Launcher::connect(&directory).unwrap())
    };
    let (mut lost, agent) = killed_while_leaving("lost");
    agent.ask(Request::Runs(1)).unwrap_err();
    agent.ask(Request::Stays).unwrap();
    assert_eq!(exit_code(&mut lost.0), Some(137), "there is no checkpoint: the container is to start again");

    let (mut moved, agent) = killed_while_leaving("moved");
    assert_eq!(agent.ask(Request::Left).unwrap(), State::Moved);
    agent.ask(Request::Stays).unwrap_err();
    signal(moved.0.id(), Signal::SIGTERM);
    assert_eq!(exit_code(&mut moved.0), Some(128 + 15));

    // Started again, as containers are, it starts no second one beside the one that was moved.
    for (name, state) in [("moved", State::Moved), ("killed", State::Undecided)] {
        if name == "killed" {
            let (mut whole, directory) = start(name);
            let left = root(&directory);
            Launcher::connect(&directory).unwrap().ask(Request::Leaving).unwrap();
            process::end(whole.0.id() as i32).unwrap();
            whole.0.wait().unwrap();
            process::end(left as i32).unwrap();
        }
        let (mut again, directory) = start(name);
        assert_eq!(wait_for_state(&directory, |state| state != State::Waits), state, "{name}");
        assert!(process::children(again.0.id() as i32).is_empty(), "{name}: something was started");
        if name == "killed" {
            // There was no checkpoint: the container is to start once more, and then it does.
            Launcher::connect(&directory).unwrap().ask(Request::Stays).unwrap();
            assert_eq!(exit_code(&mut again.0), Some(137));
            again = start(name).0;
            root(&directory);
        }
        signal(again.0.id(), Signal::SIGTERM);
        assert_eq!(exit_code(&mut again.0), Some(128 + 15));
    }

    let (mut ended, directory) = start("ended");
    let root = root(&directory);
    Launcher::connect(&directory).unwrap().ask(Request::Leaving).unwrap();
    signal(root, Signal::SIGTERM);
    assert_eq!(exit_code(&mut ended.0), Some(128 + 15), "CRIU ends nothing with SIGTERM");
    assert!(!directory.join("launch.sock").exists(), "a launcher that ends leaves no socket");
}

#[test]
fn a_workload_does_not_start_without_its_launcher() {
    let fixture = Fixture::local();
    let (directory, mark) = (fixture.path().join("control"), fixture.path().join("mark"));
    let first = fixture.path().join("first");
    let launch = |mark: &Path| {
        let mut command = Command::new(launcher());
        command.arg("--control").arg(&directory).args(["--app", "app", "--", "sh", "-c"]);
        command.arg(format!("touch {}; exec sleep 1000", mark.display())).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let _front = Ends(launch(&first));
    assert!(process::wait_until(LIMIT, || first.exists()));
    let mut second = Ends(launch(&mark));
    assert_eq!(exit_code(&mut second.0), Some(125));
    let mut said = String::new();
    second.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("--control"), "{said}");
    assert!(!mark.exists(), "nobody would have passed its signals on");
    // The first one is still there.
    let root = root(&directory);
    signal(root, Signal::SIGKILL);
}

#[test]
fn pids_start_above_the_base_also_without_privileges() {
    let script = |protect: &str| {
        let launcher = launcher();
        let output = Command::new("unshare")
            .args(["--fork", "--pid", "--mount-proc", "sh", "-c"])
            .arg(format!("{protect}\nexec {launcher} --app app --pid-base 10000 -- sh -c 'echo $$'"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", common::text(&output));
        String::from_utf8(output.stdout).unwrap().trim().parse::<u32>().unwrap()
    };
    assert_eq!(script(""), 10001);
    let used_up = script("mount -o bind,ro /proc/sys /proc/sys");
    assert!((10001..10100).contains(&used_up), "{used_up}");
}

/// `words` in a container of this name and in `groups`, below a shell that runs `prepare`.
fn contained(
    fixture: &Fixture,
    name: &str,
    groups: &Groups,
    prepare: &str,
    home: &Path,
    words: &[&str],
) -> Command {
    let words: Vec<&str> = ["sh", "-c", prepare, "sh"].iter().chain(words).copied().collect();
    let mut command = container::command(&fixture.path().join(name), fixture.path(), &groups.join(), &words);
    command.env("HOME", home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    in_own_session(&mut command);
    command
}

fn namespaces(pid: u32) -> Vec<PathBuf> {
    let kinds = ["mnt", "net", "ipc", "uts", "cgroup", "pid", "user"];
    kinds.iter().map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()).collect()
}

#[test]
fn a_workload_moves_from_one_container_to_another_and_finds_everything_as_it_was() {
    for strategy in common::STRATEGIES {
        let fixture = Fixture::local();
        let groups = Groups::new("container");
        let home = home(&fixture, "home");
        let (from, to) = (fixture.path().join("from"), fixture.path().join("to"));
        let (launcher, program) = (launcher(), program());
        let [from_text, to_text, home_text] = [&from, &to, &home].map(|path| path.display().to_string());
        let words =
            [&launcher, "--app=app", "--control", &from_text, "--", &program, &home_text, "an argument"];
        let mut source = Ends(contained(&fixture, "one", &groups, PREPARE, &home, &words).spawn().unwrap());
        let mut streams = Streams::of(&mut source.0);
        let pid = root(&from);
        let before_move = streams.next();
        let before = report(&home);
        assert!(before.contains(&"host: in-a-container".to_owned()));
        assert_ne!(namespaces(pid)[..4], namespaces(std::process::id())[..4]);

        // It stays in front of a tree that goes on.
        fixture.json(&["checkpoint", "--app", "app", "--launcher", &from_text, "--leave-running"]);
        assert_eq!(root(&from), pid);
        let report_of_checkpoint = fixture.json(&["checkpoint", "--app", "app", "--launcher", &from_text]);
        assert_eq!(report_of_checkpoint["left"], "killed");
        wait_for_state(&from, |state| state == State::Moved);
        assert!(process::wait_gone(pid as i32, LIMIT));

        // The other container, with the same control groups by name, and an agent in others.
        let words = [&launcher, "--app=app", "--control", &to_text, "--restore", "--", &program];
        let mut target =
            Ends(contained(&fixture, "other", &groups, "exec \"$@\"", &home, &words).spawn().unwrap());
        let mut streams = Streams::of(&mut target.0);
        wait_for_state(&to, |state| state == State::Waits);
        let in_front = Launcher::connect(&to).unwrap().pid();
        let mut agent =
            fixture.agent(&["restore", "--app=app", "--launcher", &to_text, "--strategy", strategy]);
        let mut agent = Ends(agent.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let refused = |agent: &mut Child| {
            let mut said = String::new();
            agent.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            said
        };
        let restored = process::wait_until(LIMIT, || {
            agent.0.try_wait().unwrap().is_some() || process::is_running(pid as i32)
        });
        assert!(restored && agent.0.try_wait().unwrap().is_none(), "{}", refused(&mut agent.0));
        assert_eq!(root(&to), pid);
        let after_move = streams.next();
        assert!(after_move > before_move, "went on with {after_move} after {before_move}");
        let carried = |mut report: Vec<String>| {
            let all = report.len();
            report.retain(|line| !NOT_CARRIED.iter().any(|lost| line.starts_with(lost)));
            assert_eq!(report.len(), all - NOT_CARRIED.len());
            report
        };
        same(&carried(before), &carried(report(&home)), strategy);
        assert_eq!(namespaces(pid), namespaces(in_front));
        let groups_of = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(groups_of(pid), groups_of(in_front));
        assert_ne!(groups_of(pid), groups_of(agent.0.id()));

        // It can be checkpointed where it is now, and signals still come through.
        fixture.json(&["checkpoint", "--app", "app", "--launcher", &to_text, "--leave-running"]);
        end(&home);
        assert_eq!(exit_code(&mut target.0), Some(7));
        assert_eq!(exit_code(&mut agent.0), Some(7));
        signal(source.0.id(), Signal::SIGTERM);
        assert_eq!(exit_code(&mut source.0), Some(128 + 15));
    }
}

/// The agent is killed with -9 at moments of a checkpoint that ends the tree. Whatever it had done by then, the launcher is
/// there, and ends neither with a status that starts the application again where it may run elsewhere, nor at all.
#[test]
fn an_agent_that_is_killed_leaves_a_launcher_that_waits() {
    let fixture = Fixture::local();
    let (mut stayed, mut left) = (0, 0);
    for step in 0..14 {
        let directory = fixture.path().join(format!("control-{step}"));
        let control = directory.display().to_string();
        let app = format!("app-{step}");
        let mut launch = Command::new(launcher());
        launch.args(["--app", &app, "--control", &control, "--", "sleep", "1000"]);
        let mut launched =
            Ends(in_own_session(launch.stdin(Stdio::null()).stderr(Stdio::null())).spawn().unwrap());
        let pid = root(&directory);
        let mut agent = fixture.agent(&["checkpoint", "--app", &app, "--launcher", &control]);
        let mut agent = agent.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(step * 25));
        agent.kill().unwrap();
        agent.wait().unwrap();
        // CRIU notices that nobody is there any more, and ends the tree or lets it go.
        let mut settled = Instant::now();
        process::wait_until(LIMIT, || {
            if matches!(process::state(pid as i32), Some('t' | 'T')) {
                settled = Instant::now();
            }
            settled.elapsed() > Duration::from_millis(300)
        });
        let listed = fixture.agent(&["list", "--app", &app, "--json"]).output().unwrap();
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let committed = listed["checkpoints"].as_array().is_some_and(|found| !found.is_empty());
        let state = Launcher::connect(&directory).unwrap().ask(Request::Status).unwrap();
        assert!(launched.0.try_wait().unwrap().is_none(), "after {step} steps");
        match state {
            State::Runs(root) | State::Leaves(root) => {
                assert_eq!(root, pid);
                assert!(process::is_running(pid as i32));
                stayed += 1;
                // Another agent does it.
                fixture.json(&["checkpoint", "--app", &app, "--launcher", &control]);
                wait_for_state(&directory, |state| state == State::Moved);
            }
            State::Moved | State::Undecided => {
                assert!(committed, "after {step} steps the tree is gone and there is no checkpoint");
                left += 1;
                Launcher::connect(&directory).unwrap().ask(Request::Left).unwrap();
            }
            State::Waits => panic!("it never was to wait"),
        }
        signal(launched.0.id(), Signal::SIGTERM);
        assert_eq!(exit_code(&mut launched.0), Some(128 + 15));
    }
    println!("{stayed} trees stayed, {left} had been moved");
    assert!(stayed > 0, "no agent was killed before its checkpoint was over");
}

#[test]
fn a_workload_whose_checkpoint_fails_stays_with_its_launcher() {
    let fixture = Fixture::local();
    let directory = fixture.path().join("control");
    let control = directory.display().to_string();
    let mut launch = Command::new(launcher());
    // CRIU refuses connections unless it is told to take them.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let connected = format!("exec 9<>/dev/tcp/127.0.0.1/{port}; exec sleep 1000");
    launch.args(["--app", "app", "--control", &control, "--", "bash", "-c", &connected]);
    let mut launched =
        Ends(in_own_session(launch.stdin(Stdio::null()).stderr(Stdio::null())).spawn().unwrap());
    let pid = root(&directory);
    let _connection = listener.accept().unwrap();
    let occupied = fixture.refused(&["restore", "--app", "app", "--launcher", &control]);
    assert_eq!(occupied["reason"], "launcher", "a launcher with a tree takes no other");
    let refused = fixture.refused(&["checkpoint", "--app", "app", "--launcher", &control]);
    assert_eq!(refused["reason"], "criu");
    assert_eq!(root(&directory), pid, "it is not leaving any more");
    assert!(process::is_running(pid as i32));
    signal(pid, Signal::SIGKILL);
    assert_eq!(exit_code(&mut launched.0), Some(137), "killed by somebody, not moved");
}
