//! What is not begun, and why.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use lazy_pages::ids::AppId;
use migration_proto::agent::{ErrorDetail, Reason};

use super::{Call, Entry, Operations};
use crate::service::{
    caller::{self, Caller},
    error,
    journal::{Kind, OperationId, ProcessName},
};

impl Operations {
    /// Whether it can be begun, as things are.
    pub(super) fn refuse(
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
}
