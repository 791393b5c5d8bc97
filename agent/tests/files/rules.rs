//! Which files travel, which have to be the same, and what is refused.

use super::*;

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
