//! What happens when the process that talks to CRIU is killed: CRIU undoes what it was doing, and ends.

mod common;

use std::{
    env, fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use common::{Workload, criu, directory, dump_into, page_server, wait_until};
use criu_rpc::{DumpOptions, Notification, PageStream, RestoreOptions};

/// Names a directory with the parts of a victim's job; makes the test below do it.
const JOB: &str = "CRIU_RPC_TEST_JOB";

/// Not a test by itself: the process that gets killed. It works up to the stage named in its job, and stops there.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn victim() {
    let job = PathBuf::from(env::var_os(JOB).unwrap());
    let read = |name: &str| fs::read_to_string(job.join(name)).unwrap();
    let stage = read("stage");
    let stop_here = || {
        fs::write(job.join("reached"), "").unwrap();
        thread::sleep(Duration::from_secs(1000));
    };
    let images = job.join("images");
    let criu = criu();
    let handler = &mut |notification: &Notification| {
        if format!("{notification:?}").starts_with(&stage) {
            stop_here();
        }
        Ok(())
    };
    if stage.contains("Res") {
        criu.restore(RestoreOptions::new(&images).work_dir(&job), handler).unwrap();
        return;
    }
    let options = DumpOptions::new(read("pid").parse().unwrap(), &images).work_dir(&job);
    if stage == "pages" {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let version = criu.version().unwrap();
        let dump = thread::scope(|scope| {
            let dump = scope.spawn(|| criu.dump(options.page_server(theirs), handler));
            let mut stream = PageStream::new(ours, version);
            stream.next().unwrap();
            stream.next().unwrap();
            stop_here();
            dump.join().unwrap()
        });
        dump.unwrap();
    } else {
        let (socket, _receiver) = page_server(criu.version().unwrap(), 0);
        criu.dump(options.page_server(socket), handler).unwrap();
    }
}

/// Runs a victim up to `stage` and kills it there.
fn kill_at(stage: &str, job: &Path) {
    fs::write(job.join("stage"), stage).unwrap();
    let mut victim: Child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored"])
        .env(JOB, job)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
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
