//! Peers and processes that do their worst.

use std::{
    fs,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
    time::Duration,
};

use lazy_pages::server::{Outcome, Role};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::{
    daemon::{Daemon, wait_for},
    support::{Answer, BASE, PID, Served, Target, area},
};

const B: u64 = BASE;
const PAGES: u64 = 2048;

/// Not random, but nobody's protocol either.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn open_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn noise_and_silence_from_many_peers_cost_nothing_that_matters() {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    let server = daemon.pid(Role::Server);
    let before = open_descriptors(server);
    let mut silent = Vec::new();
    for number in 0..400_u64 {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        match number % 4 {
            // Half a word, a pid of the checkpoint and then nothing, noise, nothing at all.
            0 => drop(stream.write_all(&noise(number, 3))),
            1 => drop(stream.write_all(&PID.to_ne_bytes())),
            2 => drop(stream.write_all(&noise(number, 1 + number as usize * 7))),
            _ => {}
        }
        silent.push(stream);
    }
    wait_for("connections are closed", || open_descriptors(server) < before + 50);
    let mut target = daemon.restored(&areas);
    target.ok(&format!("check {B} {PAGES} {B}"));
    assert_eq!(daemon.report()["event"], "resident");
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn descriptors_nobody_asked_for_are_closed_again() {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    let server = daemon.pid(Role::Server);
    let before = open_descriptors(server);
    let files: Vec<OwnedFd> = (0..100).map(|_| fs::File::open("/dev/null").unwrap().into()).collect();
    let raw: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    for number in 0..50_u32 {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        let mut bytes = PID.to_ne_bytes().to_vec();
        if number % 2 == 0 {
            bytes.truncate(2);
        }
        let parts = [std::io::IoSlice::new(&bytes)];
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    }
    wait_for("descriptors are closed", || open_descriptors(server) <= before + 8);
    let mut target = daemon.restored(&areas);
    target.ok(&format!("check {B} {PAGES} {B}"));
    assert_eq!(daemon.report()["event"], "resident");
}

#[test]
fn a_peer_that_registers_a_task_of_another_process_cannot_take_the_restore_over() {
    let mut hold = None;
    let tasks = [(PID, vec![area(B, PAGES)])];
    let served = Served::with(&tasks, &[], |store| hold = Some(store.hold()), |_| {});
    // The pid inside the checkpoint is right, the descriptor is none: nothing is owned by that.
    for _ in 0..10 {
        let mut wrong = Target::start(&served.socket());
        wrong.ok(&format!("pid {PID}; send-stdin"));
    }
    let mut target = served.restored(&[area(B, PAGES)]);
    // And once it has begun, nobody else ends it.
    let mut late = Target::start(&served.socket());
    late.tell(&format!("arm; pid {PID}; send; sleep 60000"));
    late.assert_killed();
    let mut finisher = UnixStream::connect(served.socket()).unwrap();
    finisher.write_all(b"FTSR").unwrap();
    drop(hold);
    target.ok(&format!("check {B} {PAGES} {B}"));
    served.assert_resident();
}

#[test]
fn a_process_that_forks_ends_moves_and_gives_up_as_fast_as_it_can_sees_no_wrong_byte() {
    let areas = [area(B, PAGES)];
    let slow = |_: &str, _: u64, bytes| Answer::Later(Duration::from_millis(15), bytes);
    let served = Served::with(&[(PID, areas.to_vec())], &[], |store| store.behave(slow), |_| {});
    let mut target = served.restored(&areas);
    target.ok(&format!("chaos 280 {B} {PAGES} {B}; check {B} {PAGES} {B}"));
    served.assert_resident();
}

#[test]
fn the_same_while_its_page_server_is_killed() {
    let areas = [area(B, PAGES)];
    let mut daemon = Daemon::s3(&areas, 1, |_| {});
    daemon.ready();
    let faults = daemon.server.as_ref().unwrap().faults.clone();
    faults.delay_answers(Duration::from_millis(10));
    faults.delay_large_ranges(256 << 10, Duration::from_secs(3));
    let mut target = daemon.restored(&areas);
    target.tell(&format!("chaos 420 {B} {PAGES} {B}; check {B} {PAGES} {B}"));
    for pause in [40, 120, 30, 60] {
        thread::sleep(Duration::from_millis(pause));
        daemon.kill(&[Role::Server]);
    }
    assert_eq!(target.answer(), "ok");
    assert_eq!(daemon.report_but_takeovers()["event"], "resident");
}

#[test]
fn a_process_killed_at_any_moment_leaves_nothing_behind() {
    for moment in 0..24_u64 {
        let areas = [area(B, PAGES)];
        let slow = |_: &str, _: u64, bytes| Answer::Later(Duration::from_millis(40), bytes);
        let served = Served::with(&[(PID, areas.to_vec())], &[], |store| store.behave(slow), |_| {});
        let mut target = Target::start(&served.socket());
        target.map(&areas);
        target.ok(&format!("arm; pid {PID}; send"));
        target.tell(&format!("finish; chaos 100 {B} {PAGES} {B}"));
        thread::sleep(Duration::from_millis(moment * 3));
        target.kill();
        match served.outcome() {
            // Before the restore was finished, in the middle, or after its last page.
            Outcome::RestoreFailed { .. } | Outcome::TreeGone(_) | Outcome::Resident(_) => {}
            other => panic!("killed after {} ms: {other:?}", moment * 3),
        }
    }
}
