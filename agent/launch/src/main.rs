//! `migration-launch`: the first program of a container whose workload may be moved.

use std::{
    env,
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use migration_launch::{Descriptors, Launch, launch, stand_in};

const HELP: &str = "Starts a workload so that it can be moved, and stands in for it

Usage: migration-launch --app NAME [OPTIONS] -- CMD...
       migration-launch --app NAME --control DIR --restore [OPTIONS]

Options:
  --app NAME        Name of the application: app, namespace/app or cluster/namespace/app
  --control DIR     Put the socket on which an agent talks to this launcher here
  --restore         Start nothing: wait for the tree that an agent restores
  --pid-base N      Give the workload a pid above N, so that it is free where the workload is restored
  --pid-file FILE   Write the workload's pid here
  --help, --version

Examples:
  migration-launch --app cache --control /run/migration --pid-base 10000 -- redis-server --save ''
  migration-launch --app cache --control /run/migration --restore

The workload gets everything this program was started with. Signals are passed on to it, and its exit code comes back;
128 plus the signal if one ended it. When a checkpoint moved it away, this stays until a signal ends it.";

/// Not understood.
const USAGE: u8 = 2;
/// A container runtime's exit code for a command that could not be started.
const NOT_STARTED: u8 = 125;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if let [first, rest @ ..] = arguments.as_slice()
        && first == stand_in::NAME
    {
        return stand_in::main(rest);
    }
    let what = match parse(arguments) {
        Ok(Asked::Launch(what)) => what,
        Ok(Asked::Text(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("migration-launch: {wrong}; --help tells more");
            return ExitCode::from(USAGE);
        }
    };
    match launch(&what) {
        Ok(status) => ExitCode::from(status.0),
        Err(error) => {
            eprintln!("migration-launch: {}: {error}", what.app);
            ExitCode::from(NOT_STARTED)
        }
    }
}

enum Asked {
    Launch(Launch),
    Text(&'static str),
}

fn parse(arguments: Vec<OsString>) -> Result<Asked, String> {
    let mut app = None;
    let mut restore = false;
    let mut what = Launch {
        app: String::new(),
        command: Vec::new(),
        control: None,
        pid_base: None,
        pid_file: None,
        descriptors: Descriptors::Inherited,
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let (name, attached) = split(&argument)?;
        let mut value = || match &attached {
            Some(value) => Ok(value.clone()),
            None => arguments.next().ok_or_else(|| format!("{name} needs a value")),
        };
        match name {
            "--" => {
                what.command = arguments.collect();
                break;
            }
            "--help" | "-h" => return Ok(Asked::Text(HELP)),
            "--version" | "-V" => {
                return Ok(Asked::Text(concat!("migration-launch ", env!("CARGO_PKG_VERSION"))));
            }
            "--app" => app = Some(text(value()?)?),
            "--control" => what.control = Some(value()?.into()),
            "--pid-file" => what.pid_file = Some(value()?.into()),
            "--pid-base" => {
                let typed = text(value()?)?;
                what.pid_base = Some(typed.parse().map_err(|_| format!("`{typed}` is no pid"))?);
            }
            "--restore" => restore = true,
            _ => return Err(format!("`{name}` is no option")),
        }
    }
    what.app = app.ok_or("--app is missing")?;
    match (restore, what.command.is_empty()) {
        (false, true) => Err("there is no command to run".to_owned()),
        (true, _) if what.control.is_none() => Err("--restore needs --control".to_owned()),
        (true, _) => {
            // The command is there so that a container's specification can stay the same for both.
            what.command.clear();
            Ok(Asked::Launch(what))
        }
        (false, false) => Ok(Asked::Launch(what)),
    }
}

/// An option, and what follows its `=`.
fn split(argument: &OsStr) -> Result<(&str, Option<OsString>), String> {
    let argument = argument.to_str().ok_or("an option is not text")?;
    Ok(match argument.split_once('=') {
        Some((name, value)) => (name, Some(value.into())),
        None => (argument, None),
    })
}

fn text(value: OsString) -> Result<String, String> {
    value.into_string().map_err(|_| "a value is not text".to_owned())
}
