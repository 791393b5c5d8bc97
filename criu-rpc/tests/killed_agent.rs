//! What happens when the process that talks to CRIU is killed: CRIU undoes what it was doing, and ends.

mod common;

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use common::{Workload, criu, directory, dump_into, wait_until};

/// Runs a victim up to `stage` and kills it there.
fn kill_at(stage: &str, job: &Path) {
    fs::write(job.join("stage"), stage).unwrap();
    // cargo builds examples before it runs tests, into a directory beside that of the tests.
    let program = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/victim");
    let mut victim: Child = Command::new(program)
        .arg(job)
        .env("MIGRATION_CRIU", criu().path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("examples are built by `cargo test`, or by `cargo build -p criu-rpc --examples`");
    wait_until("the stage is reached", || job.join("reached").exists());
    assert!(!working_in(job).is_empty(), "criu is there");
    victim.kill().unwrap();
    victim.wait().unwrap();
    fs::remove_file(job.join("reached")).unwrap();
}

/// Processes whose working directory is `directory`, as CRIU's is.
fn working_in(directory: &Path) -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)).collect()
}

#[test]
fn a_killed_agent_leaves_the_dumped_process_running_and_no_criu() {
    for stage in ["PreDump", "pages", "PostDump"] {
        let scratch = tempfile::tempdir().unwrap();
        let job = scratch.path().canonicalize().unwrap();
        directory(&job, "images");
        let workload = Workload::start(1000, &job, None);
        let maps = workload.maps();
        fs::write(job.join("pid"), workload.pid.to_string()).unwrap();
        kill_at(stage, &job);
        wait_until("criu has ended", || working_in(&job).is_empty());
        workload.assert_runs();
        assert_eq!(workload.maps(), maps, "at stage {stage} something is left in the process");
    }
}

#[test]
fn a_killed_agent_leaves_no_half_restored_process_and_no_criu() {
    for stage in ["PreRestore", "PostRestore"] {
        let scratch = tempfile::tempdir().unwrap();
        let job = scratch.path().canonicalize().unwrap();
        let images = directory(&job, "images");
        let mut workload = Workload::start(100, &job, None);
        dump_into(&criu(), &mut workload, &images);
        kill_at(stage, &job);
        wait_until("criu has ended", || working_in(&job).is_empty());
        wait_until("nothing of the process is left", || {
            let state = common::state(workload.pid);
            // Its zombie belongs to init, which takes its time.
            state.contains("gone") || state.contains('Z')
        });
    }
}
