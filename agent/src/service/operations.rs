//! Operations: begun once, joined by whoever repeats the call, ended once.
//!
//! An operation lives on a thread of its own and not in the call that began it. The call waits for it; when the last call
//! that waits goes away, the operation is given up, unless it was to outlive its calls. Of one application only one
//! operation runs at a time.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lazy_pages::ids::{AppId, CheckpointId};
use migration_proto::agent::{CheckpointResult, ErrorDetail, HandoverResult, Reason, RestoreResult};
use tokio::sync::watch;

use super::{
    caller::{self, Caller},
    error,
    handovers::Handovers,
    journal::{self, End, Journal, Kind, OperationId, Outcome, ProcessName, Record, Spec},
    metrics::Metrics,
    orphans, recovery,
    tls::Files,
    wire,
};
use crate::{
    Agent, AgentError, Cancel, CheckpointReport, CheckpointRequest, FileRules, Hook, Progress,
    RestoreRequest, Restored,
    handover::{HandedOver, Handover, HandoverRequest},
    launcher::{self, Waiting},
    migrate::wire_strategy,
    settings, tree,
};

/// How long to wait before a store that did not answer is asked again what became of an operation.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A caller's clock has begun before ours: one that leaves this long before the deadline leaves because of it.
const CLOCKS: Duration = Duration::from_millis(250);

/// All operations of an agent.
#[derive(Debug)]
pub struct Operations {
    agent: Arc<Agent>,
    journal: Journal,
    /// Where the output of restored trees goes on.
    logs: PathBuf,
    /// The program whose `page-server` command serves pages: this one.
    program: PathBuf,
    /// What this agent shows to others, and knows them by.
    files: Option<Files>,
    handovers: Arc<Handovers>,
    hooks: Hooks,
    metrics: Arc<Metrics>,
    unreadable: HashSet<String>,
    entries: Mutex<HashMap<OperationId, Arc<Entry>>>,
    stopping: AtomicBool,
}

/// What is called when a request names nothing else.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Before a tree is frozen to end.
    pub before_freeze: Option<Hook>,
    /// After a restore.
    pub after_restore: Option<Hook>,
}

/// One operation.
#[derive(Debug)]
pub struct Entry {
    record: watch::Sender<Record>,
    progress: Progress,
    cancel: Cancel,
    deadline: Option<Instant>,
    ended: OnceLock<Instant>,
    callers: Mutex<Callers>,
}

#[derive(Debug, Default)]
struct Callers {
    waiting: usize,
    /// It goes on when nobody waits.
    detached: bool,
    /// Why it was given up.
    reason: Option<Reason>,
}

/// What a call asks for.
#[derive(Debug)]
pub struct Call {
    /// The operation's name.
    pub id: OperationId,
    /// What it is to do.
    pub spec: Spec,
    /// Who asks.
    pub caller: Caller,
    /// When it is to be given up.
    pub deadline: Option<Instant>,
    /// It is to outlive the call.
    pub detach: bool,
}

/// Somebody who waits for an operation; when the last one goes, it is given up.
#[derive(Debug)]
pub struct Waiter {
    entry: Arc<Entry>,
}

impl Operations {
    /// Takes up the operations of the agent before. What was running then is settled on threads of their own.
    ///
    /// # Errors
    /// When the journal cannot be used.
    pub fn open(
        agent: Arc<Agent>,
        handovers: Arc<Handovers>,
        state: &Path,
        program: PathBuf,
        files: Option<Files>,
        hooks: Hooks,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, AgentError> {
        let (journal, held) = Journal::open(&state.join("operations"))?;
        let entries = held.records.into_iter().map(|record| (record.id.clone(), Entry::new(record, None)));
        let operations = Arc::new(Self {
            agent,
            journal,
            logs: state.to_owned(),
            program,
            files,
            handovers,
            hooks,
            metrics,
            unreadable: held.unreadable.into_iter().collect(),
            entries: Mutex::new(entries.collect()),
            stopping: AtomicBool::new(false),
        });
        let unsettled: Vec<_> =
            operations.entries().values().filter(|entry| !entry.has_ended()).cloned().collect();
        for entry in unsettled {
            operations.on_thread(entry, Self::settle)?;
        }
        Ok(operations)
    }

    /// Begins what is asked for, or finds it. Blocks until that is durable.
    ///
    /// # Errors
    /// Nothing was begun then.
    pub fn begin(self: &Arc<Self>, call: Call) -> Result<Waiter, ErrorDetail> {
        self.forget_old();
        let root = self.root_of(&call)?;
        let waiter = {
            let mut entries = self.entries();
            if let Some(entry) = entries.get(&call.id) {
                // Whoever may not see an operation learns nothing from its id.
                if entry.record().spec != call.spec || !call.caller.may_touch(&entry.record().spec.app) {
                    return Err(error::detail(
                        Reason::OperationMismatch,
                        format!("operation {} was asked for with other arguments", call.id),
                        "nothing was begun",
                        "use a new operation id for what differs",
                    ));
                }
                return Ok(Waiter::join(entry, call.detach));
            }
            self.refuse(&call, root, &entries)?;
            let entry = Entry::new(record_of(&call, root), call.deadline);
            let waiter = Waiter::join(&entry, call.detach);
            entries.insert(call.id.clone(), Arc::clone(&entry));
            waiter
        };
        let entry = Arc::clone(&waiter.entry);
        let begun = self
            .journal
            .write(&entry.record())
            .map_err(AgentError::io("cannot write the journal"))
            .and_then(|()| self.on_thread(Arc::clone(&entry), Self::perform));
        if let Err(failed) = begun {
            self.entries().remove(&call.id);
            let failed = error::detail(
                Reason::Journal,
                crate::error_chain(&failed),
                "nothing was begun",
                "make room in the agent's state directory, then retry",
            );
            // Others may have joined meanwhile.
            entry.ends(Outcome::Failed(failed.clone()));
            return Err(failed);
        }
        if let Some(deadline) = call.deadline {
            tokio::spawn(async move {
                tokio::time::sleep_until(deadline.into()).await;
                entry.give_up(Reason::Deadline);
            });
        }
        Ok(waiter)
    }

    /// The operations a caller may see, newest first.
    pub fn list(&self, caller: &Caller, app: &str) -> Vec<Arc<Entry>> {
        let visible = |entry: &&Arc<Entry>| {
            let of = entry.record().spec.app;
            caller.may_touch(&of) && (app.is_empty() || of == app)
        };
        let mut found: Vec<_> = self.entries().values().filter(visible).cloned().collect();
        found.sort_by_key(|entry| std::cmp::Reverse(entry.record().started_unix_ms));
        found
    }

    /// An operation that the caller may see.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, caller: &Caller, id: &str) -> Result<Arc<Entry>, ErrorDetail> {
        let id: OperationId = id.parse().map_err(|error: AgentError| error::of_error(&error, None))?;
        let entry = self.entries().get(&id).cloned();
        entry.filter(|entry| caller.may_touch(&entry.record().spec.app)).ok_or_else(|| {
            let message = format!("there is no operation {id}");
            error::detail(Reason::UnknownOperation, message, "", "`migration-agent status` lists them")
        })
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.entries().values().filter(|entry| !entry.has_ended()).count()
    }

    /// Begins nothing any more, and gives up what nobody will miss: checkpoints of trees that were to go on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let unneeded = |entry: &&Arc<Entry>| entry.record().spec.kind == Kind::PreCheckpoint;
        self.entries().values().filter(unneeded).for_each(|entry| entry.give_up(Reason::Stopping));
    }

    /// Gives up everything that can be.
    pub fn give_up_all(&self) {
        self.entries().values().for_each(|entry| entry.give_up(Reason::Stopping));
    }

    /// Returns when none runs.
    pub async fn idle(&self) {
        loop {
            let running = self.entries().values().find(|entry| !entry.has_ended()).cloned();
            match running {
                Some(entry) => entry.ended().await,
                None => return,
            }
        }
    }

    /// The root of the tree that is to be dumped; 0 for a restore. A launcher is asked before anything is locked, and not for
    /// what was begun already: it may be gone with its tree.
    fn root_of(&self, call: &Call) -> Result<u32, ErrorDetail> {
        let Spec { kind, pid, launcher, .. } = &call.spec;
        let known = *kind == Kind::Restore || launcher.is_empty() || self.entries().contains_key(&call.id);
        if known {
            return Ok(*pid);
        }
        let root = launcher::root_of(Path::new(launcher));
        root.map_err(|failed| error::of_error(&failed, Some("nothing was begun".to_owned())))
    }

    fn refuse(
        &self,
        call: &Call,
        root: u32,
        entries: &HashMap<OperationId, Arc<Entry>>,
    ) -> Result<(), ErrorDetail> {
        const NOTHING: &str = "nothing was begun";
        if self.unreadable.contains(&call.id.to_string()) {
            let message = format!("what was done as operation {} cannot be read any more", call.id);
            let hint = "look at the application, then use a new operation id";
            return Err(error::detail(Reason::Journal, message, NOTHING, hint));
        }
        if self.stopping.load(Ordering::SeqCst) {
            let hint = "retry with the agent that takes its place";
            return Err(error::detail(Reason::Stopping, "the agent is being stopped", NOTHING, hint));
        }
        let same = |entry: &&Arc<Entry>| !entry.has_ended() && entry.record().spec.app == call.spec.app;
        if let Some(entry) = entries.values().find(same) {
            let message = format!("operation {} of {} is under way", entry.record().id, call.spec.app);
            let hint = "wait for it or cancel it, then retry";
            return Err(error::detail(Reason::Busy, message, NOTHING, hint));
        }
        if call.spec.hook.is_some() && call.caller != Caller::Operator {
            let message = "only an operator may name a hook: it is run as root on this machine";
            let hint = "leave it out; the agent may have hooks of its own";
            return Err(error::detail(Reason::Forbidden, message, NOTHING, hint));
        }
        if !call.spec.launcher.is_empty()
            && call.spec.kind == Kind::Restore
            && call.caller != Caller::Operator
        {
            let message =
                "only an operator may name a launcher to restore into: it may be another application's";
            let hint = "let an operator restore it";
            return Err(error::detail(Reason::Forbidden, message, NOTHING, hint));
        }
        let listed = call.spec.files.as_ref().is_some_and(|rules| !rules.paths.is_empty());
        if listed && call.caller != Caller::Operator {
            let message = "only an operator may list paths: they are read as root, whoever they belong to";
            let hint = "leave them out; files that the application has open for writing travel all the same";
            return Err(error::detail(Reason::Forbidden, message, NOTHING, hint));
        }
        if let Caller::App(app) = &call.caller
            && call.spec.kind != Kind::Restore
            && !self.is_known_as(root, app, entries)
        {
            let message = format!("pid {root} is not known to be a process of {app}");
            let hint = "let an operator take its first checkpoint, or start it with `migration-agent run`";
            return Err(error::detail(Reason::Forbidden, message, NOTHING, hint));
        }
        Ok(())
    }

    /// Whether the process was restored as this application, or checkpointed as it by an operator, or launched as it.
    fn is_known_as(&self, pid: u32, app: &AppId, entries: &HashMap<OperationId, Arc<Entry>>) -> bool {
        let Some(name) = ProcessName::of(pid) else { return true };
        let vouches = |entry: &Arc<Entry>| {
            let record = entry.record();
            let trusted = record.by_operator || record.spec.kind == Kind::Restore;
            trusted && record.spec.app == app.as_str() && record.tree.as_ref() == Some(&name)
        };
        entries.values().any(vouches) || caller::was_launched_as(pid, app)
    }

    fn forget_old(&self) {
        self.entries().retain(|id, entry| {
            let old = journal::is_old(&entry.record());
            if old {
                self.journal.forget(id);
            }
            !old
        });
    }

    fn on_thread(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        work: fn(&Self, &Arc<Entry>),
    ) -> Result<(), AgentError> {
        let operations = Arc::clone(self);
        let work = move || {
            let Record { id, spec, .. } = entry.record();
            let span = tracing::info_span!("operation", %id, kind = spec.kind.word(), app = spec.app);
            let _entered = span.enter();
            if catch_unwind(AssertUnwindSafe(|| work(&operations, &entry))).is_err() && !entry.has_ended() {
                let hint = "look at the application; the agent's log tells more";
                let detail = error::detail(Reason::Internal, "the agent failed", "", hint);
                operations.end(&entry, Outcome::Failed(detail));
            }
        };
        let thread = thread::Builder::new().name("operation".to_owned()).spawn(work);
        thread.map(drop).map_err(AgentError::io("cannot start a thread"))
    }

    fn perform(&self, entry: &Arc<Entry>) {
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
                self.metrics.checkpoint(spec.kind, &result, &entry.progress);
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
        self.agent.checkpoint(&request, &entry.progress)
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
        let handover = Arc::new(self.agent.hand_over(&request, &entry.progress)?);
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
        request.page_server_log = Some(settings::log_file(&self.logs, &request.app, "page-server.log"));
        let hook = spec.hook.as_ref().map(wire::hook).transpose()?;
        request.after_restore = hook.or_else(|| self.hooks.after_restore.clone());
        request.cancel = entry.cancel.clone();
        let restored = self.agent.restore(request, &entry.progress)?;

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
    fn settle(&self, entry: &Arc<Entry>) {
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

    /// Writes the end down, then tells it.
    fn end(&self, entry: &Entry, outcome: Outcome) {
        match &outcome {
            Outcome::Failed(detail) => {
                tracing::warn!(reason = error::word(detail.reason()), message = detail.message, "failed");
            }
            _ => tracing::info!("done"),
        }
        let failed = match &outcome {
            Outcome::Failed(detail) => Some(detail.clone()),
            _ => None,
        };
        let record = entry.ended_as(outcome);
        self.metrics.ended(record.spec.kind, failed.as_ref(), entry.headroom_ms());
        if let Err(error) = self.journal.write(&record) {
            // A later agent settles it by facts, which say the same.
            tracing::error!(%error, "the end of an operation could not be written down");
        }
        entry.record.send_replace(record);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<OperationId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(record: Record, deadline: Option<Instant>) -> Arc<Self> {
        Arc::new(Self {
            record: watch::Sender::new(record),
            progress: Progress::default(),
            cancel: Cancel::default(),
            deadline,
            ended: OnceLock::new(),
            callers: Mutex::default(),
        })
    }

    /// As it is now.
    pub fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How long there is until it is given up, or how long before that it ended.
    pub fn headroom_ms(&self) -> Option<i64> {
        let ended = *self.ended.get().unwrap_or(&Instant::now());
        self.deadline.map(|deadline| wire::signed_ms(ended, deadline))
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.record.borrow().end.is_some()
    }

    /// Returns when it has ended.
    pub async fn ended(&self) {
        // The sender is `self`.
        let _ = self.record.subscribe().wait_for(|record| record.end.is_some()).await;
    }

    /// Gives it up if that is still possible.
    pub fn give_up(&self, reason: Reason) {
        let mut callers = self.callers();
        if !self.has_ended() && !self.cancel.is_cancelled() && self.cancel.cancel() {
            callers.reason = Some(reason);
        }
    }

    fn failure(&self, failed: &AgentError, left: Option<String>) -> ErrorDetail {
        let mut detail = error::of_error(failed, left);
        if matches!(failed, AgentError::Cancelled)
            && let Some(reason) = self.callers().reason
        {
            detail.set_reason(reason);
            match reason {
                Reason::Deadline => detail.message = "the deadline has passed".to_owned(),
                Reason::Stopping => detail.message = "the agent is being stopped".to_owned(),
                _ => {}
            }
            "to try again, use a new operation id".clone_into(&mut detail.hint);
        }
        detail
    }

    fn ended_as(&self, outcome: Outcome) -> Record {
        let _ = self.ended.set(Instant::now());
        let mut record = self.record();
        record.end = Some(End { unix_ms: journal::unix_ms(), outcome });
        record
    }

    fn ends(&self, outcome: Outcome) {
        self.record.send_replace(self.ended_as(outcome));
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    fn join(entry: &Arc<Entry>, detach: bool) -> Self {
        let mut callers = entry.callers();
        callers.waiting += 1;
        callers.detached |= detach;
        drop(callers);
        Self { entry: Arc::clone(entry) }
    }

    /// What it waits for.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut callers = self.entry.callers();
        callers.waiting -= 1;
        let alone = callers.waiting == 0 && !callers.detached;
        drop(callers);
        if alone {
            let late = self.entry.deadline.is_some_and(|deadline| Instant::now() + CLOCKS >= deadline);
            self.entry.give_up(if late { Reason::Deadline } else { Reason::Cancelled });
        }
    }
}

fn record_of(call: &Call, root: u32) -> Record {
    let mut record = Record::new(call.id.clone(), call.spec.clone(), call.caller == Caller::Operator);
    if call.spec.kind != Kind::Restore {
        record.tree = ProcessName::of(root);
        record.checkpoint = Some(CheckpointId::new().to_string());
    }
    record
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
