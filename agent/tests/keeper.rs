//! An agent behind a keeper: its death ends neither its container nor the page servers in it.

mod common;

use std::time::Duration;

use common::{
    Fixture, LIMIT, intact,
    service::{Service, wait_gone},
};
use migration_harness::{process, workload::Workload};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long pages take: longer than an agent takes to come back.
const SLOW: Duration = Duration::from_secs(3);

/// The agent that serves behind this keeper now.
fn agent(keeper: &Service) -> Option<i32> {
    let serves = |pid: &i32| process::arguments(*pid).iter().any(|word| word == b"serve");
    process::children(keeper.child.id() as i32).into_iter().find(serves)
}

#[track_caller]
fn kill_agent(keeper: &Service) -> i32 {
    let pid = agent(keeper).expect("no agent serves");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    pid
}

#[test]
fn pages_go_on_arriving_while_one_agent_dies_and_the_next_one_comes() {
    let fixture = Fixture::s3();
    let faults = &fixture.server.as_ref().unwrap().faults;
    let workload = Workload::start("heap", &["--mib", "96"]).unwrap();
    let mut keeper = Service::start(&fixture, &["--respawn"]);
    let address = keeper.address();
    let pid = workload.pid().to_string();
    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--agent", &address]);
    wait_gone(&workload);
    faults.delay_large_ranges(0, SLOW);
    let restore = ["restore", "--app", "app", "--agent", &address, "--operation", "restore-1"];
    let restored = fixture.json(&restore);

    for _ in 0..2 {
        let killed = kill_agent(&keeper);
        let another = || agent(&keeper).is_some_and(|pid| pid != killed);
        assert!(process::wait_until(LIMIT, another), "no other agent has come");
    }
    assert!(process::is_lazy(workload.pid()).unwrap(), "all pages had come before the agent was killed");
    let serves = || fixture.agent(&["status", "--agent", &address]).output().unwrap().status.success();
    assert!(process::wait_until(LIMIT, serves), "the next agent does not answer");
    assert_eq!(fixture.json(&restore)["pid"], restored["pid"], "it does not know what the one before it did");
    intact(&workload);
    faults.delay_large_ranges(0, Duration::ZERO);
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    intact(&workload);

    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--agent", &address]);
    wait_gone(&workload);
    assert_eq!(keeper.stop(), Some(0));
}

#[test]
fn with_nothing_left_it_ends_as_its_agent_has() {
    let fixture = Fixture::local();
    let mut keeper = Service::start(&fixture, &["--respawn"]);
    kill_agent(&keeper);
    let ended = || keeper.child.try_wait().unwrap().is_some();
    assert!(process::wait_until(LIMIT, ended), "its container would go on without an agent");
    assert_eq!(keeper.child.wait().unwrap().code(), Some(137));

    let mut keeper = Service::start(&fixture, &["--respawn"]);
    assert_eq!(keeper.stop(), Some(0));
}
