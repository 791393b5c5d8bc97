//! What CRIU writes to standard error, kept within bounds.
//!
//! CRIU's answers say little (`cr_errno` is rarely set, `cr_errmsg` is the first error line, which may be harmless), so
//! its error lines are what a person gets to read. They never decide whether something worked.

use std::collections::VecDeque;

/// Error lines kept; the first ones name the cause, later ones mostly follow from it.
const ERROR_LINES: usize = 64;
/// Last lines of any kind kept, for a CRIU that dies without an error line.
const LAST_LINES: usize = 16;
/// Bytes kept of a line.
const LINE_LIMIT: usize = 1024;

/// Collects CRIU's log as it arrives.
#[derive(Debug, Default)]
pub(crate) struct Log {
    errors: Vec<String>,
    last: VecDeque<String>,
    partial: Vec<u8>,
}

impl Log {
    /// Takes the next bytes of the log.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.extend_partial(&bytes[..end]);
            self.end_line();
            bytes = &bytes[end + 1..];
        }
        self.extend_partial(bytes);
    }

    /// Error lines without their source locations; if there is none, the last lines.
    pub(crate) fn into_lines(mut self) -> Vec<String> {
        self.end_line();
        if self.errors.is_empty() { self.last.into() } else { self.errors }
    }

    fn extend_partial(&mut self, bytes: &[u8]) {
        let room = LINE_LIMIT.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).trim().to_owned();
        self.partial.clear();
        if line.is_empty() || is_harmless(&line) {
            return;
        }
        if let Some(message) = error_message(&line)
            && self.errors.len() < ERROR_LINES
        {
            self.errors.push(message.to_owned());
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

/// The text after `Error (file:line): `.
fn error_message(line: &str) -> Option<&str> {
    let (_, after) = line.split_once("Error (")?;
    after.split_once("): ").map(|(_, message)| message)
}

/// Without CAP_SYS_RESOURCE every run of CRIU says this, and goes on.
fn is_harmless(line: &str) -> bool {
    line.contains("Can't setup RLIMIT_NOFILE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<String> {
        let mut log = Log::default();
        // In pieces that cut lines anywhere.
        text.chunks(7).for_each(|piece| log.push(piece));
        log.into_lines()
    }

    #[test]
    fn the_harmless_rlimit_line_is_dropped_and_error_lines_lose_their_location() {
        let text = b"(00.01) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: no\n\
                     (00.02) Warn  (criu/x.c:1): whatever\n\
                     (00.03) 77: Error (criu/cr-restore.c:1285): Can't fork for 42: File exists\n";
        assert_eq!(lines(text), ["Can't fork for 42: File exists"]);
    }

    #[test]
    fn without_error_lines_the_last_lines_are_kept() {
        assert_eq!(lines(b"one\n\ntwo\nlast without an end"), ["one", "two", "last without an end"]);
    }

    #[test]
    fn a_log_without_end_takes_bounded_memory() {
        let mut log = Log::default();
        for _ in 0..10_000 {
            log.push(&[b'x'; 1000]);
        }
        log.push(b"\n");
        for number in 0..10_000 {
            log.push(format!("Error (a.c:1): number {number}\n").as_bytes());
        }
        let lines = log.into_lines();
        assert_eq!(lines.len(), ERROR_LINES);
        assert_eq!(lines[0], "number 0");
    }
}
