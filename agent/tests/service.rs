//! The agent as a service: what is asked for twice is done once, also when the agent dies in between, and what is given up
//! leaves the process as it was.

mod common;

use std::{
    os::unix::fs::PermissionsExt,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{
    Fixture, LIMIT, intact,
    service::{SOON, Service, runs_free, wait_gone},
};
use migration_agent::client;
use migration_harness::{process, workload::Workload};
use migration_proto::agent::{
    FinalDumpRequest, GetDirtyVolumeRequest, Operation, OperationState, Reason, Stage, WatchRequest,
    operation::Outcome,
};
use serde_json::Value;

/// The command line of a final dump or a checkpoint through the service.
fn asking<'a>(address: &'a str, pid: &'a str, operation: &'a str) -> Vec<&'a str> {
    vec!["checkpoint", "--app", "app", "--pid", pid, "--agent", address, "--operation", operation]
}

fn keys(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}

#[test]
fn what_goes_through_the_service_is_what_the_command_does_and_survives_the_service() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let mut service = Service::start(&fixture, &[]);
        let address = service.address();
        let workload = Workload::start("tree", &["--mib", "16"]).unwrap();
        let pid = workload.pid().to_string();
        let own = fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--leave-running"]);
        let through =
            fixture.json(&[&asking(&address, &pid, "pre-00001")[..], &["--leave-running"]].concat());
        assert_eq!(keys(&own), keys(&through));
        assert_eq!(through["left"], "running");
        assert_eq!(through["parent"], own["checkpoint"]);
        assert!(through["frozen_ms"].as_f64().unwrap() > 0.0);
        intact(&workload);

        for (number, strategy) in common::STRATEGIES.into_iter().enumerate() {
            let operation = format!("dump-{number:04}");
            let dumped = fixture.json(&asking(&address, &pid, &operation));
            assert_eq!(dumped["left"], "killed");
            wait_gone(&workload);
            let restored =
                fixture.json(&["restore", "--app", "app", "--strategy", strategy, "--agent", &address]);
            assert_eq!(restored["pid"], workload.pid());
            assert_eq!(restored["checkpoint"], dumped["checkpoint"]);
            assert_eq!(restored["strategy"], strategy);
            // Its pages do not need the agent.
            service.kill();
            intact(&workload);
            process::wait_resident(workload.pid(), LIMIT).unwrap();
            intact(&workload);
            service = Service::start(&fixture, &[]);
        }
    }
}

#[test]
fn a_repeated_call_gives_the_same_result_also_from_the_next_agent() {
    let fixture = Fixture::local();
    let mut service = Service::start(&fixture, &[]);
    let address = service.address();
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    let pid = workload.pid().to_string();
    let call = asking(&address, &pid, "dump-0001");
    let first = fixture.json(&call);
    wait_gone(&workload);

    assert_eq!(fixture.json(&call), first);
    service.kill();
    let service = Service::start(&fixture, &[]);
    assert_eq!(fixture.json(&call), first);
    assert_eq!(fixture.manifests().len(), 1, "it was taken once");

    // Anything else under that name is something else.
    for other in [
        [&call[..], &["--leave-running"]].concat(),
        [&call[..], &["--tcp-established"]].concat(),
        asking(&address, "999999", "dump-0001"),
        vec!["restore", "--app", "app", "--agent", &address, "--operation", "dump-0001"],
    ] {
        assert_eq!(fixture.refused(&other)["reason"], "operation-mismatch", "{other:?}");
    }
    let restore = ["restore", "--app", "app", "--agent", &address, "--operation", "restore-1"];
    let restored = fixture.json(&restore);
    intact(&workload);
    assert_eq!(fixture.json(&restore), restored, "it runs already, and is not restored again");
    assert!(service.operation("restore-1").is_some());
    intact(&workload);
}

#[test]
fn what_failed_stays_failed_under_its_name_and_can_be_tried_under_another() {
    let fixture = Fixture::local();
    let service = Service::start(&fixture, &[]);
    let address = service.address();
    let restore = |operation| vec!["restore", "--app", "app", "--agent", &address, "--operation", operation];
    let first = fixture.refused(&restore("restore-1"));
    assert_eq!(first["reason"], "no-checkpoint");
    assert!(first["hint"].as_str().is_some(), "{first}");
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let pid = workload.pid().to_string();
    fixture.json(&asking(&address, &pid, "dump-0001"));
    wait_gone(&workload);
    assert_eq!(fixture.refused(&restore("restore-1")), first);
    fixture.json(&restore("restore-2"));
    intact(&workload);
    for bad in ["short", "../../../etc/passwd", "with space"] {
        assert_eq!(fixture.refused(&asking(&address, &pid, bad))["reason"], "usage", "{bad}");
    }
    assert_eq!(fixture.refused(&asking(&address, "1", "dump-0002"))["reason"], "usage");
    intact(&workload);
}

#[test]
fn a_restore_that_is_refused_leaves_no_page_server() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let service = Service::start(&fixture, &[]);
    let (address, pid) = (service.address(), workload.pid().to_string());
    fixture.json(&[asking(&address, &pid, "dump-0001"), vec!["--leave-running"]].concat());
    // By then its page server was started.
    let error = fixture.refused(&["restore", "--app", "app", "--agent", &address]);
    assert_eq!(error["reason"], "pid-taken");
    let store = format!("--store={}", fixture.store).into_bytes();
    let serving = || {
        let serves = |pid: &i32| process::arguments(*pid).contains(&store);
        process::all().into_iter().filter(serves).collect::<Vec<_>>()
    };
    assert!(process::wait_until(LIMIT, || serving().is_empty()), "{:?}", serving());
    intact(&workload);
}

/// The agent is killed after `delay`, another takes its place, and the call is repeated: what is said is what is there.
fn killed_during_a_dump(
    fixture: &Fixture,
    service: &mut Service,
    workload: &Workload,
    number: u32,
    delay: Duration,
) -> bool {
    let (address, pid) = (service.address(), workload.pid().to_string());
    let operation = format!("dump-{number:04}");
    let call = asking(&address, &pid, &operation);
    let mut client = fixture.agent(&call).arg("--json").stdout(std::process::Stdio::null()).spawn().unwrap();
    sleep(delay);
    service.kill();
    client.wait().unwrap();
    let before = fixture.json(&["list", "--app", "app"])["checkpoints"].as_array().unwrap().len();

    *service = Service::start(fixture, &[]);
    let known = service.operation(&operation).is_some();
    let output = fixture.agent(&call).arg("--json").output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let again: Value =
        serde_json::from_slice(&fixture.agent(&call).arg("--json").output().unwrap().stdout).unwrap();
    assert_eq!(answer, again, "killed after {delay:?}");
    if !output.status.success() {
        let error = &answer["error"];
        assert_eq!(error["reason"], "interrupted", "killed after {delay:?}: {answer}");
        assert!(process::wait_until(LIMIT, || runs_free(workload.pid())), "killed after {delay:?}: {answer}");
        intact(workload);
        return false;
    }
    let id = answer["checkpoint"].as_str().unwrap();
    wait_gone(workload);
    fixture.json(&["verify", "--app", "app", "--checkpoint", id, "--read-data"]);
    let listed = fixture.json(&["list", "--app", "app"])["checkpoints"].as_array().unwrap().len();
    if known {
        assert_eq!(listed, before, "killed after {delay:?}: the repeated call took another checkpoint");
    }
    let restored = fixture.json(&["restore", "--app", "app", "--agent", &address, "--strategy", "full"]);
    assert_eq!(restored["checkpoint"], answer["checkpoint"]);
    intact(workload);
    true
}

fn sweep(fixture: &Fixture) {
    let workload = Workload::start("heap", &["--mib", "24"]).unwrap();
    let mut service = Service::start(fixture, &[]);
    let (address, pid) = (service.address(), workload.pid().to_string());
    let started = Instant::now();
    fixture.json(&[&asking(&address, &pid, "pre-00001")[..], &["--leave-running"]].concat());
    let whole = started.elapsed() * 5 / 4;
    const STEPS: u32 = 14;
    let mut done = 0;
    for step in 0..STEPS {
        workload.act("mutate 0.5").unwrap();
        done += u32::from(killed_during_a_dump(fixture, &mut service, &workload, step, whole * step / STEPS));
    }
    assert!(done < STEPS, "no kill came before the commit");
    let last = fixture.json(&asking(&address, &pid, "dump-last"));
    assert_eq!(last["left"], "killed");
    wait_gone(&workload);
    fixture.json(&["restore", "--app", "app", "--agent", &address]);
    intact(&workload);
}

#[test]
fn a_call_repeated_after_the_agent_was_killed_tells_what_is_there_with_a_local_store() {
    sweep(&Fixture::local());
}

#[test]
fn a_call_repeated_after_the_agent_was_killed_tells_what_is_there_with_s3() {
    let fixture = Fixture::s3();
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_millis(15));
    sweep(&fixture);
}

#[test]
fn a_restore_whose_agent_was_killed_is_done_or_leaves_nothing() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "24"]).unwrap();
    let mut service = Service::start(&fixture, &[]);
    let (address, pid) = (service.address(), workload.pid().to_string());
    let mut dumps = 0;
    let mut dump = |fixture: &Fixture| {
        dumps += 1;
        fixture.json(&asking(&address, &pid, &format!("dump-{dumps:04}")));
        wait_gone(&workload);
    };
    dump(&fixture);
    let started = Instant::now();
    fixture.json(&["restore", "--app", "app", "--agent", &address]);
    let whole = started.elapsed() * 5 / 4;
    intact(&workload);
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    dump(&fixture);
    const STEPS: u32 = 10;
    let mut done = 0;
    for step in 0..STEPS {
        let strategy = common::STRATEGIES[step as usize % 2];
        let operation = format!("restore-{step}");
        let call = [
            "restore",
            "--app",
            "app",
            "--agent",
            &address,
            "--strategy",
            strategy,
            "--operation",
            &operation,
        ];
        let mut client = fixture.agent(&call).stdout(std::process::Stdio::null()).spawn().unwrap();
        sleep(whole * step / STEPS);
        service.kill();
        client.wait().unwrap();
        service = Service::start(&fixture, &[]);
        let output = fixture.agent(&call).arg("--json").output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        if output.status.success() {
            assert_eq!(answer["pid"], workload.pid());
            intact(&workload);
            process::wait_resident(workload.pid(), LIMIT).unwrap();
            intact(&workload);
            dump(&fixture);
            done += 1;
        } else {
            assert_eq!(answer["error"]["reason"], "interrupted", "step {step}: {answer}");
            assert!(process::wait_gone(workload.pid(), SOON), "step {step}: {answer}");
        }
    }
    assert!(done > 0, "no restore was done");
    fixture.json(&["restore", "--app", "app", "--agent", &address]);
    intact(&workload);
}

/// A final dump that takes long, because the store does.
fn slow_dump(
    fixture: &Fixture,
    service: &Service,
    workload: &Workload,
    arguments: &[&str],
) -> std::process::Child {
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_secs(5));
    let (address, pid) = (service.address(), workload.pid().to_string());
    let call = [&asking(&address, &pid, "dump-slow")[..], arguments].concat();
    let client = fixture.agent(&call).arg("--json").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let begun = || service.operation("dump-slow").is_some();
    assert!(process::wait_until(LIMIT, begun));
    client
}

fn error_of(client: std::process::Child) -> Value {
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", common::text(&output));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["error"].clone()
}

/// The process runs on, untouched, nothing was committed, and the next dump works.
fn as_it_was(fixture: &Fixture, service: &Service, workload: &Workload, manifests: usize) {
    assert!(process::wait_until(SOON, || runs_free(workload.pid())), "it is not let go");
    intact(workload);
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::ZERO);
    let listed = fixture.json(&["list", "--app", "app"]);
    assert_eq!(listed["checkpoints"].as_array().unwrap().len(), manifests);
    fixture.json(&asking(&service.address(), &workload.pid().to_string(), "dump-next"));
    wait_gone(workload);
    fixture.json(&["restore", "--app", "app", "--agent", &service.address()]);
    intact(workload);
}

#[test]
fn a_cancelled_dump_leaves_the_process_running() {
    for stages in [&[Stage::Preparing][..], &[Stage::Dumping, Stage::Committing]] {
        let fixture = Fixture::s3();
        let service = Service::start(&fixture, &[]);
        let workload = Workload::start("heap", &["--mib", "64"]).unwrap();
        let client = slow_dump(&fixture, &service, &workload, &[]);
        service.wait_for_stage("dump-slow", stages);
        let cancelled = fixture.json(&["cancel", "dump-slow", "--agent", &service.address()]);
        assert_eq!(cancelled["state"], "failed", "{cancelled}");
        assert_eq!(cancelled["error"]["reason"], "cancelled");
        let error = error_of(client);
        assert_eq!(error["reason"], "cancelled");
        assert_eq!(error["left"], format!("process {} runs on", workload.pid()));
        as_it_was(&fixture, &service, &workload, 0);
    }
}

#[test]
fn a_dump_that_misses_its_deadline_leaves_the_process_running() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    let client = slow_dump(&fixture, &service, &workload, &["--timeout", "2"]);
    client.wait_with_output().unwrap();
    let failure = service.failure("dump-slow");
    assert_eq!(failure.reason(), Reason::Deadline, "{failure:?}");
    as_it_was(&fixture, &service, &workload, 0);
}

#[test]
fn a_dump_whose_caller_has_gone_is_given_up_unless_another_one_waits() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    let mut client = slow_dump(&fixture, &service, &workload, &[]);
    let mut second = slow_dump(&fixture, &service, &workload, &[]);
    // It has nothing to show for having joined; the store takes five seconds for each answer.
    sleep(Duration::from_secs(1));
    client.kill().unwrap();
    client.wait().unwrap();
    sleep(Duration::from_millis(300));
    assert_eq!(service.operation("dump-slow").unwrap().state(), OperationState::Running);
    second.kill().unwrap();
    second.wait().unwrap();
    assert_eq!(service.failure("dump-slow").reason(), Reason::Cancelled);
    as_it_was(&fixture, &service, &workload, 0);
}

#[test]
fn a_restore_in_which_criu_hangs_ends_at_its_deadline() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    fixture.checkpoint("app", &workload);
    wait_gone(&workload);
    let (wrapper, hangs) = (fixture.path().join("criu"), fixture.path().join("hangs"));
    let criu = std::env::var("MIGRATION_CRIU").unwrap_or_else(|_| "/opt/criu/bin/criu".to_owned());
    let script = format!(
        "#!/bin/sh\nsleep 0.3\n[ ! -e {} ] || exec sleep 1000\nexec {criu} \"$@\"\n",
        hangs.display()
    );
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let service = Service::start(&fixture, &["--criu", wrapper.to_str().unwrap()]);
    let address = service.address();
    let call = |operation: &str| {
        let mut command = fixture.agent(&["restore", "--app", "app", "--agent", &address]);
        command.args(["--strategy", "lazy-storage", "--timeout", "8", "--json", "--operation", operation]);
        command
    };

    let mut hanging = call("restore-hangs");
    let hanging = hanging.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut hanging = hanging.spawn().unwrap();
    service.wait_for_stage("restore-hangs", &[Stage::Restoring]);
    std::fs::write(&hangs, "").unwrap();
    let failure = service.failure("restore-hangs");
    assert_eq!(failure.reason(), Reason::Deadline, "{failure:?}");
    hanging.wait().unwrap();
    wait_gone(&workload);

    std::fs::remove_file(&hangs).unwrap();
    let output = call("restore-after").output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    intact(&workload);
}

#[test]
fn a_cancelled_restore_leaves_nothing_of_the_tree() {
    for strategy in common::STRATEGIES {
        let fixture = Fixture::s3();
        let service = Service::start(&fixture, &[]);
        let address = service.address();
        let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
        // Page servers are looked for on the whole machine, where other tests have theirs.
        let app = format!("cancelled-{}", workload.pid());
        let pid = workload.pid().to_string();
        fixture.json(&["checkpoint", "--app", &app, "--pid", &pid, "--agent", &address]);
        wait_gone(&workload);
        fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_secs(1));
        let call = [
            "restore",
            "--app",
            &app,
            "--agent",
            &address,
            "--strategy",
            strategy,
            "--operation",
            "restore-1",
        ];
        let client = fixture.agent(&call).arg("--json").stdout(std::process::Stdio::piped()).spawn().unwrap();
        service.wait_for_stage("restore-1", &[Stage::Fetching]);
        let cancelled = fixture.json(&["cancel", "restore-1", "--agent", &address]);
        assert_eq!(cancelled["error"]["reason"], "cancelled", "{cancelled}");
        assert_eq!(error_of(client)["reason"], "cancelled");
        assert_eq!(process::state(workload.pid()), None);
        fixture.server.as_ref().unwrap().faults.delay_answers(Duration::ZERO);
        let servers = || {
            let status = fixture.json(&["status", "--agent", &address]);
            let name = format!("local/default/{app}");
            status["arriving"].as_array().unwrap().iter().filter(|tree| tree["app"] == name).count()
        };
        assert!(process::wait_until(SOON, || servers() == 0), "a page server is left");
        fixture.json(&["restore", "--app", &app, "--agent", &address]);
        intact(&workload);
    }
}

#[test]
fn of_one_application_one_operation_runs_at_a_time() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    let client = slow_dump(&fixture, &service, &workload, &[]);
    let refused = fixture.refused(&asking(&service.address(), &workload.pid().to_string(), "dump-0002"));
    assert_eq!(refused["reason"], "busy", "{refused}");
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::ZERO);
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
}

#[test]
fn an_idle_agent_ends_at_once_and_a_working_one_finishes_its_final_dump() {
    let fixture = Fixture::s3();
    let mut service = Service::start(&fixture, &[]);
    assert_eq!(service.stop(), Some(0));
    let mut service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    let client = slow_dump(&fixture, &service, &workload, &[]);
    service.signal();
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_millis(300));
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    assert!(process::wait_until(LIMIT, || service.child.try_wait().unwrap().is_some()));
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    wait_gone(&workload);
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::ZERO);
    fixture.restore("app", "full");
    intact(&workload);
}

#[test]
fn a_checkpoint_of_a_tree_that_goes_on_is_given_up_when_the_agent_is_to_end() {
    let fixture = Fixture::s3();
    let mut service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    let client = slow_dump(&fixture, &service, &workload, &["--leave-running"]);
    assert_eq!(service.stop(), Some(0));
    assert_eq!(error_of(client)["reason"], "stopping");
    let service = Service::start(&fixture, &[]);
    as_it_was(&fixture, &service, &workload, 0);
}

#[test]
fn the_socket_is_for_root_alone_and_for_one_agent() {
    let fixture = Fixture::local();
    let service = Service::start(&fixture, &[]);
    let mode = std::fs::metadata(&service.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let refused = fixture.refused(&[
        "serve",
        "--socket",
        service.socket.to_str().unwrap(),
        "--state-dir",
        fixture.path().join("other").to_str().unwrap(),
    ]);
    assert!(refused["message"].as_str().unwrap().contains("another agent"), "{refused}");
    let refused = fixture.refused(&[
        "serve",
        "--socket",
        fixture.path().join("other.sock").to_str().unwrap(),
        "--state-dir",
        fixture.path().join("state").to_str().unwrap(),
    ]);
    assert!(refused["message"].as_str().unwrap().contains("another agent"), "{refused}");
}

#[test]
fn health_and_reflection_are_served() {
    let fixture = Fixture::local();
    let service = Service::start(&fixture, &[]);
    let address = service.address().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
        use tonic_reflection::pb::v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let channel = client::channel(&address, None).await.unwrap();
        let name = "migration.agent.v1.Agent".to_owned();
        let health =
            HealthClient::new(channel.clone()).check(HealthCheckRequest { service: name.clone() }).await;
        assert_eq!(health.unwrap().into_inner().status().as_str_name(), "SERVING");
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers = ServerReflectionClient::new(channel)
            .server_reflection_info(tokio_stream::iter([request]))
            .await
            .unwrap()
            .into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
        assert!(list.service.iter().any(|service| service.name == name), "{list:?}");
    });
    let status = fixture.json(&["status", "--agent", &service.address()]);
    assert_eq!(status["ready"], true, "{status}");
}

#[test]
fn a_watched_operation_is_told_from_its_beginning_to_its_end() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    let client = slow_dump(&fixture, &service, &workload, &["--timeout", "60"]);
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_millis(400));
    let told: Vec<Operation> = service.ask(async |mut agent| {
        let request = WatchRequest { operation_id: "dump-slow".into() };
        let mut changes = agent.watch(request).await.unwrap().into_inner();
        let mut told = Vec::new();
        while let Some(operation) = changes.message().await.unwrap() {
            told.push(operation);
        }
        told
    });
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (last, before) = told.split_last().unwrap();
    assert!(before.iter().all(|operation| operation.state() == OperationState::Running));
    let stages: Vec<Stage> = told.iter().map(|operation| operation.stage()).collect();
    assert!(stages.is_sorted() && stages.contains(&Stage::Preparing), "{stages:?}");
    assert!(told.is_sorted_by_key(|operation| operation.bytes_done));
    let headroom: Vec<i64> = told.iter().map(|operation| operation.deadline_headroom_ms.unwrap()).collect();
    assert!(
        headroom.iter().rev().is_sorted() && headroom.iter().all(|ms| (0..60_000).contains(ms)),
        "{headroom:?}"
    );
    assert_eq!(last.state(), OperationState::Succeeded);
    assert!(last.pages_done * 4096 >= 32 << 20, "{last:?}");
    let Some(Outcome::Checkpoint(result)) = &last.outcome else { panic!("{last:?}") };
    assert_eq!(answer["checkpoint"], *result.checkpoint);

    // One that is over is told once; its end is the exit code.
    let watched =
        fixture.agent(&["watch", "dump-slow", "--agent", &service.address(), "--json"]).output().unwrap();
    assert!(watched.status.success());
    let told: Value = serde_json::from_slice(&watched.stdout).unwrap();
    assert_eq!(told["result"]["checkpoint"], answer["checkpoint"]);
    let unknown = fixture.refused(&["watch", "no-such-operation", "--agent", &service.address()]);
    assert_eq!(unknown["reason"], "unknown-operation");
}

#[test]
fn an_operation_that_was_detached_outlives_its_caller() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &[]);
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::from_millis(300));
    let request = FinalDumpRequest {
        operation_id: "dump-detached".into(),
        app: "app".into(),
        pid: workload.pid() as u32,
        detach: true,
        ..Default::default()
    };
    let begun = service.ask(async |mut agent| agent.final_dump(request).await).unwrap().into_inner();
    assert_eq!(begun.state(), OperationState::Running);
    wait_gone(&workload);
    let ended = || service.operation("dump-detached").unwrap().state() == OperationState::Succeeded;
    assert!(process::wait_until(SOON, ended));
    fixture.server.as_ref().unwrap().faults.delay_answers(Duration::ZERO);
    fixture.json(&["restore", "--app", "app", "--agent", &service.address()]);
    intact(&workload);
}

#[test]
fn whether_a_dump_fits_is_told_from_what_the_last_ones_cost() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &[]);
    let none = fixture.refused(&["deadline", "--app", "app", "--deadline", "60s"]);
    assert_eq!(none["reason"], "no-checkpoint");
    let volume = |service: &Service| {
        let request = GetDirtyVolumeRequest { app: "app".into() };
        service.ask(async |mut agent| agent.get_dirty_volume(request).await).unwrap().into_inner()
    };
    assert_eq!(volume(&service).checkpoints, 0);
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    let pid = workload.pid().to_string();
    let take = || fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--leave-running"]);
    let full = take();
    let known = volume(&service);
    assert_eq!(known.bytes, full["pages"]["stored"].as_u64().unwrap() * 4096);
    assert_eq!(known.upload_bytes, full["bytes"]["uploaded"].as_u64().unwrap());
    workload.act("mutate 0.1").unwrap();
    let second = take();
    let known = volume(&service);
    assert_eq!(known.bytes, second["pages"]["stored"].as_u64().unwrap() * 4096);
    assert!(known.bytes * 4 < 32 << 20, "{known:?}");

    let verdict = |deadline: &str, more: &[&str]| {
        fixture
            .json(&[&["deadline", "--app", "app", "--deadline", deadline, "--interval", "0s"], more].concat())
    };
    let fits = verdict("1h", &[]);
    assert_eq!(fits["verdict"], "fits", "{fits}");
    assert!(fits["bandwidth_bytes_per_second"].as_u64().unwrap() > 0);
    assert_eq!(fits["dirty_bytes"], known.bytes);
    let needed = fits["needed_ms"].as_u64().unwrap();
    let whole = fits["headroom_ms"].as_u64().unwrap() + needed;
    assert!((3_599_999..=3_600_000).contains(&whole), "each is rounded down: {fits}");
    let slow = verdict("60s", &["--bandwidth", "1000"]);
    assert_eq!(
        (&slow["verdict"], &slow["why"]),
        (&Value::from("cannot-fit"), &Value::from("upload")),
        "{slow}"
    );
    assert_eq!(verdict("1s", &["--margin", "1h"])["why"], "margin");
}

#[test]
fn the_log_can_be_json_and_names_the_operation() {
    let fixture = Fixture::local();
    let socket = fixture.path().join("run/agent.sock");
    let log = fixture.path().join("log");
    let mut command = fixture.agent(&["serve", "--json", "--log-format", "json", "-v", "--socket"]);
    command.arg(&socket).arg("--state-dir").arg(fixture.path().join("state"));
    command.stderr(std::fs::File::create(&log).unwrap());
    let service = Service::spawn(command, socket);
    fixture.refused(&["restore", "--app", "app", "--agent", &service.address(), "--operation", "restore-1"]);
    let lines = || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let failed = lines().into_iter().find(|line| line["fields"]["reason"] == "no-checkpoint").unwrap();
    assert_eq!(failed["span"]["id"], "restore-1", "{failed}");
    assert_eq!(failed["span"]["kind"], "restore");
}
