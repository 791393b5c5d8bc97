//! Files that belong to memory, moved with real processes: what a process has open for writing, or what is listed, is as
//! it was when the process was frozen, to the byte and with all attributes. And what was there instead is not lost.

#[path = "../common/mod.rs"]
mod common;
mod holder;
mod killed;
mod rules;

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
use holder::*;
use migration_harness::{process, sys::in_own_session};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

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
