//! What is told of real checkpoints and restores afterwards.

mod common;

use common::{Fixture, LIMIT, intact, text};
use migration_harness::{process, workload::Workload};
use serde_json::Value;

/// Microseconds.
fn us(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no time"))
}

/// The report, as soon as the page server has written its part.
fn complete(fixture: &Fixture) -> Value {
    let mut report = Value::Null;
    let found = process::wait_until(LIMIT, || {
        report = fixture.json(&["report", "--app", "app"]);
        !report["pages"].is_null()
    });
    assert!(found, "nothing was written about the pages: {report}");
    report
}

#[test]
fn a_move_is_told_of_from_the_freeze_to_the_last_page_and_forgotten_with_its_checkpoint() {
    for fixture in [Fixture::local(), Fixture::s3()] {
        let workload = Workload::start("heap", &["--mib", "48"]).unwrap();
        let taken = fixture.checkpoint("app", &workload);
        let id = taken["checkpoint"].as_str().unwrap();
        let before = fixture.json(&["report", "--app", "app"]);
        assert_eq!(before["checkpoint"], id);
        assert!(before["run"].is_null() && before["blackout"].is_null());
        assert!(before["unknown"].to_string().contains("any restore"), "{before}");

        let restored = fixture.restore("app", "lazy-storage");
        intact(&workload);
        process::wait_resident(workload.pid(), LIMIT).unwrap();
        let report = complete(&fixture);

        assert_eq!(report["checkpoint"], id);
        let frozen = us(&report["taken"]["frozen_us"]) as f64 / 1e3;
        assert!((frozen - taken["frozen_ms"].as_f64().unwrap()).abs() < 0.01);
        assert_eq!(report["taken"]["uploaded_bytes"], taken["bytes"]["uploaded"]);
        assert_eq!(report["run"]["pid"], restored["pid"]);
        assert_eq!(report["run"]["strategy"], "lazy-storage");
        let (blackout, running) = (us(&report["blackout"]["total_us"]), us(&report["run"]["running_us"]));
        assert!(blackout >= us(&report["taken"]["frozen_us"]) + running, "{report}");
        let parts = report["blackout"]["parts"].as_array().unwrap();
        assert_eq!(parts.iter().map(|part| us(&part["took_us"])).sum::<u64>(), blackout);
        let pages = &report["pages"];
        assert_eq!(pages["outcome"], "resident");
        let sum = |column: &Value| column.as_array().unwrap().iter().map(us).sum::<u64>();
        assert_eq!(sum(&pages["moments"]["installed_pages"]), us(&pages["numbers"]["installed_pages"]));
        assert_eq!(sum(&pages["moments"]["faults"]), us(&pages["numbers"]["faults"]));
        assert_eq!(sum(&pages["moments"]["fetched_bytes"]), us(&pages["numbers"]["fetched_bytes"]));
        let rows = pages["heat"]["rows"].as_array().unwrap();
        let stored: u64 = rows.iter().map(|row| us(&row["pages"])).sum();
        // Zero pages are not stored.
        assert!(stored > (32 << 20) / 4096, "{stored} pages");
        assert!(stored >= us(&pages["numbers"]["installed_pages"]), "{stored} pages");
        let touched: u64 = rows.iter().map(|row| sum(&row["faults"])).sum();
        assert!(touched > 0 && touched <= us(&pages["numbers"]["faults"]), "{touched}");

        let shown = fixture.agent(&["report", "--app", "app"]).output().unwrap();
        assert!(text(&shown).contains("nothing ran for"), "{}", text(&shown));
        let file = fixture.path().join("report.html");
        let written =
            fixture.agent(&["report", "--app", "app", "--html", file.to_str().unwrap()]).output().unwrap();
        assert!(written.status.success(), "{}", text(&written));
        assert!(std::fs::read_to_string(&file).unwrap().contains(id));

        fixture.json(&["delete", "--app", "app", "--checkpoint", id]);
        let left: Vec<String> = match &fixture.server {
            None => fixture.objects(),
            Some(_) => Vec::new(),
        };
        assert!(!left.iter().any(|object| object.contains(id)), "{left:?}");
        assert_eq!(fixture.refused(&["report", "--app", "app"])["reason"], "no-checkpoint");
    }
}

#[test]
fn a_restore_that_fetched_everything_first_has_nothing_to_tell_of_pages_and_misses_nothing() {
    let fixture = Fixture::local();
    let workload = Workload::start("heap", &["--mib", "16"]).unwrap();
    fixture.checkpoint("app", &workload);
    fixture.restore("app", "full");
    intact(&workload);
    let report = fixture.json(&["report", "--app", "app"]);
    assert_eq!(report["run"]["strategy"], "full");
    assert!(us(&report["run"]["fetched_bytes"]) > 1 << 20);
    assert!(report["pages"].is_null());
    assert_eq!(report["unknown"], serde_json::json!([]));
}
