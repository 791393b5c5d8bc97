//! `report`: what a checkpoint and its last restore did.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use lazy_pages::ids::{AppId, CheckpointId};
use migration_agent::{
    AgentError,
    report::{html, text},
};

use super::{args::Global, commands::agent, output::Output};

/// What to tell of, and how.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent report --app cache
  migration-agent report --app cache --html report.html
  migration-agent report --app cache --html - > report.html
  migration-agent report --app cache --json | jq .blackout")]
pub struct Report {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    app: AppId,
    /// Which checkpoint [default: the one restored last, else the newest]
    #[arg(long, value_name = "ID")]
    checkpoint: Option<CheckpointId>,
    /// Write it as one file of HTML that needs nothing else; `-` is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
}

pub fn report(typed: &Report, global: &Global, output: Output) -> Result<(), AgentError> {
    let report = agent(global)?.report(&typed.app, typed.checkpoint)?;
    match &typed.html {
        Some(file) if file.as_os_str() == "-" => {
            let written = io::stdout().write_all(html::page(&report).as_bytes());
            written.map_err(|source| AgentError::Io {
                what: "cannot write to standard output".to_owned(),
                source,
            })?;
        }
        Some(file) => {
            let what = || format!("cannot write {}", file.display());
            fs::write(file, html::page(&report)).map_err(|source| AgentError::Io { what: what(), source })?;
        }
        None => output.result(&report, text::page),
    }
    Ok(())
}
