//! Real processes through real CRIU into a store and back: every byte of memory they can see is what it was.

mod common;

use common::{Fixture, LIMIT, STRATEGIES, intact};
use migration_harness::{process, workload::Workload};

/// Moves a workload away and back with each strategy, from both kinds of store, and lets it check itself each time.
fn moves(scenario: &str, options: &[&str]) {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let workload = Workload::start(scenario, options).unwrap();
        intact(&workload);
        for strategy in STRATEGIES {
            fixture.checkpoint(scenario, &workload);
            let restored = fixture.restore(scenario, strategy);
            assert_eq!(restored["pid"], workload.pid());
            assert_eq!(restored["strategy"], strategy);
            intact(&workload);
            process::wait_resident(workload.pid(), LIMIT).unwrap();
            intact(&workload);
        }
    }
}

#[test]
fn one_task() {
    moves("heap", &["--mib", "48"]);
}

#[test]
fn a_tree_with_children_and_a_zombie() {
    moves("tree", &["--mib", "16"]);
}

#[test]
fn ten_threads_under_stress() {
    moves("threads", &["--mib", "16"]);
}

#[test]
fn shared_memory_and_memfd() {
    moves("shared", &["--mib", "16"]);
}

#[test]
fn locked_protected_file_backed_and_fork_sensitive_areas() {
    moves("areas", &["--mib", "16"]);
}

#[test]
fn memory_that_changes_shape_while_pages_are_still_missing() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        // Slow enough that pages are missing for a while.
        let workload = Workload::start("churn", &["--mib", "64", "--continuous"]).unwrap();
        for _ in 0..2 {
            fixture.checkpoint("churn", &workload);
            if let Some(server) = &fixture.server {
                server.faults.delay_answers(std::time::Duration::from_millis(20));
            }
            fixture.restore("churn", "lazy-storage");
            let report = workload.act("churn").unwrap();
            assert_eq!(report.bad, 0, "{report:?}");
            process::wait_resident(workload.pid(), LIMIT).unwrap();
            intact(&workload);
            if let Some(server) = &fixture.server {
                server.faults.delay_answers(std::time::Duration::ZERO);
            }
        }
    }
}

#[test]
fn a_second_checkpoint_stores_only_what_changed() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let workload = Workload::start("heap", &["--mib", "64"]).unwrap();
        let first = fixture.checkpoint("app", &workload);
        assert_eq!(first["parent"], serde_json::Value::Null);
        fixture.restore("app", "lazy-storage");
        process::wait_resident(workload.pid(), LIMIT).unwrap();
        workload.act("mutate 0.1").unwrap();

        let second = fixture.checkpoint("app", &workload);

        assert_eq!(second["parent"], first["checkpoint"]);
        let (stored, total) =
            (second["pages"]["stored"].as_u64().unwrap(), second["pages"]["total"].as_u64().unwrap());
        assert!(stored * 4 < total, "stored {stored} of {total} pages");
        assert!(
            second["bytes"]["uploaded"].as_u64().unwrap() * 3 < first["bytes"]["uploaded"].as_u64().unwrap(),
            "{first} {second}"
        );
        fixture.restore("app", "lazy-storage");
        intact(&workload);
        process::wait_resident(workload.pid(), LIMIT).unwrap();
        // Both are whole on their own.
        let listed = fixture.json(&["list", "--app", "app"]);
        for checkpoint in listed["checkpoints"].as_array().unwrap() {
            let id = checkpoint["checkpoint"].as_str().unwrap();
            let verified = fixture.json(&["verify", "--app", "app", "--checkpoint", id, "--read-data"]);
            assert_eq!(verified["ok"], true);
        }
        assert_eq!(listed["checkpoints"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn a_process_left_running_goes_on_and_its_checkpoint_is_whole() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    let pid = workload.pid().to_string();
    let report = fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--leave-running"]);
    assert_eq!(report["left"], "running");
    assert!(workload.is_running());
    intact(&workload);

    process::end(workload.pid()).unwrap();
    assert!(process::wait_gone(workload.pid(), LIMIT));
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}

#[test]
fn waiting_for_residency_reports_it() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    fixture.checkpoint("app", &workload);
    let report = fixture.json(&["restore", "--app", "app", "--wait-resident"]);
    assert!(report["resident_ms"].as_f64().unwrap() >= report["resume_ms"].as_f64().unwrap(), "{report}");
    assert!(report["fetched_bytes"].as_u64().unwrap() > 8 << 20, "{report}");
    assert!(report["faults"].as_u64().is_some(), "{report}");
    assert!(!process::is_lazy(workload.pid()).unwrap());
    intact(&workload);
}

#[test]
fn deleting_a_checkpoint_leaves_those_that_share_its_pages_whole() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "32"]).unwrap();
    let pid = workload.pid().to_string();
    let first = fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--leave-running"]);
    workload.act("mutate 0.1").unwrap();
    fixture.checkpoint("app", &workload);

    fixture.json(&["delete", "--app", "app", "--checkpoint", first["checkpoint"].as_str().unwrap()]);

    fixture.json(&["verify", "--app", "app", "--read-data"]);
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}
