//! The workloads without any checkpoint: they must find nothing wrong with memory nobody touched, and must find it when
//! somebody did.

use std::fs;
use std::time::Duration;

use migration_harness::process;
use migration_harness::workload::{Report, Workload, WorkloadError};

fn good(report: Report) -> u64 {
    assert_eq!(report.bad, 0, "{:?}", report.examples);
    assert!(report.pages > 0, "nothing was looked at");
    report.pages
}

#[test]
fn a_heap_is_checked_completely_and_its_mutations_are_remembered() {
    let heap = Workload::start("heap", &["--mib", "16"]).unwrap();
    assert_eq!(good(heap.check().unwrap()), 4096);
    let rewritten = good(heap.act("mutate 0.25").unwrap());
    assert!((700..1350).contains(&rewritten), "{rewritten} of 4096 pages");
    assert_eq!(good(heap.check().unwrap()), 4096);
    assert!(good(heap.act("watch 200").unwrap()) >= 4096);
}

#[test]
fn a_single_wrong_byte_is_found() {
    let heap = Workload::start("heap", &["--mib", "4", "--half"]).unwrap();
    good(heap.check().unwrap());
    heap.act("corrupt").unwrap();
    let report = heap.check().unwrap();
    assert_eq!(report.bad, 1);
    assert!(report.examples[0].contains("other bytes instead of Pattern(0)"), "{:?}", report.examples);
}

#[test]
fn every_task_of_a_tree_keeps_its_own_view() {
    let tree = Workload::start("tree", &["--mib", "8"]).unwrap();
    let names: Vec<_> = tree.tasks().iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["main", "child", "grandchild", "sibling"]);
    assert_eq!(good(tree.check().unwrap()), 4 * 2048 + 1);
    tree.act("mutate").unwrap();
    tree.ask("grandchild", "mutate").unwrap();
    good(tree.check().unwrap());
    let zombies =
        || process::children(tree.pid()).into_iter().filter(|&pid| process::state(pid) == Some('Z')).count();
    assert_eq!(zombies(), 1);
    good(tree.act("reap").unwrap());
    assert_eq!(zombies(), 0);
}

#[test]
fn threads_find_no_torn_page() {
    let threads = Workload::start("threads", &["--mib", "8"]).unwrap();
    assert_eq!(fs::read_dir(format!("/proc/{}/task", threads.pid())).unwrap().count(), 10);
    for _ in 0..3 {
        assert!(good(threads.check().unwrap()) > 2048);
    }
}

#[test]
fn what_one_task_writes_to_shared_memory_the_other_sees() {
    let shared = Workload::start("shared", &["--mib", "8"]).unwrap();
    good(shared.check().unwrap());
    good(shared.act("write").unwrap());
    good(shared.ask("child", "write").unwrap());
    good(shared.ask("child", "write").unwrap());
    good(shared.check().unwrap());
}

#[test]
fn every_unusual_area_is_as_it_should_be() {
    let areas = Workload::start("areas", &["--mib", "16"]).unwrap();
    good(areas.check().unwrap());
    good(areas.act("fork").unwrap());
    good(areas.check().unwrap());
}

#[test]
fn guards_need_no_mapping_of_their_own() {
    match Workload::start("guards", &["--mib", "4"]) {
        Ok(guards) => assert_eq!(good(guards.check().unwrap()), 1024),
        // Linux before 6.13 does not know the advice.
        Err(WorkloadError::Ended { said, .. }) => assert!(said.contains("Invalid argument"), "{said}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn churn_finds_nothing_wrong_even_when_it_starts_over() {
    let churn = Workload::start("churn", &["--mib", "8"]).unwrap();
    good(churn.act("churn 3").unwrap());
    good(churn.check().unwrap());
    good(churn.act("churn 20").unwrap());
    good(churn.check().unwrap());
}

#[test]
fn continuous_churn_reports_what_it_saw_in_between() {
    let churn = Workload::start("churn", &["--mib", "8", "--continuous"]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let checked = good(churn.check().unwrap());
    assert!(checked > 2048, "only {checked} pages: nothing happened between requests");
}

#[test]
fn stdout_ticks_on_both_streams() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| fs::File::create(folder.path().join(name)).unwrap();
    let ticker = Workload::builder("stdout").stdout(file("out")).stderr(file("err")).start().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(good(ticker.check().unwrap()) >= 10);
    for name in ["out", "err"] {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.len() >= 5, "{text}");
        for (index, line) in lines.iter().enumerate() {
            assert_eq!(*line, format!("tick {}", index + 1), "{name}");
        }
    }
}

#[test]
fn a_workload_is_ready_to_be_checkpointed() {
    let heap = Workload::start("heap", &["--mib", "1"]).unwrap();
    let pid = heap.pid();
    let open: Vec<_> =
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(open.len(), 3, "{open:?}");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(fields[3], pid.to_string(), "not a session leader");
    assert_eq!(fields[4], "0", "has a terminal");
}

#[test]
fn dropping_a_workload_ends_all_its_processes() {
    let tree = Workload::start("tree", &["--mib", "1"]).unwrap();
    let all = process::tree(tree.pid());
    assert_eq!(all.len(), 5);
    drop(tree);
    for pid in all {
        assert!(process::wait_ended(pid, Duration::from_secs(5)), "{pid} still runs");
    }
}

#[test]
fn an_ended_workload_and_an_unknown_request_are_errors() {
    let heap = Workload::start("heap", &["--mib", "1"]).unwrap();
    assert!(matches!(heap.act("dance"), Err(WorkloadError::Refused { .. })));
    process::end(heap.pid()).unwrap();
    assert!(matches!(heap.check(), Err(WorkloadError::Ended { .. })));
    assert!(!heap.is_running());
}
