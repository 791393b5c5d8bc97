//! Everything that `/metrics` names is counted by something.

mod common;

use std::{fs, time::Duration};

use common::{
    Fixture, LIMIT, collect_orphans, intact,
    service::{SOON, Service, scrape, value},
};
use migration_harness::{process, workload::Workload};

#[track_caller]
fn wait_gone(workload: &Workload) {
    assert!(process::wait_gone(workload.pid(), LIMIT));
    collect_orphans();
}

#[test]
fn a_move_moves_every_number() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &["--metrics", "127.0.0.1:0"]);
    let address = service.address();
    let empty = scrape(&service);
    assert_eq!(value(&empty, "migration_operations_total", ""), 0.0);
    assert_eq!(value(&empty, "migration_resume_seconds_count", ""), 0.0);

    let workload = Workload::start("heap", &["--mib", "48"]).unwrap();
    let app = format!("counted-{}", workload.pid());
    let pid = workload.pid().to_string();
    let call = ["checkpoint", "--app", &app, "--pid", &pid, "--agent", &address];
    let first = fixture.json(&[&call[..], &["--leave-running", "--timeout", "60"]].concat());
    workload.act("mutate 0.2").unwrap();
    let second = fixture.json(&call);
    wait_gone(&workload);
    let faults = &fixture.server.as_ref().unwrap().faults;
    faults.delay_answers(Duration::from_millis(30));
    fixture.json(&["restore", "--app", &app, "--agent", &address]);
    intact(&workload);
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    faults.delay_answers(Duration::ZERO);
    let counted = || value(&scrape(&service), "migration_resident_seconds_count", "") == 1.0;
    assert!(process::wait_until(SOON, counted), "{}", scrape(&service));

    let text = scrape(&service);
    let is = |name: &str, labels: &str, expected: f64| {
        let found = value(&text, name, labels);
        assert_eq!(found, expected, "{name} {labels}\n{text}");
    };
    let moved = |name: &str, labels: &str| {
        let found = value(&text, name, labels);
        assert!(found > 0.0, "{name} {labels} is {found}\n{text}");
    };
    for kind in ["pre-checkpoint", "final-dump"] {
        let labels = format!("kind=\"{kind}\"");
        is("migration_operations_total", &labels, 1.0);
        for name in ["frozen", "dump", "upload"] {
            is(&format!("migration_{name}_seconds_count"), &labels, 1.0);
            moved(&format!("migration_{name}_seconds_sum"), &labels);
        }
    }
    is("migration_operations_total", "outcome=\"ok\"", 3.0);
    let frozen = first["frozen_ms"].as_f64().unwrap() + second["frozen_ms"].as_f64().unwrap();
    assert!((value(&text, "migration_frozen_seconds_sum", "") - frozen / 1e3).abs() < 1e-3);
    let upload = value(&text, "migration_upload_seconds_sum", "");
    assert!(upload < value(&text, "migration_dump_seconds_sum", ""), "a part is shorter than the whole");
    is("migration_resume_seconds_count", "", 1.0);
    moved("migration_resume_seconds_sum", "");
    is("migration_first_fault_seconds_count", "", 1.0);
    moved("migration_resident_seconds_sum", "");
    is("migration_deadline_headroom_seconds_count", "", 1.0);
    moved("migration_deadline_headroom_seconds_sum", "");
    moved("migration_faults_total", "source=\"store\"");
    moved("migration_stall_seconds_count", "");
    moved("migration_stalled_seconds_total", "");
    let sum = |what: &str, field: &str| {
        let of = |report: &serde_json::Value| report[what][field].as_f64().unwrap();
        of(&first) + of(&second)
    };
    for what in ["stored", "unchanged", "zero"] {
        is("migration_pages_total", &format!("what=\"{what}\""), sum("pages", what));
    }
    is("migration_bytes_total", "direction=\"uploaded\"", sum("bytes", "uploaded"));
    is("migration_bytes_total", "direction=\"dumped\"", sum("bytes", "memory"));
    moved("migration_bytes_total", "direction=\"fetched\"");
    let ratio = value(&text, "migration_dedup_ratio", &app);
    assert!(ratio > 0.3 && ratio < 1.0, "most of the pages had not changed: {ratio}");
    moved("migration_compression_ratio", &app);
    is("migration_missing_pages", &app, 0.0);
}

#[test]
fn missing_pages_are_told_while_they_arrive_and_failures_by_their_reason() {
    let fixture = Fixture::s3();
    let service = Service::start(&fixture, &["--metrics", "127.0.0.1:0"]);
    let address = service.address();
    let workload = Workload::start("heap", &["--mib", "64"]).unwrap();
    let app = format!("arriving-{}", workload.pid());
    let pid = workload.pid().to_string();
    fixture.json(&["checkpoint", "--app", &app, "--pid", &pid, "--agent", &address]);
    wait_gone(&workload);
    let faults = &fixture.server.as_ref().unwrap().faults;
    // Large reads are slow: the background fills late.
    faults.delay_large_ranges(64 << 10, Duration::from_secs(2));
    fixture.json(&["restore", "--app", &app, "--agent", &address]);
    let missing = || value(&scrape(&service), "migration_missing_pages", &app);
    assert!(process::wait_until(SOON, || missing() > 0.0), "{}", scrape(&service));
    faults.delay_large_ranges(64 << 10, Duration::ZERO);
    process::wait_resident(workload.pid(), LIMIT).unwrap();
    assert!(process::wait_until(SOON, || missing() == 0.0));
    intact(&workload);

    assert_eq!(fixture.refused(&["restore", "--app", &app, "--agent", &address])["reason"], "pid-taken");
    let text = scrape(&service);
    assert_eq!(value(&text, "migration_operations_total", "outcome=\"pid-taken\""), 1.0, "{text}");
}

#[test]
fn damage_is_counted() {
    let fixture = Fixture::local();
    let service = Service::start(&fixture, &["--metrics", "127.0.0.1:0"]);
    let address = service.address();
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let pid = workload.pid().to_string();
    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--agent", &address]);
    wait_gone(&workload);
    assert_eq!(value(&scrape(&service), "migration_integrity_failures_total", ""), 0.0);
    let bundle = fixture.objects().into_iter().find(|path| path.ends_with("/bundle")).unwrap();
    let good = fs::read(&bundle).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&bundle, bad).unwrap();
    let call = ["restore", "--app", "app", "--strategy", "full", "--agent", &address];
    fixture.refused(&call);
    let text = scrape(&service);
    assert_eq!(value(&text, "migration_integrity_failures_total", ""), 1.0, "{text}");
    assert_eq!(process::state(workload.pid()), None);
    fs::write(&bundle, good).unwrap();
    fixture.json(&call);
    intact(&workload);
}
