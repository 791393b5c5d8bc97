//! Two agents, the target's in a pid namespace of its own as on another machine: applications move from one to the other
//! with every strategy, and whoever is killed in between, never two copies run and never none is left.

mod common;

use std::{
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Fixture, LIMIT, intact, service::Service};
use migration_harness::{process, workload::Workload};
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
    let mut command = fixture.agent(&["serve", "--json", "--insecure-plaintext", "--listen"]);
    command
        .arg(format!("127.0.0.1:{port}"))
        .arg("--socket")
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
        // An init that reaps what is orphaned, as machines have one. It outlives the agent.
        let mut command = Command::new("unshare");
        command
            .args([
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                "\"$@\" & while :; do wait; sleep 0.1; done",
                "init",
            ])
            .arg(agent.get_program())
            .args(agent.get_args())
            .envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null());
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

fn migrate(fixture: &Fixture, workload: &Workload, port: u16, target: &Target, strategy: &str) -> Command {
    let from = format!("http://127.0.0.1:{port}");
    let pid = workload.pid().to_string();
    let mut command =
        fixture.agent(&["migrate", "--app", "app", "--pid", &pid, "--strategy", strategy, "--json"]);
    command.args(["--from", &from, "--to", &target.address]);
    if strategy.starts_with("lazy-d") || strategy.starts_with("lazy-h") {
        command.args(["--source-address", &from]);
    }
    command
}

#[track_caller]
fn object(output: std::process::Output) -> Value {
    assert!(output.status.success(), "{}", common::text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_application_moves_with_every_strategy() {
    for (strategy, scenario) in
        [("full", "heap"), ("lazy-storage", "tree"), ("lazy-direct", "tree"), ("lazy-hybrid", "areas")]
    {
        let fixture = Fixture::s3();
        let port = process::free_port().unwrap();
        let _source = source(&fixture, port);
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

/// Watches that no two copies run, until `done`.
fn never_two(workload: &Workload, limit: Duration, mut done: impl FnMut(&[i32]) -> bool) -> bool {
    process::wait_until(limit, || {
        let running = workload.running_copies();
        assert!(running.len() < 2, "two copies run: {running:?}");
        done(&running)
    })
}

#[test]
fn whoever_is_killed_while_it_moves_exactly_one_copy_goes_on() {
    let fixture = Fixture::s3();
    for (strategy, who) in [
        ("lazy-direct", "source"),
        ("lazy-direct", "target"),
        ("lazy-hybrid", "source"),
        ("lazy-hybrid", "target"),
    ] {
        for delay in [100, 250, 400, 550, 800] {
            let app_fixture = &fixture;
            let port = process::free_port().unwrap();
            let mut from = source(app_fixture, port);
            let mut target = Target::start(app_fixture);
            let mut workload = Workload::start("heap", &["--mib", "48"]).unwrap();
            let here = workload.pid();
            let mut moving: Child = migrate(app_fixture, &workload, port, &target, strategy)
                .arg("--cold")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let until = Instant::now() + Duration::from_millis(delay);
            never_two(&workload, LIMIT, |_| Instant::now() >= until);
            match who {
                "source" => {
                    from.kill();
                    from = source(app_fixture, port);
                }
                _ => {
                    if let Some(agent) = target.agent() {
                        process::end(agent).unwrap();
                    }
                    // Its machine goes on, with another agent.
                    let (agent, _) = serve(app_fixture, "target", port);
                    drop(agent);
                }
            }
            let _ = never_two(&workload, LIMIT, |_| moving.try_wait().unwrap().is_some());
            let _ = moving.kill();
            let _ = moving.wait();
            // What is stopped here is taken back, or what runs there has all it needs.
            let settled = never_two(&workload, LIMIT, |running| {
                running.len() == 1
                    && (running[0] == here || process::state(here).is_none_or(|state| state == 'Z'))
            });
            assert!(settled, "{strategy}, {who} killed after {delay} ms: {:?}", workload.running_copies());
            if workload.running_copies() != [here] {
                workload.follow().unwrap();
            }
            intact(&workload);
            println!(
                "{strategy}, {who} killed after {delay} ms: it runs at the {}",
                if workload.pid() == here { "source" } else { "target" }
            );
            drop((from, &mut target));
        }
    }
}
