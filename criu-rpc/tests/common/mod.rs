//! Real processes to dump, and ways to look into them.

#![allow(dead_code)] // each test file uses a part

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    Criu, DumpOptions, ImageDir, PAGE_SIZE, PageObject, PageStream, PageStreamError, Record, Version,
    images::PagemapEntry,
};
use criu_sys::process::{Isolation, isolate};

/// `MIGRATION_CRIU`, else `criu` in PATH if it works here, else the private prefix.
pub fn criu() -> Criu {
    if std::env::var_os("MIGRATION_CRIU").is_none()
        && let Ok(criu) = Criu::locate(None)
        && criu.version().is_ok_and(|version| version >= Version::MINIMUM)
    {
        return criu;
    }
    let prefix = Path::new("/opt/criu/bin/criu");
    let explicit = std::env::var_os("MIGRATION_CRIU").is_none().then_some(prefix);
    Criu::locate(explicit).unwrap()
}

/// A program with memory whose every page is known, that counts while it runs.
///
/// It holds open the file `open` and, at descriptor 30, a pipe whose other end it holds as well.
const PROGRAM: &str = r#"
import ctypes, mmap, os, struct, sys, time
pages, ready, opened = int(sys.argv[1]), sys.argv[2], sys.argv[3]
held = open(opened, 'r+') if opened else None
def fill(area, seed):
    for page in range(pages):
        area[page * 4096:(page + 1) * 4096] = struct.pack('<Q', page << 8 | seed) * 512
def address(area):
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
private = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
fill(private, 1)
memfd = os.memfd_create('shared')
os.ftruncate(memfd, pages * 4096)
shared = mmap.mmap(memfd, pages * 4096)
fill(shared, 2)
counter = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
text = f'{address(private)} {address(shared)} {address(counter)}'
with open(ready + '.new', 'w') as out: out.write(text)
os.rename(ready + '.new', ready)
count = 0
while True:
    count += 1
    counter[0:8] = struct.pack('<Q', count)
    time.sleep(0.005)
"#;

/// A running workload, killed at the end of the test under whatever parent it then has.
pub struct Workload {
    child: Option<Child>,
    pub pid: u32,
    pub pages: u64,
    pub private: u64,
    pub shared: u64,
    counter: u64,
}

impl Workload {
    /// Starts one in a session of its own, with standard input and output on `/dev/null`; `scratch` is a directory.
    pub fn start(pages: u64, scratch: &Path, open: Option<&Path>) -> Self {
        // Without restartable sequences, in whose area the kernel notes the CPU whenever the process is stopped.
        Self::start_tuned(pages, scratch, open, "glibc.pthread.rseq=0")
    }

    /// Starts one with restartable sequences: a restore touches their area before it has finished.
    pub fn start_with_rseq(pages: u64, scratch: &Path) -> Self {
        Self::start_tuned(pages, scratch, None, "glibc.pthread.rseq=1")
    }

    fn start_tuned(pages: u64, scratch: &Path, open: Option<&Path>, tunables: &str) -> Self {
        let ready = scratch.join("ready");
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-S", "-c", PROGRAM, &pages.to_string()])
            .arg(&ready)
            .arg(open.unwrap_or(Path::new("")));
        command.env_clear().env("GLIBC_TUNABLES", tunables).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut isolation = Isolation::new();
        isolation.new_session();
        isolate(&mut command, isolation);
        let child = command.spawn().unwrap();
        let pid = child.id();
        let mut workload = Self { child: Some(child), pid, pages, private: 0, shared: 0, counter: 0 };
        wait_until("the workload is ready", || ready.exists());
        let text = fs::read_to_string(&ready).unwrap();
        let mut addresses = text.split(' ').map(|address| address.parse().unwrap());
        workload.private = addresses.next().unwrap();
        workload.shared = addresses.next().unwrap();
        workload.counter = addresses.next().unwrap();
        fs::remove_file(ready).unwrap();
        workload
    }

    pub fn count(&self) -> u64 {
        let mut count = [0; 8];
        read_memory(self.pid, self.counter, &mut count);
        u64::from_le_bytes(count)
    }

    /// It runs: its counter moves, and its memory holds what it should.
    pub fn assert_runs(&self) {
        let before = self.count();
        wait_until("the workload counts", || self.count() > before);
        assert!(!state(self.pid).contains('T'), "{}", state(self.pid));
        self.assert_memory();
    }

    pub fn assert_memory(&self) {
        let mut page = [0; PAGE_SIZE];
        for (start, seed) in [(self.private, 1), (self.shared, 2)] {
            for number in 0..self.pages {
                read_memory(self.pid, start + number * PAGE_SIZE as u64, &mut page);
                assert_eq!(page, pattern(number, seed), "page {number} of area {seed}");
            }
        }
    }

    /// After a dump that killed it: reaps it, so that its id is free.
    pub fn reap(&mut self) {
        let status = self.child.take().unwrap().wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    pub fn kill(&mut self) {
        match self.child.take() {
            Some(mut child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            // Restored as a child of this process.
            None => kill_and_reap(self.pid),
        }
    }

    pub fn maps(&self) -> String {
        fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if Path::new(&format!("/proc/{}", self.pid)).exists() {
            self.kill();
        }
    }
}

/// What the workload wrote into a page.
pub fn pattern(page: u64, seed: u64) -> [u8; PAGE_SIZE] {
    let word = (page << 8 | seed).to_le_bytes();
    std::array::from_fn(|at| word[at % 8])
}

pub fn kill_and_reap(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(pid, None);
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}

pub fn state(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: gone").to_owned()
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn read_memory(pid: u32, address: u64, buffer: &mut [u8]) {
    File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(buffer, address).unwrap();
}

/// All private memory of a process, page by page, as `/proc` shows it.
pub fn private_memory(pid: u32) -> BTreeMap<u64, Vec<u8>> {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut pages = BTreeMap::new();
    for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let name = fields.get(5).copied().unwrap_or_default();
        // The vdso is sent; the kernel's data pages beside it are not.
        if !fields[1].ends_with('p') || name.starts_with("[vvar") || name == "[vsyscall]" {
            continue;
        }
        for address in (start..end).step_by(PAGE_SIZE) {
            let mut page = vec![0; PAGE_SIZE];
            if memory.read_exact_at(&mut page, address).is_ok() {
                pages.insert(address, page);
            }
        }
    }
    pages
}

/// The pages of every object a dump sent, and whether they were lazy.
pub type Received = BTreeMap<PageObject, BTreeMap<u64, (Vec<u8>, bool)>>;

/// Reads a page stream up to its close record.
pub fn receive<S: Read + Write>(stream: &mut PageStream<S>) -> Result<Received, PageStreamError> {
    let mut received = Received::new();
    let mut object = None;
    loop {
        match stream.next()? {
            Record::Open(opened) => {
                object = Some(opened);
                received.entry(opened).or_default();
            }
            Record::Pages { vaddr, pages, lazy } => {
                let mut bytes = vec![0; pages as usize * PAGE_SIZE];
                // In two pieces, as a caller may.
                let (first, second) = bytes.split_at_mut(pages as usize / 2 * PAGE_SIZE);
                stream.read_pages(first)?;
                stream.read_pages(second)?;
                let object = received.get_mut(&object.unwrap()).unwrap();
                for (number, page) in bytes.chunks(PAGE_SIZE).enumerate() {
                    object.insert(vaddr + (number * PAGE_SIZE) as u64, (page.to_vec(), lazy));
                }
            }
            Record::Close => return Ok(received),
            Record::End => panic!("end before close"),
        }
    }
}

/// Receives on a thread of its own and answers with `status`. The socket is for CRIU.
pub fn page_server(
    version: Version,
    status: i32,
) -> (UnixStream, thread::JoinHandle<Result<Received, PageStreamError>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let receiver = thread::spawn(move || {
        let mut stream = PageStream::new(ours, version);
        let received = receive(&mut stream)?;
        stream.finish(status)?;
        assert_eq!(stream.next()?, Record::End);
        Ok(received)
    });
    (theirs, receiver)
}

pub fn directory(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir(&path).unwrap();
    path
}

/// Processes whose command line has `text` in it.
pub fn processes_with(text: &str) -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && String::from_utf8_lossy(&command).contains(text)
    })
    .collect()
}

/// Dumps a workload through a page stream into `images`, killing it, and writes what arrived as image files.
pub fn dump_into(criu: &Criu, workload: &mut Workload, images: &Path) {
    let (socket, receiver) = page_server(criu.version().unwrap(), 0);
    criu.dump(DumpOptions::new(workload.pid, images).page_server(socket), &mut |_| Ok(())).unwrap();
    workload.reap();
    write_memory(&ImageDir::open(images).unwrap(), &receiver.join().unwrap().unwrap());
}

/// Writes pagemap and pages files, a run for each stretch of pages.
pub fn write_memory(images: &ImageDir, received: &Received) {
    for (number, (object, pages)) in received.iter().enumerate() {
        let pages_id = number as u32 + 1;
        let mut runs: Vec<PagemapEntry> = Vec::new();
        let mut file = images.create_pages(pages_id).unwrap();
        for (&vaddr, (page, lazy)) in pages {
            file.write_all(page).unwrap();
            match runs.last_mut() {
                Some(run) if run.lazy == *lazy && run.vaddr + run.pages * PAGE_SIZE as u64 == vaddr => {
                    run.pages += 1;
                }
                _ => runs.push(PagemapEntry { vaddr, pages: 1, lazy: *lazy, present: true }),
            }
        }
        images.write_pagemap(*object, pages_id, &runs).unwrap();
        assert_eq!(images.read_pagemap(*object).unwrap(), (pages_id, runs));
    }
}
