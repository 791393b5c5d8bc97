//! The process that becomes the workload, until it does.
//!
//! It is this same program, started a second time: between `fork` and `exec` only code that is not safe could do what has
//! to be done there. It makes a session, waits at the gate, and executes the workload. It touches nothing else of what it
//! inherited.

use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{fd::RawFd, unix::process::CommandExt},
    process::{Command, ExitCode},
};

use crate::start::{Descriptors, close_all_but};

/// First argument of a program that is to be the stand-in.
pub const NAME: &str = "stand-in";
/// What the gate's pipe carries when it opens. Its end alone means that the launcher is gone.
pub(crate) const OPEN: u8 = 1;

const STANDARD_ONLY: &str = "standard";
const INHERITED: &str = "inherited";
/// A shell's exit codes for a program that is not there, and one that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

pub(crate) fn arguments(gate: RawFd, descriptors: Descriptors, command: &[OsString]) -> Vec<OsString> {
    let descriptors = match descriptors {
        Descriptors::Inherited => INHERITED,
        Descriptors::Standard => STANDARD_ONLY,
    };
    let own = [NAME.into(), gate.to_string().into(), descriptors.into()];
    own.into_iter().chain(command.iter().cloned()).collect()
}

/// Does what the arguments say that follow [`NAME`]. Returns only if the workload could not be executed.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let [gate, descriptors, program, arguments @ ..] = arguments else {
        eprintln!("migration-launch: `{NAME}` is for its own use");
        return ExitCode::from(2);
    };
    match become_workload(gate, descriptors == OsStr::new(STANDARD_ONLY), program, arguments) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("migration-launch: cannot execute {}: {error}", program.to_string_lossy());
            ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            })
        }
    }
}

fn become_workload(
    gate: &OsStr,
    only_standard: bool,
    program: &OsStr,
    arguments: &[OsString],
) -> io::Result<Infallible> {
    let number: RawFd =
        gate.to_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
    // Only the kernel can vouch for a number; this opens the same pipe again.
    let mut pipe = File::open(format!("/proc/self/fd/{number}"))?;
    nix::unistd::close(number)?;
    rustix::process::setsid()?;
    let mut opened = [0];
    if pipe.read(&mut opened)? == 0 || opened != [OPEN] {
        // Nobody waits for an answer.
        std::process::exit(i32::from(NOT_EXECUTABLE));
    }
    drop(pipe);
    if only_standard {
        close_all_but(&[0, 1, 2]);
    }
    Err(Command::new(program).args(arguments).exec())
}
