//! How a test talks to a workload: through files in a directory, because a process that is to be checkpointed must
//! have no connection to one that is not.
//!
//! Every task of a workload has a directory `CONTROL/<task>/`. A test puts a request there by renaming a file to
//! `request`; the task takes it away, does it, and renames its answer to `answer.<id>`. Ids are chosen by the test, so a
//! task that was set back to an earlier state by a restore needs to remember nothing. Files are open only while they are
//! read or written. `CONTROL/tasks` names the tasks once all of them are ready.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::region::Report;

/// Something a task is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the one who asks.
    pub id: u64,
    /// What to do: `check`, `ping` (nothing), or a name that the scenario knows.
    pub verb: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What was found, or why it could not be done.
    pub result: Result<Report, String>,
}

/// A task of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its directory's name.
    pub name: String,
    /// Its process id, as it sees it itself.
    pub pid: i32,
}

/// Name of the task that every workload has.
pub const MAIN_TASK: &str = "main";

/// File in the control directory that lists the tasks.
pub fn tasks_file(control: &Path) -> PathBuf {
    control.join("tasks")
}

/// File that announces that a task is ready.
pub fn ready_file(control: &Path, task: &str) -> PathBuf {
    control.join(task).join("ready")
}

/// Directory in which the main task leaves marks of where and when it ran, if it is there.
pub fn beats_directory(control: &Path) -> PathBuf {
    control.join("beats")
}

/// File with a request to a task.
pub fn request_file(control: &Path, task: &str) -> PathBuf {
    control.join(task).join("request")
}

/// File with the answer to a request.
pub fn answer_file(control: &Path, task: &str, id: u64) -> PathBuf {
    control.join(task).join(format!("answer.{id}"))
}

/// Writes a file as a whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut partial = path.to_path_buf();
    partial.as_mut_os_string().push(".partial");
    fs::write(&partial, serde_json::to_vec(value)?)?;
    fs::rename(&partial, path)
}

/// Reads a file, if it is there.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
