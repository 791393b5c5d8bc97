//! Which memory of a process waits for a page server, as the kernel tells in `/proc/PID/smaps`.
//!
//! `um` among an area's `VmFlags` marks one that is registered with userfaultfd for missing pages
//! (Documentation/filesystems/proc.rst). The flag goes away when the last descriptor of the registration is closed, which
//! a page server does when the last page is there. To read smaps takes about 12 ms for a GiB that is present.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    ops::Range,
};

use crate::error::AgentError;

/// Whether any memory of the process is registered. A process that has ended has no memory.
///
/// # Errors
/// When the kernel does not tell.
pub fn is_armed(pid: u32) -> Result<bool, AgentError> {
    Ok(Armed::of(pid)?.next().transpose()?.is_some())
}

/// The addresses of `pid` that are registered, ascending, areas that touch joined. A process that has ended has none.
///
/// # Errors
/// When the kernel does not tell.
pub fn armed_areas(pid: u32) -> Result<Vec<Range<u64>>, AgentError> {
    let mut areas: Vec<Range<u64>> = Vec::new();
    for area in Armed::of(pid)? {
        let area = area?;
        match areas.last_mut() {
            Some(last) if last.end == area.start => last.end = area.end,
            _ => areas.push(area),
        }
    }
    Ok(areas)
}

/// Goes through smaps as far as it is asked to: what is not looked at costs nothing.
struct Armed<R> {
    pid: u32,
    /// Nothing, if the process has ended.
    smaps: Option<R>,
    line: String,
    area: Range<u64>,
}

impl Armed<BufReader<File>> {
    fn of(pid: u32) -> Result<Self, AgentError> {
        let smaps = match File::open(format!("/proc/{pid}/smaps")) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if has_ended(&error) => None,
            Err(error) => return Err(failed(pid)(error)),
        };
        Ok(Self { pid, smaps, line: String::new(), area: 0..0 })
    }
}

impl<R: BufRead> Iterator for Armed<R> {
    type Item = Result<Range<u64>, AgentError>;

    fn next(&mut self) -> Option<Self::Item> {
        let smaps = self.smaps.as_mut()?;
        loop {
            self.line.clear();
            match smaps.read_line(&mut self.line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if has_ended(&error) => return None,
                Err(error) => return Some(Err(failed(self.pid)(error))),
            }
            if let Some(flags) = self.line.strip_prefix("VmFlags:") {
                if flags.split_ascii_whitespace().any(|flag| flag == "um") {
                    return Some(Ok(self.area.clone()));
                }
            } else if let Some(area) = header(&self.line) {
                self.area = area;
            }
        }
    }
}

/// The addresses in the first line of an area, `start-end permissions …`.
fn header(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn failed(pid: u32) -> impl FnOnce(io::Error) -> AgentError {
    AgentError::io(format!("cannot read the memory map of process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a00000-55d0c0a21000 r--p 00000000 fe:00 1234                       /usr/bin/um um
Rss:                 132 kB
VmFlags: rd mr mw me sd
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
Private_Dirty:         8 kB
VmFlags: rd wr mr mw me ac um sd
55d0c1021000-55d0c1030000 r--p 00000000 00:00 0
VmFlags: rd mr mw me um
7ffc0d8e1000-7ffc0d902000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac uw
";

    #[test]
    fn only_areas_registered_for_missing_pages_are_armed() {
        let armed = Armed { pid: 1, smaps: Some(SMAPS.as_bytes()), line: String::new(), area: 0..0 };
        let areas: Vec<_> = armed.map(Result::unwrap).collect();
        assert_eq!(areas, [0x55d0_c100_0000..0x55d0_c102_1000, 0x55d0_c102_1000..0x55d0_c103_0000]);
    }

    #[test]
    fn a_process_that_has_ended_and_this_one_are_not_armed() {
        assert!(!is_armed(u32::MAX / 2).unwrap());
        let own = std::process::id();
        assert!(!is_armed(own).unwrap());
        assert_eq!(armed_areas(own).unwrap(), []);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while crate::tree::is_alive(child.id()) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!is_armed(child.id()).unwrap(), "a zombie has no memory");
        child.wait().unwrap();
    }
}
