//! Operations: begun once, joined by whoever repeats the call, ended once.
//!
//! An operation lives on a thread of its own and not in the call that began it. The call waits for it; when the last call
//! that waits goes away, the operation is given up, unless it was to outlive its calls. Of one application only one
//! operation runs at a time.

mod entry;
mod refuse;
mod work;

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

pub use entry::{Entry, Waiter};
use lazy_pages::ids::CheckpointId;
use migration_proto::agent::{ErrorDetail, Reason};
pub use work::handover_result;

use super::{
    caller::Caller,
    error,
    handovers::Handovers,
    journal::{self, Journal, Kind, OperationId, Outcome, ProcessName, Record, Spec},
    metrics::Metrics,
    tls::Files,
};
use crate::{Agent, AgentError, Hook, launcher};

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
        let entry = Arc::clone(waiter.entry());
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

    /// Writes the end down, then tells it.
    fn end(&self, entry: &Entry, outcome: Outcome) {
        match &outcome {
            Outcome::Failed(detail) => {
                tracing::warn!(reason = error::word(detail.reason()), why = detail.message, "failed");
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

fn record_of(call: &Call, root: u32) -> Record {
    let mut record = Record::new(call.id.clone(), call.spec.clone(), call.caller == Caller::Operator);
    if call.spec.kind != Kind::Restore {
        record.tree = ProcessName::of(root);
        record.checkpoint = Some(CheckpointId::new().to_string());
    }
    record
}
