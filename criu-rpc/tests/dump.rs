//! Dumps of real processes: what is sent is what was there, and whatever fails leaves the process running.

mod common;

use std::{
    fs,
    os::unix::{fs::FileExt, net::UnixStream, process::CommandExt},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::{Workload, criu, directory, page_server, private_memory, receive, signal, wait_until};
use criu_rpc::{
    Cause, CriuError, DumpOptions, ImageDir, Notification, PageObject, PageStream, PageStreamError, Record,
    images::DescriptorKind,
};
use criu_sys::process::{Isolation, isolate};
use nix::sys::signal::Signal;

#[test]
fn every_page_that_arrives_is_what_the_process_held() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    let mut workload = Workload::start(3000, scratch.path(), None);
    // So that nothing changes between looking and dumping.
    signal(workload.pid, Signal::SIGSTOP);
    wait_until("it is stopped", || common::state(workload.pid).contains('T'));
    let held = private_memory(workload.pid);

    let (socket, receiver) = page_server(criu.version().unwrap(), 0);
    let mut seen = Vec::new();
    let options = DumpOptions::new(workload.pid, &images).page_server(socket);
    criu.dump(options, &mut |notification| {
        seen.push(notification.clone());
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, [Notification::PreDump, Notification::QueryExternalFiles, Notification::PostDump]);
    workload.reap();
    let received = receiver.join().unwrap().unwrap();

    let task = &received[&PageObject::Task(workload.pid)];
    for (address, (page, _)) in task {
        assert_eq!(held.get(address), Some(page), "page {address:#x} differs");
    }
    let image_dir = ImageDir::open(&images).unwrap();
    let vmas = image_dir.mm(workload.pid).unwrap().vmas;
    for (address, page) in &held {
        let vma = vmas.iter().find(|vma| vma.range().contains(address)).unwrap();
        match task.get(address) {
            Some((_, lazy)) => assert_eq!(*lazy, vma.is_lazy(), "page {address:#x}"),
            // Pages of files that were never written to are still in the files.
            None if vma.is_lazy() => assert!(page.iter().all(|&byte| byte == 0), "page {address:#x} is lost"),
            None => {}
        }
    }
    for number in 0..workload.pages {
        let address = workload.private + number * 4096;
        assert_eq!(task[&address].0, common::pattern(number, 1));
    }
    // The memfd is an object of its own.
    let shared: Vec<_> =
        received.iter().filter(|(object, _)| matches!(object, PageObject::Shared(_))).collect();
    assert_eq!(shared.len(), 1);
    assert_eq!(shared[0].1.len() as u64, workload.pages);
    for (offset, (page, lazy)) in shared[0].1 {
        assert_eq!(page[..], common::pattern(offset / 4096, 2));
        assert!(!lazy);
    }
    assert!(!images.join(format!("pagemap-{}.img", workload.pid)).exists(), "no page touched a file");
    let statistics = image_dir.dump_statistics().unwrap();
    assert!(statistics.pages_written as usize >= task.len(), "{statistics:?}");
}

#[test]
fn no_page_is_looked_at_before_its_object_is_answered() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    let workload = Workload::start(10, scratch.path(), None);
    let pid = workload.pid;
    // The end of the heap: memory the process has never touched, and CRIU comes to early. A page for each of two openings.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let heap = maps.lines().find(|line| line.ends_with("[heap]")).unwrap();
    let end = heap.split(['-', ' ']).nth(1).unwrap();
    let untouched = u64::from_str_radix(end, 16).unwrap() - 2 * 4096;
    let mut entries = [0; 16];
    let pagemap = fs::File::open(format!("/proc/{pid}/pagemap")).unwrap();
    pagemap.read_exact_at(&mut entries, untouched / 4096 * 8).unwrap();
    for entry in entries.as_chunks::<8>().0 {
        assert_eq!(u64::from_ne_bytes(*entry) >> 62, 0, "it is neither present nor swapped");
    }

    let (ours, theirs) = UnixStream::pair().unwrap();
    let version = criu.version().unwrap();
    let receiver = thread::spawn(move || {
        let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).unwrap();
        let mut stream = PageStream::new(ours, version);
        let (mut opened, mut seen) = (Vec::new(), Vec::new());
        loop {
            match stream.next().unwrap() {
                Record::Open(object) => {
                    // Longer than CRIU takes to look through so little memory.
                    thread::sleep(Duration::from_millis(300));
                    assert!(common::state(pid).contains('t'), "it is held");
                    let address = untouched + opened.len() as u64 * 4096;
                    memory.write_all_at(&[0xA5; 4096], address).unwrap();
                    opened.push(object);
                }
                Record::Pages { vaddr, pages, .. } => {
                    let mut bytes = vec![0; pages as usize * 4096];
                    stream.read_pages(&mut bytes).unwrap();
                    let made = (vaddr..).step_by(4096).zip(bytes.chunks(4096));
                    seen.extend(made.filter(|(_, page)| *page == [0xA5; 4096]).map(|(address, _)| address));
                }
                Record::Close => break,
                Record::End => panic!("end before close"),
            }
        }
        stream.finish(0).unwrap();
        (opened, seen)
    });
    let options = DumpOptions::new(pid, &images).leave_running(true).page_server(theirs);
    criu.dump(options, &mut |_| Ok(())).unwrap();
    let (opened, seen) = receiver.join().unwrap();
    // The memfd comes first, so the page made then shows that no private page was looked at even before.
    assert!(matches!(opened[..], [PageObject::Shared(_), PageObject::Task(_)]), "{opened:?}");
    assert_eq!(seen, [untouched, untouched + 4096]);
    workload.assert_runs();
}

#[test]
fn the_images_beside_the_memory_tell_what_the_process_is() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let file = scratch.path().join("data file");
    fs::write(&file, "12345").unwrap();
    let criu = criu();
    let workload = Workload::start(10, scratch.path(), Some(&file));
    let (socket, receiver) = page_server(criu.version().unwrap(), 0);
    let options = DumpOptions::new(workload.pid, &images).leave_running(true).page_server(socket);
    criu.dump(options, &mut |_| Ok(())).unwrap();
    receiver.join().unwrap().unwrap();
    workload.assert_runs();

    let images = ImageDir::open(&images).unwrap();
    assert_eq!(images.inventory().unwrap().image_version, 2);
    let tasks = images.tasks().unwrap();
    assert_eq!(tasks.len(), 1);
    assert_eq!((tasks[0].pid, tasks[0].parent, tasks[0].dead), (workload.pid, None, false));
    assert_eq!(tasks[0].threads, [workload.pid]);
    assert_eq!(tasks[0].session, workload.pid);
    assert_eq!(tasks[0].command, "python3");

    let mm = images.mm(workload.pid).unwrap();
    let area = |address: u64| mm.vmas.iter().find(|vma| vma.range().contains(&address)).unwrap();
    assert!(area(workload.private).is_lazy());
    assert!(!area(workload.shared).is_lazy());
    let files = images.regular_files().unwrap();
    let executable = files.iter().find(|file| file.id == mm.executable).unwrap();
    assert!(executable.path.to_str().unwrap().contains("python3"), "{executable:?}");

    let descriptors = images.descriptors(workload.pid).unwrap();
    let data = files.iter().find(|entry| entry.path == file).unwrap();
    assert_eq!(data.size, Some(5));
    assert!(data.is_writable());
    assert!(descriptors.iter().any(|entry| entry.file == data.id && entry.kind == DescriptorKind::Regular));
    let stdin = descriptors.iter().find(|entry| entry.fd == 0).unwrap();
    assert_eq!(files.iter().find(|file| file.id == stdin.file).unwrap().path.to_str(), Some("/dev/null"));
    assert_eq!(images.pipes().unwrap(), []);
}

#[test]
fn a_tree_with_a_thread_a_child_and_a_zombie_is_listed() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let ready = scratch.path().join("ready");
    let program = "import os, sys, threading, time\n\
                   if (child := os.fork()) == 0: time.sleep(1000)\n\
                   if (zombie := os.fork()) == 0: os._exit(0)\n\
                   os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)\n\
                   threading.Thread(target=lambda: time.sleep(1000)).start()\n\
                   with open(sys.argv[1] + '.new', 'w') as out: out.write(f'{child} {zombie}')\n\
                   os.rename(sys.argv[1] + '.new', sys.argv[1])\n\
                   time.sleep(1000)";
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-S", "-c", program]).arg(&ready);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut isolation = Isolation::new();
    isolation.new_session();
    isolate(&mut command, isolation);
    let mut root = command.spawn().unwrap();
    wait_until("the tree is ready", || ready.exists());
    let text = fs::read_to_string(&ready).unwrap();
    let (child, zombie) = text.split_once(' ').unwrap();
    let (child, zombie): (u32, u32) = (child.parse().unwrap(), zombie.parse().unwrap());

    let criu = criu();
    let (socket, receiver) = page_server(criu.version().unwrap(), 0);
    criu.dump(DumpOptions::new(root.id(), &images).page_server(socket), &mut |_| Ok(())).unwrap();
    root.wait().unwrap();
    let received = receiver.join().unwrap().unwrap();

    let images = ImageDir::open(&images).unwrap();
    let tasks = images.tasks().unwrap();
    assert_eq!(tasks.len(), 3);
    assert_eq!((tasks[0].pid, tasks[0].parent, tasks[0].threads.len()), (root.id(), None, 2));
    let find = |pid| tasks.iter().find(|task| task.pid == pid).unwrap();
    assert_eq!((find(child).parent, find(child).dead), (Some(root.id()), false));
    assert_eq!(find(child).threads, [child]);
    assert_eq!((find(zombie).parent, find(zombie).dead), (Some(root.id()), true));
    assert_eq!(find(zombie).threads, []);
    // Memory comes for the living only.
    let objects: Vec<PageObject> = received.keys().copied().collect();
    assert_eq!(objects, [PageObject::Task(root.id()), PageObject::Task(child)]);
    assert!(images.mm(zombie).is_err());
}

#[test]
fn a_request_larger_than_the_kernels_default_arrives() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let many =
        (0..10_000).map(|number| format!("mnt[/somewhere/rather/deep/in/the/tree/{number}]:key{number}"));
    let options = many.fold(DumpOptions::new(child.id(), scratch.path()), DumpOptions::external);
    let error = criu().dump(options, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::NoSuchProcess { pid: child.id() }), "{error:?}");
}

#[test]
fn a_status_other_than_zero_leaves_the_process_running() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    let workload = Workload::start(100, scratch.path(), None);
    let maps = workload.maps();
    let (socket, receiver) = page_server(criu.version().unwrap(), -5);
    let options = DumpOptions::new(workload.pid, &images).page_server(socket);
    let error = criu.dump(options, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, CriuError::Refused(_)), "{error:?}");
    receiver.join().unwrap().unwrap();
    workload.assert_runs();
    assert_eq!(workload.maps(), maps);
}

#[test]
fn a_handler_that_fails_in_post_dump_is_the_cause_and_the_process_runs_on() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    let workload = Workload::start(100, scratch.path(), None);
    let maps = workload.maps();
    let (socket, receiver) = page_server(criu.version().unwrap(), 0);
    let options = DumpOptions::new(workload.pid, &images).page_server(socket);
    let error = criu
        .dump(options, &mut |notification| match notification {
            Notification::PostDump => Err("the store is full".into()),
            _ => Ok(()),
        })
        .unwrap_err();
    match error {
        CriuError::Handler(source) => assert_eq!(source.to_string(), "the store is full"),
        other => panic!("{other:?}"),
    }
    receiver.join().unwrap().unwrap();
    workload.assert_runs();
    assert_eq!(workload.maps(), maps);
}

#[test]
fn a_handler_that_panics_leaves_the_process_running() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let workload = Workload::start(100, scratch.path(), None);
    let maps = workload.maps();
    let pid = workload.pid;
    let dump = thread::spawn(move || {
        criu().dump(DumpOptions::new(pid, &images), &mut |notification| {
            assert_ne!(*notification, Notification::PostDump, "on purpose");
            Ok(())
        })
    });
    assert!(dump.join().is_err());
    workload.assert_runs();
    assert_eq!(workload.maps(), maps);
}

#[test]
fn a_page_server_that_goes_away_leaves_the_process_running() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    let workload = Workload::start(2000, scratch.path(), None);
    let maps = workload.maps();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let version = criu.version().unwrap();
    let receiver = thread::spawn(move || {
        let mut stream = PageStream::new(ours, version);
        // The first object, and a part of its pages.
        stream.next().unwrap();
        stream.next().unwrap();
        stream.read_pages(&mut [0; 4096]).unwrap();
    });
    let error =
        criu.dump(DumpOptions::new(workload.pid, &images).page_server(theirs), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, CriuError::Refused(_)), "{error:?}");
    receiver.join().unwrap();
    workload.assert_runs();
    assert_eq!(workload.maps(), maps);
}

#[test]
fn a_page_server_that_never_reads_meets_the_deadline() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    criu.version().unwrap();
    let workload = Workload::start(2000, scratch.path(), None);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let options =
        DumpOptions::new(workload.pid, &images).page_server(theirs).deadline(Duration::from_secs(1));
    let started = Instant::now();
    let error = criu.dump(options, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, CriuError::Deadline { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
    drop(ours);
    workload.assert_runs();
}

#[test]
fn time_spent_in_the_handler_does_not_count() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let workload = Workload::start(10, scratch.path(), None);
    let options =
        DumpOptions::new(workload.pid, &images).leave_running(true).deadline(Duration::from_secs(3));
    let frozen = Arc::new(Mutex::new(0));
    criu()
        .dump(options, &mut |notification| {
            if *notification == Notification::PostDump {
                *frozen.lock().unwrap() = workload.count();
                thread::sleep(Duration::from_secs(4));
                assert_eq!(workload.count(), *frozen.lock().unwrap(), "it is frozen meanwhile");
            }
            Ok(())
        })
        .unwrap();
    workload.assert_runs();
}

#[test]
fn a_process_that_does_not_exist_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let error = criu().dump(DumpOptions::new(child.id(), scratch.path()), &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::NoSuchProcess { pid: child.id() }), "{error:?}");
    assert!(error.hint().is_some());
}

#[test]
fn an_image_directory_that_does_not_exist_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let workload = Workload::start(1, scratch.path(), None);
    let missing = scratch.path().join("missing");
    let error = criu().dump(DumpOptions::new(workload.pid, &missing), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error.cause(), Some(Cause::ImageDirectory { .. })), "{error:?}");
    workload.assert_runs();
}

#[test]
fn a_process_in_a_foreign_session_is_refused_with_a_hint() {
    let scratch = tempfile::tempdir().unwrap();
    // Shares the session of this test.
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let error = criu().dump(DumpOptions::new(child.id(), scratch.path()), &mut |_| Ok(())).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    let cause = error.cause();
    assert!(matches!(cause, Some(Cause::SessionOutside { .. } | Cause::Terminal { .. })), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("setsid")));
}

#[test]
fn a_process_of_another_user_is_dumped_or_the_missing_capability_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = Command::new("sleep");
    command.arg("1000").uid(65_534).gid(65_534);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut isolation = Isolation::new();
    isolation.new_session();
    isolate(&mut command, isolation);
    let mut child = command.spawn().unwrap();
    let options = DumpOptions::new(child.id(), scratch.path()).leave_running(true);
    let result = criu().dump(options, &mut |_| Ok(()));
    child.kill().unwrap();
    child.wait().unwrap();
    if let Err(error) = result {
        assert_eq!(error.cause(), Some(&Cause::ResourceLimits), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("CAP_SYS_RESOURCE")));
    }
}

#[test]
fn a_stream_read_with_the_layout_of_another_version_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    let wrong = match criu.version().unwrap() {
        version if version >= criu_rpc::Version::WIDE_PAGE_COUNTS => criu_rpc::Version::MINIMUM,
        _ => criu_rpc::Version::WIDE_PAGE_COUNTS,
    };
    let workload = Workload::start(10, scratch.path(), None);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let receiver = thread::spawn(move || receive(&mut PageStream::new(ours, wrong)).map(drop));
    criu.dump(DumpOptions::new(workload.pid, &images).page_server(theirs), &mut |_| Ok(())).unwrap_err();
    let error = receiver.join().unwrap().unwrap_err();
    assert!(!matches!(error, PageStreamError::Io(_)), "{error:?}");
    workload.assert_runs();
}

#[test]
fn memory_that_stays_is_all_there_in_the_stopped_tree_and_the_tree_can_go_on() {
    let scratch = tempfile::tempdir().unwrap();
    let images = directory(scratch.path(), "images");
    let criu = criu();
    let workload = Workload::start(3000, scratch.path(), None);
    signal(workload.pid, Signal::SIGSTOP);
    wait_until("it is stopped", || common::state(workload.pid).contains('T'));
    let held = private_memory(workload.pid);
    signal(workload.pid, Signal::SIGCONT);
    wait_until("it runs", || !common::state(workload.pid).contains('T'));

    criu.dump(DumpOptions::new(workload.pid, &images).memory_stays(), &mut |_| Ok(())).unwrap();
    assert!(common::state(workload.pid).contains('T'), "{}", common::state(workload.pid));
    let status = fs::read_to_string(format!("/proc/{}/status", workload.pid)).unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "nobody is attached any more");

    let now = private_memory(workload.pid);
    let directory = ImageDir::open(&images).unwrap();
    let vmas = directory.mm(workload.pid).unwrap().vmas;
    let lazy = |address: &u64| vmas.iter().any(|vma| vma.is_lazy() && vma.range().contains(address));
    for number in 0..workload.pages {
        let address = workload.private + number * 4096;
        assert!(lazy(&address));
        assert_eq!(now[&address], held[&address]);
        assert_eq!(now[&address], common::pattern(number, 1));
    }
    // Of the pages only those a restore cannot do without are in images: shared memory, and areas that cannot be lazy.
    let pages: u64 = fs::read_dir(&images)
        .unwrap()
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().starts_with("pages-"))
        .map(|file| file.metadata().unwrap().len() / 4096)
        .sum();
    assert!((workload.pages..2 * workload.pages).contains(&pages), "{pages} pages in images");

    signal(workload.pid, Signal::SIGCONT);
    wait_until("it runs again", || !common::state(workload.pid).contains('T'));
}
