//! An agent in a container as runtimes make them.

mod common;

use std::{fs, process::Command};

use common::{Fixture, service::Service};
use migration_harness::sys::in_own_session;

/// What a container runtime does to `/proc/sys`, then the agent.
const PROTECTED: &str = "mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro,nosuid,nodev,noexec /proc/sys
exec \"$@\"";

#[test]
fn an_agent_that_serves_takes_the_protection_off_the_settings_of_its_own_container_only() {
    let fixture = Fixture::local();
    let socket = fixture.path().join("agent.sock");
    let mut agent = fixture.agent(&["serve", "--json"]);
    agent.arg("--socket").arg(&socket).arg("--state-dir").arg(fixture.path().join("state"));
    let mut container = Command::new("unshare");
    container.args(["--mount", "sh", "-c", PROTECTED, "sh"]).arg(agent.get_program()).args(agent.get_args());
    container.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
    in_own_session(&mut container);
    let service = Service::spawn(container, socket);

    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", service.child.id())).unwrap();
    let settings: Vec<&str> = mounts.lines().filter(|line| line.contains(" /proc/sys ")).collect();
    assert_eq!(settings.len(), 1, "{mounts}");
    let options = settings[0].split(' ').nth(5).unwrap();
    for option in ["rw", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|one| one == option), "{options}");
    }
    let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!ours.contains(" /proc/sys "), "nothing of it is seen outside");
}
