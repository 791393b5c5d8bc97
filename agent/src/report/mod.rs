//! What a checkpoint and its last restore did, told afterwards: on any machine that reaches the store, long after the agents
//! and page servers have ended.
//!
//! [`Agent::report`] collects what is kept beside the checkpoint ([`lazy_pages::record`]) and puts it on one axis of time.
//! [`text`] shows it in a terminal, [`html`] as one file that needs nothing else. What is not known is said
//! ([`Report::unknown`]), never guessed.
//!
//! Two machines' clocks are compared where a restore was on another machine than its checkpoint. They may differ by
//! milliseconds; the report says so.

mod axis;
mod blackout;
mod charts;
pub mod html;
mod svg;
pub mod text;
mod units;

use std::sync::Arc;

use lazy_pages::{
    catalog::Catalog,
    format::Manifest,
    ids::{AppId, CheckpointId},
    record::{PagesRecord, Records, Restore, RestoreRecord, TakenRecord},
};
use serde::Serialize;

use crate::{agent::Agent, error::AgentError};

pub use self::{
    blackout::{Blackout, Part},
    units::bytes,
};

/// Everything that is known.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whose.
    pub app: String,
    /// Which checkpoint, or handover.
    pub checkpoint: String,
    /// What the checkpoint says of itself; `None` for a handover, and for one that is gone.
    pub contents: Option<Contents>,
    /// How it was taken.
    pub taken: Option<TakenRecord>,
    /// How many restores of it are known. The newest is told of.
    pub restores: usize,
    /// The name of the newest: the lease it was read under.
    pub restore: Option<String>,
    /// How that came to run.
    pub run: Option<RestoreRecord>,
    /// How its pages came.
    pub pages: Option<PagesRecord>,
    /// How long nothing of the application ran, and why.
    pub blackout: Option<Blackout>,
    /// What is not known.
    pub unknown: Vec<String>,
}

/// What a checkpoint says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Contents {
    /// When it was committed.
    pub created_unix_ms: u64,
    /// The checkpoint it was compared with.
    pub parent: Option<String>,
    /// How many checkpoints it builds on.
    pub depth: u32,
    /// What the first task is called.
    pub command: String,
    /// Tasks.
    pub tasks: u64,
    /// Threads of all of them.
    pub threads: u64,
    /// Pages seen.
    pub pages: u64,
    /// Of these, all zero.
    pub zero_pages: u64,
    /// Of these, found in the checkpoint before.
    pub unchanged_pages: u64,
    /// Of these, stored with this checkpoint.
    pub stored_pages: u64,
    /// Bytes sent to the store.
    pub uploaded_bytes: u64,
    /// Bytes a second the store took.
    pub upload_bytes_per_second: u64,
    /// Files that travel with it.
    pub files: u64,
}

impl Contents {
    fn of(manifest: &Manifest) -> Self {
        let statistics = manifest.statistics;
        Self {
            created_unix_ms: manifest.created_unix_ms,
            parent: manifest.parent.map(|id| id.to_string()),
            depth: manifest.depth,
            command: manifest.tasks.first().map(|task| task.command.clone()).unwrap_or_default(),
            tasks: manifest.tasks.len() as u64,
            threads: manifest.tasks.iter().map(|task| u64::from(task.threads)).sum(),
            pages: statistics.pages_total,
            zero_pages: statistics.pages_zero,
            unchanged_pages: statistics.pages_unchanged,
            stored_pages: statistics.pages_stored,
            uploaded_bytes: statistics.bytes_uploaded,
            upload_bytes_per_second: statistics.bytes_per_second,
            files: manifest.files.len() as u64,
        }
    }
}

impl Agent {
    /// What is known of a checkpoint and its newest restore; of the checkpoint that was restored last if none is named, of the
    /// newest if none was restored.
    ///
    /// # Errors
    /// When there is no such checkpoint, or the store cannot be read.
    pub fn report(&self, app: &AppId, named: Option<CheckpointId>) -> Result<Report, AgentError> {
        let records = Records::new(Arc::clone(self.store()), app.clone());
        let restores = self.block_on(records.restores())?;
        let restored = restores.iter().find(|restore| named.is_none_or(|id| restore.checkpoint == id));
        let id = match (named, restored) {
            (Some(id), _) => id,
            (None, Some(restore)) => restore.checkpoint,
            (None, None) => self.newest(app)?,
        };
        let manifest = self.block_on(Catalog::new(Arc::clone(self.store())).load_manifest(app, id));
        let contents = match (manifest, restored) {
            (Ok(manifest), _) => Some(Contents::of(&manifest)),
            // Of a handover, or of a checkpoint that was deleted just now, there is something to tell all the same.
            (Err(_), Some(_)) => None,
            (Err(error), None) => return Err(self.name(error)),
        };
        let mut unknown = Vec::new();
        let handover = restored.is_some_and(|restore| restore.handover);
        let taken = match self.block_on(records.taken(id, handover))? {
            Some(Ok(taken)) => Some(taken),
            Some(Err(error)) => {
                unknown.push(format!("how the checkpoint was taken: {error}"));
                None
            }
            None => None,
        };
        let count = restores.iter().filter(|restore| restore.checkpoint == id).count();
        let restore = match restored {
            Some(name) => self.block_on(records.restore(*name))?,
            None => Restore::default(),
        };
        unknown.extend(restore.unreadable);
        let mut report = Report {
            app: app.to_string(),
            checkpoint: id.to_string(),
            contents,
            taken,
            restores: count,
            restore: restored.map(|name| name.lease.to_string()),
            run: restore.agent,
            pages: restore.pages,
            blackout: None,
            unknown,
        };
        report.blackout = Blackout::of(&report);
        report.unknown.extend(unknown_of(&report, handover));
        Ok(report)
    }
}

/// What there is nothing to tell of, and why.
fn unknown_of(report: &Report, handover: bool) -> Vec<String> {
    let mut unknown = Vec::new();
    let mut say = |what: &str| unknown.push(what.to_owned());
    match (&report.taken, handover) {
        (None, true) => say(
            "how long the source took to stop: nothing was written down. Its agent died, or the store failed",
        ),
        (None, false) => say(
            "how the checkpoint was taken: nothing was written down. It is of an older version, the agent died, or the store failed",
        ),
        (Some(_), _) => {}
    }
    if report.restore.is_none() {
        say("any restore: there was none, or nothing was written down");
        return unknown;
    }
    let full = report.run.as_ref().is_some_and(|run| run.strategy == "full");
    if report.run.is_none() {
        say("how the restore came to run: it was not an agent that restored, or nothing was written down");
    }
    match &report.pages {
        None if full => {}
        None => say("how the pages came: they still arrive, or the page server could not write it down"),
        Some(pages) => {
            let takeovers = pages.numbers.takeovers;
            if takeovers > 0 {
                unknown.push(format!(
                    "waits in the moments when the page server was replaced ({takeovers} times): a thread that waited then \
                     is counted from the new server on"
                ));
            }
            if takeovers as usize > pages.taken_over_us.len() {
                unknown.push("the times of all replacements of the page server but the first".to_owned());
            }
            if pages.torn {
                unknown.push(
                    "the exact times before the page server was last replaced: it died while moments were added up"
                        .to_owned(),
                );
            }
            if pages.outcome == "gone" {
                unknown
                    .push("the rest of the pages: the processes ended before these were needed".to_owned());
            }
        }
    }
    if let (Some(taken), Some(run)) = (&report.taken, &report.run) {
        if taken.left_running {
            unknown.push("a blackout: the processes went on after this checkpoint".to_owned());
        } else if report.blackout.is_none() {
            unknown.push("the blackout: the two machines' clocks differ too much".to_owned());
        } else if taken.machine.boot != run.machine.boot {
            unknown.push(format!(
                "by how much the clocks of {} and {} differ: times between the two machines are off by that",
                taken.machine.name, run.machine.name
            ));
        }
    }
    unknown
}
