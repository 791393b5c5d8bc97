//! Checkpoints of trees whose pages are still arriving: nothing is lost, nothing is waited for, and the checkpoint the pages
//! come from can be deleted once nobody is served from it any more.

mod common;

use std::{
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Fixture, LIMIT, STRATEGIES, intact};
use migration_harness::{process, s3::Faults, workload::Workload};
use serde_json::Value;

/// How long pages take. A page server has 64 MiB under way at a time, so the workloads here, which hold more than that,
/// get the first half of their pages after this time and the rest after twice of it.
const SLOW: Duration = Duration::from_millis(1500);

/// Long enough for pages that are on their way to stay there.
const STALLED: Duration = Duration::from_secs(60);

fn faults(fixture: &Fixture) -> &Faults {
    &fixture.server.as_ref().expect("pages can only be slow from S3").faults
}

/// Restores lazily and returns when it runs, with its pages arriving slowly.
#[track_caller]
fn restore_slowly(fixture: &Fixture, app: &str) {
    faults(fixture).delay_large_ranges(0, SLOW);
    fixture.restore(app, "lazy-storage");
}

/// Restores without haste or delay, and checks all memory before and after the last page has come.
#[track_caller]
fn restore_whole(fixture: &Fixture, app: &str, strategy: &str, workload: &Workload) {
    faults(fixture).delay_large_ranges(0, Duration::ZERO);
    fixture.restore(app, strategy);
    intact(workload);
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    intact(workload);
}

/// Takes a checkpoint and lets the workload go on.
#[track_caller]
fn checkpoint_running(fixture: &Fixture, app: &str, workload: &Workload) -> Value {
    let pid = workload.pid().to_string();
    let report = fixture.json(&["checkpoint", "--app", app, "--pid", &pid, "--leave-running"]);
    assert_eq!(report["left"], "running");
    report
}

/// How many pages had not arrived.
fn pending(report: &Value) -> u64 {
    report["pages"]["pending"].as_u64().unwrap()
}

/// The checkpoint was taken of a tree that was still being restored from `from`, and cost little.
#[track_caller]
fn built_on(report: &Value, from: &Value) {
    assert!(pending(report) > 1000, "too few pages were missing to tell anything: {report}");
    assert_eq!(report["parent"], from["checkpoint"]);
    let uploaded = |report: &Value| report["bytes"]["uploaded"].as_u64().unwrap();
    assert!(uploaded(report) < 16 << 20, "pages that had not arrived were uploaded: {report}");
}

/// The page server of this fixture's restore, if there is one now.
fn page_server(fixture: &Fixture) -> Option<i32> {
    let ours = format!("--store={}", fixture.store);
    process::all().into_iter().find(|&pid| {
        let arguments = process::arguments(pid);
        arguments.get(1).is_some_and(|word| word == b"page-server")
            && arguments.iter().any(|word| word == ours.as_bytes())
    })
}

/// Restores a workload lazily, checkpoints it at once, and restores that with each strategy.
fn moves_on_at_once(scenario: &str, options: &[&str]) {
    let fixture = Fixture::s3();
    let workload = Workload::start(scenario, options).unwrap();
    let mut last = fixture.checkpoint(scenario, &workload);
    for strategy in STRATEGIES {
        restore_slowly(&fixture, scenario);
        let report = fixture.checkpoint(scenario, &workload);
        built_on(&report, &last);
        restore_whole(&fixture, scenario, strategy, &workload);
        let verified = fixture.json(&["verify", "--app", scenario, "--read-data"]);
        assert_eq!(verified["checkpoint"], report["checkpoint"]);
        last = fixture.checkpoint(scenario, &workload);
        assert_eq!(pending(&last), 0);
    }
}

#[test]
fn one_task() {
    moves_on_at_once("heap", &["--mib", "112"]);
}

#[test]
fn a_tree_with_children_and_a_zombie() {
    moves_on_at_once("tree", &["--mib", "96"]);
}

#[test]
fn ten_threads_under_stress() {
    moves_on_at_once("threads", &["--mib", "112"]);
}

#[test]
fn locked_protected_file_backed_and_fork_sensitive_areas() {
    moves_on_at_once("areas", &["--mib", "112"]);
}

#[test]
fn memory_that_changes_shape_while_pages_are_still_missing() {
    let fixture = Fixture::s3();
    // Each round meets missing pages, so the freeze comes in the middle of one: moved, dropped, or with a child forked.
    let workload = Workload::start("churn", &["--mib", "112", "--continuous"]).unwrap();
    let mut last = fixture.checkpoint("churn", &workload);
    for generation in 0..4 {
        restore_slowly(&fixture, "churn");
        sleep(Duration::from_millis(150 * generation));
        let report = fixture.checkpoint("churn", &workload);
        assert!(pending(&report) > 0, "{report}");
        assert_eq!(report["parent"], last["checkpoint"]);
        last = report;
    }
    restore_whole(&fixture, "churn", "lazy-storage", &workload);
    let report = workload.act("churn").unwrap();
    assert_eq!(report.bad, 0, "{report:?}");
    intact(&workload);
}

#[test]
fn many_generations_none_of_which_ever_has_all_its_pages() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "112"]).unwrap();
    let mut last = fixture.checkpoint("app", &workload);
    for generation in 0..5 {
        restore_slowly(&fixture, "app");
        // Each gets a different part of its pages first.
        sleep(Duration::from_millis(200 * generation));
        let report = fixture.checkpoint("app", &workload);
        built_on(&report, &last);
        last = report;
    }
    restore_whole(&fixture, "app", "lazy-storage", &workload);
    workload.act("mutate 0.1").unwrap();
    let last = fixture.checkpoint("app", &workload);
    assert_eq!(pending(&last), 0);
    restore_slowly(&fixture, "app");
    built_on(&fixture.checkpoint("app", &workload), &last);
    restore_whole(&fixture, "app", "full", &workload);
    for checkpoint in fixture.json(&["list", "--app", "app"])["checkpoints"].as_array().unwrap() {
        let id = checkpoint["checkpoint"].as_str().unwrap();
        fixture.json(&["verify", "--app", "app", "--checkpoint", id, "--read-data"]);
    }
}

#[test]
fn a_tree_left_running_goes_on_getting_its_pages_and_can_be_checkpointed_again() {
    let fixture = Fixture::s3();
    let workload = Workload::start("tree", &["--mib", "96"]).unwrap();
    let first = fixture.checkpoint("app", &workload);
    restore_slowly(&fixture, "app");
    let second = checkpoint_running(&fixture, "app", &workload);
    built_on(&second, &first);
    // Its pages still come from the first one, so that is what the third builds on, although there is a newer one.
    let third = checkpoint_running(&fixture, "app", &workload);
    built_on(&third, &first);

    faults(&fixture).delay_large_ranges(0, Duration::ZERO);
    intact(&workload);
    for task in workload.tasks() {
        process::wait_resident(task.pid, LIMIT).unwrap();
    }
    intact(&workload);
    let report = fixture.checkpoint("app", &workload);
    assert_eq!((pending(&report), &report["parent"]), (0, &third["checkpoint"]));

    for (checkpoint, strategy) in [&second, &third].into_iter().zip(STRATEGIES) {
        let id = checkpoint["checkpoint"].as_str().unwrap();
        fixture.json(&["restore", "--app", "app", "--checkpoint", id, "--strategy", strategy, "--detach"]);
        intact(&workload);
        for task in workload.tasks() {
            process::wait_resident(task.pid, LIMIT).unwrap();
        }
        intact(&workload);
        fixture.checkpoint("app", &workload);
    }
}

#[test]
fn a_checkpoint_does_not_wait_for_pages_that_do_not_come() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "112"]).unwrap();
    let first = fixture.checkpoint("app", &workload);
    // The pages it waits for itself come; those that nobody has touched do not.
    restore_slowly(&fixture, "app");
    faults(&fixture).delay_large_ranges(0, STALLED);
    sleep(SLOW);
    let started = Instant::now();
    let second = fixture.checkpoint("app", &workload);
    assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
    built_on(&second, &first);
    restore_whole(&fixture, "app", "lazy-storage", &workload);
}

#[test]
fn the_checkpoint_the_pages_came_from_can_be_deleted_when_nobody_is_served_from_it() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "112"]).unwrap();
    let first = fixture.checkpoint("app", &workload);
    let delete_first = ["delete", "--app", "app", "--checkpoint", first["checkpoint"].as_str().unwrap()];
    restore_slowly(&fixture, "app");
    let running = checkpoint_running(&fixture, "app", &workload);
    built_on(&running, &first);
    // The tree that was left running still gets its pages from it.
    let error = fixture.refused(&delete_first);
    assert_eq!(error["reason"], "catalog", "{error}");
    let second = fixture.checkpoint("app", &workload);
    faults(&fixture).delay_large_ranges(0, Duration::ZERO);
    assert!(
        process::wait_until(LIMIT, || page_server(&fixture).is_none()),
        "a page server nobody needs is left"
    );

    fixture.json(&delete_first);

    for report in [&running, &second] {
        let id = report["checkpoint"].as_str().unwrap();
        fixture.json(&["verify", "--app", "app", "--checkpoint", id, "--read-data"]);
        fixture.json(&["restore", "--app", "app", "--checkpoint", id, "--detach"]);
        intact(&workload);
        process::wait_resident(workload.pid(), LIMIT).unwrap();
        intact(&workload);
        fixture.checkpoint("app", &workload);
    }
}

#[test]
fn a_store_that_is_away_refuses_the_checkpoint_and_the_tree_goes_on_when_it_is_back() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "112"]).unwrap();
    let first = fixture.checkpoint("app", &workload);
    let pid = workload.pid().to_string();
    restore_slowly(&fixture, "app");

    faults(&fixture).refuse_next(u64::MAX);
    let error = fixture.refused(&["checkpoint", "--app", "app", "--pid", &pid]);
    assert_eq!(error["left"], format!("process {pid} runs on"), "{error}");
    assert_eq!(error["reason"], "store", "{error}");
    assert!(process::is_lazy(workload.pid()).unwrap(), "its pages cannot have come");
    faults(&fixture).refuse_next(0);

    let second = fixture.checkpoint("app", &workload);
    assert!(pending(&second) > 0, "{second}");
    assert_eq!(second["parent"], first["checkpoint"]);
    restore_whole(&fixture, "app", "lazy-storage", &workload);
}

#[test]
fn it_is_refused_under_another_name_or_into_a_store_without_its_pages() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "112"]).unwrap();
    let first = fixture.checkpoint("app", &workload);
    let pid = workload.pid().to_string();
    restore_slowly(&fixture, "app");
    faults(&fixture).delay_large_ranges(0, STALLED);

    let error = fixture.refused(&["checkpoint", "--app", "other", "--pid", &pid]);
    assert_eq!(error["reason"], "other-application", "{error}");
    assert!(error["message"].as_str().unwrap().contains("local/default/app"), "{error}");
    let elsewhere = format!("file://{}/elsewhere", fixture.path().display());
    let error = fixture.refused(&["checkpoint", "--app", "app", "--pid", &pid, "--store", &elsewhere]);
    assert_eq!(error["reason"], "served-checkpoint", "{error}");
    assert!(error["message"].as_str().unwrap().contains(first["checkpoint"].as_str().unwrap()), "{error}");
    assert_eq!(error["left"], format!("process {pid} runs on"));
    assert!(process::is_lazy(workload.pid()).unwrap(), "its pages cannot have come");

    built_on(&fixture.checkpoint("app", &workload), &first);
    restore_whole(&fixture, "app", "lazy-storage", &workload);
}

#[test]
fn a_checkpoint_at_any_moment_of_a_restore_is_whole_or_refused() {
    let fixture = Fixture::s3();
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    fixture.checkpoint("app", &workload);
    let started = Instant::now();
    fixture.restore("app", "lazy-storage");
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    // Until the last page has come, and a little longer.
    let whole = started.elapsed() * 5 / 4;
    const STEPS: u32 = 12;
    let mut taken = 0;
    for step in 0..STEPS {
        process::end(workload.pid()).unwrap();
        assert!(process::wait_gone(workload.pid(), LIMIT));
        common::collect_orphans();
        let mut restoring = fixture.agent(&["restore", "--app", "app", "--wait-resident"]);
        let mut restoring = restoring.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(whole * step / STEPS);
        let pid = workload.pid().to_string();
        let checkpoint = ["checkpoint", "--app", "app", "--pid", &pid, "--leave-running", "--json"];
        let output = fixture.agent(&checkpoint).output().unwrap();
        taken += u32::from(output.status.success());
        assert!(restoring.wait().unwrap().success(), "step {step}: {}", common::text(&output));
        intact(&workload);
    }
    assert!(taken >= STEPS / 2, "only {taken} of {STEPS} were taken");
    for checkpoint in fixture.json(&["list", "--app", "app"])["checkpoints"].as_array().unwrap() {
        process::end(workload.pid()).unwrap();
        assert!(process::wait_gone(workload.pid(), LIMIT));
        common::collect_orphans();
        let id = checkpoint["checkpoint"].as_str().unwrap();
        fixture.json(&["restore", "--app", "app", "--checkpoint", id, "--strategy", "full", "--detach"]);
        intact(&workload);
    }
}
