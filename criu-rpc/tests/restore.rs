//! Restores of real processes from what a page stream brought, and the ways in which they fail.

mod common;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{
    Workload, criu, directory, dump_into, page_server, private_memory, signal, wait_until, write_memory,
};
use criu_rpc::{
    Cause, CriuError, DumpOptions, ImageDir, ImageError, Notification, RestoreOptions, Restored, inherit_key,
};
use criu_sys::process::{Isolation, isolate};
use nix::{pty::openpty, sys::signal::Signal};

fn restore(images: &Path) -> Result<Restored, CriuError> {
    criu().restore(RestoreOptions::new(images).rst_sibling(true), &mut |_| Ok(()))
}

fn is_gone(pid: u32) -> bool {
    common::state(pid).contains("gone")
}

/// A failed restore leaves its killed root as our zombie.
fn reap_failed_restore(pid: u32) {
    wait_until("the failed restore is gone", || is_gone(pid) || common::state(pid).contains('Z'));
    common::kill_and_reap(pid);
}

#[test]
fn all_memory_is_the_same_after_a_restore() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let mut workload = Workload::start(3000, scratch.path(), None);
    signal(workload.pid, Signal::SIGSTOP);
    wait_until("it is stopped", || common::state(workload.pid).contains('T'));
    let before = private_memory(workload.pid);
    dump_into(&criu(), &mut workload, &images);
    assert!(is_gone(workload.pid));

    let mut seen = Vec::new();
    let options = RestoreOptions::new(&images).rst_sibling(true);
    let restored = criu()
        .restore(options, &mut |notification| {
            seen.push(notification.clone());
            Ok(())
        })
        .unwrap();
    assert_eq!(restored.pid, workload.pid);
    let pid = restored.pid;
    for expected in [Notification::PreRestore, Notification::PostRestore { pid }, Notification::PostResume] {
        assert!(seen.contains(&expected), "{seen:?}");
    }
    wait_until("it is stopped again", || common::state(workload.pid).contains('T'));
    let after = private_memory(workload.pid);
    assert!(before.keys().eq(after.keys()));
    for (address, page) in &before {
        assert!(after[address] == *page, "page {address:#x} differs");
    }
    signal(workload.pid, Signal::SIGCONT);
    workload.assert_runs();
}

/// `cat` in a session of its own.
fn spawn_cat(input: Stdio, output: Stdio) -> Child {
    let mut command = Command::new("cat");
    command.stdin(input).stdout(output).stderr(Stdio::null());
    let mut isolation = Isolation::new();
    isolation.new_session();
    isolate(&mut command, isolation);
    command.spawn().unwrap()
}

/// What CRIU calls a descriptor of another process.
fn key(pid: u32, fd: u32) -> String {
    inherit_key(&fs::metadata(format!("/proc/{pid}/fd/{fd}")).unwrap()).unwrap()
}

fn dump_cat(mut child: Child, options: DumpOptions, images: &Path) {
    let criu = criu();
    let (socket, receiver) = page_server(criu.version().unwrap(), 0);
    criu.dump(options.page_server(socket), &mut |_| Ok(())).unwrap();
    child.wait().unwrap();
    write_memory(&ImageDir::open(images).unwrap(), &receiver.join().unwrap().unwrap());
}

#[test]
fn pipes_to_the_outside_are_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let child = spawn_cat(Stdio::piped(), Stdio::piped());
    let pid = child.id();
    let (input_key, output_key) = (key(pid, 0), key(pid, 1));
    dump_cat(child, DumpOptions::new(pid, &images), &images);
    let pipes: Vec<String> =
        ImageDir::open(&images).unwrap().pipes().unwrap().iter().map(|pipe| pipe.inherit_key()).collect();
    assert!(pipes.contains(&input_key) && pipes.contains(&output_key), "{pipes:?}");

    let (their_input, mut input) = std::io::pipe().unwrap();
    let (output, their_output) = std::io::pipe().unwrap();
    let options = RestoreOptions::new(&images)
        .rst_sibling(true)
        .inherit_fd(input_key, OwnedFd::from(their_input))
        .inherit_fd(output_key, OwnedFd::from(their_output));
    let restored = criu().restore(options, &mut |_| Ok(())).unwrap();
    input.write_all(b"still there\n").unwrap();
    let mut lines = BufReader::new(output);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "still there\n");
    // Nobody else has an end of either pipe.
    drop(input);
    line.clear();
    assert_eq!(lines.read_line(&mut line).unwrap(), 0);
    common::kill_and_reap(restored.pid);
}

#[test]
fn a_terminal_of_the_outside_is_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let terminal = openpty(None, None).unwrap();
    let child = spawn_cat(terminal.slave.try_clone().unwrap().into(), terminal.slave.into());
    let pid = child.id();
    let key = key(pid, 1);
    dump_cat(child, DumpOptions::new(pid, &images).external(key.clone()), &images);
    drop(terminal.master);

    let terminal = openpty(None, None).unwrap();
    let options = RestoreOptions::new(&images).rst_sibling(true).inherit_fd(key, terminal.slave);
    let restored = criu().restore(options, &mut |_| Ok(())).unwrap();
    let mut master = File::from(terminal.master);
    master.write_all(b"still there\n").unwrap();
    // The terminal's echo, and the answer.
    let mut lines = BufReader::new(master).lines();
    assert_eq!(lines.next().unwrap().unwrap().trim(), "still there");
    assert_eq!(lines.next().unwrap().unwrap().trim(), "still there");
    common::kill_and_reap(restored.pid);
}

#[test]
fn a_pid_that_is_taken_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let workload = Workload::start(10, scratch.path(), None);
    let options = DumpOptions::new(workload.pid, &images).leave_running(true);
    criu().dump(options, &mut |_| Ok(())).unwrap();
    let error = restore(&images).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::PidTaken { pid: Some(workload.pid) }), "{error:?}");
    assert_eq!(error.to_string(), format!("criu restore failed: process id {} is in use", workload.pid));
    workload.assert_runs();
}

#[test]
fn a_file_that_is_missing_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let file = scratch.path().join("data (1)");
    fs::write(&file, "12345").unwrap();
    let mut workload = Workload::start(10, scratch.path(), Some(&file));
    dump_into(&criu(), &mut workload, &images);
    fs::remove_file(&file).unwrap();
    let error = restore(&images).unwrap_err();
    reap_failed_restore(workload.pid);
    match error.cause() {
        Some(Cause::MissingFile { path }) => {
            assert_eq!(path.trim_start_matches('/'), file.to_str().unwrap().trim_start_matches('/'));
        }
        _ => panic!("{error:?}"),
    }
    // Once it is back, the same images restore.
    fs::write(&file, "12345").unwrap();
    restore(&images).unwrap();
    workload.assert_runs();
}

#[test]
fn a_file_of_another_size_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let file = scratch.path().join("data");
    fs::write(&file, "12345").unwrap();
    let mut workload = Workload::start(10, scratch.path(), Some(&file));
    dump_into(&criu(), &mut workload, &images);
    fs::write(&file, "1234567").unwrap();
    let error = restore(&images).unwrap_err();
    reap_failed_restore(workload.pid);
    match error.cause() {
        Some(Cause::FileSizeChanged { path, found: 7, expected: 5 }) => {
            assert_eq!(path.trim_start_matches('/'), file.to_str().unwrap().trim_start_matches('/'));
        }
        _ => panic!("{error:?}"),
    }
}

#[test]
fn images_that_are_missing_or_cut_short_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let error = restore(&scratch.path().join("missing")).unwrap_err();
    assert!(matches!(error, CriuError::Images(ImageError::Open { .. })), "{error:?}");
    let error = restore(scratch.path()).unwrap_err();
    assert!(matches!(error.cause(), Some(Cause::ImageDirectory { .. })), "{error:?}");

    let images = directory(scratch.path(), "images");
    let mut workload = Workload::start(10, scratch.path(), None);
    dump_into(&criu(), &mut workload, &images);
    for name in ["pstree.img", "files.img", &format!("mm-{}.img", workload.pid), "pages-1.img", "pages-2.img"]
    {
        let path = images.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let error = restore(&images).unwrap_err();
        reap_failed_restore(workload.pid);
        if name.starts_with("pages") {
            assert!(matches!(error, CriuError::Images(ImageError::Corrupt { .. })), "{name}: {error:?}");
        } else {
            assert!(matches!(error.cause(), Some(Cause::ImageDirectory { .. })), "{name}: {error:?}");
        }
        fs::write(&path, whole).unwrap();
    }
    restore(&images).unwrap();
    workload.assert_runs();
}

#[test]
fn a_handler_that_fails_is_the_cause_and_nothing_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let mut workload = Workload::start(10, scratch.path(), None);
    dump_into(&criu(), &mut workload, &images);
    let options = RestoreOptions::new(&images).rst_sibling(true);
    let error = criu()
        .restore(options, &mut |notification| match notification {
            Notification::PostRestore { .. } => Err("no room in the cgroup".into()),
            _ => Ok(()),
        })
        .unwrap_err();
    reap_failed_restore(workload.pid);
    match error {
        CriuError::Handler(source) => assert_eq!(source.to_string(), "no room in the cgroup"),
        other => panic!("{other:?}"),
    }
    assert!(is_gone(workload.pid));
}

#[test]
fn a_handler_that_fails_too_late_is_said_to_be_ignored() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let mut workload = Workload::start(10, scratch.path(), None);
    dump_into(&criu(), &mut workload, &images);
    let options = RestoreOptions::new(&images).rst_sibling(true);
    let error = criu()
        .restore(options, &mut |notification| match notification {
            Notification::PostResume => Err("too late".into()),
            _ => Ok(()),
        })
        .unwrap_err();
    assert!(matches!(error, CriuError::HandlerIgnored(_)), "{error:?}");
    workload.assert_runs();
}

#[test]
fn a_lazy_page_server_that_never_answers_meets_the_deadline() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let work = directory(scratch.path(), "work");
    let mut workload = Workload::start_with_rseq(10, scratch.path());
    dump_into(&criu(), &mut workload, &images);
    let listener = UnixListener::bind(work.join("lazy-pages.socket")).unwrap();
    let options = RestoreOptions::new(&images)
        .rst_sibling(true)
        .lazy_pages(true)
        .work_dir(&work)
        .deadline(Duration::from_secs(1));
    let started = Instant::now();
    let error = criu().restore(options, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, CriuError::Deadline { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
    let left = common::processes_with(work.to_str().unwrap());
    assert!(left.is_empty(), "{left:?}");
    // What remains is for the caller to kill, by the ids in the images.
    for task in ImageDir::open(&images).unwrap().tasks().unwrap() {
        common::kill_and_reap(task.pid);
    }
    assert!(is_gone(workload.pid));
    drop(listener);
}

#[test]
fn a_restore_that_is_given_up_ends_whatever_criu_waits_for() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let work = directory(scratch.path(), "work");
    let mut workload = Workload::start_with_rseq(10, scratch.path());
    dump_into(&criu(), &mut workload, &images);
    let listener = UnixListener::bind(work.join("lazy-pages.socket")).unwrap();
    let (told, tells) = std::io::pipe().unwrap();
    let options = RestoreOptions::new(&images)
        .rst_sibling(true)
        .lazy_pages(true)
        .work_dir(&work)
        .give_up_with(told.into());
    let giving_up = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(tells);
    });
    let started = Instant::now();
    let error = criu().restore(options, &mut |_| Ok(())).unwrap_err();
    giving_up.join().unwrap();
    assert!(matches!(error, CriuError::GivenUp { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    let left = common::processes_with(work.to_str().unwrap());
    assert!(left.is_empty(), "{left:?}");
    for task in ImageDir::open(&images).unwrap().tasks().unwrap() {
        common::kill_and_reap(task.pid);
    }
    assert!(is_gone(workload.pid));
    drop(listener);
}

#[test]
fn without_a_lazy_page_server_a_lazy_restore_fails_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let mut workload = Workload::start(10, scratch.path(), None);
    dump_into(&criu(), &mut workload, &images);
    let options = RestoreOptions::new(&images).rst_sibling(true).lazy_pages(true);
    let error = criu().restore(options, &mut |_| Ok(())).unwrap_err();
    reap_failed_restore(workload.pid);
    assert!(matches!(error, CriuError::Refused(_)), "{error:?}");
}
