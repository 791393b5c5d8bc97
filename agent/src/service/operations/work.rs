//! What each kind of operation does, on a thread of its own, and how one of an agent that died is settled.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use lazy_pages::ids::{AppId, CheckpointId};
use migration_proto::agent::{CheckpointResult, HandoverResult, RestoreResult};

use super::{Entry, Operations};
use crate::{
    AgentError, CheckpointReport, CheckpointRequest, FileRules, RestoreRequest, Restored,
    handover::{HandedOver, Handover, HandoverRequest},
    launcher::Waiting,
    migrate::wire_strategy,
    service::{
        journal::{Kind, Outcome, ProcessName, Spec},
        orphans, recovery,
        tls::Files,
        wire,
    },
    settings, tree,
};

/// How long to wait before a store that did not answer is asked again what became of an operation.
const ASK_AGAIN: Duration = Duration::from_secs(2);

impl Operations {
    /// Does it and writes its end down.
    pub(super) fn perform(&self, entry: &Arc<Entry>) {
        let record = entry.record();
        let (pid, spec) = (record.pid(), record.spec);
        tracing::info!(pid, launcher = spec.launcher, "begins");
        if spec.kind == Kind::Restore {
            match self.restore(entry, &spec) {
                Ok((restored, launcher, outcome)) => {
                    self.metrics.resumed(restored.resume);
                    self.end(entry, outcome);
                    self.accompany(restored, launcher);
                }
                Err(failed) => self.end(entry, self.failed(entry, &failed, None)),
            }
            return;
        }
        let done = match spec.hands_over() {
            true => self.hand_over(entry, pid, &spec).map(Outcome::Handover),
            false => self.checkpoint(entry, pid, &spec).map(|report| {
                let result = result_of(report);
                self.metrics.checkpoint(spec.kind, &result, entry.progress());
                Outcome::Checkpoint(result)
            }),
        };
        let outcome = match done {
            Ok(outcome) => outcome,
            Err(failed) => {
                let left = tree::is_alive(pid).then(|| format!("process {pid} runs on"));
                self.failed(entry, &failed, left)
            }
        };
        self.end(entry, outcome);
    }

    fn failed(&self, entry: &Entry, failed: &AgentError, left: Option<String>) -> Outcome {
        if failed.is_damage() {
            self.metrics.damaged("agent", 1);
        }
        Outcome::Failed(entry.failure(failed, left))
    }

    fn checkpoint(&self, entry: &Entry, pid: u32, spec: &Spec) -> Result<CheckpointReport, AgentError> {
        let mut request = CheckpointRequest::new(app_of(spec)?, pid);
        request.launcher = launcher_of(spec);
        request.files = rules_of(spec)?;
        if let Some(depth) = spec.max_chain_depth {
            request.max_chain_depth = depth;
        }
        request.leave_running = spec.kind == Kind::PreCheckpoint;
        request.tcp_established = spec.tcp_established;
        request.tcp_close = spec.tcp_close;
        // A tree that goes on is not frozen for long, and nothing was said about it.
        let default = self.hooks.before_freeze.clone().filter(|_| !request.leave_running);
        request.before_freeze = spec.hook.as_ref().map(wire::hook).transpose()?.or(default);
        request.id = entry.record().checkpoint.as_deref().map(id_of).transpose()?;
        request.cancel = entry.cancel.clone();
        self.agent.checkpoint(&request, entry.progress())
    }

    fn hand_over(&self, entry: &Entry, pid: u32, spec: &Spec) -> Result<HandoverResult, AgentError> {
        let request = HandoverRequest {
            app: app_of(spec)?,
            pid,
            launcher: launcher_of(spec),
            id: entry.record().checkpoint.as_deref().map(id_of).transpose()?,
            upload: spec.strategy == "lazy-hybrid",
            files: rules_of(spec)?,
            tcp_close: spec.tcp_close,
            cancel: entry.cancel.clone(),
        };
        let handover = Arc::new(self.agent.hand_over(&request, entry.progress())?);
        self.metrics.stopped(handover.stopped_ms());
        if let Err(error) = self.handovers.keep(Arc::clone(&handover)) {
            // Nobody was told of it, and nobody would look after it.
            handover.take_back()?;
            return Err(error);
        }
        Ok(handover_result(&handover, handover.stopped_ms()))
    }

    fn restore(
        &self,
        entry: &Entry,
        spec: &Spec,
    ) -> Result<(Restored, Option<Arc<Waiting>>, Outcome), AgentError> {
        let app = app_of(spec)?;
        let asked = Some(spec.checkpoint.as_str()).filter(|id| !id.is_empty()).map(id_of).transpose()?;
        let checkpoint = match asked {
            Some(id) => id,
            None => self.agent.newest(&app)?,
        };
        // Known before anything is built, so that a repeated call means the same one.
        let mut record = entry.record();
        record.checkpoint = Some(checkpoint.to_string());
        self.journal.write(&record).map_err(AgentError::io("cannot write the journal"))?;
        entry.record.send_replace(record);

        let launcher =
            launcher_of(spec).map(|directory| Waiting::connect(&directory)).transpose()?.map(Arc::new);
        let log = settings::log_file(&self.logs, &app, "log");
        let (streams, output) = match &launcher {
            Some(launcher) => {
                // Its root has to end as a child of this process, for its exit status to be known.
                orphans::adopt()?;
                (launcher.streams()?, String::new())
            }
            None => (streams(&log)?, log.display().to_string()),
        };
        let mut request = RestoreRequest::new(app, streams, self.program.clone());
        request.launcher = launcher.clone();
        request.existing_files = wire::existing_files(spec.existing_files).map_err(AgentError::Usage)?;
        request.checkpoint = Some(checkpoint);
        request.strategy = spec.strategy.parse()?;
        request.tcp_established = spec.tcp_established;
        request.generation = Some(spec.generation).filter(|generation| *generation > 0);
        request.handover = spec.source.as_ref().map(|source| HandedOver {
            source: source.address.clone(),
            tls: self.files.clone().map(|Files { cert, key, ca }| [cert, key, ca]),
            app: spec.app.clone(),
            id: checkpoint.to_string(),
            runner: recovery::runner(source, &entry.record().id),
        });
        if spec.patience_s > 0 {
            request.patience = Duration::from_secs(spec.patience_s);
        }
        request.prefetch = spec.prefetch;
        request.page_server_log = Some(settings::log_file(&self.logs, &request.app, "page-server.log"));
        let hook = spec.hook.as_ref().map(wire::hook).transpose()?;
        request.after_restore = hook.or_else(|| self.hooks.after_restore.clone());
        request.cancel = entry.cancel.clone();
        let restored = self.agent.restore(request, entry.progress())?;

        let mut record = entry.record();
        record.tree = ProcessName::of(restored.pid);
        entry.record.send_replace(record);
        let outcome = Outcome::Restore(RestoreResult {
            checkpoint: restored.checkpoint.to_string(),
            app: spec.app.clone(),
            pid: restored.pid,
            strategy: wire_strategy(restored.strategy).into(),
            resume_ms: Some(restored.resume.as_secs_f64() * 1e3),
            output,
            hook_failure: restored.hook_failure.clone().unwrap_or_default(),
            files_written: restored.files.written,
            files_unchanged: restored.files.unchanged,
            files_set_aside: restored.files.set_aside.clone(),
        });
        Ok((restored, launcher, outcome))
    }

    /// Stays with a restored tree until its pages are there, and tells its launcher how it ends.
    fn accompany(&self, mut restored: Restored, launcher: Option<Arc<Waiting>>) {
        if let Some(launcher) = launcher {
            let root = restored.pid;
            let tell = move || match orphans::wait_for(root) {
                // One that saw for itself how the tree ended is gone already.
                Ok(status) => drop(launcher.ended(status)),
                Err(error) => {
                    tracing::warn!(%error, pid = root, "how the restored tree ends is not known here")
                }
            };
            if let Err(error) = thread::Builder::new().name("tree".to_owned()).spawn(tell) {
                tracing::error!(%error, pid = root, "nobody tells the launcher how the restored tree ends");
            }
        }
        let strategy = restored.strategy;
        match restored.follow() {
            Ok((residency, server)) => {
                let (resident_ms, faults) = (residency.resident_ms, residency.faults);
                tracing::info!(resident_ms, faults, "all pages are in memory");
                self.metrics.resident(&residency, server.as_ref(), strategy);
            }
            Err(error) => tracing::error!(%error, "pages of the restored tree cannot be had any more"),
        }
        restored.collect();
    }

    /// Finds out what became of an operation whose agent has died, however long that takes.
    pub(super) fn settle(&self, entry: &Arc<Entry>) {
        let outcome = loop {
            match recovery::settle(&self.agent, &self.handovers, &self.logs, &entry.record()) {
                Ok(outcome) => break outcome,
                Err(error) => {
                    tracing::warn!(%error, "what became of an operation of the agent before is not known yet");
                    thread::sleep(ASK_AGAIN);
                }
            }
        };
        if let Outcome::Restore(result) = &outcome {
            let mut record = entry.record();
            record.tree = ProcessName::of(result.pid);
            entry.record.send_replace(record);
        }
        self.end(entry, outcome);
    }
}

fn launcher_of(spec: &Spec) -> Option<PathBuf> {
    Some(&spec.launcher).filter(|directory| !directory.is_empty()).map(PathBuf::from)
}

fn rules_of(spec: &Spec) -> Result<FileRules, AgentError> {
    let rules = spec.files.as_ref().map(wire::file_rules).transpose().map_err(AgentError::Usage)?;
    Ok(rules.unwrap_or_default())
}

fn app_of(spec: &Spec) -> Result<AppId, AgentError> {
    spec.app.parse().map_err(|error| AgentError::Usage(format!("{error}")))
}

fn id_of(text: &str) -> Result<CheckpointId, AgentError> {
    text.parse().map_err(|error| AgentError::Usage(format!("{error}")))
}

fn result_of(report: CheckpointReport) -> CheckpointResult {
    CheckpointResult {
        depth: report.depth,
        files_carried: report.files.carried,
        files_bytes: report.files.bytes,
        files_read: report.files.read,
        checkpoint: report.checkpoint,
        app: report.app,
        parent: report.parent.unwrap_or_default(),
        frozen_ms: Some(report.frozen_ms),
        total_ms: Some(report.total_ms),
        pages_total: report.pages.total,
        pages_zero: report.pages.zero,
        pages_unchanged: report.pages.unchanged,
        pages_pending: report.pages.pending,
        pages_stored: report.pages.stored,
        bytes_memory: report.bytes.memory,
        bytes_uploaded: report.bytes.uploaded,
        left: report.left.to_owned(),
    }
}

/// What the caller is told of a stopped tree.
pub fn handover_result(handover: &Handover, stopped_ms: Option<f64>) -> HandoverResult {
    HandoverResult {
        handover: handover.id().to_string(),
        app: handover.app().to_string(),
        generation: handover.generation(),
        stored_pages: handover.manifest().stored_pages(),
        stopped_ms,
    }
}

/// What takes the place of a tree's pipes and terminals: nothing to read, and a file to write to.
fn streams(output: &Path) -> Result<[OwnedFd; 3], AgentError> {
    let open = || -> io::Result<[OwnedFd; 3]> {
        let nothing = fs::File::open("/dev/null")?;
        let file = fs::OpenOptions::new().create(true).append(true).open(output)?;
        Ok([nothing.into(), file.try_clone()?.into(), file.into()])
    };
    open().map_err(AgentError::path("open", output))
}
