//! Bad input and a broken world: a clear error, exit code 1, and nothing lost.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use common::{Fixture, LIMIT, intact, text};
use migration_harness::{process, workload::Workload};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

fn heap(mib: &str) -> Workload {
    Workload::start("heap", &["--mib", mib]).unwrap()
}

/// A checkpoint of the workload is refused for this reason, and the workload runs on unharmed.
#[track_caller]
fn checkpoint_refused(fixture: &Fixture, workload: &Workload, arguments: &[&str], reason: &str) -> String {
    let pid = workload.pid().to_string();
    let error = fixture.refused(&[&["checkpoint", "--app", "app", "--pid", &pid], arguments].concat());
    assert_eq!(error["reason"], reason, "{error}");
    assert_eq!(error["left"], format!("process {pid} runs on"), "{error}");
    intact(workload);
    error.to_string()
}

#[test]
fn a_store_that_cannot_be_used_is_refused_before_anything_is_frozen() {
    let fixture = Fixture::s3();
    let workload = heap("8");
    let server = fixture.server.as_ref().unwrap();
    let elsewhere =
        format!("s3://{}/x?endpoint=http://127.0.0.1:9&region=us-east-1&path-style=true", server.bucket);
    let said = checkpoint_refused(&fixture, &workload, &["--store", &elsewhere], "store");
    assert!(said.contains("cannot be reached"), "{said}");

    let bucket = fixture.store.replace(&server.bucket, "no-such-bucket");
    let said = checkpoint_refused(&fixture, &workload, &["--store", &bucket], "store");
    assert!(said.contains("does not exist"), "{said}");

    let output = fixture
        .agent(&["checkpoint", "--app", "app", "--pid", &workload.pid().to_string()])
        .env("AWS_SECRET_ACCESS_KEY", "wrong")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("refused access"), "{}", text(&output));
    assert!(text(&output).contains("AWS_ACCESS_KEY_ID"), "{}", text(&output));

    server.faults.overwrite(true);
    let said = checkpoint_refused(&fixture, &workload, &[], "store");
    assert!(said.contains("create-if-absent"), "{said}");
    server.faults.overwrite(false);
    assert_eq!(fixture.json(&["list", "--app", "app"])["checkpoints"].as_array().unwrap().len(), 0);
}

#[test]
fn a_pid_nobody_has_is_refused() {
    let fixture = Fixture::local();
    let error = fixture.refused(&["checkpoint", "--app", "app", "--pid", "4000000"]);
    assert_eq!(error["reason"], "no-such-process");
}

#[test]
fn an_unknown_application_or_checkpoint_is_refused_by_name() {
    let fixture = Fixture::local();
    let error = fixture.refused(&["restore", "--app", "nobody"]);
    assert_eq!(error["reason"], "no-checkpoint");
    assert!(error["message"].as_str().unwrap().contains("nobody"), "{error}");
    let error =
        fixture.refused(&["restore", "--app", "nobody", "--checkpoint", "01J00000000000000000000000"]);
    assert_eq!(error["reason"], "unknown-checkpoint");
    assert!(error["message"].as_str().unwrap().contains("01J00000000000000000000000"), "{error}");
}

#[test]
fn a_taken_pid_is_refused_by_name() {
    let fixture = Fixture::local();
    let workload = heap("8");
    let pid = workload.pid().to_string();
    fixture.json(&["checkpoint", "--app", "app", "--pid", &pid, "--leave-running"]);
    for strategy in common::STRATEGIES {
        let error = fixture.refused(&["restore", "--app", "app", "--detach", "--strategy", strategy]);
        assert_eq!(error["reason"], "pid-taken");
        assert!(error["message"].as_str().unwrap().contains(&pid), "{error}");
    }
    intact(&workload);
}

/// A program that serves memory of its own through userfaultfd (323 on x86-64), and says when it does.
const OWN_USERFAULTFD: &str = "
import ctypes, fcntl, mmap, struct, time
fd = ctypes.CDLL(None).syscall(323, 0)
fcntl.ioctl(fd, 0xc018aa3f, struct.pack('QQQ', 0xaa, 0, 0))
area = mmap.mmap(-1, 65536, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
fcntl.ioctl(fd, 0xc020aa00, struct.pack('QQQQ', address, 65536, 1, 0))
print('ready', flush=True)
time.sleep(1000)
";

#[test]
fn memory_that_somebody_else_serves_is_refused() {
    let fixture = Fixture::local();
    let mut command = std::process::Command::new("/usr/bin/python3");
    command.args(["-c", OWN_USERFAULTFD]).stdout(Stdio::piped());
    let mut program = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(program.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    let pid = program.id();
    let error = fixture.refused(&["checkpoint", "--app", "app", "--pid", &pid.to_string()]);
    let state = process::state(pid as i32);
    program.kill().unwrap();
    program.wait().unwrap();
    assert_eq!(error["reason"], "still-lazy", "{error}");
    assert_eq!(error["left"], format!("process {pid} runs on"));
    assert_eq!(state, Some('S'), "it goes on sleeping");
    assert_eq!(fixture.objects(), [""; 0], "nothing was written");
}

#[test]
fn a_missing_or_changed_file_is_named() {
    let fixture = Fixture::local();
    let workload = Workload::start("areas", &["--mib", "8"]).unwrap();
    fixture.checkpoint("app", &workload);
    let file = workload.control().join("mapped-file");
    let content = fs::read(&file).unwrap();
    for strategy in common::STRATEGIES {
        fs::write(&file, &content[..content.len() / 2]).unwrap();
        let error = fixture.refused(&["restore", "--app", "app", "--detach", "--strategy", strategy]);
        assert!(error["message"].as_str().unwrap().contains("mapped-file"), "{error}");
        fs::remove_file(&file).unwrap();
        let error = fixture.refused(&["restore", "--app", "app", "--detach", "--strategy", strategy]);
        assert!(error["message"].as_str().unwrap().contains("mapped-file"), "{error}");
        assert!(!process::is_running(workload.pid()), "a half restored task is left");
    }
    fs::write(&file, &content).unwrap();
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}

#[test]
fn a_damaged_foreign_or_newer_manifest_is_refused() {
    let fixture = Fixture::local();
    let workload = heap("8");
    fixture.checkpoint("app", &workload);
    let path = PathBuf::from(&fixture.manifests()[0]);
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut newer = good.clone();
    newer[8] = 2;
    for (bad, words) in [(&good[..good.len() / 2], "damaged"), (&flipped, "damaged"), (&newer, "version")] {
        fs::write(&path, bad).unwrap();
        let error = fixture.refused(&["restore", "--app", "app", "--detach"]);
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let other = path.to_string_lossy().replace("/app/", "/other/");
    fs::create_dir_all(Path::new(&other).parent().unwrap()).unwrap();
    fs::write(&other, &good).unwrap();
    let error = fixture.refused(&["restore", "--app", "other", "--detach"]);
    assert!(error["message"].as_str().unwrap().contains("is of"), "{error}");

    fs::write(&path, &good).unwrap();
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}

/// The pack with the most bytes: pages that are restored on demand.
fn largest_pack(fixture: &Fixture) -> PathBuf {
    let packs = fixture.objects().into_iter().filter(|path| path.contains("/packs/"));
    packs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap().into()
}

#[test]
fn a_missing_pack_or_a_flipped_bit_stops_the_tree_and_never_shows_zeros() {
    for damage in ["flip", "remove"] {
        let fixture = Fixture::local();
        let workload = heap("32");
        fixture.checkpoint("app", &workload);
        let pack = largest_pack(&fixture);
        let good = fs::read(&pack).unwrap();
        fs::remove_file(&pack).unwrap();
        if damage == "flip" {
            let mut flipped = good.clone();
            flipped[good.len() / 2] ^= 0x10;
            fs::write(&pack, flipped).unwrap();
        }

        let error = fixture.refused(&["restore", "--app", "app", "--wait-resident"]);
        assert_eq!(error["reason"], "page-server", "{damage}: {error}");
        assert!(process::wait_gone(workload.pid(), LIMIT), "{damage}: the tree must not go on");
        let error = fixture.refused(&["restore", "--app", "app", "--strategy", "full", "--detach"]);
        assert!(error["message"].as_str().unwrap().contains("pack"), "{damage}: {error}");
        assert!(!process::is_running(workload.pid()));
        fixture.refused(&["verify", "--app", "app", "--read-data"]);

        fs::write(&pack, good).unwrap();
        fixture.restore("app", "lazy-storage");
        intact(&workload);
    }
}

#[test]
fn without_criu_or_with_one_that_is_no_criu_the_error_says_so() {
    let fixture = Fixture::local();
    let workload = heap("8");
    let said = checkpoint_refused(&fixture, &workload, &["--criu", "/nonexistent/criu"], "criu");
    assert!(said.contains("/nonexistent/criu"), "{said}");
    checkpoint_refused(&fixture, &workload, &["--criu", "/bin/true"], "criu");
    // The version Debian 12 ships, which cannot work on current kernels.
    let old = Path::new("/usr/sbin/criu");
    if old.exists() && criu_sys::criu::version_of(old).is_ok_and(|version| version < 31_900) {
        let said = checkpoint_refused(&fixture, &workload, &["--criu", "/usr/sbin/criu"], "criu");
        assert!(said.contains("too old"), "{said}");
    }
}

#[test]
fn without_root_the_error_says_so() {
    let fixture = Fixture::local();
    let workload = heap("8");
    let program = fixture.path().join("migration-agent");
    fs::copy(env!("CARGO_BIN_EXE_migration-agent"), &program).unwrap();
    fs::set_permissions(fixture.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(&program);
    command.args(["checkpoint", "--json", "--app", "app", "--store", &fixture.store, "--pid"]);
    let output = command.arg(workload.pid().to_string()).uid(65534).gid(65534).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("not-root"), "{}", text(&output));
    intact(&workload);
}

/// A file system without room, mounted as the work directory while this lives.
struct FullWorkDirectory(PathBuf);

impl FullWorkDirectory {
    fn mount(fixture: &Fixture) -> Self {
        let path = fixture.path().join("work");
        fs::create_dir(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=16k")).unwrap();
        Self(path)
    }
}

impl Drop for FullWorkDirectory {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_work_directory_leaves_the_process_running_or_the_checkpoint_whole() {
    let fixture = Fixture::local();
    let workload = heap("8");
    let full = FullWorkDirectory::mount(&fixture);
    let pid = workload.pid().to_string();
    let error = fixture.refused(&["checkpoint", "--app", "app", "--pid", &pid]);
    assert_eq!(error["left"], format!("process {pid} runs on"));
    assert!(error.to_string().contains("No space"), "{error}");
    intact(&workload);
    drop(full);
    fs::remove_dir_all(fixture.path().join("work")).unwrap();
    fixture.checkpoint("app", &workload);
    fs::remove_dir_all(fixture.path().join("work")).unwrap();
    let full = FullWorkDirectory::mount(&fixture);
    for strategy in common::STRATEGIES {
        let error = fixture.refused(&["restore", "--app", "app", "--detach", "--strategy", strategy]);
        assert!(error.to_string().contains("No space"), "{error}");
        assert!(!process::is_running(workload.pid()));
    }
    drop(full);
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}

/// Runs the rest of its command line without the system call userfaultfd (323 on x86-64), as on a kernel built without it.
const WITHOUT_USERFAULTFD: &str = "
import ctypes, os, struct, sys
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 323), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
class Program(ctypes.Structure): _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
program = Program(len(steps), ctypes.addressof(code))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.byref(program)) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn without_userfaultfd_a_lazy_restore_is_refused_and_a_full_one_works() {
    let fixture = Fixture::local();
    let workload = heap("8");
    fixture.checkpoint("app", &workload);
    let without = |arguments: &[&str]| {
        let agent = fixture.agent(arguments);
        let mut command = std::process::Command::new("/usr/bin/python3");
        command.args(["-c", WITHOUT_USERFAULTFD]).arg(agent.get_program()).args(agent.get_args());
        command.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.output().unwrap()
    };
    let checked = without(&["check", "--json"]);
    assert!(text(&checked).contains(r#""name":"lazy-restore","ok":false"#), "{}", text(&checked));
    let refused = without(&["restore", "--app", "app", "--detach", "--json"]);
    assert!(text(&refused).contains("no-userfaultfd"), "{}", text(&refused));
    assert!(text(&refused).contains("--strategy full"), "{}", text(&refused));
    assert!(!process::is_running(workload.pid()));
    let restored = without(&["restore", "--app", "app", "--detach", "--json", "--strategy", "full"]);
    assert!(restored.status.success(), "{}", text(&restored));
    intact(&workload);
}
