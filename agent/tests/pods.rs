//! Two pods as a cluster makes them: in each a container with a launcher, and beside it an agent that serves, in a pid
//! namespace of the pod's own. Workloads move from one container to the other by the agents' API alone.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use common::{Fixture, LIMIT, container, service::Service};
use migration_harness::{machine::own_pids, process, sys::in_own_session};
use migration_launch::{
    control::Launcher,
    protocol::{Request, State},
};
use migration_proto::agent::GetStatusRequest;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// Runs the first `$1` words after it, keeps what they print and their exit code, and becomes the rest.
const POD: &str = r#"
words=$1 printed=$2 ended=$3
shift 3
(
    set +e
    "${@:1:words}" < /dev/null 2>&1 | cat >> "$printed"
    echo "${PIPESTATUS[0]}" > "$ended.new" && mv "$ended.new" "$ended"
) > /dev/null 2>&1 &
shift "$words"
exec "$@"
"#;

/// Counts, and proves each time that its memory is what it was. Ends with 7 when it is told to.
const COUNTS: &str = r#"
secret=$(head -c 6000000 /dev/urandom | base64 -w 0)
number=0
while [ ! -e /run/end ]; do
    number=$((number + 1))
    echo "tick $number $(printf %s "$secret" | md5sum)"
    sleep 0.02
done
exit 7
"#;

/// Writes what it counts into a log of its container's own, and into a file that has no name any more.
const WRITES: &str = r#"
mkdir -p /run/data/inner /run/listed
echo 'as it was' > /run/listed/settings
exec 8>> /run/data/inner/log 9> /run/nameless
rm /run/nameless
number=0
while [ ! -e /run/end ]; do
    number=$((number + 1))
    echo "$number" >&8
    echo "$number" >&9
    echo "tick $number $(cat /run/listed/settings)"
    sleep 0.02
done
cat /proc/$$/fd/9 > /run/nameless-in-the-end
exit 7
"#;

struct Pod {
    /// All of the pod ends with it.
    service: Service,
    port: u16,
    place: PathBuf,
}

impl Pod {
    /// One whose launcher starts `script`, or waits for a tree if there is none.
    fn start(fixture: &Fixture, name: &str, script: Option<&str>) -> Self {
        let place = fixture.path().join(name);
        fs::create_dir_all(&place).unwrap();
        let port = process::free_port().unwrap();
        let text = |path: PathBuf| path.display().to_string();
        let (control, socket) = (text(place.join("control")), place.join("agent.sock"));
        let launcher = process::program("migration-launch").unwrap().display().to_string();
        let mut words = vec![&*launcher, "--app", "app", "--control", &control, "--pid-base", "10000"];
        match script {
            Some(script) => words.extend(["--", "bash", "-c", script]),
            None => words.push("--restore"),
        }
        let contained = container::command(&place.join("root"), fixture.path(), "", &words);
        let mut agent = fixture.agent(&["serve", "--json", "--insecure-plaintext", "--claim-timeout", "5"]);
        agent.args(["--listen", &format!("127.0.0.1:{port}")]).arg("--socket").arg(&socket);
        agent.arg("--state-dir").arg(place.join("state")).env("MIGRATION_WORK_DIR", place.join("work"));
        let mut pod = Command::new("bash");
        let count = contained.get_args().len() + 1;
        pod.args(["-c", POD, "pod", &count.to_string()]).args([place.join("printed"), place.join("ended")]);
        pod.arg(contained.get_program()).args(contained.get_args());
        pod.arg(agent.get_program()).args(agent.get_args());
        pod.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut machine = own_pids(&pod);
        in_own_session(&mut machine);
        Self { service: Service::spawn(machine, socket), port, place }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn control(&self) -> String {
        self.place.join("control").display().to_string()
    }

    /// The container's root directory, as seen from here.
    fn root(&self) -> PathBuf {
        let inside = || process::tree(self.service.child.id() as i32);
        let launcher = |pid: &i32| process::name(*pid).as_deref() == Some("migration-launc");
        let mut found = None;
        process::wait_until(LIMIT, || {
            found = inside().into_iter().find(launcher);
            found.is_some()
        });
        PathBuf::from(format!("/proc/{}/root", found.unwrap()))
    }

    /// Until the launcher can be spoken to; only from within the pod.
    #[track_caller]
    fn wait_for_launcher(&self) {
        let socket = self.place.join("control/launch.sock");
        assert!(process::wait_until(LIMIT, || socket.exists()), "there is no launcher");
    }

    /// Complete lines its workload has printed.
    fn printed(&self) -> Vec<String> {
        let text = fs::read_to_string(self.place.join("printed")).unwrap_or_default();
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        complete.lines().filter(|line| line.starts_with("tick ")).map(str::to_owned).collect()
    }

    #[track_caller]
    fn wait_for_ticks(&self, more: usize) {
        let before = self.printed().len();
        assert!(process::wait_until(LIMIT, || self.printed().len() >= before + more), "it does not go on");
    }

    fn exit_code(&self) -> Option<String> {
        process::wait_until(LIMIT, || self.place.join("ended").exists());
        fs::read_to_string(self.place.join("ended")).ok().map(|text| text.trim().to_owned())
    }
}

#[track_caller]
fn object(output: &Output) -> Value {
    assert!(output.status.success(), "{}", common::text(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn migrate(fixture: &Fixture, from: &Pod, to: &Pod, strategy: &str, more: &[&str]) -> Output {
    let mut command = fixture.agent(&["migrate", "--app", "app", "--strategy", strategy, "--json"]);
    command.args(["--launcher", &from.control(), "--target-launcher", &to.control()]);
    command.args(["--from", &from.address(), "--to", &to.address()]);
    if strategy == "lazy-direct" || strategy == "lazy-hybrid" {
        command.args(["--source-address", &from.address()]);
    }
    command.args(more).output().unwrap()
}

/// The numbers in ticks, which are one more each time.
#[track_caller]
fn counted(ticks: &[String]) -> (u64, u64) {
    let numbers: Vec<u64> =
        ticks.iter().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    (numbers[0], *numbers.last().unwrap())
}

#[test]
fn a_workload_moves_between_pods_with_every_strategy_and_its_exit_code_with_it() {
    for strategy in ["full", "lazy-storage", "lazy-direct", "lazy-hybrid"] {
        let fixture = Fixture::s3();
        let source = Pod::start(&fixture, "source", Some(COUNTS));
        let target = Pod::start(&fixture, "target", None);
        target.wait_for_launcher();
        source.wait_for_ticks(3);

        let moved = object(&migrate(&fixture, &source, &target, strategy, &[]));

        assert_eq!(moved["strategy"], strategy);
        target.wait_for_ticks(3);
        let (before, after) = (source.printed(), target.printed());
        assert_eq!(counted(&before).1 + 1, counted(&after).0, "{strategy}: it went on where it was");
        let sums: std::collections::BTreeSet<_> =
            before.iter().chain(&after).map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(sums.len(), 1, "{strategy}: its memory is what it was");
        assert_eq!(before.len(), source.printed().len(), "{strategy}: nothing of it runs at the source");

        fs::write(target.root().join("run/end"), "").unwrap();
        assert_eq!(target.exit_code().as_deref(), Some("7"), "{strategy}");
        assert!(
            !source.place.join("ended").exists(),
            "{strategy}: its container stays until somebody ends it"
        );
    }
}

#[test]
fn files_of_a_container_go_with_its_workload_with_every_strategy() {
    for strategy in ["full", "lazy-storage", "lazy-direct", "lazy-hybrid"] {
        let fixture = Fixture::local();
        let source = Pod::start(&fixture, "source", Some(WRITES));
        let target = Pod::start(&fixture, "target", None);
        target.wait_for_launcher();
        source.wait_for_ticks(3);
        // One that is in the way, and content that must not reach this machine's own files.
        fs::create_dir_all(target.root().join("run/data/inner")).unwrap();
        fs::write(target.root().join("run/data/inner/log"), "another").unwrap();

        object(&migrate(&fixture, &source, &target, strategy, &["--path", "/run/listed"]));

        let inner = fs::read_dir(target.root().join("run/data/inner")).unwrap();
        let names: Vec<PathBuf> = inner.map(|entry| entry.unwrap().path()).collect();
        let aside = names.iter().find(|path| path.to_string_lossy().contains("/log.before-"));
        assert_eq!(fs::read_to_string(aside.unwrap()).unwrap(), "another", "{strategy}: {names:?}");
        target.wait_for_ticks(3);
        let root = target.root();
        let files = Files::open(&root);
        fs::write(root.join("run/end"), "").unwrap();
        assert_eq!(target.exit_code().as_deref(), Some("7"));
        let (first, last) = (counted(&source.printed()).0, counted(&target.printed()).1);
        assert_eq!(first, 1);
        let expected: String = (1..=last).map(|number| format!("{number}\n")).collect();
        let [log, nameless] = files.read();
        assert_eq!(log, expected, "{strategy}: every line of both machines, once");
        assert_eq!(nameless, expected, "{strategy}: also of the file without a name");
        assert!(target.printed().iter().all(|line| line.ends_with("as it was")), "{strategy}");
        assert!(!Path::new("/run/data/inner/log").exists() && !Path::new("/run/listed").exists());
    }
}

/// Files of a container that is about to end, held open.
struct Files(fs::File);

impl Files {
    fn open(root: &Path) -> Self {
        Self(fs::File::open(root.join("run")).unwrap())
    }

    fn read(&self) -> [String; 2] {
        use std::os::fd::AsRawFd;
        let run = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        ["data/inner/log", "nameless-in-the-end"].map(|name| fs::read_to_string(run.join(name)).unwrap())
    }
}

/// Every process that serves pages dies in the same instant, so that nobody of them can do anything about it.
#[test]
fn a_tree_whose_page_server_and_guardians_all_die_at_once_is_killed_and_sees_no_zeros() {
    let fixture = Fixture::s3();
    let source = Pod::start(&fixture, "source", Some(COUNTS));
    let target = Pod::start(&fixture, "target", None);
    target.wait_for_launcher();
    source.wait_for_ticks(3);
    let launched = |pod: &Pod, command: &str, strategy: &[&str]| {
        let mut agent = fixture.agent(&[command, "--app", "app", "--json"]);
        agent.args(["--agent", &pod.address(), "--launcher", &pod.control()]).args(strategy);
        object(&agent.output().unwrap())
    };
    launched(&source, "checkpoint", &[]);
    // What is touched comes, slowly; the rest does not before this test is over.
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_millis(700));
    launched(&target, "restore", &["--strategy", "lazy-storage"]);
    let serves = |pid: &i32| {
        let arguments = process::arguments(*pid);
        arguments.iter().any(|word| word == b"page-server" || word == b"guardian")
    };
    let serving: Vec<i32> =
        process::tree(target.service.child.id() as i32).into_iter().filter(serves).collect();
    assert_eq!(serving.len(), 3, "server, guardian and standby");
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for &pid in &serving {
            kill(Pid::from_raw(pid), signal).unwrap();
        }
    }

    assert_eq!(target.exit_code().as_deref(), Some("137"));

    let sums = |pod: &Pod| -> std::collections::BTreeSet<String> {
        pod.printed().iter().map(|line| line.split(' ').nth(2).unwrap().to_owned()).collect()
    };
    assert!(sums(&target).is_subset(&sums(&source)), "what it printed was computed from its own memory");
    let text = fs::read_to_string(target.place.join("printed")).unwrap();
    assert!(text.contains("the page server and its guardians are gone"), "{text}");
    // The checkpoint is as it was, and nobody has to know more than that.
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::ZERO);
    fixture.json(&["verify", "--app", "app", "--read-data"]);
}

/// The agent of a pod is killed while its workload leaves, at moments of a final dump: whatever it had done by then, the
/// next one knows whether the workload is here or a checkpoint, and tells the launcher.
#[test]
fn an_agent_that_is_killed_while_a_workload_leaves_is_followed_by_one_that_tells_its_launcher() {
    let fixture = Fixture::local();
    let (mut stayed, mut left) = (0, 0);
    for step in 0..6 {
        let place = fixture.path().join(format!("control-{step}"));
        let control = place.display().to_string();
        let app = format!("app-{step}");
        let mut launch = Command::new(process::program("migration-launch").unwrap());
        launch.args(["--app", &app, "--control", &control, "--", "sleep", "1000"]);
        let mut launched = in_own_session(&mut launch).spawn().unwrap();
        let says = || Launcher::connect(&place).ok()?.ask(Request::Status).ok();
        assert!(process::wait_until(LIMIT, || matches!(says(), Some(State::Runs(_)))));
        let mut service = Service::start(&fixture, &[]);
        let operation = format!("dump-{step:04}");
        let call = fixture
            .agent(&["checkpoint", "--app", &app, "--launcher", &control, "--agent", &service.address()])
            .args(["--operation", &operation])
            .stderr(std::process::Stdio::null())
            .spawn();
        std::thread::sleep(Duration::from_millis(step * 60));
        service.kill();
        call.unwrap().wait().unwrap();

        let service = Service::start(&fixture, &[]);

        let decided = process::wait_until(LIMIT, || {
            let ended = service.operation(&operation).is_none_or(|operation| operation.outcome.is_some());
            ended && matches!(says(), Some(State::Runs(_) | State::Moved))
        });
        assert!(decided, "after {step} steps the launcher says {:?}", says());
        let request = GetStatusRequest { launcher: control.clone() };
        let status = service.ask(async |mut agent| agent.get_status(request).await).unwrap();
        let behind = status.into_inner().tree.map(|tree| (tree.pid, tree.leaves));
        let expected = if let Some(State::Runs(pid)) = says() { pid } else { 0 };
        assert_eq!(behind, Some((expected, false)), "the agent tells what is behind the launcher");
        let listed = fixture.json(&["list", "--app", &app]);
        let committed = listed["checkpoints"] != json!([]);
        match says() {
            Some(State::Runs(pid)) => {
                assert!(process::is_running(pid as i32));
                stayed += 1;
                process::end(pid as i32).unwrap();
            }
            _ => {
                assert!(committed, "after {step} steps it is gone and there is no checkpoint");
                left += 1;
                process::end(launched.id() as i32).unwrap();
            }
        }
        launched.wait().unwrap();
    }
    println!("{stayed} stayed, {left} had left");
    assert!(stayed > 0, "no agent was killed before its checkpoint was over");
}
