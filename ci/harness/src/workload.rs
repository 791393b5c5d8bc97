//! Starting the `workload` program and asking it about its memory.
//!
//! A [`Workload`] may be checkpointed, killed and restored by whoever owns the test; as long as the restored processes
//! have their old ids and see the same control directory, the same value goes on speaking to them. Every question has
//! a time limit. Dropping the value ends every process of the workload, restored ones included.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, io};

use tempfile::TempDir;

use crate::control::{self, Answer, MAIN_TASK, Request, Task};
use crate::process;
pub use crate::region::Report;
use crate::sys::in_own_session;

/// Why a workload did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Files or processes.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// It did not answer.
    #[error("{what}: no answer within {limit:?}")]
    TimedOut {
        /// What was being waited for.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// It ended.
    #[error("{what}: the process has ended{said}")]
    Ended {
        /// What was being waited for.
        what: String,
        /// What it said last, if it said something.
        said: String,
    },
    /// It answered that it cannot.
    #[error("{what}: {why}")]
    Refused {
        /// What it was asked.
        what: String,
        /// Its answer.
        why: String,
    },
}

impl WorkloadError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| WorkloadError::Io { what, source }
    }
}

/// A workload about to be started.
pub struct Builder {
    arguments: Vec<OsString>,
    prefix: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    stdout: Stdio,
    stderr: Stdio,
    limit: Duration,
}

/// A running workload.
pub struct Workload {
    control: TempDir,
    tasks: Vec<Task>,
    /// Of the tasks, in their own pid namespace.
    ids: Vec<i32>,
    front: Option<Child>,
    limit: Duration,
}

/// A question left for a workload that is going to be restored.
pub struct Ping {
    answer: PathBuf,
}

impl Ping {
    /// Whether it has been answered.
    pub fn is_answered(&self) -> bool {
        self.answer.exists()
    }
}

impl Workload {
    /// A workload of this scenario; the scenario's options follow as arguments.
    pub fn builder(scenario: &str) -> Builder {
        Builder {
            arguments: vec![scenario.into()],
            prefix: Vec::new(),
            environment: Vec::new(),
            stdout: Stdio::null(),
            stderr: Stdio::null(),
            limit: Duration::from_secs(60),
        }
    }

    /// Starts a scenario with options, in a session of its own, and waits until its memory is filled.
    ///
    /// # Errors
    /// When the program is not built, cannot start or ends.
    pub fn start(scenario: &str, options: &[&str]) -> Result<Self, WorkloadError> {
        Self::builder(scenario).args(options).start()
    }

    /// Process id of the main task.
    pub fn pid(&self) -> i32 {
        self.tasks[0].pid
    }

    /// All its tasks that check memory, the main one first.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The directory of its files.
    pub fn control(&self) -> &Path {
        self.control.path()
    }

    /// The process that was started: the workload, or what stood before it on the command line. `None` after
    /// [`Workload::take_front`].
    pub fn front(&mut self) -> Option<&mut Child> {
        self.front.as_mut()
    }

    /// Takes the process that was started, to wait for it and read its output.
    pub fn take_front(&mut self) -> Option<Child> {
        self.front.take()
    }

    /// How long each question may take from now on.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Whether all tasks exist and have not ended.
    pub fn is_running(&self) -> bool {
        self.tasks.iter().all(|task| process::is_running(task.pid))
    }

    /// Process ids, as seen from here, of the copies of the main task that run, whatever pid namespace they are in: not those
    /// that are stopped or have ended.
    pub fn running_copies(&self) -> Vec<i32> {
        self.copies_of(self.ids[0])
    }

    /// From now on it leaves marks of where it runs; see [`Self::places`].
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn mark_places(&self) -> io::Result<()> {
        fs::create_dir(control::beats_directory(self.control()))
    }

    /// The pid namespaces it has run in since [`Self::mark_places`], in order of time, each named once for as long as it ran
    /// there: one that comes back has run in between another copy's marks.
    pub fn places(&self) -> Vec<String> {
        let mut places: Vec<String> = self.marks().into_iter().map(|(_, place)| place).collect();
        places.dedup();
        places
    }

    /// Microseconds since 1970, and where it ran then; ascending.
    fn marks(&self) -> Vec<(u64, String)> {
        let beats = fs::read_dir(control::beats_directory(self.control())).into_iter().flatten().flatten();
        let mark = |beat: fs::DirEntry| {
            let name = beat.file_name().into_string().ok()?;
            let (time, place) = name.split_once(' ')?;
            Some((time.parse().ok()?, place.to_owned()))
        };
        let mut marks: Vec<(u64, String)> = beats.filter_map(mark).collect();
        marks.sort();
        marks
    }

    fn copies_of(&self, inner: i32) -> Vec<i32> {
        let runs = |pid: &i32| process::is_running(*pid) && !matches!(process::state(*pid), Some('T' | 't'));
        // Not by their arguments, which are in memory that may not have arrived.
        let is_mine = |pid: &i32| process::name(*pid).as_deref() == Some("workload");
        let mut pids = process::all();
        pids.retain(|pid| process::innermost_pid(*pid) == Some(inner) && is_mine(pid) && runs(pid));
        pids
    }

    /// Follows the tasks into another pid namespace of this machine, to which they were moved: from now on questions are
    /// answered by those that run there, under the ids they have always had for themselves.
    ///
    /// # Errors
    /// When a task does not run exactly once.
    pub fn follow(&mut self) -> Result<(), WorkloadError> {
        for at in 0..self.tasks.len() {
            let copies = self.copies_of(self.ids[at]);
            let [pid] = copies[..] else {
                let why = format!("it runs {} times", copies.len());
                return Err(WorkloadError::Refused { what: format!("follow {}", self.tasks[at].name), why });
            };
            self.tasks[at].pid = pid;
        }
        Ok(())
    }

    /// Lets every task compare all its memory with what it should be.
    ///
    /// # Errors
    /// When a task has ended, cannot check, or does not answer in time. Bad memory is not an error but in the report.
    pub fn check(&self) -> Result<Report, WorkloadError> {
        let mut report = Report::default();
        for task in &self.tasks {
            report.add(self.ask(&task.name, "check")?);
        }
        Ok(report)
    }

    /// Lets the main task do something its scenario knows, and report what it saw.
    ///
    /// # Errors
    /// When it has ended, does not know how, or does not answer in time.
    pub fn act(&self, verb: &str) -> Result<Report, WorkloadError> {
        self.ask(MAIN_TASK, verb)
    }

    /// Lets a task do something its scenario knows, and report what it saw.
    ///
    /// # Errors
    /// When it has ended, does not know how, or does not answer in time.
    pub fn ask(&self, task: &str, verb: &str) -> Result<Report, WorkloadError> {
        let what = format!("{task}: {verb}");
        let pid = self.tasks.iter().find(|known| known.name == task).map(|known| known.pid);
        let pid =
            pid.ok_or_else(|| WorkloadError::Refused { what: what.clone(), why: "no such task".into() })?;
        let id = self.put_request(task, verb)?;
        let file = control::answer_file(self.control(), task, id);
        let answer: Answer = match self.wait_for(&file, pid, &what) {
            Ok(answer) => answer,
            Err(error) => {
                let _ = fs::remove_file(control::request_file(self.control(), task));
                return Err(error);
            }
        };
        let _ = fs::remove_file(&file);
        answer.result.map_err(|why| WorkloadError::Refused { what, why })
    }

    /// Leaves a `ping` for the main task, which may not be running now; [`Ping::is_answered`] tells when it runs.
    ///
    /// # Errors
    /// When the request cannot be written.
    pub fn leave_ping(&self) -> Result<Ping, WorkloadError> {
        let id = self.put_request(MAIN_TASK, "ping")?;
        Ok(Ping { answer: control::answer_file(self.control(), MAIN_TASK, id) })
    }

    fn put_request(&self, task: &str, verb: &str) -> Result<u64, WorkloadError> {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        let request = control::request_file(self.control(), task);
        control::write(&request, &Request { id, verb: verb.into() })
            .map_err(WorkloadError::io(format!("{task}: {verb}")))?;
        Ok(id)
    }

    fn wait_for<T: serde::de::DeserializeOwned>(
        &self,
        file: &Path,
        pid: i32,
        what: &str,
    ) -> Result<T, WorkloadError> {
        let mut outcome = Ok(None);
        let mut ended = false;
        process::wait_until(self.limit, || {
            // Looked at before the file: an answer written just before the end still counts.
            ended = !process::is_running(pid);
            outcome = control::read(file);
            ended || !matches!(outcome, Ok(None))
        });
        match outcome.map_err(WorkloadError::io(what))? {
            Some(value) => Ok(value),
            None if ended => Err(WorkloadError::Ended { what: what.into(), said: self.last_words() }),
            None => Err(WorkloadError::TimedOut { what: what.into(), limit: self.limit }),
        }
    }

    fn last_words(&self) -> String {
        fs::read_to_string(self.control().join("panic")).map(|text| format!(": {text}")).unwrap_or_default()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Forked children are found too, wherever they are: all have the control directory among their arguments. The
        // name keeps whatever stands before the workload on the command line out of it.
        let control = self.control.path().as_os_str().as_bytes().to_vec();
        process::end_all(|pid| {
            process::name(pid).as_deref() == Some("workload") && process::arguments(pid).contains(&control)
        });
        if let Some(front) = &mut self.front {
            // What stands before the workload ends with it; it gets a moment to do so by itself.
            let pid = front.id() as i32;
            if !process::wait_until(Duration::from_secs(2), || !matches!(front.try_wait(), Ok(None))) {
                let _ = process::end(pid);
                let _ = front.wait();
            }
        }
    }
}

impl Builder {
    /// Adds an option of the scenario.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Adds options of the scenario.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().into()));
        self
    }

    /// Puts words before the workload's command line, such as `migration-agent run --app NAME --`. The front process is
    /// then started as it is, and must itself give the workload a session of its own.
    pub fn prefix<A: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.prefix.extend(words.into_iter().map(|word| word.as_ref().into()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Where standard output goes instead of /dev/null.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Where standard error goes instead of /dev/null.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// How long starting and each question may take; a minute unless said otherwise.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it and waits until its memory is filled.
    ///
    /// # Errors
    /// When the program is not built, cannot start or ends.
    pub fn start(self) -> Result<Workload, WorkloadError> {
        let what = "workload";
        let program = process::program("workload").map_err(WorkloadError::io(what))?;
        let control =
            tempfile::Builder::new().prefix("workload-").tempdir().map_err(WorkloadError::io(what))?;
        fs::create_dir(control.path().join(MAIN_TASK)).map_err(WorkloadError::io(what))?;

        let mut words = self.prefix;
        let fronted = !words.is_empty();
        words.push(program.into());
        words.push("--control".into());
        words.push(control.path().into());
        words.extend(self.arguments);

        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(self.environment);
        command.stdin(Stdio::null()).stdout(self.stdout).stderr(self.stderr);
        if !fronted {
            in_own_session(&mut command);
        }
        let front =
            command.spawn().map_err(WorkloadError::io(PathBuf::from(&words[0]).display().to_string()))?;
        let front_pid = front.id() as i32;

        let file = control::tasks_file(control.path());
        let (tasks, ids) = (Vec::new(), Vec::new());
        let mut workload = Workload { control, tasks, ids, front: Some(front), limit: self.limit };
        workload.tasks = workload.wait_for(&file, front_pid, "start")?;
        workload.ids = workload.tasks.iter().map(|task| task.pid).collect();
        Ok(workload)
    }
}
