//! The processes of a stack, and their end.
//!
//! A shell of its own process group holds them. It ends when our end of its standard input closes, which the kernel does when
//! this process ends in whatever way; it then kills what it started and removes the directory. If the shell itself is
//! killed, the kernel kills what it started, and only the directory is left.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
};

const SCRIPT: &str = include_str!("supervisor.sh");

/// A shell that starts and kills programs.
pub struct Supervisor {
    shell: Mutex<Shell>,
}

struct Shell {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Supervisor {
    /// Starts the shell. From now on the directory goes when this process goes.
    ///
    /// # Errors
    /// When there is no shell.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "supervisor"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a terminal sends to a test run is not for it: it would end before it has cleaned up.
            .process_group(0)
            .spawn()?;
        let commands = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| io::Error::other("the shell has no output"))?;
        Ok(Self { shell: Mutex::new(Shell { child, commands, answers: BufReader::new(answers) }) })
    }

    /// Starts the program that `NAME.run` describes.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn start(&self, name: &str) -> io::Result<()> {
        self.ask("start", name).map(drop)
    }

    /// Kills a program at once and waits for its end; one that does not run is fine.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn kill(&self, name: &str) -> io::Result<()> {
        self.ask("kill", name).map(drop)
    }

    /// Whether a program that was started runs.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn alive(&self, name: &str) -> io::Result<bool> {
        Ok(self.ask("alive", name)? == "yes")
    }

    fn ask(&self, verb: &str, name: &str) -> io::Result<String> {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = shell.commands.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(commands, "{verb} {name}")?;
        let mut answer = String::new();
        if shell.answers.read_line(&mut answer)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the shell that holds the servers is gone",
            ));
        }
        Ok(answer.trim().to_owned())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let shell = self.shell.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(shell.commands.take());
        // Nothing to do about a failure: the shell has ended or will.
        _ = shell.child.wait();
    }
}
