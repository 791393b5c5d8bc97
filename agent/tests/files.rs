//! Files that belong to memory, moved with real processes: what a process has open for writing, or what is listed, is as
//! it was when the process was frozen, to the byte and with all attributes. And what was there instead is not lost.

mod common;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::Duration,
};

use common::{Fixture, LIMIT, STRATEGIES};
use migration_harness::{process, sys::in_own_session};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

/// Does what is asked of it, in Python, and keeps every name for the next time. It has nothing open of its own.
const HOLDER: &str = "
import ctypes, fcntl, hashlib, mmap, os, sqlite3, sys, time, traceback
control, data = sys.argv[1:3]
def act(code):
    try:
        code = compile(code, 'asked', 'eval')
    except SyntaxError:
        return exec(code, globals())
    return eval(code, globals())
while True:
    time.sleep(0.005)
    try:
        with open(control + '/ask') as ask: code = ask.read()
    except FileNotFoundError:
        continue
    os.remove(control + '/ask')
    try:
        answer = repr(act(code))
    except BaseException:
        answer = 'failed: ' + traceback.format_exc()
    with open(control + '/answer.new', 'w') as file: file.write(answer)
    os.rename(control + '/answer.new', control + '/answer')
";

/// A process that holds files.
struct Holder {
    control: PathBuf,
    data: PathBuf,
    pid: i32,
}

impl Holder {
    fn start(fixture: &Fixture) -> Self {
        let control = fixture.path().join("control");
        let data = fixture.path().join("data");
        fs::create_dir(&control).unwrap();
        fs::create_dir(&data).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", HOLDER]).args([&control, &data]).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pid = in_own_session(&mut command).spawn().unwrap().id() as i32;
        Self { control, data, pid }
    }

    /// What it says when this is evaluated, or executed.
    #[track_caller]
    fn ask(&self, code: &str) -> String {
        fs::write(self.control.join("ask.new"), code).unwrap();
        fs::rename(self.control.join("ask.new"), self.control.join("ask")).unwrap();
        let answer = self.control.join("answer");
        assert!(
            process::wait_until(LIMIT, || answer.exists() || !process::is_running(self.pid)),
            "no answer to {code}"
        );
        let said = fs::read_to_string(&answer).expect("it has ended");
        fs::remove_file(answer).unwrap();
        assert!(!said.starts_with("failed"), "{code}: {said}");
        said
    }

    #[track_caller]
    fn expect(&self, code: &str, answer: &str) {
        assert_eq!(self.ask(code), answer, "{code}");
    }

    /// A checkpoint after which it has ended.
    #[track_caller]
    fn leave(&self, fixture: &Fixture, options: &[&str]) -> Value {
        let tree = process::tree(self.pid);
        let report = fixture.json(&[&["checkpoint", "--app", "app", "--pid", &self.pid()], options].concat());
        // The test is whose children they are when their parents have ended.
        assert!(tree.iter().rev().all(|pid| process::wait_gone(*pid, LIMIT)));
        report
    }

    /// A checkpoint after which it goes on.
    #[track_caller]
    fn save(&self, fixture: &Fixture, options: &[&str]) -> Value {
        let arguments = ["checkpoint", "--app", "app", "--leave-running", "--pid", &self.pid()];
        fixture.json(&[&arguments[..], options].concat())
    }

    /// A checkpoint is refused, and it goes on.
    #[track_caller]
    fn refused(&self, fixture: &Fixture, options: &[&str], reason: &str) -> String {
        let error =
            fixture.refused(&[&["checkpoint", "--app", "app", "--pid", &self.pid()], options].concat());
        assert_eq!(error["reason"], reason, "{error}");
        assert_eq!(error["left"], format!("process {} runs on", self.pid));
        self.expect("'here'", "'here'");
        assert_eq!(fixture.manifests().len(), 0);
        error.to_string()
    }

    fn end(&self) {
        process::end(self.pid).unwrap();
        assert!(process::wait_gone(self.pid, LIMIT));
    }

    fn pid(&self) -> String {
        self.pid.to_string()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mine = |argument: &Vec<u8>| argument == self.control.as_os_str().as_bytes();
        process::end_all(|pid| process::arguments(pid).iter().any(mine));
        process::wait_gone(self.pid, LIMIT);
    }
}

/// Everything that can be seen of a file, but for its inode and the times nobody can set.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    links: u64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    content: Vec<u8>,
}

fn see(path: &Path) -> Seen {
    let meta = fs::symlink_metadata(path).unwrap();
    let content = match meta.file_type() {
        kind if kind.is_symlink() => fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        kind if kind.is_file() && meta.len() <= 64 << 20 => fs::read(path).unwrap(),
        // Of sparse ones, the parts that tests write.
        kind if kind.is_file() => {
            let file = fs::File::open(path).unwrap();
            let mut parts = meta.len().to_le_bytes().to_vec();
            for offset in [0, 300 << 20, meta.len() - 8192] {
                let mut part = vec![0; 8192];
                file.read_exact_at(&mut part, offset).unwrap();
                parts.extend(part);
            }
            parts
        }
        _ => Vec::new(),
    };
    let mut xattrs = Vec::new();
    if !meta.is_symlink() {
        let mut names = vec![0; 65536];
        let length = rustix::fs::listxattr(path, &mut names[..]).unwrap_or(0);
        for name in names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
            let mut value = vec![0; 65536];
            let length = rustix::fs::getxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            xattrs.push((name.to_vec(), value[..length].to_vec()));
        }
    }
    Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        links: if meta.is_dir() { 0 } else { meta.nlink() },
        xattrs,
        content,
    }
}

/// All that is at and below a path.
fn see_all(path: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() && !path.is_symlink() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        seen.insert(path.clone(), see(&path));
    }
    seen
}

#[track_caller]
fn expect_all(path: &Path, before: &BTreeMap<PathBuf, Seen>) {
    let now = see_all(path);
    let paths = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&now), paths(before));
    for (path, seen) in before {
        let there = &now[path];
        assert!(there.content == seen.content, "the content of {path:?} differs");
        let rest = |seen: &Seen| (seen.mode, seen.owner, seen.modified, seen.links, seen.xattrs.clone());
        assert_eq!(rest(there), rest(seen), "{path:?}");
    }
}

fn aside(path: &Path, checkpoint: &Value) -> PathBuf {
    format!("{}.before-{}", path.display(), checkpoint["checkpoint"].as_str().unwrap()).into()
}

/// A tmpfs, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, options: &str) -> Self {
        mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Nothing of a restore's own is left.
#[track_caller]
fn no_leftovers(directory: &Path) {
    let left: Vec<_> = see_all(directory)
        .into_keys()
        .filter(|path| path.to_string_lossy().contains(".migration-"))
        .collect();
    assert_eq!(left, [""; 0].map(PathBuf::from));
}

const EVERYTHING: &str = "
bytes_of = lambda n, size: hashlib.shake_128(str(n).encode()).digest(size)
log = os.open(data + '/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
for i in range(1000): os.write(log, b'line %d\\n' % i)
db = os.open(data + '/db', os.O_RDWR | os.O_CREAT, 0o600)
os.write(db, bytes_of(1, 3000001))
os.lseek(db, 12345, 0)
again = os.dup(db)
fcntl.lockf(db, fcntl.LOCK_EX, 100, 50)
os.chown(data + '/db', 1234, 4321)
os.setxattr(data + '/db', 'user.note', b'a\\0b')
os.setxattr(data + '/db', 'user.long', bytes_of(4, 2000))
os.link(data + '/db', data + '/other name')
other = os.open(data + '/other name', os.O_RDWR)
sparse = os.open(data + '/sparse', os.O_RDWR | os.O_CREAT)
os.truncate(sparse, 5 << 30)
os.pwrite(sparse, bytes_of(2, 5000), (300 << 20) + 1)
os.pwrite(sparse, b'end', (5 << 30) - 3)
empty = os.open(data + '/empty', os.O_WRONLY | os.O_CREAT, 0o4755)
odd = os.open(os.fsencode(data) + b'/sub/\\xff\\xfe \\n (deleted)', os.O_WRONLY | os.O_CREAT) if not os.mkdir(data + '/sub', 0o751) else 0
os.write(odd, b'odd')
mapped = os.open(data + '/mapped', os.O_RDWR | os.O_CREAT)
os.truncate(mapped, 1 << 20)
memory = mmap.mmap(mapped, 1 << 20)
os.close(mapped)
memory[70000:70005] = b'dirty'
gone = os.open(data + '/gone', os.O_RDWR | os.O_CREAT, 0o640)
os.write(gone, bytes_of(3, 5 << 20))
os.unlink(data + '/gone')
hollow = os.open(data + '/hollow', os.O_RDWR | os.O_CREAT)
os.pwrite(hollow, b'far', 200 << 20)
os.unlink(data + '/hollow')
os.utime(data + '/log', ns=(5, 1234567890123456789))
os.utime(data + '/sub', ns=(5, 987654321))
";

/// A tree that has files of all kinds open, and is asked afterwards whether it finds them so.
fn everything_comes_back(fixture: &Fixture, strategy: &str, rounds: usize) {
    let holder = Holder::start(fixture);
    let data = &holder.data;
    holder.ask(EVERYTHING);
    holder.ask("child = os.fork() or time.sleep(1000)");
    for round in 0..rounds {
        let report = holder.leave(fixture, &[]);
        assert!(report["files"]["carried"].as_u64().unwrap() >= 9, "{report}");
        let mut before = see_all(data);
        assert_eq!(before.len(), 9);
        fs::remove_dir_all(data).unwrap();

        let restored = fixture.restore("app", strategy);

        assert_eq!(restored["files"]["set_aside"], serde_json::json!([]));
        // CRIU puts the deleted files there, and deletes them again.
        before.get_mut(data).unwrap().modified = see(data).modified;
        expect_all(data, &before);
        let blocks = fs::metadata(data.join("sparse")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "the holes of the sparse file take {blocks} blocks");
        assert_eq!(inode(&data.join("db")), inode(&data.join("other name")));
        holder.expect("os.read(again, 5) == bytes_of(1, 3000001)[12345:12350]", "True");
        holder.expect("os.lseek(db, 12345, 0)", "12345");
        holder
            .expect("os.fstat(other).st_ino == os.fstat(db).st_ino == os.stat(data + '/db').st_ino", "True");
        holder.expect("os.pread(other, 9, 0) == bytes_of(1, 9)", "True");
        holder.expect("memory[70000:70005]", "b'dirty'");
        holder.expect("os.pread(gone, 6 << 20, 0) == bytes_of(3, 5 << 20)", "True");
        holder.expect("os.fstat(gone).st_nlink, oct(os.fstat(gone).st_mode)", "(0, '0o100640')");
        holder.expect(
            "os.pread(hollow, 9, (200 << 20) - 2), os.fstat(hollow).st_blocks < 2048",
            "(b'\\x00\\x00far', True)",
        );
        assert_eq!(locked(&data.join("db")), vec![(holder.pid, 50, 149)]);
        // Descriptors, mappings and names lead to one file, which goes on.
        holder.ask(&format!(
            "memory[0:1] = b'{round}'; os.write(log, b'round {round}\\n'); os.utime(data + '/log', ns=(5, 6))"
        ));
        assert_eq!(fs::read(data.join("mapped")).unwrap()[0], b'0' + round as u8);
        assert!(fs::read_to_string(data.join("log")).unwrap().ends_with(&format!("round {round}\n")));
        for pid in process::tree(holder.pid) {
            process::wait_resident(pid, LIMIT).unwrap();
        }
    }
    fixture.json(&["verify", "--app", "app", "--read-data"]);
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Locks on a file: who, first byte, last byte.
fn locked(path: &Path) -> Vec<(i32, u64, u64)> {
    let inode = format!(":{}", inode(path));
    let text = fs::read_to_string("/proc/locks").unwrap();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = lines.filter(|fields| fields.iter().any(|field| field.ends_with(&inode)));
    ours.map(|fields| {
        let last = fields.len() - 1;
        let number = |at: usize| fields[at].parse().unwrap();
        (fields[last - 3].parse().unwrap(), number(last - 1), number(last))
    })
    .collect()
}

#[test]
fn files_of_all_kinds_come_back_lazily() {
    everything_comes_back(&Fixture::local(), "lazy-storage", 2);
}

#[test]
fn files_of_all_kinds_come_back_at_once_from_s3() {
    everything_comes_back(&Fixture::s3(), "full", 2);
}

#[test]
fn shared_memory_files_on_a_tmpfs_are_carried() {
    for strategy in STRATEGIES {
        let fixture = Fixture::local();
        let holder = Holder::start(&fixture);
        let path = PathBuf::from(format!("/dev/shm/files-{}-{strategy}", std::process::id()));
        holder.ask(&format!(
            "fd = os.open('{0}', os.O_RDWR | os.O_CREAT, 0o600); os.truncate(fd, 1 << 20)\nmemory = mmap.mmap(fd, 1 << 20); os.close(fd); memory[9:14] = b'first'",
            path.display()
        ));
        // Its times do not say that it changed: no write was a system call.
        sleep(Duration::from_millis(1100));
        holder.save(&fixture, &[]);
        holder.ask("memory[9:14] = b'later'");
        holder.leave(&fixture, &[]);
        let before = see(&path);
        assert_eq!(&before.content[9..14], b"later");
        fs::remove_file(&path).unwrap();
        fixture.restore("app", strategy);
        let now = see(&path);
        holder.expect("memory[9:14]", "b'later'");
        holder.ask("memory[0:1] = b'x'");
        let shared = fs::read(&path).unwrap()[0];
        fs::remove_file(&path).unwrap();
        assert_eq!(now, before);
        assert_eq!(shared, b'x');
    }
}

#[test]
fn one_mapping_that_may_write_is_enough() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    fs::write(holder.data.join("file"), [0; 8192]).unwrap();
    // In whichever order they come to lie, with no descriptor left open.
    holder.ask(
        "def maps(*modes):
    for mode in modes:
        fd = os.open(data + '/file', mode)
        yield mmap.mmap(fd, 8192, prot=mmap.PROT_READ | (mmap.PROT_WRITE if mode == os.O_RDWR else 0))
        os.close(fd)
all_maps = list(maps(os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_RDONLY, os.O_RDONLY))",
    );
    holder.ask("all_maps[2][4096:4099] = b'yes'");
    let report = holder.leave(&fixture, &[]);
    assert_eq!(report["files"]["bytes"], 8192, "{report}");
    let before = see_all(&holder.data);
    fs::remove_dir_all(&holder.data).unwrap();
    fixture.restore("app", "lazy-storage");
    expect_all(&holder.data, &before);
    holder.expect("all_maps[0][4096:4099]", "b'yes'");
}

#[test]
fn what_is_written_through_a_mapping_is_seen_whatever_the_times_say() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("first = os.open(data + '/first', os.O_RDWR | os.O_CREAT); os.truncate(first, 8192)");
    // Mapped under another of its names.
    holder.ask("os.link(data + '/first', data + '/second'); fd = os.open(data + '/second', os.O_RDWR)");
    holder.ask("memory = mmap.mmap(fd, 8192); os.close(fd); memory[0:4] = b'then'");
    let time = filetime(see(&holder.data.join("first")).modified);
    sleep(Duration::from_millis(1100));
    holder.save(&fixture, &[]);
    holder.ask("memory[0:5] = b'later'");
    fs::File::open(holder.data.join("first")).unwrap().set_modified(time).unwrap();
    holder.leave(&fixture, &[]);
    fs::remove_dir_all(&holder.data).unwrap();
    fixture.restore("app", "full");
    holder.expect("os.pread(first, 5, 0), memory[0:5]", "(b'later', b'later')");
    assert_eq!(inode(&holder.data.join("first")), inode(&holder.data.join("second")));
}

#[test]
fn a_name_that_is_no_text_can_be_told() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    let path = holder.data.join(OsStr::from_bytes(b"\xff\xfe"));
    holder.ask(
        "fd = os.open(os.fsencode(data) + b'/\\xff\\xfe', os.O_RDWR | os.O_CREAT); os.write(fd, b'then')",
    );
    holder.leave(&fixture, &[]);
    fs::write(&path, "later").unwrap();
    let error = fixture.refused(&["restore", "--app", "app", "--detach", "--existing-files", "refuse"]);
    assert_eq!(error["reason"], "would-replace-files", "{error}");
    let restored = fixture.restore("app", "full");
    assert_eq!(restored["files"]["set_aside"].as_array().unwrap().len(), 1, "{restored}");
    assert_eq!(fs::read(&path).unwrap(), b"then");
    assert_eq!(fs::read_dir(&holder.data).unwrap().count(), 2);
    holder.expect("os.pread(fd, 9, 0)", "b'then'");
}

#[test]
fn a_log_that_others_write_too_is_as_long_as_it_was() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("log = os.open(data + '/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)");
    let path = holder.data.join("log");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = fs::File::options().append(true).open(&path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                other.write_all(b"from elsewhere\n").unwrap();
                sleep(Duration::from_micros(50));
            }
        });
        let saved: Vec<_> = (0..5).map(|_| holder.save(&fixture, &[])).collect();
        stop.store(true, Ordering::Relaxed);
        holder.end();
        let whole = fs::read(&path).unwrap();
        for report in saved.iter().rev() {
            let id = report["checkpoint"].as_str().unwrap();
            let options = ["--checkpoint", id, "--existing-files", "replace"];
            fixture.json(&[&["restore", "--app", "app", "--detach"][..], &options].concat());
            let then = fs::read(&path).unwrap();
            assert!(then.len() < whole.len() && whole.starts_with(&then));
            holder.ask("os.write(log, b'on')");
            assert_eq!(fs::read(&path).unwrap().len(), then.len() + 2);
            holder.end();
        }
    });
}

#[test]
fn a_database_that_is_in_use_is_whole() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("db = sqlite3.connect(data + '/app.db', isolation_level=None)");
    holder.ask(
        "db.execute('pragma journal_mode=wal'); db.execute('create table t(n integer primary key, v blob)')",
    );
    holder.ask("for n in range(2000): db.execute('insert into t values(?, randomblob(500))', [n])");
    for strategy in STRATEGIES {
        // In the middle of a transaction, and of a query.
        holder.ask("db.execute('begin'); db.execute('delete from t where n % 2'); rows = db.execute('select n from t'); rows.fetchone()");
        holder.leave(&fixture, &[]);
        fs::remove_dir_all(&holder.data).unwrap();
        fixture.restore("app", strategy);
        holder.expect("len(rows.fetchall())", "999");
        holder.ask("rows = None; db.execute('rollback')");
        holder.expect("db.execute('select count(*) from t').fetchone()", "(2000,)");
        holder.expect("db.execute('pragma integrity_check').fetchall()", "[('ok',)]");
        holder.expect(
            "sqlite3.connect(data + '/app.db').execute('select count(*) from t').fetchone()",
            "(2000,)",
        );
        process::wait_resident(holder.pid, LIMIT).unwrap();
    }
}

#[test]
fn a_file_that_grew_since_the_checkpoint_is_put_aside_and_not_lost() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    let log = holder.data.join("log");
    holder.ask(
        "log = os.open(data + '/log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(log, b'one\\n')",
    );
    let checkpoint = holder.save(&fixture, &[]);
    holder.ask("os.write(log, b'two\\n')");
    holder.end();
    let newer = see(&log);

    let error = fixture.refused(&["restore", "--app", "app", "--detach", "--existing-files", "refuse"]);
    assert_eq!(error["reason"], "would-replace-files", "{error}");
    assert!(error["message"].as_str().unwrap().contains(log.to_str().unwrap()), "{error}");
    assert_eq!(see(&log), newer);

    for strategy in STRATEGIES {
        let restored = fixture.json(&["restore", "--app", "app", "--detach", "--strategy", strategy]);
        assert_eq!(fs::read(&log).unwrap(), b"one\n");
        assert_eq!(restored["files"]["set_aside"], serde_json::json!([aside(&log, &checkpoint)]));
        assert_eq!(see(&aside(&log, &checkpoint)), newer);
        fs::remove_file(aside(&log, &checkpoint)).unwrap();
        holder.ask("os.write(log, b'two\\n'); os.utime(data + '/log')");
        holder.end();
        fs::write(&log, &newer.content).unwrap();
        let time = filetime(newer.modified);
        fs::File::options().write(true).open(&log).unwrap().set_modified(time).unwrap();
    }

    // A second time the name is taken.
    fs::write(aside(&log, &checkpoint), "an older one").unwrap();
    fixture.restore("app", "full");
    let second = PathBuf::from(format!("{}.2", aside(&log, &checkpoint).display()));
    assert_eq!(fs::read(&second).unwrap(), newer.content);
    assert_eq!(fs::read(aside(&log, &checkpoint)).unwrap(), b"an older one");
    holder.ask("os.write(log, b'three\\n')");
    holder.end();

    fixture.json(&["restore", "--app", "app", "--detach", "--existing-files", "replace"]);
    assert_eq!(fs::read(&log).unwrap(), b"one\n");
    holder.end();
    // What is as it should be is left alone, even if it is another file by now.
    fs::write(holder.data.join("copy"), "one\n").unwrap();
    fs::rename(holder.data.join("copy"), &log).unwrap();
    let copy = inode(&log);
    fixture.restore("app", "lazy-storage");
    assert_eq!(inode(&log), copy);
    holder.ask("os.write(log, b'on\\n')");
    assert_eq!(fs::read(&log).unwrap(), b"one\non\n");
    let names: Vec<_> = fs::read_dir(&holder.data).unwrap().collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

fn filetime((seconds, nanoseconds): (i64, i64)) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + Duration::new(seconds as u64, nanoseconds as u32)
}

#[test]
fn a_restore_that_fails_leaves_every_file_as_it_was() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    let data = &holder.data;
    // A named pipe is not carried; CRIU cannot do without it.
    holder.ask("os.mkfifo(data + '/fifo'); fifo = os.open(data + '/fifo', os.O_RDWR)");
    holder.ask("os.makedirs(data + '/deep/er'); files = [os.open(data + name, os.O_RDWR | os.O_CREAT) for name in ['/a', '/b', '/c', '/deep/er/d']]");
    holder.ask("[os.write(file, b'then') for file in files]; os.chmod(data + '/c', 0o604)");
    symlink("a", data.join("link")).unwrap();
    let listed = data.to_str().unwrap().to_owned();
    holder.leave(&fixture, &["--path", &listed]);
    let then = see_all(data);
    fs::write(data.join("a"), "another").unwrap();
    fs::remove_file(data.join("b")).unwrap();
    fs::set_permissions(data.join("c"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_dir_all(data.join("deep")).unwrap();
    fs::remove_file(data.join("link")).unwrap();
    symlink("elsewhere", data.join("link")).unwrap();
    fs::remove_file(data.join("fifo")).unwrap();
    let now = see_all(data);

    for strategy in STRATEGIES {
        let error = fixture.refused(&["restore", "--app", "app", "--detach", "--strategy", strategy]);
        assert_eq!(error["reason"], "criu", "{error}");
        assert!(!process::is_running(holder.pid));
        let times = |seen: &BTreeMap<PathBuf, Seen>| seen[data].modified;
        let mut found = see_all(data);
        // That something was made in it and removed again shows in its time only.
        assert!(times(&found) >= times(&now));
        found.get_mut(data).unwrap().modified = times(&now);
        assert_eq!(found.keys().collect::<Vec<_>>(), now.keys().collect::<Vec<_>>());
        assert!(found == now, "{found:#?} {now:#?}");
    }

    // It was for the named pipe only.
    nix::unistd::mkfifo(&data.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    fixture.json(&["restore", "--app", "app", "--detach", "--existing-files", "replace"]);
    holder.expect("[os.pread(file, 9, 0) for file in files]", "[b'then', b'then', b'then', b'then']");
    for (path, seen) in then.iter().filter(|(path, _)| !path.ends_with("fifo") && *path != data) {
        assert_eq!(&see(path), seen, "{path:?}");
    }
    no_leftovers(data);
}

#[test]
fn a_disk_that_is_too_small_leaves_every_file_as_it_was() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    let data = &holder.data;
    holder.ask("files = [os.open(data + '/%d' % n, os.O_RDWR | os.O_CREAT) for n in range(8)]");
    holder.ask("[os.write(file, bytes([n + 1]) * 400000) for n, file in enumerate(files)]");
    holder.leave(&fixture, &[]);
    fs::remove_dir_all(data).unwrap();
    fs::create_dir(data).unwrap();
    let mounted = Mounted::tmpfs(data, "size=2m");
    fs::write(data.join("3"), "what was here before").unwrap();
    let before = see(&data.join("3"));
    let error = fixture.refused(&["restore", "--app", "app", "--detach"]);
    assert_eq!(error["reason"], "file-io", "{error}");
    assert_eq!(see(&data.join("3")), before);
    assert_eq!(fs::read_dir(data).unwrap().count(), 1);
    drop(mounted);
    fixture.restore("app", "full");
    holder.expect(
        "all(os.pread(file, 500000, 0) == bytes([n + 1]) * 400000 for n, file in enumerate(files))",
        "True",
    );
}

#[test]
fn a_directory_may_be_a_link_to_another_disk() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("log = os.open(data + '/log', os.O_RDWR | os.O_CREAT); os.write(log, b'line')");
    holder.leave(&fixture, &[]);
    let disk = fixture.path().join("disk");
    fs::remove_dir_all(&holder.data).unwrap();
    fs::create_dir(&disk).unwrap();
    symlink(&disk, &holder.data).unwrap();
    fixture.restore("app", "lazy-storage");
    assert_eq!(fs::read(disk.join("log")).unwrap(), b"line");
    holder.ask("os.write(log, b', more')");
    assert_eq!(fs::read(disk.join("log")).unwrap(), b"line, more");
}

#[test]
fn a_checkpoint_reads_what_changed_and_uploads_what_is_new() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("import random; big = os.open(data + '/big', os.O_RDWR | os.O_CREAT); os.write(big, random.randbytes(64 << 20))");
    let first = holder.save(&fixture, &[]);
    let uploaded = |report: &Value| report["bytes"]["uploaded"].as_u64().unwrap();
    assert!(uploaded(&first) > 64 << 20, "{first}");

    holder.ask("os.lseek(big, 0, 2); os.write(big, random.randbytes(1 << 20))");
    let second = holder.save(&fixture, &[]);
    assert_eq!(second["files"]["read"], 65 << 20);
    // Of the process's own memory a few pages change, too, and each page's hash is 16 bytes.
    assert!(uploaded(&second) > 1 << 20 && uploaded(&second) < 3 << 20, "{second}");

    sleep(Duration::from_millis(1100));
    holder.save(&fixture, &[]);
    let unread = holder.save(&fixture, &[]);
    // On a tmpfs the times of a file do not tell.
    let kind = nix::sys::statfs::statfs(&holder.data).unwrap().filesystem_type();
    let read = if kind == nix::sys::statfs::TMPFS_MAGIC { 65 << 20 } else { 0 };
    assert_eq!(unread["files"]["read"], read, "{unread}");
    assert_eq!(unread["files"]["bytes"], 65 << 20);
    assert!(uploaded(&unread) < 1 << 20, "{unread}");

    // Each of them can be restored without the others.
    let last = holder.leave(&fixture, &[]);
    let listed = fixture.json(&["list", "--app", "app"]);
    for checkpoint in listed["checkpoints"].as_array().unwrap() {
        if checkpoint["checkpoint"] != last["checkpoint"] {
            fixture.json(&[
                "delete",
                "--app",
                "app",
                "--checkpoint",
                checkpoint["checkpoint"].as_str().unwrap(),
            ]);
        }
    }
    let content = fs::read(holder.data.join("big")).unwrap();
    fs::remove_dir_all(&holder.data).unwrap();
    fixture.restore("app", "lazy-storage");
    assert!(fs::read(holder.data.join("big")).unwrap() == content);
}

#[test]
fn listed_directories_travel_whole_but_not_beyond_their_mount() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    let data = &holder.data;
    let other = data.join("other-mount");
    for directory in ["empty", "a/b/c", "other-mount", "same"] {
        fs::create_dir_all(data.join(directory)).unwrap();
    }
    for (name, content) in
        [("a/file", "content"), ("a/b/c/deep", ""), ("same/kept", "in its place"), ("top", "x")]
    {
        fs::write(data.join(name), content).unwrap();
    }
    fs::write(data.join(OsStr::from_bytes(b"a/\xff")), [7; 10_000]).unwrap();
    fs::hard_link(data.join("a/file"), data.join("a/b/again")).unwrap();
    symlink("../nowhere", data.join("a/dangling")).unwrap();
    symlink("b", data.join("a/to-directory")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
    fs::set_permissions(data.join("empty"), fs::Permissions::from_mode(0o1770)).unwrap();
    let mounted = Mounted::tmpfs(&other, "");
    fs::write(other.join("not carried"), "x").unwrap();
    let (path, same) = (data.to_str().unwrap(), data.join("same"));

    holder.leave(&fixture, &["--path", path, "--same", same.to_str().unwrap()]);
    drop(mounted);
    fs::remove_dir_all(&same).unwrap();
    fs::remove_file(data.join("socket")).unwrap();
    let mut before = see_all(data);
    fs::remove_dir_all(data).unwrap();
    fixture.restore("app", "lazy-storage");
    // What was mounted there had its own time and permissions.
    let mut now = see_all(data);
    assert!(now.remove(&other).is_some() && before.remove(&other).is_some());
    // Two entries were taken out of it after the checkpoint.
    now.get_mut(data).unwrap().modified = before[data].modified;
    assert_eq!(now, before);
    assert_eq!(inode(&data.join("a/file")), inode(&data.join("a/b/again")));

    // What else is there stays.
    holder.end();
    fs::write(data.join("a/stranger"), "s").unwrap();
    fs::remove_file(data.join("a/file")).unwrap();
    fixture.restore("app", "full");
    assert_eq!(fs::read(data.join("a/stranger")).unwrap(), b"s");
    assert_eq!(inode(&data.join("a/file")), inode(&data.join("a/b/again")));
}

#[test]
fn files_that_are_too_large_are_refused_by_name_and_the_tree_runs_on() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask(
        "fd = os.open(data + '/large', os.O_RDWR | os.O_CREAT); os.write(fd, bytes(3 << 20)); os.fsync(fd)",
    );
    let said = holder.refused(&fixture, &["--file-limit", "2MiB"], "files-too-large");
    for part in ["/data/large", "3145728", "2097152", "--file-limit", "--same", "--files"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    // Deleted, it is no smaller.
    holder.ask("os.unlink(data + '/large')");
    let said = holder.refused(&fixture, &["--file-limit", "2MiB"], "files-too-large");
    assert!(said.contains("/data/large"), "{said}");
    assert_eq!(fixture.objects(), [""; 0], "nothing was frozen, and nothing written");

    let report = holder.leave(&fixture, &["--file-limit", "4MiB"]);
    assert_eq!(report["left"], "killed");
    fixture.restore("app", "full");
    holder.expect("os.fstat(fd).st_size, os.fstat(fd).st_nlink", "(3145728, 0)");
}

#[test]
fn a_path_that_cannot_be_listed_is_refused() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    for path in ["/no/such/path", "/proc", "/proc/self/status", "/", "/dev/null"] {
        let said = holder.refused(&fixture, &["--path", path], "path-not-listable");
        assert!(said.contains(path), "{said}");
    }
    assert_eq!(fixture.objects(), [""; 0]);
}

#[test]
fn files_on_a_shared_volume_must_be_the_same() {
    for options in [&["--files", "same"][..], &["--same", "DATA"]] {
        let fixture = Fixture::local();
        let holder = Holder::start(&fixture);
        let data = holder.data.to_str().unwrap();
        let file = holder.data.join("volume");
        holder.ask("fd = os.open(data + '/volume', os.O_RDWR | os.O_CREAT); os.write(fd, b'shared')");
        let options: Vec<_> =
            options.iter().map(|option| if *option == "DATA" { data } else { option }).collect();
        let report = holder.leave(&fixture, &options);
        assert_eq!(report["files"]["carried"], 0, "{report}");
        let before = see(&file);
        fs::write(&file, "SHARED").unwrap();
        let changed = see(&file);
        let error = fixture.refused(&["restore", "--app", "app", "--detach"]);
        assert_eq!(error["reason"], "files-not-the-same", "{error}");
        assert!(error["message"].as_str().unwrap().contains("volume was modified"), "{error}");
        assert_eq!(see(&file), changed);

        fs::write(&file, "shared").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(filetime(before.modified)).unwrap();
        fixture.restore("app", "lazy-storage");
        holder.expect("os.pread(fd, 9, 0)", "b'shared'");
    }
}

#[test]
fn files_that_are_ignored_are_neither_carried_nor_checked() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("fd = os.open(data + '/file', os.O_RDWR | os.O_CREAT); os.write(fd, b'before')");
    let report = holder.leave(&fixture, &["--files", "ignore"]);
    assert_eq!(report["files"]["carried"], 0, "{report}");
    fs::write(holder.data.join("file"), "others").unwrap();
    fixture.restore("app", "full");
    holder.expect("os.pread(fd, 9, 0)", "b'others'");
}

#[test]
fn a_file_that_is_only_read_is_missed_before_anything_is_done() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    fs::write(holder.data.join("input"), "only read").unwrap();
    holder.ask("input = os.open(data + '/input', os.O_RDONLY); out = os.open(data + '/out', os.O_WRONLY | os.O_CREAT); os.write(out, b'out')");
    holder.ask("os.chdir(data)");
    holder.leave(&fixture, &[]);
    fs::remove_file(holder.data.join("out")).unwrap();
    for content in [None, Some("longer than it was")] {
        fs::remove_file(holder.data.join("input")).unwrap_or_default();
        if let Some(content) = content {
            fs::write(holder.data.join("input"), content).unwrap();
        }
        let error = fixture.refused(&["restore", "--app", "app", "--detach"]);
        assert_eq!(error["reason"], "files-not-the-same", "{error}");
        assert!(error["message"].as_str().unwrap().contains("/data/input"), "{error}");
        assert!(!holder.data.join("out").exists());
    }
    fs::write(holder.data.join("input"), "only READ").unwrap();
    fixture.restore("app", "full");
    holder.expect("os.read(input, 100), os.getcwd() == data", "(b'only READ', True)");
}

#[test]
fn a_name_that_was_deleted_while_another_is_left_can_be_restored_elsewhere() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("fd = os.open(data + '/first', os.O_RDWR | os.O_CREAT); os.write(fd, b'two names')");
    holder.ask("os.link(data + '/first', data + '/second'); os.unlink(data + '/first'); second = os.open(data + '/second', os.O_RDWR)");
    for strategy in STRATEGIES {
        holder.leave(&fixture, &[]);
        fs::remove_dir_all(&holder.data).unwrap();
        fixture.restore("app", strategy);
        holder.expect(
            "os.pread(fd, 20, 0), os.fstat(fd).st_nlink, os.listdir(data)",
            "(b'two names', 1, ['second'])",
        );
        holder.expect("os.fstat(fd).st_ino == os.fstat(second).st_ino", "True");
        process::wait_resident(holder.pid, LIMIT).unwrap();
    }
}

#[test]
fn killing_the_agent_while_it_reads_files_loses_nothing() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    holder.ask("import random; big = os.open(data + '/big', os.O_RDWR | os.O_CREAT)");
    let fill = "content = random.randbytes(48 << 20); os.pwrite(big, content, 0)";
    let whole = "content == os.pread(big, 48 << 20, 0) == open(data + '/big', 'rb').read()";
    holder.ask(fill);
    let started = std::time::Instant::now();
    holder.save(&fixture, &[]);
    let time = started.elapsed();
    let mut committed = 0;
    const STEPS: u32 = 10;
    for step in 0..STEPS {
        holder.ask(fill);
        let known = fixture.manifests().len();
        let mut agent =
            fixture.agent(&["checkpoint", "--app", "app", "--pid", &holder.pid()]).spawn().unwrap();
        sleep(time * (step + 1) / (STEPS + 1));
        agent.kill().unwrap();
        agent.wait().unwrap();
        // CRIU lets it go when it finds nobody there, or ends it.
        let free = || {
            let status = fs::read_to_string(format!("/proc/{}/status", holder.pid)).unwrap_or_default();
            status.lines().all(|line| !line.starts_with("TracerPid:") || line.ends_with("\t0"))
        };
        assert!(process::wait_until(LIMIT, free));
        sleep(Duration::from_millis(150));
        if fixture.manifests().len() > known {
            committed += 1;
        }
        if !process::is_running(holder.pid) {
            assert!(fixture.manifests().len() > known, "it is gone and there is no checkpoint of it");
            assert!(process::wait_gone(holder.pid, LIMIT));
            fs::remove_dir_all(&holder.data).unwrap();
            fixture.restore("app", "full");
        }
        holder.expect(whole, "True");
    }
    assert!(committed < STEPS, "no kill came before the commit");
    holder.leave(&fixture, &[]);
    fs::remove_dir_all(&holder.data).unwrap();
    fixture.restore("app", "lazy-storage");
    holder.expect(whole, "True");
}

#[test]
fn killing_the_agent_while_it_puts_files_back_loses_nothing() {
    let fixture = Fixture::local();
    let holder = Holder::start(&fixture);
    let data = &holder.data;
    holder.ask("files = [os.open(data + '/%d' % n, os.O_RDWR | os.O_CREAT) for n in range(100)]");
    holder.ask("[os.write(file, bytes([n]) * 500000) for n, file in enumerate(files)]");
    holder.leave(&fixture, &[]);
    let then = see_all(data);
    let later = |n: usize| format!("what file {n} became later");
    let mut killed = 0;
    for delay in (0..10).map(|step| Duration::from_millis(30 * step + 20)) {
        fs::remove_dir_all(data).unwrap();
        fs::create_dir(data).unwrap();
        (0..100).for_each(|n| fs::write(data.join(n.to_string()), later(n)).unwrap());
        let mut agent = fixture.agent(&["restore", "--app", "app", "--detach", "--strategy", "full"]);
        let mut agent = agent.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(delay);
        agent.kill().unwrap();
        let ended = agent.wait().unwrap();
        if ended.code() == Some(0) || process::is_running(holder.pid) {
            process::wait_until(Duration::from_millis(500), || process::is_running(holder.pid));
            if process::is_running(holder.pid) {
                holder.end();
            }
        }
        killed += u32::from(ended.code().is_none());
        process::wait_gone(holder.pid, LIMIT);
        // Every path has its old content or its new one, and the old one is there in any case.
        for n in 0..100 {
            let path = data.join(n.to_string());
            let content = fs::read(&path).unwrap();
            if content != later(n).as_bytes() {
                assert!(content == then[&path].content, "{n} is neither old nor new");
                let names = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
                let prefix = format!("{n}.before-");
                let mut old =
                    names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix));
                assert_eq!(fs::read(old.next().unwrap()).unwrap(), later(n).as_bytes());
            }
        }
    }
    assert!(killed > 0, "each restore was faster than the kill");
    fixture.restore("app", "full");
    holder.expect(
        "all(os.pread(file, 600000, 0) == bytes([n]) * 500000 for n, file in enumerate(files))",
        "True",
    );
    no_leftovers(data);
}
