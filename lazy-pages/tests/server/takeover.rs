//! Page servers that are killed while processes depend on them: another one goes on, and nobody ever sees a wrong byte.

use std::{process::Command, thread, time::Duration};

use lazy_pages::{server::Role, units::PAGE_SIZE};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    daemon::{Daemon, ended, wait_for},
    support::{BASE, PID, Target, area, stored_pages},
};

const B: u64 = BASE;
const PAGES: u64 = 4096;
const ROLES: [Role; 3] = [Role::Server, Role::Guardian, Role::Standby];

/// A daemon and a process it serves. Pages that are waited for come this late, in milliseconds; the background fill takes
/// some seconds.
fn slowly(delay: u64) -> (Daemon, Target) {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    let faults = &daemon.server.as_ref().unwrap().faults;
    faults.delay_answers(Duration::from_millis(delay));
    faults.delay_large_ranges(512 << 10, Duration::from_secs(3));
    let target = daemon.restored(&areas);
    (daemon, target)
}

fn resident(daemon: &mut Daemon) -> serde_json::Value {
    let report = daemon.report_but_takeovers();
    assert_eq!(report["event"], "resident", "{report}");
    assert_eq!(report["missing_pages"], 0);
    assert_eq!(report["outcome"], serde_json::Value::Null);
    report
}

#[test]
fn a_killed_server_is_replaced_and_every_page_comes() {
    let (mut daemon, mut target) = slowly(300);
    let first = daemon.pid(Role::Server);
    // Three threads wait for a page when it dies.
    target.tell(&format!("threads 3 {B} {PAGES} {B}"));
    wait_for("threads wait", || daemon.status().is_some_and(|status| status.restores[0].stats.waiting > 0));
    daemon.kill(&[Role::Server]);
    wait_for("another server", || ![first, 0].contains(&daemon.pid(Role::Server)));
    assert_eq!(daemon.report()["event"], "taken-over");
    assert_eq!(target.answer(), "ok");
    let report = resident(&mut daemon);
    assert_eq!(report["takeovers"], 1);
    assert_eq!(daemon.end().code(), Some(0));
    target.ok(&format!("check {B} {PAGES} {B}"));
    daemon.assert_gone();
    // What the dead server counted is told too, and that it died.
    let record = daemon.pages_record();
    assert_eq!(record.numbers.takeovers, 1);
    assert_eq!(record.taken_over_us.len(), 1);
    assert!(!record.torn && record.outcome == "resident", "{record:?}");
    let took = record.resident_us.unwrap();
    assert!(record.running_us.unwrap() <= record.taken_over_us[0] && record.taken_over_us[0] <= took);
    assert_eq!(record.moments.faults.iter().sum::<u64>(), record.numbers.faults);
    assert_eq!(record.moments.installed_pages.iter().sum::<u64>(), record.numbers.installed_pages);
    assert_eq!(record.moments.waits.iter().sum::<u64>(), record.numbers.stalls.iter().sum::<u64>());
    assert_eq!(record.slowest[0].waited_us, record.numbers.longest_fault_us);
    assert!(record.heat.rows.iter().all(|row| row.pid == PID && row.start >= B * PAGE_SIZE as u64));
    assert_eq!(record.heat.rows.iter().map(|row| row.pages).sum::<u64>(), stored_pages(B, PAGES));
    assert!(record.heat.rows.iter().flat_map(|row| &row.faults).sum::<u64>() > 0);
}

#[test]
fn pages_that_were_changed_after_they_came_are_not_copied_over() {
    let (mut daemon, mut target) = slowly(150);
    // Half of what is touched is changed, removed or moved, and the server dies in between, again and again.
    target.ok(&format!("check {B} 256 {B}; fill {B} 128 7; dontneed {} 64", B + 128));
    daemon.kill(&[Role::Server]);
    target.ok(&format!("filled {B} 128 7; zero {} 64; check {1} 64 {1}", B + 128, B + 192));
    target.ok(&format!("check {0} 512 {0}; move {0} 512 {1} 512; fill {1} 100 9", B + 1024, B + 10_000));
    daemon.kill(&[Role::Server]);
    target.ok(&format!(
        "filled {0} 100 9; check {1} 412 {2}; filled {B} 128 7; zero {3} 64",
        B + 10_000,
        B + 10_100,
        B + 1124,
        B + 128
    ));
    let all = format!(
        "filled {B} 128 7; zero {} 64; check {1} 832 {1}; filled {2} 100 9; check {3} 412 {4}; check {5} 2560 {5}",
        B + 128,
        B + 192,
        B + 10_000,
        B + 10_100,
        B + 1124,
        B + 1536
    );
    target.ok(&all);
    let report = resident(&mut daemon);
    assert_eq!(report["takeovers"], 2);
    target.ok(&all);
}

#[test]
fn what_a_process_did_to_its_memory_before_is_known_to_the_next_server() {
    // Nothing comes before the server dies: all of it is done to missing pages.
    let areas = [area(B, 2048), area(B + 3000, 512)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    let faults = daemon.server.as_ref().unwrap().faults.clone();
    faults.delay_answers(Duration::from_secs(2));
    let mut target = daemon.restored(&areas);
    target.ok(&format!(
        "dontneed {0} 100; move {1} 300 {2} 300; unmap {3} 50; remap-fresh {3} 50; move {2} 100 {4} 120; protect {5} 10 1",
        B + 100,
        B + 400,
        B + 20_000,
        B + 800,
        B + 30_000,
        B + 900
    ));
    daemon.kill(&[Role::Server]);
    wait_for("it is taken over", || daemon.report()["event"] == "taken-over");
    faults.delay_answers(Duration::from_millis(1));
    target.ok(&format!("check {B} 100 {B}; zero {0} 100; check {1} 200 {1}", B + 100, B + 200));
    target.ok(&format!("check {} 100 {}; zero {} 20", B + 30_000, B + 400, B + 30_100));
    target.ok(&format!("check {} 200 {}; zero {} 50", B + 20_100, B + 500, B + 800));
    target.ok(&format!("check {0} 1198 {0}; check {1} 512 {1}", B + 850, B + 3000));
    resident(&mut daemon);
}

#[test]
fn a_server_killed_again_and_again_never_shows_a_wrong_byte() {
    let (mut daemon, mut target) = slowly(10);
    target.tell(&format!(
        "drop-each {B} 512 {B} 4; storm 60 {0} 1000 {0}; move {0} 1000 {1} 1100; check {1} 1000 {0}; zero {2} 100",
        B + 1024,
        B + 20_000,
        B + 21_000
    ));
    let mut deaths = 0;
    // Within two seconds of its start at most three times in a row, or the guardian gives up.
    for pause in [5_u64, 40, 90, 2200, 20, 1, 2200, 60, 30] {
        thread::sleep(Duration::from_millis(pause));
        if daemon.status().is_none_or(|status| status.server.is_none()) {
            continue;
        }
        daemon.kill(&[Role::Server]);
        deaths += 1;
    }
    assert!(deaths > 3, "it was over too soon");
    assert_eq!(target.answer(), "ok");
    target.ok(&format!("zero {B} 512; check {0} 512 {0}; check {1} 2072 {1}", B + 512, B + 2024));
    resident(&mut daemon);
}

#[test]
fn any_two_of_the_three_processes_may_die_at_once() {
    for (at, pair) in [[0, 1], [0, 2], [1, 2]].into_iter().enumerate() {
        let (mut daemon, mut target) = slowly(200);
        target.tell(&format!("fork; check {B} {PAGES} {B}"));
        thread::sleep(Duration::from_millis(100));
        let dead = pair.map(|role| daemon.pid(ROLES[role]));
        daemon.kill(&pair.map(|role| ROLES[role]));
        wait_for("all roles are filled again", || {
            daemon.status().is_some_and(|status| {
                let now = [status.server, status.guardian, status.standby];
                let distinct = now[0] != now[1] && now[1] != now[2] && now[2] != now[0];
                // A server that was left alone becomes the guardian.
                distinct && now.iter().all(|pid| pid.is_some_and(|pid| !dead.contains(&pid)))
            })
        });
        // What replaced them can be replaced as well.
        daemon.kill(&[ROLES[at]]);
        assert_eq!(target.answer(), "ok", "{pair:?}");
        resident(&mut daemon);
        target.ok(&format!("check {B} {PAGES} {B}"));
        daemon.assert_gone();
    }
}

#[test]
fn the_last_of_the_three_processes_may_die_as_soon_as_the_others_are_replaced() {
    // In each step all but one die, then the one that was left.
    for last in ROLES {
        let (mut daemon, mut target) = slowly(100);
        target.tell(&format!("fork; check {B} {PAGES} {B}"));
        for _ in 0..2 {
            let others: Vec<Role> = ROLES.into_iter().filter(|role| *role != last).collect();
            let before = ROLES.map(|role| daemon.pid(role));
            let left = daemon.pid(last);
            daemon.kill(&others);
            // Not a moment longer than it has to be: from the first process on that takes the place of another.
            wait_for("the others are not replaced", || {
                daemon.status().is_some_and(|now| {
                    let now = [now.server, now.guardian, now.standby].into_iter().flatten();
                    now.into_iter().any(|pid| !before.contains(&pid))
                })
            });
            let _ = kill(Pid::from_raw(left as i32), Signal::SIGKILL);
            thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(target.answer(), "ok", "{last:?}");
        resident(&mut daemon);
        target.ok(&format!("check {B} {PAGES} {B}"));
        daemon.assert_gone();
    }
}

#[test]
fn each_of_the_three_processes_is_replaced() {
    let (mut daemon, mut target) = slowly(100);
    target.tell(&format!("check {B} {PAGES} {B}"));
    for role in [Role::Standby, Role::Guardian, Role::Server, Role::Standby, Role::Guardian] {
        let before = daemon.pid(role);
        daemon.kill(&[role]);
        wait_for("it is replaced", || daemon.pid(role) != before);
    }
    assert_eq!(target.answer(), "ok");
    resident(&mut daemon);
    daemon.assert_gone();
}

#[test]
fn signals_do_not_end_a_server_that_has_taken_over() {
    let (mut daemon, mut target) = slowly(100);
    let signal = |pid: u32, signal| {
        let _ = kill(Pid::from_raw(pid as i32), signal);
    };
    target.tell(&format!("check {B} {PAGES} {B}"));
    // What the guardian was told is told to every new server.
    for role in ROLES {
        signal(daemon.pid(role), Signal::SIGTERM);
    }
    for _ in 0..2 {
        daemon.kill(&[Role::Server]);
        assert_eq!(daemon.report()["event"], "taken-over");
        signal(daemon.pid(Role::Server), Signal::SIGINT);
    }
    assert_eq!(target.answer(), "ok");
    resident(&mut daemon);
    target.ok(&format!("check {B} {PAGES} {B}"));
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn what_has_come_is_not_fetched_again() {
    let (mut daemon, mut target) = slowly(100);
    target.ok(&format!("check {B} {} {B}", PAGES - 8));
    let before = daemon.status().unwrap().restores[0].stats.fetched_bytes;
    assert!(before > stored_pages(B, PAGES - 512) * PAGE_SIZE as u64, "{before}");
    daemon.kill(&[Role::Server]);
    let report = resident(&mut daemon);
    // On a busy machine all may have come before the kill, and a fetch that nobody needed any more after the report.
    let again = report["fetched_bytes"].as_u64().unwrap().saturating_sub(before);
    assert!(again < 600 * PAGE_SIZE as u64, "{again} bytes were fetched again");
    target.ok(&format!("check {B} {PAGES} {B}"));
}

#[test]
fn a_server_is_replaced_while_the_store_is_away() {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    let faults = daemon.server.as_ref().unwrap().faults.clone();
    faults.refuse_next(u64::MAX);
    let mut target = daemon.restored(&areas);
    target.tell(&format!("check {B} {PAGES} {B}"));
    wait_for("the outage shows", || {
        daemon.status().is_some_and(|status| status.restores[0].stats.store_errors > 0)
    });
    daemon.kill(&[Role::Server, Role::Guardian]);
    assert_eq!(daemon.report()["event"], "taken-over");
    wait_for("somebody waits", || daemon.status().is_some_and(|status| status.restores[0].stats.waiting > 0));
    let stats = daemon.status().unwrap().restores[0].stats.clone();
    assert!(stats.missing_pages > 0 && stats.last_error.is_some_and(|error| error.contains("reached")));
    faults.refuse_next(0);
    assert_eq!(target.answer(), "ok");
    resident(&mut daemon);
}

#[test]
fn a_server_that_dies_at_once_every_time_waits_to_be_attached() {
    let (mut daemon, mut target) = slowly(400);
    target.tell(&format!("check {B} {PAGES} {B}"));
    wait_for("the guardian gives up", || {
        let status = daemon.status().unwrap();
        if let Some(server) = status.server {
            let _ = kill(Pid::from_raw(server as i32), Signal::SIGKILL);
        }
        status.needs_attach
    });
    thread::sleep(Duration::from_millis(300));
    assert!(!ended(target.pid()), "it waits");
    let guardian = daemon.pid(Role::Guardian).to_string();
    let attach = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazy-pages"));
        command.args(["attach", "--guardian", &guardian]).output().unwrap()
    };
    let attached = attach();
    assert!(attached.status.success(), "{attached:?}");
    assert!(!attach().status.success(), "nothing waits any more");
    assert_eq!(target.answer(), "ok");
    resident(&mut daemon);
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn a_tree_nobody_attaches_a_server_to_is_killed_in_the_end() {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |command| {
        command.args(["--patience", "1"]);
    });
    daemon.ready();
    daemon.server.as_ref().unwrap().faults.delay_answers(Duration::from_secs(30));
    let mut target = daemon.restored(&areas);
    target.tell(&format!("spawn; fork; check {B} {PAGES} {B}"));
    target.answer();
    target.tell(&format!("check {B} {PAGES} {B}"));
    wait_for("the guardian gives up", || {
        let Some(status) = daemon.status() else { return true };
        if let Some(server) = status.server {
            let _ = kill(Pid::from_raw(server as i32), Signal::SIGKILL);
        }
        status.needs_attach
    });
    target.assert_killed();
    let report = daemon.report_but_takeovers();
    assert_eq!(report["event"], "failed");
    assert_eq!(daemon.end().code(), Some(4));
    daemon.assert_gone();
}

#[test]
fn a_server_killed_while_criu_restores_is_replaced_too() {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    let mut target = Target::start(&daemon.socket());
    target.map(&areas);
    daemon.kill(&[Role::Server]);
    target.ok(&format!("arm; pid {PID}; send"));
    wait_for("it has registered", || {
        daemon.status().is_some_and(|status| status.restores[0].phase == "restoring")
    });
    daemon.kill(&[Role::Server]);
    // As CRIU's restorer does, before it says that it has finished.
    target.ok(&format!("check {B} 10 {B}"));
    target.ok("finish");
    target.ok(&format!("check {B} {PAGES} {B}"));
    resident(&mut daemon);
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn a_server_killed_in_the_middle_of_what_criu_says_fails_the_restore() {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    daemon.server.as_ref().unwrap().faults.delay_answers(Duration::from_millis(500));
    let mut target = Target::start(&daemon.socket());
    target.map(&areas);
    target.ok(&format!("arm; pid {PID}; send; pid {}", PID + 1));
    wait_for("it has registered", || {
        daemon.status().is_some_and(|status| status.restores[0].phase == "restoring")
    });
    thread::sleep(Duration::from_millis(100));
    // The pid it has read and nothing came of is lost with it.
    daemon.kill(&[Role::Server]);
    wait_for("another one listens", || daemon.report()["event"] == "taken-over");
    target.tell(&format!("send-stdin; check {B} {PAGES} {B}"));
    target.assert_killed();
    let report = daemon.report_but_takeovers();
    assert_eq!(report["event"], "failed");
    assert_eq!(daemon.end().code(), Some(3));
    daemon.assert_gone();
}

#[test]
fn ten_restores_at_once_share_a_daemon_and_a_death() {
    const RESTORES: usize = 10;
    let areas = [area(B, 1024)];
    let mut daemon = Daemon::s3(&areas, RESTORES, |_| {});
    for _ in 0..RESTORES {
        assert_eq!(daemon.report()["event"], "ready");
    }
    let faults = daemon.server.as_ref().unwrap().faults.clone();
    faults.delay_answers(Duration::from_millis(60));
    let mut targets: Vec<Target> =
        (0..RESTORES).map(|number| crate::support::restored(&daemon.socket_of(number), &areas)).collect();
    for target in &mut targets {
        target.tell(&format!("fork; check {B} 1024 {B}"));
    }
    // One that ends harms no other.
    targets[3].kill();
    wait_for("its end is known", || daemon.status().unwrap().restores[3].outcome.is_some());
    daemon.kill(&[Role::Server]);
    for (number, target) in targets.iter_mut().enumerate() {
        if number != 3 {
            assert_eq!(target.answer(), "ok", "restore {number}");
        }
    }
    let reports: Vec<_> = (0..RESTORES).map(|_| daemon.report_but_takeovers()).collect();
    let ended = |how: &str| reports.iter().filter(|report| report["event"] == how).count();
    assert_eq!((ended("gone"), ended("resident")), (1, RESTORES - 1), "{reports:?}");
    assert_eq!(daemon.end().code(), Some(0));
    for (number, target) in targets.iter_mut().enumerate() {
        if number != 3 {
            target.ok(&format!("check {B} 1024 {B}"));
        }
    }
    daemon.assert_gone();
}
