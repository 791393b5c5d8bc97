//! `gc`: the end of checkpoints that need not be kept.

use std::{sync::Arc, time::Duration};

use clap::Args;
use lazy_pages::{
    catalog::{Catalog, Collected, Kept, Retention},
    ids::AppId,
};
use migration_agent::AgentError;
use serde::Serialize;

use super::{
    args::Global,
    commands::agent,
    duration,
    output::{Output, human_bytes},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent gc --app cache --keep 3
  migration-agent gc --app cache --keep 3 --keep-for 7d --dry-run
  migration-agent gc --keep-for 30d          of every application
  migration-agent gc --app cache             only what crashes have left behind

What one of --keep and --keep-for keeps is kept. The newest checkpoint, pinned ones, and those being restored or built on are kept whatever is asked for. Data that no checkpoint refers to and that was not a checkpoint's is removed when it is a day old: it may belong to a checkpoint that is being made.")]
pub struct Gc {
    /// Name of the application; without it, every application
    #[arg(long, value_name = "NAME")]
    pub app: Option<AppId>,
    /// Keep the newest so many
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// Keep those younger than this: a number and ms, s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub keep_for: Option<Duration>,
    /// Only tell what would be deleted
    #[arg(long)]
    pub dry_run: bool,
}

/// What `gc` prints.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    apps: Vec<OfApp>,
}

#[derive(Serialize)]
struct OfApp {
    app: String,
    deleted: Vec<String>,
    kept: Vec<KeptOne>,
    packs: u64,
    bytes: u64,
    /// Why data was left for the next time.
    left: Option<String>,
}

#[derive(Serialize)]
struct KeptOne {
    checkpoint: String,
    because: &'static str,
    /// Name of the pin or of the lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

impl OfApp {
    fn new(app: &AppId, collected: &Collected) -> Self {
        Self {
            app: app.to_string(),
            deleted: collected.deleted.iter().map(ToString::to_string).collect(),
            kept: collected.kept.iter().map(|(id, why)| KeptOne::new(id.to_string(), why)).collect(),
            packs: collected.packs,
            bytes: collected.bytes,
            left: collected.left.as_ref().map(ToString::to_string),
        }
    }

    fn text(&self, dry_run: bool) -> String {
        let mut lines = vec![match dry_run {
            true => format!("{}: {} would be deleted", self.app, self.deleted.len()),
            false => {
                format!("{}: {} deleted, {} freed", self.app, self.deleted.len(), human_bytes(self.bytes))
            }
        }];
        lines.extend(
            self.deleted.iter().map(|id| format!("  {id}  {}", if dry_run { "would go" } else { "gone" })),
        );
        lines.extend(self.kept.iter().map(|kept| {
            let by = kept.by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
            format!("  {}  kept: {}{by}", kept.checkpoint, kept.because)
        }));
        lines.extend(self.left.iter().map(|why| format!("  some data stays until the next time: {why}")));
        lines.join("\n")
    }
}

impl KeptOne {
    fn new(checkpoint: String, why: &Kept) -> Self {
        let (because, by) = match why {
            Kept::Newest => ("newest", None),
            Kept::Count => ("count", None),
            Kept::Age => ("age", None),
            Kept::Pinned(name) => ("pinned", Some(name.to_string())),
            Kept::Leased(lease) => ("in-use", Some(lease.clone())),
            Kept::Unreadable => ("unreadable", None),
        };
        Self { checkpoint, because, by }
    }
}

/// Deletes what need not be kept.
pub fn gc(typed: &Gc, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let catalog = Catalog::new(Arc::clone(agent.store()));
    let apps = match &typed.app {
        Some(app) => vec![app.clone()],
        None => agent.block_on(catalog.apps())?,
    };
    let retention = Retention { keep: typed.keep, keep_for: typed.keep_for };
    let mut report = Report { dry_run: typed.dry_run, apps: Vec::new() };
    for app in &apps {
        let collected = match typed.dry_run {
            true => agent.block_on(catalog.plan(app, retention))?,
            false => agent.block_on(catalog.collect(app, retention))?,
        };
        report.apps.push(OfApp::new(app, &collected));
    }
    output.result(&report, |report| match report.apps.is_empty() {
        true => format!("no application has a checkpoint in {}", agent.store().describe()),
        false => report.apps.iter().map(|app| app.text(report.dry_run)).collect::<Vec<_>>().join("\n"),
    });
    Ok(())
}
