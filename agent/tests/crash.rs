//! The agent is killed with -9 at every moment of a checkpoint: the process runs on, or its checkpoint is complete.

mod common;

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Fixture, LIMIT, intact};
use migration_harness::{process, workload::Workload};

/// Whether CRIU still holds the process: stopped, or traced.
fn is_held(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let traced = status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
    traced || matches!(process::state(pid), Some('t' | 'T'))
}

/// Checkpoints with the agent killed after `delay`; whether there is one checkpoint more than before.
fn killed_after(fixture: &Fixture, workload: &Workload, delay: Duration, known: &mut usize) -> bool {
    let pid = workload.pid();
    let mut agent =
        fixture.agent(&["checkpoint", "--app", "app", "--pid", &pid.to_string()]).spawn().unwrap();
    sleep(delay);
    agent.kill().unwrap();
    agent.wait().unwrap();
    // CRIU notices that nobody is there any more.
    let mut settled = Instant::now();
    assert!(
        process::wait_until(LIMIT, || {
            if process::is_running(pid) && is_held(pid) {
                settled = Instant::now();
            }
            settled.elapsed() > Duration::from_millis(150)
        }),
        "killed after {delay:?}, the tree is still frozen"
    );
    let listed = fixture.json(&["list", "--app", "app"]);
    let now = listed["checkpoints"].as_array().unwrap().len();
    let committed = now > *known;
    *known = now;
    if committed {
        fixture.json(&["verify", "--app", "app", "--read-data"]);
    }
    if process::is_running(pid) {
        intact(workload);
    } else {
        assert!(committed, "killed after {delay:?}, the process is gone and there is no checkpoint of it");
        assert!(process::wait_gone(pid, LIMIT));
        fixture.restore("app", "full");
        intact(workload);
    }
    committed
}

fn sweep(fixture: &Fixture) {
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    let pid = workload.pid().to_string();
    let started = Instant::now();
    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--leave-running"]);
    let whole = started.elapsed();
    let mut known = 1;
    let mut committed = 0;
    const STEPS: u32 = 16;
    for step in 0..STEPS {
        workload.act("mutate 0.5").unwrap();
        committed += u32::from(killed_after(fixture, &workload, whole * step / STEPS, &mut known));
    }
    assert!(committed < STEPS, "no kill came before the commit");
    // Killed or not, the next one works.
    let last = fixture.json(&["checkpoint", "--app", "app", "--pid", &pid]);
    assert_eq!(last["left"], "killed");
    assert!(process::wait_gone(workload.pid(), LIMIT));
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}

#[test]
fn killing_the_agent_at_any_moment_loses_nothing_with_a_local_store() {
    sweep(&Fixture::local());
}

#[test]
fn killing_the_agent_at_any_moment_loses_nothing_with_s3() {
    let fixture = Fixture::s3();
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_millis(10));
    sweep(&fixture);
}

#[test]
fn killing_the_agent_when_the_first_pack_the_bundle_or_the_manifest_appears_loses_nothing() {
    for stage in ["/packs/", "/bundle", "/manifest"] {
        let fixture = Fixture::local();
        let workload = Workload::start("heap", &["--mib", "64"]).unwrap();
        let pid = workload.pid();
        let mut agent =
            fixture.agent(&["checkpoint", "--app", "app", "--pid", &pid.to_string()]).spawn().unwrap();
        let reached =
            || fixture.objects().iter().any(|path| path.contains(stage) && !path.contains("/.incoming"));
        assert!(process::wait_until(LIMIT, reached), "{stage} never appeared");
        agent.kill().unwrap();
        agent.wait().unwrap();
        assert!(process::wait_until(LIMIT, || !process::is_running(pid) || !is_held(pid)));
        if process::is_running(pid) {
            intact(&workload);
        } else {
            assert_eq!(fixture.manifests().len(), 1, "at {stage} the process is gone without a checkpoint");
        }
        if stage == "/manifest" {
            fixture.json(&["verify", "--app", "app", "--read-data"]);
        }
    }
}
