//! The processes around a lazy restore: what their death does to the tree, and the daemon used without the agent.

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Fixture, LIMIT, intact, text};
use migration_harness::{process, workload::Workload};

/// What the kernel calls the processes of a page server: the one that serves, its guardian, the guardian's standby.
const ROLES: [&str; 3] = ["lazy-pages", "lazy-guardian", "lazy-standby"];

/// The process with this role in this fixture's restore, if there is one now.
fn page_server(fixture: &Fixture, role: &str) -> Option<i32> {
    let ours = format!("--store={}", fixture.store);
    process::all().into_iter().find(|&pid| {
        process::name(pid).as_deref() == Some(role)
            && process::arguments(pid).iter().any(|word| word == ours.as_bytes())
    })
}

/// The same; waits for it, since roles are filled again when somebody has died.
fn living(fixture: &Fixture, role: &str) -> i32 {
    let mut found = None;
    process::wait_until(LIMIT, || {
        found = page_server(fixture, role).filter(|&pid| process::is_running(pid));
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("there is no {role}"))
}

#[test]
fn a_tree_whose_page_server_is_killed_goes_on() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "64"]).unwrap();
    fixture.checkpoint("app", &workload);
    let faults = &fixture.server.as_ref().unwrap().faults;
    let victims: [&[&str]; 4] = [&ROLES[..1], &ROLES[..2], &ROLES[1..], &[ROLES[0], ROLES[2]]];
    for victims in victims {
        faults.delay_answers(Duration::from_millis(30));
        faults.delay_large_ranges(512 << 10, Duration::from_millis(1500));
        fixture.restore("app", "lazy-storage");
        let pids: Vec<i32> = victims.iter().map(|role| living(&fixture, role)).collect();
        assert!(process::is_lazy(workload.pid()).unwrap(), "too fast to tell anything");
        pids.iter().for_each(|&pid| process::end(pid).unwrap());
        intact(&workload);
        faults.delay_answers(Duration::ZERO);
        faults.delay_large_ranges(0, Duration::ZERO);
        process::wait_resident(workload.pid(), LIMIT).unwrap();
        intact(&workload);
        let gone = || ROLES.iter().all(|role| page_server(&fixture, role).is_none());
        assert!(process::wait_until(LIMIT, gone), "{victims:?}: a process of the page server is left");
        fixture.checkpoint("app", &workload);
    }
}

#[test]
fn killing_the_agent_at_any_moment_of_a_restore_leaves_a_whole_tree_or_none() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    fixture.checkpoint("app", &workload);
    let started = Instant::now();
    fixture.restore("app", "lazy-storage");
    let whole = started.elapsed();
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    fixture.checkpoint("app", &workload);
    for strategy in common::STRATEGIES {
        const STEPS: u32 = 10;
        for step in 1..=STEPS {
            let delay = whole * step / STEPS;
            let mut agent = fixture.agent(&["restore", "--app", "app", "--detach", "--strategy", strategy]);
            let mut agent = agent.stdout(Stdio::null()).spawn().unwrap();
            sleep(delay);
            agent.kill().unwrap();
            agent.wait().unwrap();
            // Either it is being taken down, or it runs.
            sleep(Duration::from_millis(300));
            if process::is_running(workload.pid()) {
                intact(&workload);
                process::wait_resident(workload.pid(), LIMIT).unwrap();
                process::end(workload.pid()).unwrap();
            }
            assert!(
                process::wait_gone(workload.pid(), LIMIT),
                "{strategy}: killed after {delay:?}, a task is left"
            );
            common::collect_orphans();
        }
    }
    assert!(
        process::wait_until(LIMIT, || ROLES.iter().all(|role| page_server(&fixture, role).is_none())),
        "a page server nobody needs is left"
    );
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}

#[test]
fn plain_criu_restores_from_the_daemon() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let workload = Workload::start("tree", &["--mib", "16"]).unwrap();
        fixture.checkpoint("app", &workload);
        let images = fixture.path().join("images");
        let agent = fixture.agent(&[]);
        let mut command = Command::new(process::program("lazy-pages").unwrap());
        command.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(["serve", "--app", "app", "--json", "--dir"]).arg(&images);
        let mut daemon = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut events = BufReader::new(daemon.stdout.take().unwrap()).lines();
        assert!(events.next().unwrap().unwrap().contains("\"ready\""));

        let criu = agent.get_envs().find(|(name, _)| *name == "MIGRATION_CRIU").and_then(|(_, value)| value);
        let criu =
            criu.map_or_else(|| std::env::var_os("MIGRATION_CRIU").unwrap_or("criu".into()), Into::into);
        let restored = Command::new(criu)
            .args(["restore", "--lazy-pages", "--restore-detached", "--images-dir"])
            .arg(&images)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(restored.status.success(), "{}", text(&restored));
        intact(&workload);
        let last = events.next().unwrap().unwrap();
        assert!(last.contains("\"resident\""), "{last}");
        assert!(daemon.wait().unwrap().success());
        intact(&workload);
    }
}
