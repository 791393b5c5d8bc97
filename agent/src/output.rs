//! The output of a restored tree, where it continues in a file.
//!
//! What takes the place of a pipe or terminal CRIU opens again, with the flags that this had. A file's new descriptions begin at its
//! beginning then, each on its own: output and errors would be written over each other, and over what is there. So they are made to
//! append, after they exist and before any task runs.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use lazy_pages::format::Task;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::error::AgentError;

/// Makes all that `tasks` write to those of `streams` that are files go to their ends.
///
/// # Errors
/// When a task's descriptors cannot be reached.
pub fn append(tasks: &[Task], streams: &[OwnedFd]) -> Result<(), AgentError> {
    let files = streams.iter().map(identity).collect::<io::Result<Vec<_>>>();
    let files = files.map_err(AgentError::io("cannot look at where the output goes"))?;
    let files: Vec<(u64, u64)> = files.into_iter().flatten().collect();
    if files.is_empty() {
        return Ok(());
    }
    for task in tasks.iter().filter(|task| !task.dead) {
        append_of(task.pid, &files)
            .map_err(AgentError::io(format!("cannot have the output of process {} appended", task.pid)))?;
    }
    Ok(())
}

/// Which file it is, if it is one.
fn identity(stream: &OwnedFd) -> io::Result<Option<(u64, u64)>> {
    let stat = fstat(stream)?;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    Ok(is_file.then_some((stat.st_dev, stat.st_ino)))
}

fn append_of(pid: u32, files: &[(u64, u64)]) -> io::Result<()> {
    let mut task = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // Not every kind of descriptor has something behind it that can be looked at.
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        if !files.contains(&(found.dev(), found.ino())) {
            continue;
        }
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if task.is_none() {
            let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::NotFound)?;
            task = Some(pidfd_open(pid, PidfdFlags::empty())?);
        }
        let Some(task) = &task else { continue };
        let theirs = pidfd_getfd(task, number, PidfdGetfdFlags::empty())?;
        fcntl_setfl(&theirs, fcntl_getfl(&theirs)? | OFlags::APPEND)?;
    }
    Ok(())
}
