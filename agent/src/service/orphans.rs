//! Children of this process that it did not start: trees that were restored into a container, and what they leave behind.
//!
//! A restored root becomes a child of the nearest subreaper above CRIU, and only its parent can learn how it ended. So once
//! a tree is restored for a launcher this process is a subreaper, and has to collect whatever is orphaned below it from
//! then on. The children it did start (CRIU, page servers, hooks) are collected by whoever started them, at once: one that has
//! ended and is still there after [`LEFT`] is nobody's.

use std::{
    collections::HashMap,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use migration_launch::ExitStatus;
use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::Pid,
};

use crate::{error::AgentError, supervise, tree};

/// A tree that comes back here needs the pids of what it left: this is shorter than a restore waits for them.
const LEFT: Duration = Duration::from_secs(1);

/// How often it is looked for what has ended.
const LOOK: Duration = Duration::from_millis(300);

/// Makes orphans below this process its children from now on, and collects them when they end. Said again, it changes nothing.
///
/// # Errors
/// When the kernel refuses, or a thread cannot be started.
pub fn adopt() -> Result<(), AgentError> {
    static ADOPTS: Mutex<bool> = Mutex::new(false);
    let mut adopts = ADOPTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*adopts {
        supervise::adopt_orphans()?;
        let collector = thread::Builder::new().name("orphans".to_owned()).spawn(collect);
        collector.map_err(AgentError::io("cannot start a thread"))?;
        *adopts = true;
    }
    Ok(())
}

/// Waits until `pid`, a child of this process, has ended.
///
/// # Errors
/// When it is none.
pub fn wait_for(pid: u32) -> Result<ExitStatus, AgentError> {
    loop {
        match waitpid(Pid::from_raw(pid as i32), None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(ExitStatus(code as u8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(ExitStatus(128 + signal as u8)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(AgentError::io(format!("cannot wait for pid {pid}"))(errno.into())),
        }
    }
}

fn collect() {
    let mut seen: HashMap<u32, Instant> = HashMap::new();
    loop {
        thread::sleep(LOOK);
        // Cheap, and most of the time there is nothing.
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if matches!(waitid(Id::All, look), Ok(WaitStatus::StillAlive) | Err(_)) {
            seen.clear();
            continue;
        }
        let ended: Vec<u32> = tree::all_pids()
            .filter(|&pid| tree::parent(pid) == Some(std::process::id()) && !tree::is_alive(pid))
            .collect();
        seen.retain(|pid, _| ended.contains(pid));
        for pid in ended {
            if seen.entry(pid).or_insert_with(Instant::now).elapsed() >= LEFT {
                let _ = waitpid(Pid::from_raw(pid as i32), Some(WaitPidFlag::WNOHANG));
            }
        }
    }
}
