//! `pin` and `unpin`: checkpoints that nothing deletes.

use std::sync::Arc;

use clap::Args;
use lazy_pages::{
    catalog::Catalog,
    ids::{AppId, CheckpointId, PinName},
};
use migration_agent::AgentError;
use serde::Serialize;

use super::{args::Global, commands::agent, output::Output};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent pin --app cache --name before-upgrade
  migration-agent pin --app cache --checkpoint 01JD... --name good

A pinned checkpoint is kept by `delete` and `gc` until `unpin`.")]
pub struct Pin {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Which checkpoint [default: the newest]
    #[arg(long, value_name = "ID")]
    pub checkpoint: Option<CheckpointId>,
    /// Name of the pin: letters, digits, `-`, `_` and `.`
    #[arg(long, value_name = "NAME")]
    pub name: PinName,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  migration-agent unpin --app cache --name before-upgrade

The checkpoint stays until `delete` or `gc` takes it.")]
pub struct Unpin {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Name of the pin
    #[arg(long, value_name = "NAME")]
    pub name: PinName,
}

/// What both print.
#[derive(Serialize)]
struct Pinned {
    app: String,
    name: String,
    /// Unknown if somebody else has written the pin.
    checkpoint: Option<String>,
    pinned: bool,
}

/// Keeps a checkpoint.
pub fn pin(typed: &Pin, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let catalog = Catalog::new(Arc::clone(agent.store()));
    let id = match typed.checkpoint {
        Some(id) => id,
        None => agent.block_on(catalog.newest(&typed.app))?,
    };
    agent.block_on(catalog.pin(&typed.app, id, &typed.name))?;
    let checkpoint = Some(id.to_string());
    let result =
        Pinned { app: typed.app.to_string(), name: typed.name.to_string(), checkpoint, pinned: true };
    output.result(&result, |_| format!("{id} of {} is kept as `{}`", typed.app, typed.name));
    Ok(())
}

/// Keeps it no longer.
pub fn unpin(typed: &Unpin, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let catalog = Catalog::new(Arc::clone(agent.store()));
    let checkpoint = agent.block_on(catalog.unpin(&typed.app, &typed.name))?.map(|id| id.to_string());
    let result =
        Pinned { app: typed.app.to_string(), name: typed.name.to_string(), checkpoint, pinned: false };
    output.result(&result, |unpinned| {
        let which = unpinned.checkpoint.as_deref().unwrap_or("nothing that is known");
        format!("{} no longer keeps {which} of {}", typed.name, typed.app)
    });
    Ok(())
}
