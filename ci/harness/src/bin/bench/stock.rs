//! Stock CRIU by its command line, to compare with. Images go to a directory on a tmpfs, which is as fast as it gets.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use criu_rpc::ImageDir;
use migration_harness::process;
use migration_harness::workload::{Ping, Workload};
use tempfile::TempDir;

/// Longest time one command may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The criu program.
pub struct Criu {
    program: PathBuf,
}

/// Images of a process that was dumped.
pub struct Images {
    folder: TempDir,
    /// How long the process stood still.
    pub frozen: Duration,
}

/// Times of a restore, from the start of the first command.
pub struct Times {
    /// Until the process answered.
    pub running: Duration,
    /// Until all its pages were there.
    pub resident: Duration,
}

impl Criu {
    /// The one `MIGRATION_CRIU` names, otherwise the one in PATH.
    pub fn find() -> Self {
        let named = std::env::var_os("MIGRATION_CRIU").filter(|path| !path.is_empty());
        Criu { program: named.unwrap_or_else(|| "criu".into()).into() }
    }

    /// Its version.
    pub fn version(&self) -> Result<String, Box<dyn Error>> {
        let output = Command::new(&self.program).arg("--version").output();
        let output = output.map_err(|error| format!("{}: {error}", self.program.display()))?;
        let text = String::from_utf8(output.stdout)?;
        let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
        Ok(version.ok_or("criu does not tell its version")?.trim().to_owned())
    }

    fn start(&self, verb: &str, images: &Path, options: &[&str]) -> Result<Child, Box<dyn Error>> {
        let mut command = Command::new(&self.program);
        command
            .args(["--no-default-config", verb, "-v1", "-o"])
            .arg(format!("{verb}.log"))
            .arg("-D")
            .arg(images);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|error| format!("{}: {error}", self.program.display()).into())
    }

    /// Dumps a process and ends it.
    pub fn dump(&self, pid: i32, parent: &Path) -> Result<Images, Box<dyn Error>> {
        let folder = tempfile::Builder::new().prefix("images-").tempdir_in(parent)?;
        let mut dump = self.start("dump", folder.path(), &["-t", &pid.to_string()])?;
        finish("dump", folder.path(), dump.wait()?)?;
        let frozen = ImageDir::open(folder.path())?.dump_statistics()?.frozen;
        Ok(Images { folder, frozen })
    }

    /// Restores with all pages first.
    pub fn restore(&self, images: &Images, ping: &Ping) -> Result<Times, Box<dyn Error>> {
        let begin = Instant::now();
        let mut restore = self.start("restore", images.folder.path(), &["-d"])?;
        let running = wait_for(ping, begin)?;
        finish("restore", images.folder.path(), restore.wait()?)?;
        Ok(Times { running, resident: running })
    }

    /// Restores with `criu lazy-pages` serving the images.
    pub fn restore_lazily(&self, images: &Images, ping: &Ping) -> Result<Times, Box<dyn Error>> {
        let folder = images.folder.path();
        let begin = Instant::now();
        let mut server = self.start("lazy-pages", folder, &[])?;
        let socket = folder.join("lazy-pages.socket");
        let listens =
            process::wait_until(LIMIT, || socket.exists() || !matches!(server.try_wait(), Ok(None)));
        let outcome = (|| {
            if !listens {
                return Err("criu lazy-pages does not listen".into());
            }
            let mut restore = self.start("restore", folder, &["-d", "--lazy-pages"])?;
            let running = wait_for(ping, begin)?;
            finish("restore", folder, restore.wait()?)?;
            if !process::wait_until(LIMIT, || !matches!(server.try_wait(), Ok(None))) {
                return Err("criu lazy-pages does not finish".into());
            }
            Ok(Times { running, resident: begin.elapsed() })
        })();
        let _ = server.kill();
        let status = server.wait()?;
        let times: Result<Times, Box<dyn Error>> = outcome;
        let times = times?;
        finish("lazy-pages", folder, status)?;
        std::fs::remove_file(socket)
            .or_else(|error| if error.raw_os_error() == Some(2) { Ok(()) } else { Err(error) })?;
        Ok(times)
    }
}

fn wait_for(ping: &Ping, begin: Instant) -> Result<Duration, Box<dyn Error>> {
    if process::wait_until(LIMIT, || ping.is_answered()) {
        Ok(begin.elapsed())
    } else {
        Err("the restored process does not answer".into())
    }
}

fn finish(verb: &str, images: &Path, status: ExitStatus) -> Result<(), Box<dyn Error>> {
    if status.success() {
        return Ok(());
    }
    let log = std::fs::read_to_string(images.join(format!("{verb}.log"))).unwrap_or_default();
    // The one about RLIMIT_NOFILE is in every log of a process without CAP_SYS_RESOURCE.
    let errors: Vec<_> =
        log.lines().filter(|line| line.contains("Error (") && !line.contains("RLIMIT_NOFILE")).collect();
    Err(format!("criu {verb}: {status}\n{}", errors.join("\n")).into())
}

/// Ends a workload's process and waits until its id is free.
pub fn end(workload: &Workload) -> Result<(), Box<dyn Error>> {
    process::end(workload.pid())?;
    wait_gone(workload)
}

/// Waits until a workload's process id is free.
pub fn wait_gone(workload: &Workload) -> Result<(), Box<dyn Error>> {
    let gone = process::wait_gone(workload.pid(), Duration::from_secs(30));
    if gone { Ok(()) } else { Err(format!("process {} does not go away", workload.pid()).into()) }
}
