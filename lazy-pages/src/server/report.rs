//! What a page server that is a process of its own tells whoever started it, a line each.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{ids::AppId, server::ServerStats};

/// What a daemon reports on standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Report {
    /// CRIU may restore.
    Ready {
        /// The checkpoint that is served.
        checkpoint: String,
        /// Where its images are.
        directory: PathBuf,
        /// The process that serves.
        pid: u32,
        /// The process that starts another one if need be.
        guardian: Option<u32>,
        /// Bytes of images written.
        image_bytes: u64,
        /// Time since the start.
        ready_ms: u64,
        /// The lease it is read under, which is the name of what is kept about this restore.
        #[serde(default)]
        lease: Option<String>,
    },
    /// The process that served has died, and another one goes on in its place.
    #[serde(rename = "taken-over")]
    TakenOver {
        /// The process that serves now.
        pid: u32,
        /// Stored pages that are still missing.
        missing_pages: u64,
    },
    /// Every page is in memory; the daemon ends.
    Resident(ServerStats),
    /// All processes have ended before their pages had come; the daemon ends.
    Gone(ServerStats),
    /// Serving has failed, or did not begin; the daemon ends. Processes it served are dead.
    Failed {
        /// Why.
        reason: String,
    },
    /// A signal came before a restore had begun; the daemon ends.
    Cancelled,
}

/// A report and whom it is about.
#[derive(Serialize)]
struct Line<'r> {
    app: &'r str,
    #[serde(flatten)]
    report: &'r Report,
}

impl Report {
    /// Says it of the restore of `app`. Whoever listened may have gone; the processes still need their pages.
    pub(super) fn print(&self, app: &AppId, json: bool) {
        let line = if json {
            serde_json::to_string(&Line { app: app.as_str(), report: self })
                .unwrap_or_else(|error| format!("{{\"event\":\"failed\",\"reason\":\"{error}\"}}"))
        } else {
            format!("{app}: {}", self.text())
        };
        let _ = writeln!(io::stdout(), "{line}");
    }

    fn text(&self) -> String {
        match self {
            Self::Ready { checkpoint, directory, .. } => format!(
                "ready: checkpoint {checkpoint} in {0}; restore with: criu restore --lazy-pages -D {0}",
                directory.display()
            ),
            Self::TakenOver { pid, missing_pages } => {
                format!("taken over by process {pid} with {missing_pages} pages missing")
            }
            Self::Resident(stats) => {
                let ms = stats.resident_ms.unwrap_or_default();
                format!(
                    "resident: all pages in memory after {ms} ms, {} page faults, {} bytes fetched",
                    stats.faults, stats.fetched_bytes
                )
            }
            Self::Gone(stats) => {
                format!("gone: the processes ended with {} pages installed", stats.installed_pages)
            }
            Self::Failed { reason } => format!("failed: {reason}"),
            Self::Cancelled => "cancelled before a restore".to_owned(),
        }
    }
}
