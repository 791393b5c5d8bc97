//! Looking at processes through /proc, and ending those a test has started.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How often a condition is looked at while waiting for it.
pub const POLL: Duration = Duration::from_millis(2);

/// Waits until `condition` holds, and says whether it did within the time limit.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// The state letter of a process (`R`, `S`, `T`, `t`, `Z`, …), if there is one with this id.
pub fn state(pid: i32) -> Option<char> {
    stat_fields(pid)?.first()?.chars().next()
}

/// Whether there is such a process and it has not ended (a zombie has).
pub fn is_running(pid: i32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// The signal that ended a process nobody has collected yet.
pub fn ended_by(pid: i32) -> Option<i32> {
    let fields = stat_fields(pid).filter(|fields| fields.first().is_some_and(|state| state == "Z"))?;
    // The wait status is field 52 of the file, and the state field 3.
    let status: i32 = fields.get(49)?.parse().ok()?;
    Some(status & 0x7f).filter(|signal| *signal != 0)
}

/// The fields of `/proc/PID/stat` after the name, which may itself hold blanks and parentheses.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// The id a process has in its own pid namespace.
pub fn innermost_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().last()?.parse().ok()
}

/// Ids of all processes there are.
pub fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let is_child = |child: &i32| stat_fields(*child).is_some_and(|f| f.get(1) == Some(&pid.to_string()));
    all().into_iter().filter(is_child).collect()
}

/// A process and all its descendants, parents before children.
pub fn tree(root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

/// The arguments of a process.
pub fn arguments(pid: i32) -> Vec<Vec<u8>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

/// The name of a process as the kernel has it (at most 15 bytes).
pub fn name(pid: i32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// A line of `/proc/PID/status` that is an amount of memory, in bytes: `VmRSS`, `VmHWM`, `VmSize`, …
pub fn memory(pid: i32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Whether any memory of the process waits for a page server: a mapping registered with userfaultfd for missing pages
/// (flag `um` in smaps).
///
/// # Errors
/// When the process is gone.
pub fn is_lazy(pid: i32) -> io::Result<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut flags = text.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    Ok(flags.any(|flags| flags.split_whitespace().any(|flag| flag == "um")))
}

/// Waits until no memory of the process waits for a page server any more.
///
/// # Errors
/// `TimedOut`, or when the process is gone.
pub fn wait_resident(pid: i32, limit: Duration) -> io::Result<()> {
    let mut outcome = Ok(true);
    let done = wait_until(limit, || {
        outcome = is_lazy(pid);
        !matches!(outcome, Ok(true))
    });
    outcome?;
    if done {
        Ok(())
    } else {
        Err(io::Error::new(
            ErrorKind::TimedOut,
            format!("process {pid} still waits for pages after {limit:?}"),
        ))
    }
}

/// Waits until a process has ended (a zombie has), and says whether it did within the time limit.
pub fn wait_ended(pid: i32, limit: Duration) -> bool {
    wait_until(limit, || !is_running(pid))
}

/// Waits until a process id is free again, reaping it if it is a child of this process, and says whether it is.
pub fn wait_gone(pid: i32, limit: Duration) -> bool {
    wait_until(limit, || {
        reap(pid);
        state(pid).is_none()
    })
}

/// Takes the exit status of a child that has ended; for any other process nothing happens.
pub fn reap(pid: i32) {
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// Ends a process now. That it does not exist (any more) is no error.
///
/// # Errors
/// When this process may not.
pub fn end(pid: i32) -> io::Result<()> {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends every process that `mine` picks, again and again until none is left: they may be forking meanwhile. Gives up
/// after some seconds, because it is called from `drop`.
pub fn end_all(mine: impl Fn(i32) -> bool) {
    wait_until(Duration::from_secs(5), || {
        let left: Vec<i32> = all().into_iter().filter(|&pid| mine(pid)).collect();
        for &pid in &left {
            let _ = end(pid);
            reap(pid);
        }
        !left.into_iter().any(is_running)
    });
}

/// Makes orphaned descendants children of this process, so that it can reap restored processes itself. Needed before a
/// restore that must find its process ids free again at once.
///
/// # Errors
/// When the kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    Ok(())
}

/// A program of this workspace, next to the one that runs: `target/debug/NAME` for a test in `target/debug/deps/`.
///
/// # Errors
/// `NotFound` with the command that builds it.
pub fn program(name: &str) -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| is_file(path));
    beside.ok_or_else(|| {
        let text =
            format!("program {name} is not built beside {}: cargo build --workspace --bins", own.display());
        io::Error::new(ErrorKind::NotFound, text)
    })
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// A TCP port on loopback that is free now, and that nobody gets by chance: neither a connection, whose ports the kernel chooses from
/// 32768 on, nor another caller in this process.
///
/// # Errors
/// When there is none.
pub fn free_port() -> io::Result<u16> {
    const PORTS: Range<u16> = 10_000..20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let length = u32::from(PORTS.end - PORTS.start);
    let mut tried = (0..length).map(|_| {
        let at = std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        PORTS.start + (at % length) as u16
    });
    tried.find(free).ok_or_else(|| ErrorKind::AddrInUse.into())
}
