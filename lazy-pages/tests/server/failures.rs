//! Pages that never come, restores that fail, peers that are not CRIU: nobody ever sees a wrong byte.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lazy_pages::{
    server::{Limits, Outcome},
    store::StoreError,
};

use crate::support::{Answer, BASE, PID, Served, Target, TestStore, area};

const B: u64 = BASE;

fn stopped(served: &Served) -> String {
    match served.outcome() {
        Outcome::Stopped { reason } => reason,
        other => panic!("not stopped: {other:?}"),
    }
}

fn restore_failed(served: &Served) -> String {
    match served.outcome() {
        Outcome::RestoreFailed { reason } => reason,
        other => panic!("the restore should have failed: {other:?}"),
    }
}

fn serve(prepare: impl FnOnce(&TestStore), limit: impl FnOnce(&mut Limits)) -> Served {
    Served::with(&[(PID, vec![area(B, 1024)])], &[], prepare, limit)
}

fn hang() -> Answer {
    Answer::Later(Duration::from_secs(3600), Bytes::new())
}

/// Why serving stopped that never got a page of what was prepared. Nothing is read before the target does what it is told.
fn doomed(prepare: impl FnOnce(&TestStore), limit: impl FnOnce(&mut Limits), commands: &str) -> String {
    let mut hold = None;
    let served = serve(
        |store| {
            prepare(store);
            hold = Some(store.hold());
        },
        limit,
    );
    let mut target = served.restored(&[area(B, 1024)]);
    target.tell(commands);
    drop(hold);
    target.assert_killed();
    stopped(&served)
}

#[test]
fn a_flipped_bit_kills_the_tree_and_is_never_seen() {
    let flip = |store: &TestStore| {
        store.damage_packs(|bytes| {
            let at = bytes.len() / 2;
            bytes[at] ^= 0x10;
        });
    };
    let reason = doomed(flip, |_| {}, &format!("fork; fork; check {B} 1024 {B}"));
    assert!(reason.contains("hash") || reason.contains("unpack"), "{reason}");
}

#[test]
fn a_missing_pack_kills_the_tree() {
    let reason = doomed(TestStore::remove_packs, |_| {}, &format!("fork; check {B} 1024 {B}"));
    assert!(reason.contains("has no object"), "{reason}");
}

#[test]
fn a_frame_damaged_on_its_way_is_fetched_again() {
    let reads = AtomicU64::new(0);
    let served = serve(
        |store| {
            store.behave(move |_, _, bytes| {
                let mut bytes = bytes.to_vec();
                if reads.fetch_add(1, Ordering::Relaxed) == 0 {
                    bytes[100] ^= 1;
                }
                Answer::Bytes(bytes.into())
            });
        },
        |_| {},
    );
    let mut target = served.restored(&[area(B, 1024)]);
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

fn away() -> Answer {
    Answer::Error(StoreError::Unavailable { store: "the store".into(), reason: "away".into() })
}

#[test]
fn a_store_that_comes_back_in_time_is_asked_again() {
    let started = Instant::now();
    let served = serve(
        |store| {
            store.behave(move |_, _, bytes| match started.elapsed() < Duration::from_secs(2) {
                true => away(),
                false => Answer::Bytes(bytes),
            });
        },
        |_| {},
    );
    let mut target = served.restored(&[area(B, 1024)]);
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

#[test]
fn a_store_that_stays_away_kills_the_tree() {
    let reason = doomed(
        |store| store.behave(|_, _, _| away()),
        |limits| limits.store_patience = Duration::from_secs(2),
        &format!("fork; check {B} 1024 {B}"),
    );
    assert!(reason.contains("cannot be reached: away"), "{reason}");
}

#[test]
fn processes_that_die_first_end_the_service() {
    let served = serve(|store| store.behave(|_, _, _| hang()), |_| {});
    let mut target = served.restored(&[area(B, 1024)]);
    target.tell(&format!("fork; check {B} 1024 {B}"));
    thread::sleep(Duration::from_millis(100));
    assert!(served.server.stats().missing_pages > 0);
    target.kill();
    assert!(matches!(served.outcome(), Outcome::TreeGone(_)));
}

#[test]
fn a_restore_that_breaks_off_takes_its_tasks_with_it() {
    let served = serve(|store| store.behave(|_, _, _| hang()), |_| {});
    let mut target = Target::start(&served.socket());
    target.map(&[area(B, 1024)]);
    target.tell(&format!("arm; pid {PID}; send; hangup; check {B} 1024 {B}"));
    target.assert_killed();
    assert!(restore_failed(&served).contains("closed the connection"));
}

#[test]
fn a_task_of_another_checkpoint_fails_the_restore() {
    let served = serve(|_| {}, |_| {});
    let mut target = Target::start(&served.socket());
    target.ok(&format!("spawn; sleep 2000; map {} 10; arm; pid 77; send; sleep 60000", B + 5000));
    target.map(&[area(B, 1024)]);
    target.ok(&format!("arm; pid {PID}; send"));
    target.tell("join");
    target.assert_killed();
    assert!(restore_failed(&served).contains("no live task 77"));
}

#[test]
fn a_task_that_never_registered_must_not_run_on_zeros() {
    let (first, second) = (vec![area(B, 100)], vec![area(B + 200, 100)]);
    let served = Served::with(&[(PID, first.clone()), (PID + 1, second)], &[], |_| {}, |_| {});
    let mut target = Target::start(&served.socket());
    target.map(&first);
    target.tell(&format!("arm; pid {PID}; send; finish; sleep 60000"));
    target.assert_killed();
    assert!(restore_failed(&served).contains("without having registered"));
}

#[test]
fn whoever_else_connects_does_no_harm() {
    let served = serve(|_| {}, |_| {});
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], b"\0\0\0\0", b"FTSR", b"\xff\xff\xff\xff", b"ab", b""] {
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Nothing is ever answered, and the connection ends; unread garbage may make that a reset.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    let mut wrong = Target::start(&served.socket());
    wrong.ok(&format!("pid {PID}; send-stdin"));

    let mut target = served.restored(&[area(B, 1024)]);
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

#[test]
fn a_silent_connection_does_not_hold_up_the_others() {
    let served = serve(|_| {}, |_| {});
    let mut half = UnixStream::connect(served.socket()).unwrap();
    half.write_all(b"ab").unwrap();
    let mut target = served.restored(&[area(B, 1024)]);
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

#[test]
fn users_other_than_root_and_its_own_cannot_register() {
    let served = serve(|_| {}, |_| {});
    let socket = served.socket();
    for (path, mode) in [(socket.parent().unwrap(), 0o755), (&socket, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut stranger = Target::start_as(65_534, &socket);
    let asked = Instant::now();
    while stranger.ask(&format!("pid -{PID}")) == "ok" {
        assert!(asked.elapsed() < Duration::from_secs(10), "the connection should have been closed");
        thread::sleep(Duration::from_millis(5));
    }
    let mut target = served.restored(&[area(B, 1024)]);
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

#[test]
fn a_task_that_cannot_be_served_is_killed_and_sees_no_zeros() {
    let served = serve(|_| {}, |_| {});
    for registration in ["arm; pid 77; send".to_owned(), format!("arm-deaf; pid {PID}; send")] {
        let mut wrong = Target::start(&served.socket());
        wrong.map(&[area(B, 1024)]);
        wrong.tell(&format!("{registration}; sleep 60000"));
        wrong.assert_killed();
    }
    let mut target = served.restored(&[area(B, 1024)]);
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

#[test]
fn a_second_restore_is_refused_and_does_not_disturb_the_first() {
    let mut hold = None;
    let served = serve(|store| hold = Some(store.hold()), |_| {});
    let mut target = served.restored(&[area(B, 1024)]);
    let mut second = Target::start(&served.socket());
    second.map(&[area(B, 1024)]);
    second.tell(&format!("arm; pid {PID}; send; finish; check {B} 1024 {B}"));
    second.assert_killed();
    drop(hold);
    target.ok(&format!("check {B} 1024 {B}"));
    served.assert_resident();
}

#[test]
fn cancelling_ends_a_server_only_while_nobody_depends_on_it() {
    let idle = serve(|_| {}, |_| {});
    idle.server.cancel();
    assert_eq!(idle.outcome(), Outcome::Cancelled);

    let mut hold = None;
    let busy = serve(|store| hold = Some(store.hold()), |_| {});
    let mut target = busy.restored(&[area(B, 1024)]);
    busy.server.cancel();
    drop(hold);
    target.ok(&format!("check {B} 1024 {B}"));
    busy.assert_resident();
}

#[test]
fn a_thread_that_waits_is_served_before_the_background_fill() {
    const PAGES: u64 = 16_384;
    let areas = [area(B, PAGES)];
    let mut hold = None;
    let served = Served::with(
        &[(PID, areas.to_vec())],
        &[],
        // What the fill reads at once, when it has begun, and a fault does not.
        |store| hold = Some(store.hold_from(512 << 10)),
        |limits| (limits.unit_bytes, limits.ahead_bytes) = (4 << 20, 32 << 20),
    );
    let mut target = served.restored(&areas);
    // From the far end, where the background fill has not been.
    let far = B + PAGES - 2500;
    target.ok(&format!("check {far} 1 {far}"));
    target.ask(&format!("time {far} 12 200"));
    assert!(served.server.stats().missing_pages > PAGES / 2, "the background fill waits");
    drop(hold);
    served.assert_resident();
    target.ok(&format!("check {B} {PAGES} {B}"));
}
