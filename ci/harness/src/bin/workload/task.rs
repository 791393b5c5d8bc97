//! A task's side of the control directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migration_harness::control::{
    Answer, MAIN_TASK, Request, Task, answer_file, beats_directory, read, ready_file, request_file,
    tasks_file, write,
};
use migration_harness::process::wait_until;
use migration_harness::region::Report;

/// What a scenario makes of a request; the error is a refusal that the test gets to see.
pub type Outcome = Result<Report, String>;

/// How long a task sleeps when nobody asks for anything.
const IDLE: Duration = Duration::from_millis(2);
/// After so many idle rounds a task looks whether its control directory is still there.
const ROUNDS_BETWEEN_LOOKS: u32 = 500;

/// The control directory.
pub struct Control {
    directory: PathBuf,
}

impl Control {
    pub fn new(directory: PathBuf) -> Self {
        Control { directory }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves a text behind for the test that finds the process gone.
    pub fn last_words(&self, text: &str) {
        let _ = std::fs::write(self.directory.join("panic"), text);
    }

    /// Lets a panic leave its message behind: standard error is usually /dev/null.
    pub fn tell_on_panic(&self) {
        let file = self.directory.join("panic");
        std::panic::set_hook(Box::new(move |info| {
            let _ = std::fs::write(&file, info.to_string());
        }));
    }

    /// Announces that a task other than the main one is ready.
    pub fn ready(&self, task: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.directory.join(task))?;
        write(&ready_file(&self.directory, task), &self.task(task))
    }

    /// Waits for the other tasks and announces that all are ready; called by the main task.
    pub fn all_ready(&self, others: &[&str]) -> io::Result<()> {
        let mut tasks = vec![self.task(MAIN_TASK)];
        for name in others {
            let file = ready_file(&self.directory, name);
            let mut found = None;
            wait_until(Duration::from_secs(600), || {
                found = read(&file).ok().flatten();
                found.is_some()
            });
            tasks.push(found.ok_or_else(|| io::Error::other(format!("task {name} does not get ready")))?);
        }
        write(&tasks_file(&self.directory), &tasks)
    }

    fn task(&self, name: &str) -> Task {
        Task { name: name.into(), pid: std::process::id() as i32 }
    }

    /// Answers requests to a task until the control directory is gone.
    pub fn serve(&self, task: &str, duty: &mut impl Duty) -> io::Result<()> {
        let request = request_file(&self.directory, task);
        let mut rounds = 0_u32;
        loop {
            match read::<Request>(&request)? {
                Some(Request { id, verb }) => {
                    // Taken away first: the next request may come as soon as the answer is there.
                    std::fs::remove_file(&request)?;
                    let result = if verb == "ping" { Ok(Report::default()) } else { duty.request(&verb) };
                    write(&answer_file(&self.directory, task, id), &Answer { result })?;
                }
                None => {
                    duty.idle();
                    self.beat();
                    std::thread::sleep(IDLE);
                }
            }
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(ROUNDS_BETWEEN_LOOKS) && !self.directory.exists() {
                return Ok(());
            }
        }
    }
}

impl Control {
    /// Leaves a mark of where and when this ran, if somebody wants to know. A directory, so that no file is open for it.
    fn beat(&self) {
        let beats = beats_directory(&self.directory);
        if let (true, Ok(place)) = (beats.exists(), std::fs::read_link("/proc/self/ns/pid")) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            let _ = std::fs::create_dir(beats.join(format!("{now:020} {}", place.display())));
        }
    }
}

/// What a task does.
pub trait Duty {
    /// Does what it is asked: `check` compares all its memory, other words are the scenario's.
    fn request(&mut self, verb: &str) -> Outcome;

    /// Does something between two requests. What it finds is reported at the next `check`.
    fn idle(&mut self) {}
}

/// The answer to a word a scenario does not know.
pub fn unknown(verb: &str) -> Outcome {
    Err(format!("unknown request {verb:?}"))
}

/// The answer when a system call failed.
pub fn failed(what: &str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}
