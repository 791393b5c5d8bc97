//! Hooks: called before the freeze and after a restore; one that fails before the freeze, or hangs, leaves everything as it was.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{
    Fixture, intact,
    service::{Service, runs_free, wait_gone},
};
use migration_harness::workload::Workload;
use serde_json::Value;

#[test]
fn hooks_are_called_around_a_move_and_one_that_fails_keeps_the_tree() {
    let fixture = Fixture::local();
    let told = fixture.path().join("told");
    let script = fixture.path().join("hook");
    let text = format!(
        "#!/bin/sh\n[ -d /proc/$MIGRATION_PID ] || exit 3\n\
         echo $MIGRATION_EVENT $MIGRATION_APP $MIGRATION_PID $MIGRATION_CHECKPOINT $MIGRATION_GENERATION >> {}\n\
         [ \"$1\" != fail ]\n",
        told.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap().to_owned();
    let failing = format!("{script} fail");
    let lines = || {
        let text = std::fs::read_to_string(&told).unwrap_or_default();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect::<Vec<Vec<String>>>()
    };
    let service = Service::start(&fixture, &["--after-restore", &script]);
    let address = service.address();
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let pid = workload.pid().to_string();

    for through in [&[][..], &["--agent", &address]] {
        let call = ["checkpoint", "--app", "app", "--pid", &pid, "--before-freeze", &failing];
        let refused = fixture.refused(&[&call[..], through].concat());
        assert_eq!(refused["reason"], "hook", "{refused}");
        assert_eq!(refused["left"], format!("process {pid} runs on"));
        assert!(runs_free(workload.pid()));
        intact(&workload);
        assert!(fixture.manifests().is_empty());
        // What was begun is told to be over.
        let events: Vec<String> = lines().into_iter().map(|line| line[0].clone()).collect();
        assert_eq!(events, ["before-freeze", "not-frozen"]);
        std::fs::remove_file(&told).unwrap();
    }
    let call = ["checkpoint", "--app", "app", "--pid", &pid, "--agent", &address, "--before-freeze"];
    let ignored =
        fixture.json(&[&call[..], &[&failing, "--hook-failure", "ignore", "--leave-running"]].concat());
    assert_eq!(ignored["left"], "running");
    let dumped = fixture.json(&[&call[..], &[&script]].concat());
    wait_gone(&workload);
    let restored = fixture.json(&["restore", "--app", "app", "--agent", &address]);
    assert_eq!(restored["hook_failure"], Value::Null);
    let told_now = lines();
    let (first, rest) = told_now.split_first().unwrap();
    assert_eq!(first[3], ignored["checkpoint"].as_str().unwrap());
    let id = dumped["checkpoint"].as_str().unwrap();
    for (line, event) in rest.iter().zip(["before-freeze", "after-restore"]) {
        assert_eq!(line[..4], [event, "local/default/app", &pid, id]);
        assert!(line[4].parse::<u64>().unwrap() > first[4].parse().unwrap(), "generations grow");
    }
    assert_eq!(rest.len(), 2);
    intact(&workload);

    // After a restore nothing is undone any more: it is told, and the tree runs on.
    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid]);
    wait_gone(&workload);
    let call = ["restore", "--app", "app", "--agent", &address, "--after-restore", &failing];
    let restored = fixture.json(&call);
    assert!(restored["hook_failure"].as_str().unwrap().contains("exit status: 1"), "{restored}");
    intact(&workload);
}

#[test]
fn a_hook_that_hangs_is_ended_and_keeps_the_tree() {
    let fixture = Fixture::local();
    let service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let pid = workload.pid().to_string();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}/drain", listener.local_addr().unwrap());
    for hook in ["sleep 1000", silent.as_str()] {
        let call = ["checkpoint", "--app", "app", "--pid", &pid, "--agent", &service.address()];
        let refused =
            fixture.refused(&[&call[..], &["--before-freeze", hook, "--hook-timeout", "300ms"]].concat());
        assert_eq!(refused["reason"], "hook", "{refused}");
        intact(&workload);
        assert!(fixture.manifests().is_empty());
    }
    // The address was asked for what it says.
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = vec![0; 4096];
    let length = std::io::Read::read(&mut stream, &mut request).unwrap();
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    assert!(request.starts_with("POST /drain HTTP/1.1"), "{request}");
}
