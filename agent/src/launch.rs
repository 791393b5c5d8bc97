//! Starting a workload so that it can be moved later.
//!
//! It gets a session of its own, because CRIU needs a tree's session leader inside the tree, and no descriptors but its
//! standard streams, because an inherited one that leads elsewhere cannot be rebuilt on another machine.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::{Child, Command},
};

use criu_sys::process::{Isolation, isolate};

use crate::error::AgentError;

/// Starts `command` with this process's environment, working directory and standard streams.
///
/// # Errors
/// When the program cannot be started.
pub fn start(command: &[OsString]) -> Result<Child, AgentError> {
    let [program, arguments @ ..] = command else {
        return Err(AgentError::Usage("there is no command to run".to_owned()));
    };
    let mut command = Command::new(program);
    command.args(arguments).arg0(program);
    let mut isolation = Isolation::new();
    isolation.new_session();
    isolate(&mut command, isolation);
    command.spawn().map_err(AgentError::io(format!("cannot start {}", program.to_string_lossy())))
}
