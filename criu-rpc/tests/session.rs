//! Finding a CRIU, and the requests that touch no process.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use criu_rpc::{Criu, CriuError, DumpOptions, RequestKind, Version};

/// An executable shell script that pretends to be CRIU.
fn impostor(directory: &Path, script: &str) -> PathBuf {
    let (draft, path) = (directory.join("draft"), directory.join("criu"));
    fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    // Copied by another process: a child that a test beside this one forks could hold a file open for writing that was
    // written here, and then it cannot be run.
    assert!(Command::new("cp").arg(&draft).arg(&path).status().unwrap().success());
    path
}

#[test]
fn the_version_is_the_one_libcriu_sees() {
    let criu = common::criu();
    let version = criu.version().unwrap();
    assert!(version >= Version::MINIMUM, "{version}");
    assert_eq!(criu_sys::criu::version_of(criu.path()).unwrap(), version.as_number());
    assert_eq!(criu.version().unwrap(), version);
}

#[test]
fn this_kernel_passes_the_check_and_can_restore_lazily() {
    let criu = common::criu();
    criu.check().unwrap();
    let features = criu.features().unwrap();
    assert!(features.lazy_pages, "{features:?}");
    assert!(features.pidfd_store, "{features:?}");
}

#[test]
fn nothing_is_left_of_a_finished_request() {
    let criu = common::criu();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    criu.features().unwrap();
    // Other tests of this file run beside this one, so wait for a quiet moment.
    let before = open();
    for _ in 0..5 {
        criu.features().unwrap();
    }
    common::wait_until("descriptors are closed", || open() <= before);
}

#[test]
fn a_binary_that_does_not_exist_is_named() {
    let error = Criu::locate(Some(Path::new("/nonexistent/criu"))).unwrap_err();
    assert!(matches!(error, CriuError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("/nonexistent/criu"));
    assert!(error.hint().is_some());
}

#[test]
fn a_file_that_cannot_be_run_is_refused() {
    let error = Criu::locate(Some(Path::new("/etc/passwd"))).unwrap_err();
    assert!(matches!(error, CriuError::NotExecutable { .. }), "{error:?}");
    let error = Criu::locate(Some(Path::new("/tmp"))).unwrap_err();
    assert!(matches!(error, CriuError::NotExecutable { .. }), "{error:?}");
}

#[test]
fn a_binary_that_dies_is_reported_with_its_last_words() {
    let scratch = tempfile::tempdir().unwrap();
    let path = impostor(scratch.path(), "echo 'cannot find my libraries' >&2; exit 127");
    let error = Criu::locate(Some(&path)).unwrap().version().unwrap_err();
    match &error {
        CriuError::Crashed { request: RequestKind::Version, status, lines } => {
            assert_eq!(status.code(), Some(127));
            assert_eq!(lines[..], ["cannot find my libraries"]);
        }
        other => panic!("{other:?}"),
    }
    assert!(error.hint().is_some());
}

#[test]
fn the_end_of_criu_is_noticed_although_a_task_it_had_begun_holds_its_socket() {
    let scratch = tempfile::tempdir().unwrap();
    let pid = scratch.path().join("pid");
    // What it had begun inherits everything, and goes on.
    let script = format!("sleep 1000 2> /dev/null & echo $! > {}; kill -KILL $$", pid.display());
    let path = impostor(scratch.path(), &script);
    let started = Instant::now();
    let error = Criu::locate(Some(&path)).unwrap().version().unwrap_err();
    let task = fs::read_to_string(&pid).unwrap().trim().to_owned();
    let held = Path::new("/proc").join(&task).exists();
    assert!(Command::new("kill").args(["-KILL", &task]).status().unwrap().success());
    assert!(held, "the task was there all the time");
    assert!(matches!(error, CriuError::Crashed { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_binary_that_is_no_criu_is_reported() {
    for program in ["/bin/true", "/bin/cat"] {
        let error = Criu::locate(Some(Path::new(program))).unwrap().version().unwrap_err();
        assert!(matches!(error, CriuError::Crashed { .. }), "{program}: {error:?}");
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("criu");
    fs::write(&path, "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Criu::locate(Some(&path)).unwrap().version().unwrap_err();
    assert!(matches!(error, CriuError::Spawn { .. }), "{error:?}");
}

#[test]
fn an_old_criu_is_refused_before_it_touches_anything() {
    // The version 3.17.1, as a response datagram; field 10 {1: 3, 2: 17, 4: 1}.
    let scratch = tempfile::tempdir().unwrap();
    let program = r#"
import socket, sys
peer = socket.socket(fileno=int(sys.argv[-1]))
peer.recv(65536)
peer.send(bytes([0x08, 10, 0x10, 1, 0x52, 6, 0x08, 3, 0x10, 17, 0x20, 1]))
"#;
    let source = scratch.path().join("old.py");
    fs::write(&source, program).unwrap();
    let path = impostor(scratch.path(), &format!("exec /usr/bin/python3 {} \"$@\"", source.display()));
    let criu = Criu::locate(Some(&path)).unwrap();
    assert_eq!(criu.version().unwrap(), Version { major: 3, minor: 17, sublevel: 1 });
    for result in [
        criu.check(),
        criu.features().map(drop),
        criu.dump(DumpOptions::new(1, scratch.path()), &mut |_| panic!("no notification")),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, CriuError::TooOld { .. }), "{error:?}");
        assert!(error.to_string().contains("3.17.1"), "{error}");
    }
}

#[test]
fn nonsense_instead_of_an_answer_is_an_error_and_the_process_is_ended() {
    let scratch = tempfile::tempdir().unwrap();
    let program = r#"
import socket, sys, time
peer = socket.socket(fileno=int(sys.argv[-1]))
peer.recv(65536)
peer.send(b'\xff' * 60)
time.sleep(1000)
"#;
    let source = scratch.path().join("nonsense.py");
    fs::write(&source, program).unwrap();
    let path = impostor(scratch.path(), &format!("exec /usr/bin/python3 {} \"$@\"", source.display()));
    let started = Instant::now();
    let error = Criu::locate(Some(&path)).unwrap().version().unwrap_err();
    assert!(matches!(error, CriuError::Protocol { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
    let left = common::processes_with(source.to_str().unwrap());
    assert!(left.is_empty(), "{left:?}");
}
