//! Another machine, as far as process ids go: a pid namespace with a `/proc` and an init of its own, on this one.

use std::process::{Command, Stdio};

/// Puts a program onto a machine of its own. That ends, with all that runs on it, when the command that is returned is
/// killed; it outlives the program. What is orphaned there is reaped, as on machines.
pub fn own_pids(program: &Command) -> Command {
    const INIT: &str = "\"$@\" & while :; do wait; sleep 0.1; done";
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", INIT, "init"])
        .arg(program.get_program())
        .args(program.get_args())
        .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null());
    command
}
