//! The agent dies while it reads files, or puts them back.

use super::*;

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
