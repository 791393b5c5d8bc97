//! Whether a stopped tree has stood still.
//!
//! `SIGSTOP` keeps nobody from sending `SIGCONT`, and a thread that ran for an instant may have changed any page: what is read
//! from it afterwards is not what was handed over. The kernel counts how often each thread was given a processor (`schedstat`
//! in proc(5)). While the sum over all threads is what it was when the tree was stopped, nothing of it has run; none can be
//! added meanwhile. A kernel without these counts shows none, and only what runs at the moment of a look is noticed there.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{handover::saved::StoppedTask, tree};

/// Bytes of the longest `schedstat`: three numbers.
const LONGEST: usize = 64;

/// How long its threads may take to stop. A millisecond is usual.
const SETTLED: Duration = Duration::from_secs(10);

/// The threads of a stopped tree and how often they had run when it was stopped.
#[derive(Debug)]
pub struct Standstill {
    root: u32,
    threads: Vec<File>,
    turns: u64,
}

impl Standstill {
    /// Of a tree that is stopped now, or was when its threads had run `turns` times. A task that is gone since is one that ran.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn of(root: u32, tasks: &[StoppedTask], turns: Option<u64>) -> io::Result<Self> {
        let mut threads = Vec::new();
        let settled_by = Instant::now() + SETTLED;
        for task in tasks {
            let listed = match fs::read_dir(format!("/proc/{}/task", task.pid)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                listed => listed?,
            };
            for thread in listed {
                let thread = thread?.path();
                // CRIU has let go of it, and it stops when it gets a processor next.
                while turns.is_none() && !has_stopped(&thread) {
                    if Instant::now() > settled_by {
                        return Err(io::Error::other(format!("{} does not stop", thread.display())));
                    }
                    sleep(Duration::from_micros(100));
                }
                match File::open(thread.join("schedstat")) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    file => threads.push(file?),
                }
            }
        }
        let standstill = Self { root, threads, turns: 0 };
        let turns = turns.map_or_else(|| standstill.count(), Ok)?;
        Ok(Self { turns, ..standstill })
    }

    /// How often its threads had run when it was stopped.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Whether nothing of it has run since. What was read from it before this says so is what was handed over. Costs a read of
    /// some ten bytes for each thread.
    pub fn holds(&self) -> bool {
        self.count().is_ok_and(|turns| turns == self.turns)
    }

    /// Whether its root is stopped at this moment.
    pub fn is_stopped(&self) -> bool {
        tree::is_stopped(self.root)
    }

    fn count(&self) -> io::Result<u64> {
        let mut sum = 0;
        for thread in &self.threads {
            let mut text = [0; LONGEST];
            let length = thread.read_at(&mut text, 0)?;
            let turns =
                std::str::from_utf8(&text[..length]).ok().and_then(|text| text.split_whitespace().nth(2));
            let turns: Option<u64> = turns.and_then(|number| number.parse().ok());
            sum += turns.ok_or_else(|| io::Error::other("schedstat is not what proc(5) says"))?;
        }
        Ok(sum)
    }
}

/// Whether a thread is stopped, or has ended.
fn has_stopped(thread: &Path) -> bool {
    let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z', 'X']))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    struct Stopped(Child);

    impl Stopped {
        fn start() -> Self {
            let stopped = Self(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
            stopped.tell(Signal::SIGSTOP);
            let begun = Instant::now();
            while !tree::is_stopped(stopped.0.id()) {
                assert!(begun.elapsed() < Duration::from_secs(60));
                std::thread::sleep(Duration::from_millis(1));
            }
            stopped
        }

        fn tell(&self, signal: Signal) {
            kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        }

        fn tasks(&self) -> [StoppedTask; 1] {
            let pid = self.0.id();
            [StoppedTask { pid, identity: tree::identity(pid).unwrap(), by_another: false }]
        }
    }

    impl Drop for Stopped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn it_holds_while_its_memory_is_read_and_not_after_it_ran_for_an_instant() {
        let stopped = Stopped::start();
        let standstill = Standstill::of(stopped.0.id(), &stopped.tasks(), None).unwrap();
        for _ in 0..100 {
            let memory = File::open(format!("/proc/{}/maps", stopped.0.id())).unwrap();
            assert!(memory.read_at(&mut [0; 4096], 0).unwrap() > 0);
            assert!(standstill.holds() && standstill.is_stopped());
        }

        stopped.tell(Signal::SIGCONT);
        stopped.tell(Signal::SIGSTOP);
        let begun = Instant::now();
        while standstill.holds() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it ran and nobody noticed");
        }

        let later = Standstill::of(stopped.0.id(), &stopped.tasks(), Some(standstill.turns())).unwrap();
        assert!(!later.holds(), "what was written down says otherwise");
    }
}
