//! `list`, `show`, `verify` and `delete`: what the store holds.

use std::sync::Arc;

use clap::Args;
use lazy_pages::{
    catalog::{Catalog, CatalogError, Pin},
    format::{FRAME_PAGES, FileEntry, FilePolicy, Manifest},
    ids::{AppId, CheckpointId},
    units::PAGE_SIZE,
    verify,
};
use migration_agent::{AgentError, CheckpointReport, Progress, Stage};
use serde::Serialize;

use super::{
    args::Global,
    commands::agent,
    output::{Output, ProgressLine, human_bytes},
};

#[derive(Debug, Args)]
pub struct List {
    /// Name of the application; without it, all applications are listed
    #[arg(long, value_name = "NAME")]
    pub app: Option<AppId>,
}

#[derive(Debug, Args)]
pub struct OneCheckpoint {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Which checkpoint [default: the newest]
    #[arg(long, value_name = "ID")]
    pub checkpoint: Option<CheckpointId>,
}

#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub which: OneCheckpoint,
    /// Fetch every page and check its hash
    #[arg(long)]
    pub read_data: bool,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Which checkpoint
    #[arg(long, value_name = "ID")]
    pub checkpoint: CheckpointId,
}

/// One checkpoint, as `list` and `show` print it.
#[derive(Serialize)]
struct Summary {
    checkpoint: String,
    app: String,
    parent: Option<String>,
    /// How many checkpoints it builds on, one on the other.
    depth: u32,
    /// Names that keep it.
    pins: Vec<String>,
    created_unix_ms: u64,
    tasks: usize,
    threads: u32,
    command: String,
    pages: Pages,
    bytes: Bytes,
    files: Files,
    host: HostSummary,
}

#[derive(Serialize)]
struct Pages {
    total: u64,
    zero: u64,
    unchanged: u64,
    stored: u64,
}

#[derive(Serialize)]
struct Bytes {
    /// Plain size of all stored pages the checkpoint refers to.
    memory: u64,
    /// What of it this checkpoint added to the store.
    uploaded: u64,
}

#[derive(Serialize)]
struct Files {
    /// Regular files, directories and symbolic links that are put back.
    carried: usize,
    /// Bytes of the regular ones.
    bytes: u64,
    /// Files that have to be where it is restored.
    expected: usize,
}

#[derive(Serialize)]
struct HostSummary {
    kernel: String,
    architecture: String,
    criu_version: u32,
}

impl Summary {
    fn of(manifest: &Manifest, pins: &[Pin], listed: &[CheckpointId]) -> Self {
        let statistics = manifest.statistics;
        let carried = || manifest.files.iter().filter(|file| file.policy == FilePolicy::Carry);
        Self {
            checkpoint: manifest.id.to_string(),
            app: manifest.app.to_string(),
            parent: manifest.parent.map(|id| id.to_string()),
            depth: manifest.depth,
            pins: pins
                .iter()
                .filter(|pin| pin.keeps(manifest.id, listed))
                .map(|pin| pin.name.to_string())
                .collect(),
            created_unix_ms: manifest.created_unix_ms,
            tasks: manifest.tasks.len(),
            threads: manifest.tasks.iter().map(|task| task.threads).sum(),
            command: manifest.tasks.first().map(|task| task.command.clone()).unwrap_or_default(),
            pages: Pages {
                total: statistics.pages_total,
                zero: statistics.pages_zero,
                unchanged: statistics.pages_unchanged,
                stored: statistics.pages_stored,
            },
            bytes: Bytes {
                memory: manifest.stored_pages() * PAGE_SIZE as u64,
                uploaded: statistics.bytes_uploaded,
            },
            files: Files {
                carried: carried().count(),
                bytes: carried().map(|file| file.size).sum(),
                expected: manifest.files.len() - carried().count(),
            },
            host: HostSummary {
                kernel: manifest.host.kernel.clone(),
                architecture: manifest.host.architecture.clone(),
                criu_version: manifest.host.criu_version,
            },
        }
    }

    fn line(&self) -> String {
        format!(
            "{}  {}  {:<15} {:>3} tasks  {:>10} memory  {:>10} uploaded  {}{}",
            self.checkpoint,
            age(self.created_unix_ms),
            self.command,
            self.tasks,
            human_bytes(self.bytes.memory),
            human_bytes(self.bytes.uploaded),
            match self.depth {
                0 => "full".to_owned(),
                depth => format!("depth {depth}"),
            },
            self.pins.iter().map(|pin| format!("  pinned as {pin}")).collect::<String>(),
        )
    }
}

/// What `verify` prints.
#[derive(Serialize)]
struct Verified {
    checkpoint: String,
    app: String,
    ok: bool,
    #[serde(flatten)]
    report: verify::Report,
}

/// What `delete` prints.
#[derive(Serialize)]
struct Removed {
    checkpoint: String,
    app: String,
    packs: u64,
    bytes: u64,
    left: Option<String>,
}

/// Lists applications, or the checkpoints of one, newest first.
pub fn list(typed: &List, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let catalog = Catalog::new(Arc::clone(agent.store()));
    let Some(app) = &typed.app else {
        let apps: Vec<String> = agent.block_on(catalog.apps())?.iter().map(ToString::to_string).collect();
        let found = serde_json::json!({ "store": agent.store().describe(), "apps": apps });
        output.result(&found, |_| match apps.is_empty() {
            true => format!("no application has a checkpoint in {}", agent.store().describe()),
            false => apps.join("\n"),
        });
        return Ok(());
    };
    let pins = agent.block_on(catalog.pins(app))?;
    let mut summaries = Vec::new();
    let listed = agent.block_on(catalog.list(app))?;
    for &id in &listed {
        match agent.block_on(catalog.load_manifest(app, id)) {
            Ok(manifest) => summaries.push(Summary::of(&manifest, &pins, &listed)),
            // It was deleted since it was listed.
            Err(CatalogError::UnknownCheckpoint { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    let found = serde_json::json!({ "app": app.to_string(), "checkpoints": summaries });
    output.result(&found, |_| match summaries.is_empty() {
        true => format!("{app} has no checkpoint in {}", agent.store().describe()),
        false => summaries.iter().map(Summary::line).collect::<Vec<_>>().join("\n"),
    });
    Ok(())
}

/// Shows one checkpoint.
pub fn show(typed: &OneCheckpoint, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let checkpoint = agent.open(&typed.app, typed.checkpoint)?;
    agent.release(&checkpoint);
    let manifest = checkpoint.manifest();
    let catalog = Catalog::new(Arc::clone(agent.store()));
    let pins = agent.block_on(catalog.pins(&typed.app))?;
    let listed = agent.block_on(catalog.list(&typed.app))?;
    output.result(&Summary::of(manifest, &pins, &listed), |summary| {
        let mut lines = vec![
            format!("checkpoint  {} of {}", summary.checkpoint, summary.app),
            format!(
                "taken       {} ago on kernel {} ({})",
                age(summary.created_unix_ms).trim(),
                summary.host.kernel,
                summary.host.architecture
            ),
            format!("parent      {}", summary.parent.as_deref().unwrap_or("none: it is a full checkpoint")),
            format!("depth       {}", summary.depth),
            format!(
                "pins        {}",
                if summary.pins.is_empty() { "none".to_owned() } else { summary.pins.join(", ") }
            ),
            format!(
                "pages       {} ({} zero, {} unchanged, {} stored)",
                summary.pages.total, summary.pages.zero, summary.pages.unchanged, summary.pages.stored
            ),
            format!(
                "memory      {}, of which {} were uploaded",
                human_bytes(summary.bytes.memory),
                human_bytes(summary.bytes.uploaded)
            ),
            format!("packs       {}", manifest.packs.len()),
            format!(
                "files       {} carried ({}), {} expected where it is restored",
                summary.files.carried,
                human_bytes(summary.files.bytes),
                summary.files.expected
            ),
            "tasks".to_owned(),
        ];
        lines.extend(manifest.tasks.iter().map(|task| {
            let state = if task.dead { ", dead" } else { "" };
            format!("  {:>8}  {} ({} threads{state})", task.pid, task.command, task.threads)
        }));
        let contents = manifest.files.iter().filter(|file| file.content().is_some() || is_same(file));
        lines.extend(contents.map(|file| {
            let kind = if is_same(file) { "  expected to be the same" } else { "" };
            format!("  {:>10}  {}{kind}", human_bytes(file.size), file.path.display())
        }));
        lines.join("\n")
    });
    Ok(())
}

fn is_same(file: &FileEntry) -> bool {
    file.policy == FilePolicy::Same
}

/// Checks that a checkpoint is complete, and with `--read-data` that every page is what it was.
pub fn verify(typed: &Verify, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let app = &typed.which.app;
    let checkpoint = agent.open(app, typed.which.checkpoint)?;
    let id = checkpoint.manifest().id;
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::start(Arc::clone(&progress));
    progress.enter(Stage::Verifying);
    let mut seen = 0;
    let report = agent.block_on(verify::verify(&checkpoint, typed.read_data, &mut |now| {
        progress.add_bytes((now.frames - seen) * (FRAME_PAGES * PAGE_SIZE) as u64);
        seen = now.frames;
    }));
    drop(line);
    agent.release(&checkpoint);
    let result = Verified { checkpoint: id.to_string(), app: app.to_string(), ok: true, report: report? };
    output.result(&result, |verified| format!("{id} of {app} is complete: {}", verified.report));
    Ok(())
}

/// Removes a checkpoint.
pub fn delete(typed: &Delete, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let catalog = Catalog::new(Arc::clone(agent.store()));
    let deleted = agent.block_on(catalog.delete(&typed.app, typed.checkpoint)).map_err(AgentError::from)?;
    let result = Removed {
        checkpoint: typed.checkpoint.to_string(),
        app: typed.app.to_string(),
        packs: deleted.packs,
        bytes: deleted.bytes,
        left: deleted.left.as_ref().map(ToString::to_string),
    };
    output.result(&result, |removed| {
        let freed = format!("{} freed", human_bytes(removed.bytes));
        match &removed.left {
            None => format!("{} of {} is gone, {freed}", removed.checkpoint, removed.app),
            Some(why) => format!(
                "{} of {} is gone; what it stored stays until the next delete, because it is in use: {why}",
                removed.checkpoint, removed.app
            ),
        }
    });
    Ok(())
}

/// What `checkpoint` tells a person.
pub fn describe_checkpoint(report: &CheckpointReport) -> String {
    let pending = match report.pages.pending {
        0 => String::new(),
        pages => format!(", {pages} had not arrived"),
    };
    let files = match report.files.carried {
        0 => String::new(),
        carried => format!(", {carried} files with {}", human_bytes(report.files.bytes)),
    };
    format!(
        "checkpoint {} of {}: frozen {:.0} ms, {:.0} ms in all; {} of memory{files}, {} uploaded ({} pages stored, {} unchanged, {} zero{pending}); the process is {}",
        report.checkpoint,
        report.app,
        report.frozen_ms,
        report.total_ms,
        human_bytes(report.bytes.memory),
        human_bytes(report.bytes.uploaded),
        report.pages.stored,
        report.pages.unchanged,
        report.pages.zero,
        report.left,
    )
}

fn age(created_unix_ms: u64) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64);
    let seconds = now.saturating_sub(created_unix_ms) / 1000;
    let (value, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        7200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{value:>3} {unit:<3}")
}
