//! From what was typed to what is done.

use std::process::ExitCode;

use clap::Parser;
use lazy_pages::store;
use migration_agent::{Agent, AgentError, settings, supervise::Signals};
use tracing_subscriber::EnvFilter;

use super::{
    args::{Cli, Command, Global, LogFormat},
    check, checkpoint, deadline, gc, generation, inspect, launch, migrate,
    output::Output,
    pin, remote, report, restore, serve,
};

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.global.verbose, cli.global.log_format);
    let output = Output { json: cli.global.json };
    let failed = |error: AgentError, left: Option<&str>| {
        output.error(&error, left);
        ExitCode::FAILURE
    };
    match cli.command {
        Command::Check => check::check(&cli.global, output),
        Command::Run(typed) => launch::run(&typed.into()).unwrap_or_else(|error| failed(error.into(), None)),
        Command::Launch(typed) => {
            launch::run(&typed.into()).unwrap_or_else(|error| failed(error.into(), None))
        }
        // Signals are taken over before any other thread exists.
        Command::Restore(restore) => match Signals::take() {
            Ok(signals) => restore::restore(restore, &cli.global, output, &signals).unwrap_or_else(|error| {
                failed(error, Some("the store and all files are as they were, and nothing of the application was left running"))
            }),
            Err(error) => failed(error, None),
        },
        Command::Checkpoint(typed) => {
            let pid = match checkpoint::root(&typed) {
                Ok(pid) => pid,
                Err(error) => return failed(error, None),
            };
            match checkpoint::checkpoint(typed, pid, &cli.global, output) {
                Ok(code) => code,
                Err(error) => failed(error, what_is_left(pid).as_deref()),
            }
        }
        Command::Serve(typed) => {
            serve::serve(typed, &cli.global, output).unwrap_or_else(|error| failed(error, None))
        }
        Command::Status(typed) => finish(remote::status(&typed, output), failed),
        Command::Watch(typed) => remote::watch(&typed, output).unwrap_or_else(|error| failed(error, None)),
        Command::Cancel(typed) => finish(remote::cancel(&typed, output), failed),
        Command::Migrate(typed) => finish(migrate::run(typed, output), failed),
        Command::Deadline(typed) => finish(deadline::deadline(&typed, &cli.global, output), failed),
        Command::Generation(typed) => {
            finish(generation::generation(&typed, &cli.global, output), failed)
        }
        Command::List(list) => finish(inspect::list(&list, &cli.global, output), failed),
        Command::Show(which) => finish(inspect::show(&which, &cli.global, output), failed),
        Command::Report(typed) => finish(report::report(&typed, &cli.global, output), failed),
        Command::Verify(verify) => finish(inspect::verify(&verify, &cli.global, output), failed),
        Command::Delete(delete) => finish(inspect::delete(&delete, &cli.global, output), failed),
        Command::Pin(pin) => finish(pin::pin(&pin, &cli.global, output), failed),
        Command::Unpin(unpin) => finish(pin::unpin(&unpin, &cli.global, output), failed),
        Command::Gc(gc) => finish(gc::gc(&gc, &cli.global, output), failed),
        Command::Serving(serving) => serving.run(store::open),
    }
}

/// The agent for the options every command has.
pub fn agent(global: &Global) -> Result<Agent, AgentError> {
    let store = match &global.store {
        Some(store) => store.clone(),
        None => settings::default_store()?,
    };
    let work_parent = global.work_dir.clone().or_else(settings::work_directory);
    Ok(Agent::new(store, global.criu.clone(), work_parent)?.compress(global.compression))
}

fn finish(result: Result<(), AgentError>, failed: impl Fn(AgentError, Option<&str>) -> ExitCode) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error, None),
    }
}

fn what_is_left(pid: u32) -> Option<String> {
    migration_agent::is_alive(pid).then(|| format!("process {pid} runs on"))
}

fn start_log(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("MIGRATION_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        // A closed standard error must not end a page server that processes depend on.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
