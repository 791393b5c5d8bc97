//! How results, errors and progress are shown.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub use migration_agent::report::bytes as human_bytes;
use migration_agent::{AgentError, Progress, error_chain as chain};
use serde::Serialize;

/// Where and how results are printed.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// As JSON, else as text.
    pub json: bool,
}

impl Output {
    /// Prints one result: as a JSON object, or by `text`.
    pub fn result<T: Serialize>(self, result: &T, text: impl FnOnce(&T) -> String) {
        let line = match self.json {
            true => {
                serde_json::to_string(result).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
            }
            false => text(result),
        };
        // A reader that has gone away is no reason to fail what has been done.
        let _ = writeln!(io::stdout(), "{line}");
    }

    /// Says what failed, what was left as it was, and what to do next.
    pub fn error(self, error: &AgentError, left: Option<&str>) {
        let left = error.left().or(left);
        if self.json {
            let object = serde_json::json!({ "error": {
                "reason": error.reason(),
                "message": chain(error),
                "left": left,
                "hint": error.hint(),
            }});
            let _ = writeln!(io::stdout(), "{object}");
        }
        let mut message = format!("error: {}", chain(error));
        for (label, text) in [("left", left.map(str::to_owned)), ("hint", error.hint())] {
            if let Some(text) = text {
                message.push_str(&format!("\n{label:>5}: {text}"));
            }
        }
        let _ = writeln!(io::stderr(), "{message}");
    }
}

/// Shows the progress of an operation on a terminal while it lives.
pub struct ProgressLine {
    stop: Arc<AtomicBool>,
    painter: Option<JoinHandle<()>>,
}

impl ProgressLine {
    /// Starts painting, if standard error is a terminal.
    pub fn start(progress: Arc<Progress>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let painter = io::stderr().is_terminal().then(|| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || paint(&progress, &stop))
        });
        Self { stop, painter }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(painter) = self.painter.take() {
            let _ = painter.join();
        }
    }
}

fn paint(progress: &Progress, stop: &AtomicBool) {
    let started = Instant::now();
    let mut painted = false;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        if started.elapsed() < Duration::from_millis(700) {
            continue;
        }
        let (stage, bytes) = progress.now();
        let seconds = started.elapsed().as_secs_f64();
        eprint!("\r\x1b[K{} · {} · {seconds:.1} s", stage.label(), human_bytes(bytes));
        painted = true;
    }
    if painted {
        eprint!("\r\x1b[K");
    }
}
