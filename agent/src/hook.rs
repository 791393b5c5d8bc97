//! Telling the workload's surroundings what is about to happen, or running what they want run: before a tree is frozen, so
//! that its load can be drained, and after it was restored, so that its identity, clock and entropy can be refreshed.
//!
//! A command is run as it was given, without a shell: as this program's user, in this program's namespaces, in `/`, with
//! nothing to read, its output on this program's standard error, and an environment of `PATH` and what it is told. It runs
//! in a process group of its own, all of which is killed when its time is over. To act inside a container, let it run
//! `nsenter`. An address gets a POST with the same facts as JSON, and has to answer with a status of 2xx.
//!
//! | variable | |
//! |---|---|
//! | `MIGRATION_EVENT` | `before-freeze`, `after-restore`; `not-frozen` when what `before-freeze` prepared for did not come, because the checkpoint failed and the tree runs on |
//! | `MIGRATION_APP` | cluster/namespace/app |
//! | `MIGRATION_PID` | the root of the tree, as this program sees it |
//! | `MIGRATION_CHECKPOINT` | the checkpoint it will have, or was restored from |
//! | `MIGRATION_GENERATION` | a number that is larger for every later checkpoint of an application: its time in milliseconds |

use std::{
    env,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use lazy_pages::ids::{AppId, CheckpointId};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::net::TcpStream;

use crate::{Agent, AgentError, Cancel};

/// How long a hook may take unless something else is said.
pub const HOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a command is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookCall {
    /// A program and its arguments.
    Command(Vec<String>),
    /// An `http://` address.
    Url(Uri),
}

impl FromStr for HookCall {
    type Err = AgentError;

    /// An address, or words that blanks stand between; there is no quoting.
    fn from_str(text: &str) -> Result<Self, AgentError> {
        if text.starts_with("https://") {
            let what = "hooks are called over http:// only; let a command do it otherwise";
            return Err(AgentError::Usage(what.to_owned()));
        }
        if text.starts_with("http://") {
            let uri = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
            return uri.map(Self::Url).ok_or_else(|| AgentError::Usage(format!("`{text}` is no address")));
        }
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            Err(AgentError::Usage("an empty hook".to_owned()))
        } else {
            Ok(Self::Command(words))
        }
    }
}

/// Something to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What.
    pub call: HookCall,
    /// How long it may take.
    pub timeout: Duration,
    /// Go on when it fails.
    pub ignore_failure: bool,
}

/// When a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookEvent {
    /// The tree is about to be frozen.
    BeforeFreeze,
    /// The tree was to be frozen, and runs on instead.
    NotFrozen,
    /// The tree runs again.
    AfterRestore,
}

impl HookEvent {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::BeforeFreeze => "before-freeze",
            Self::NotFrozen => "not-frozen",
            Self::AfterRestore => "after-restore",
        }
    }
}

/// What a hook is told.
#[derive(Debug)]
pub struct HookFacts<'a> {
    /// When it is called.
    pub event: HookEvent,
    /// The application.
    pub app: &'a AppId,
    /// The root of its tree.
    pub pid: u32,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
}

impl HookFacts<'_> {
    fn generation(&self) -> u128 {
        self.checkpoint.created().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
    }
}

impl Agent {
    /// Calls a hook and waits for it.
    ///
    /// # Errors
    /// [`AgentError::Hook`] when it failed and that is not to be ignored; [`AgentError::Cancelled`].
    pub(crate) fn call(&self, hook: &Hook, facts: &HookFacts<'_>, cancel: &Cancel) -> Result<(), AgentError> {
        let begun = Instant::now();
        let result = match &hook.call {
            HookCall::Command(words) => run(words, hook.timeout, facts, cancel),
            HookCall::Url(uri) => self.block_on(post(uri, hook.timeout, facts, cancel)),
        };
        cancel.check()?;
        let event = facts.event.word();
        match result {
            Ok(()) => {
                tracing::info!(event, ms = begun.elapsed().as_millis() as u64, "hook called");
                Ok(())
            }
            Err(reason) if hook.ignore_failure => {
                tracing::warn!(event, reason, "the hook failed, which is to be ignored");
                Ok(())
            }
            Err(reason) => Err(AgentError::Hook { event, reason }),
        }
    }
}

fn run(words: &[String], limit: Duration, facts: &HookFacts<'_>, cancel: &Cancel) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("it has no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("MIGRATION_EVENT", facts.event.word())
        .env("MIGRATION_APP", facts.app.as_str())
        .env("MIGRATION_PID", facts.pid.to_string())
        .env("MIGRATION_CHECKPOINT", facts.checkpoint.to_string())
        .env("MIGRATION_GENERATION", facts.generation().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        // Standard output may be read by somebody as the result of this program.
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot run `{program}`: {error}"))?;
    let begun = Instant::now();
    loop {
        let ended = child.try_wait().map_err(|error| error.to_string())?;
        match ended {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("`{program}` ended with {status}")),
            None if begun.elapsed() < limit && !cancel.is_cancelled() => thread::sleep(LOOK),
            None => {
                // It has not been collected, so its id is still that of its group.
                let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
                let _ = child.wait();
                return Err(format!("`{program}` was not done after {} ms", begun.elapsed().as_millis()));
            }
        }
    }
}

async fn post(uri: &Uri, limit: Duration, facts: &HookFacts<'_>, cancel: &Cancel) -> Result<(), String> {
    let asked = tokio::select! {
        () = cancel.cancelled() => return Err("cancelled".to_owned()),
        asked = tokio::time::timeout(limit, ask(uri, facts)) => asked,
    };
    match asked {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{uri} answered {status}")),
        Ok(Err(error)) => Err(format!("{uri}: {error}")),
        Err(_) => Err(format!("{uri} did not answer in {} ms", limit.as_millis())),
    }
}

async fn ask(
    uri: &Uri,
    facts: &HookFacts<'_>,
) -> Result<hyper::StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let body = serde_json::json!({
        "event": facts.event.word(),
        "app": facts.app.as_str(),
        "pid": facts.pid,
        "checkpoint": facts.checkpoint.to_string(),
        "generation": facts.generation() as u64,
    });
    let request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, uri.authority().map_or(host, |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    tokio::pin!(connection);
    // The answer comes before the connection ends, or never.
    tokio::select! {
        answer = sender.send_request(request) => Ok(answer?.status()),
        ended = &mut connection => Err(ended.err().map_or("it closed the connection".into(), Into::into)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(app: &AppId) -> HookFacts<'_> {
        HookFacts { event: HookEvent::BeforeFreeze, app, pid: 77, checkpoint: CheckpointId::new() }
    }

    fn command(words: &[&str], limit: Duration) -> Result<(), String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        run(&words, limit, &facts(&"app".parse().unwrap()), &Cancel::default())
    }

    #[test]
    fn a_command_is_told_the_facts_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("told");
        let script = format!("env > {}", file.display());
        command(&["sh", "-c", &script], HOOK_TIMEOUT).unwrap();
        let told = std::fs::read_to_string(&file).unwrap();
        for line in ["MIGRATION_EVENT=before-freeze", "MIGRATION_APP=local/default/app", "MIGRATION_PID=77"] {
            assert!(told.lines().any(|one| one == line), "{told}");
        }
        // The shell adds some of its own.
        let known = |name: &str| {
            name.starts_with("MIGRATION_") || ["PATH", "PWD", "SHLVL", "_", "OLDPWD"].contains(&name)
        };
        assert!(told.lines().all(|line| known(line.split('=').next().unwrap())), "{told}");
    }

    #[test]
    fn a_command_that_fails_or_is_not_there_is_a_failure() {
        assert!(command(&["false"], HOOK_TIMEOUT).unwrap_err().contains("exit status: 1"));
        assert!(command(&["/nowhere/at/all"], HOOK_TIMEOUT).unwrap_err().contains("cannot run"));
    }

    #[test]
    fn a_command_that_takes_too_long_ends_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let failed = command(&["sh", "-c", &script], Duration::from_millis(700)).unwrap_err();
        assert!(failed.contains("not done"), "{failed}");
        let pid: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let begun = Instant::now();
        while crate::is_alive(pid) {
            assert!(begun.elapsed() < Duration::from_secs(20), "its child runs on");
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn what_is_typed_is_an_address_or_words() {
        let parse = |text: &str| text.parse::<HookCall>();
        assert_eq!(parse("http://h:1/x").unwrap(), HookCall::Url("http://h:1/x".parse().unwrap()));
        assert_eq!(parse("drain  now").unwrap(), HookCall::Command(vec!["drain".into(), "now".into()]));
        for bad in ["", "  ", "https://h/", "http://"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
