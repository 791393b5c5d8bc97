//! Two agents, the target's in a pid namespace of its own as on another machine: applications move from one to the other
//! with every strategy, and whoever is killed in between, never two copies run and never none is left.

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use common::{
    Fixture, LIMIT, intact,
    service::{Service, scrape, value},
};
use migration_harness::{machine::own_pids, process, workload::Workload};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A machine of its own as far as pids go, with an agent. All of it ends with this value.
struct Target {
    service: Service,
    address: String,
}

/// An agent's arguments for one of two machines that share a store.
fn serve(fixture: &Fixture, name: &str, port: u16) -> (Command, std::path::PathBuf) {
    let place = fixture.path().join(name);
    std::fs::create_dir_all(&place).unwrap();
    let socket = place.join("agent.sock");
    let mut command =
        fixture.agent(&["serve", "--json", "--insecure-plaintext", "--claim-timeout", "5", "--listen"]);
    command
        .arg(format!("127.0.0.1:{port}"))
        .args(["--metrics", "127.0.0.1:0", "--socket"])
        .arg(&socket)
        .arg("--state-dir")
        .arg(place.join("state"))
        .env("MIGRATION_WORK_DIR", place.join("work"));
    (command, socket)
}

/// An agent here, at a port of its own.
fn source(fixture: &Fixture, port: u16) -> Service {
    let (command, socket) = serve(fixture, "source", port);
    Service::spawn(command, socket)
}

impl Target {
    fn start(fixture: &Fixture) -> Self {
        let port = process::free_port().unwrap();
        let (agent, socket) = serve(fixture, "target", port);
        let command = own_pids(&agent);
        Self { service: Service::spawn(command, socket), address: format!("http://127.0.0.1:{port}") }
    }

    /// The agent's pid as seen from here.
    fn agent(&self) -> Option<i32> {
        let inside = process::tree(self.service.child.id() as i32);
        inside.into_iter().find(|&pid| {
            process::name(pid).as_deref() == Some("migration-agent")
                && process::arguments(pid).iter().any(|word| word == b"serve")
        })
    }
}

/// Moves it; the target reaches the source by the address `through` if that is given.
fn migrate_through(
    fixture: &Fixture,
    workload: &Workload,
    port: u16,
    target: &Target,
    strategy: &str,
    through: Option<&str>,
) -> Command {
    let from = format!("http://127.0.0.1:{port}");
    let pid = workload.pid().to_string();
    let mut command =
        fixture.agent(&["migrate", "--app", "app", "--pid", &pid, "--strategy", strategy, "--json"]);
    command.args(["--from", &from, "--to", &target.address]);
    if strategy.starts_with("lazy-d") || strategy.starts_with("lazy-h") {
        command.args(["--source-address", through.unwrap_or(&from)]);
    }
    command
}

fn migrate(fixture: &Fixture, workload: &Workload, port: u16, target: &Target, strategy: &str) -> Command {
    migrate_through(fixture, workload, port, target, strategy, None)
}

#[track_caller]
fn object(output: std::process::Output) -> Value {
    assert!(output.status.success(), "{}", common::text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The report of a handover tells of both sides, and what the time between them consists of.
fn told(fixture: &Fixture, strategy: &str) {
    let report = || fixture.json(&["report", "--app", "app"]);
    // Its page server writes last.
    assert!(process::wait_until(LIMIT, || !report()["pages"].is_null()), "{}", report());
    let report = report();
    assert_eq!(report["run"]["strategy"], strategy);
    assert_eq!(report["taken"]["handed_over"], true, "{report}");
    let stages = report["taken"]["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["preparing", "freezing, describing", "storing the description", "stopping the source"]
    );
    let (frozen, ran) = (&report["taken"]["frozen_us"], &report["run"]["running_us"]);
    let blackout = report["blackout"]["total_us"].as_u64().unwrap();
    assert!(frozen.as_u64().unwrap() > 0 && blackout >= frozen.as_u64().unwrap(), "{report}");
    assert!(ran.as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["unknown"], serde_json::json!([]));
}

#[test]
fn an_application_moves_with_every_strategy() {
    for (strategy, scenario) in
        [("full", "heap"), ("lazy-storage", "tree"), ("lazy-direct", "tree"), ("lazy-hybrid", "areas")]
    {
        let fixture = Fixture::s3();
        let port = process::free_port().unwrap();
        let source = source(&fixture, port);
        let target = Target::start(&fixture);
        let mut workload = Workload::start(scenario, &["--mib", "48"]).unwrap();
        let here: Vec<i32> = workload.tasks().iter().map(|task| task.pid).collect();

        let moved = object(migrate(&fixture, &workload, port, &target, strategy).output().unwrap());

        assert_eq!(moved["strategy"], strategy);
        assert_eq!(moved["pid"], workload.pid(), "its pid is what it was, to itself");
        let steps: Vec<&str> =
            moved["timeline"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
        assert_eq!(steps, ["connect", "checkpoint", "final dump", "restore", "pages arrive"]);
        println!("{strategy} moved {scenario} in {} ms", moved["moved_ms"]);
        workload.follow().unwrap();
        intact(&workload);
        if let Some(pages_from) = match strategy {
            "lazy-direct" => Some("source-agent"),
            "lazy-hybrid" => Some("source-agent-or-store"),
            _ => None,
        } {
            assert_eq!(value(&scrape(&source), "migration_frozen_seconds_count", "kind=\"handover\""), 1.0);
            assert!(value(&scrape(&source), "migration_handed_over_bytes_total", "") > 0.0);
            let resident = || value(&scrape(&target.service), "migration_resident_seconds_count", "") == 1.0;
            assert!(process::wait_until(LIMIT, resident));
            let labels = format!("source=\"{pages_from}\"");
            assert!(value(&scrape(&target.service), "migration_faults_total", &labels) > 0.0, "{strategy}");
            let over = || value(&scrape(&source), "migration_stopped_trees", "") == 0.0;
            assert!(process::wait_until(LIMIT, over), "{strategy}: the source still has a stopped tree");
            told(&fixture, strategy);
        }
        for pid in here {
            assert!(process::wait_gone(pid, LIMIT), "{strategy}: the source's pid {pid} is left");
        }
        if strategy == "lazy-hybrid" {
            let checkpoint = moved["checkpoint"].as_str().unwrap();
            let listed = || fixture.json(&["list", "--app", "app"]).to_string().contains(checkpoint);
            assert!(process::wait_until(LIMIT, listed), "the stopped tree became a checkpoint");
            fixture.json(&["verify", "--app", "app", "--checkpoint", checkpoint, "--read-data"]);
        }
    }
}

#[test]
fn pages_go_on_arriving_after_the_source_agent_was_killed() {
    let fixture = Fixture::s3();
    let port = process::free_port().unwrap();
    let mut from = source(&fixture, port);
    let target = Target::start(&fixture);
    let mut workload = Workload::start("heap", &["--mib", "200"]).unwrap();
    let here = workload.pid();
    object(migrate(&fixture, &workload, port, &target, "lazy-direct").arg("--no-wait").output().unwrap());
    from.kill();
    assert_eq!(process::state(here), Some('T'), "the source's tree is still stopped");
    workload.follow().unwrap();
    sleep(Duration::from_millis(500));

    let _from = source(&fixture, port);

    intact(&workload);
    assert!(process::wait_gone(here, LIMIT), "the source's tree has ended");
    assert_eq!(workload.running_copies().len(), 1);
}

#[test]
fn a_stopped_tree_that_somebody_lets_run_is_the_one_that_goes_on_and_the_other_ends() {
    let fixture = Fixture::s3();
    let port = process::free_port().unwrap();
    let _source = source(&fixture, port);
    let link = Link::to(port);
    let target = Target::start(&fixture);
    let workload = Workload::start("heap", &["--mib", "48"]).unwrap();
    let here = workload.pid();
    let through = format!("http://127.0.0.1:{}", link.port);
    let mut moving = migrate_through(&fixture, &workload, port, &target, "lazy-direct", Some(&through));
    object(moving.arg("--no-wait").output().unwrap());
    link.up.store(false, Ordering::SeqCst);
    assert_eq!(process::state(here), Some('T'), "pages are missing at the target");

    kill(Pid::from_raw(here), Signal::SIGCONT).unwrap();
    assert!(process::wait_until(LIMIT, || process::state(here) == Some('T')), "it is not stopped again");
    link.up.store(true, Ordering::SeqCst);

    // Its pages are of no use to the other one any more, which ends; then nothing is in its way.
    let alone = || workload.running_copies() == [here] && process::state(here) != Some('T');
    assert!(process::wait_until(LIMIT, alone), "{:?} run", workload.running_copies());
    intact(&workload);
}

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Victim {
    SourceAgent,
    TargetAgent,
    SourceCriu,
    TargetCriu,
    PageServer,
    WhoeverAsked,
}

/// A CRIU that works for this agent.
fn criu_of(agent: i32) -> Option<i32> {
    process::tree(agent).into_iter().find(|&pid| process::name(pid).as_deref() == Some("criu"))
}

/// The page server inside a machine: not its guardian, which is its parent, nor the standby.
fn page_server_in(machine: i32) -> Option<i32> {
    let serves = |pid: &i32| process::arguments(*pid).iter().any(|word| word == b"page-server");
    process::tree(machine).into_iter().rfind(serves)
}

/// One migration, during which somebody dies. Where it runs in the end.
fn dies_while_it_moves(fixture: &Fixture, strategy: &str, victim: Victim, delay: Duration) -> &'static str {
    let port = process::free_port().unwrap();
    let mut from = source(fixture, port);
    let target = Target::start(fixture);
    let machine = target.service.child.id() as i32;
    let mut workload = Workload::start("heap", &["--mib", "48"]).unwrap();
    let here = workload.pid();
    workload.mark_places().unwrap();
    let mut moving = migrate(fixture, &workload, port, &target, strategy);
    let mut moving = moving.arg("--cold").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    sleep(delay);
    let dies = match victim {
        Victim::SourceAgent => Some(from.child.id() as i32),
        Victim::TargetAgent => target.agent(),
        Victim::SourceCriu => criu_of(from.child.id() as i32),
        Victim::TargetCriu => criu_of(machine),
        Victim::PageServer => page_server_in(machine),
        Victim::WhoeverAsked => Some(moving.id() as i32),
    };
    if let Some(pid) = dies {
        process::end(pid).unwrap();
    }
    if matches!(victim, Victim::SourceAgent) {
        from.child.wait().unwrap();
        from = source(fixture, port);
    }
    assert!(process::wait_until(LIMIT, || moving.try_wait().unwrap().is_some()), "it does not end");

    // What is stopped here is taken back, or what runs there gets all it needs and the stopped tree ends.
    let what = format!("{strategy}, {victim:?} killed after {delay:?}");
    let gone = || process::state(here).is_none_or(|state| state == 'Z');
    let settled = process::wait_until(LIMIT, || match workload.running_copies()[..] {
        [one] => one == here || gone(),
        _ => false,
    });
    let left = workload.running_copies();
    if !settled && matches!(victim, Victim::SourceCriu) && left.is_empty() && gone() {
        // Whoever kills CRIU while its code runs in a thread ends that thread; see the README.
        return "nowhere";
    }
    assert!(settled, "{what}: {left:?} run, the source's is {:?}", process::state(here));
    if left != [here] {
        workload.follow().unwrap();
    }
    intact(&workload);
    // A copy that ran beside another one would have left its marks among the other's.
    let places = workload.places();
    assert!(places.len() <= 2, "{what}: it ran here, there and here again: {places:?}");
    drop(from);
    if workload.pid() == here { "source" } else { "target" }
}

/// Kills everybody, at moments of a migration, and tells where the application ran afterwards.
fn kill_everybody(strategy: &str) {
    let fixture = Fixture::s3();
    let victims = [
        Victim::SourceAgent,
        Victim::TargetAgent,
        Victim::SourceCriu,
        Victim::TargetCriu,
        Victim::PageServer,
        Victim::WhoeverAsked,
    ];
    for victim in victims {
        let outcomes = [80, 250, 420, 600, 850]
            .map(|delay| dies_while_it_moves(&fixture, strategy, victim, Duration::from_millis(delay)));
        println!("{strategy:<12} {:<14} {}", format!("{victim:?}"), outcomes.join(" "));
        assert!(outcomes.iter().filter(|outcome| **outcome == "nowhere").count() <= 1, "{outcomes:?}");
    }
}

#[test]
fn whoever_is_killed_during_lazy_direct_exactly_one_copy_goes_on() {
    kill_everybody("lazy-direct");
}

#[test]
fn whoever_is_killed_during_lazy_hybrid_exactly_one_copy_goes_on() {
    kill_everybody("lazy-hybrid");
}

/// A link that can be cut: what comes in at one port goes to another one, and back.
struct Link {
    port: u16,
    up: Arc<AtomicBool>,
}

impl Link {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let up = Arc::new(AtomicBool::new(true));
        let state = Arc::clone(&up);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Some(far) =
                    TcpStream::connect(("127.0.0.1", port)).ok().filter(|_| state.load(Ordering::SeqCst))
                else {
                    continue;
                };
                for (mut from, mut to) in [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))]
                    .map(|(from, to)| (from.unwrap(), to.unwrap()))
                {
                    let state = Arc::clone(&state);
                    thread::spawn(move || {
                        let mut bytes = [0; 16 << 10];
                        from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                        while state.load(Ordering::SeqCst) {
                            match from.read(&mut bytes) {
                                Ok(0) => break,
                                Ok(length) if to.write_all(&bytes[..length]).is_ok() => {}
                                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                                _ => break,
                            }
                            // As slow as a link is.
                            sleep(Duration::from_micros(150));
                        }
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { port: own, up }
    }
}

#[test]
fn a_link_that_is_cut_while_pages_arrive_costs_time_only() {
    for strategy in ["lazy-direct", "lazy-hybrid"] {
        let fixture = Fixture::s3();
        let port = process::free_port().unwrap();
        let _source = source(&fixture, port);
        let link = Link::to(port);
        let target = Target::start(&fixture);
        let mut workload = Workload::start("heap", &["--mib", "96"]).unwrap();
        let here = workload.pid();
        let through = format!("http://127.0.0.1:{}", link.port);
        let mut moving = migrate_through(&fixture, &workload, port, &target, strategy, Some(&through));
        object(moving.arg("--no-wait").output().unwrap());
        link.up.store(false, Ordering::SeqCst);
        workload.follow().unwrap();
        if strategy == "lazy-direct" {
            sleep(Duration::from_secs(2));
            assert_eq!(process::state(here), Some('T'), "pages are missing at the target");
            link.up.store(true, Ordering::SeqCst);
        }
        // With lazy-hybrid it stays cut: the rest comes out of the checkpoint.
        intact(&workload);
        assert!(process::wait_gone(here, LIMIT), "{strategy}: the stopped tree is left");
        assert_eq!(workload.running_copies().len(), 1);
    }
}
