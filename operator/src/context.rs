//! What a reconcile works with.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ObjectMeta,
    runtime::{
        events::{Event, EventType, Recorder},
        reflector::Store,
    },
};

use crate::{
    agents::{Agent, AgentError, Agents, At},
    api::MigratableApp,
    cache::Pods,
    certificates::Authorities,
    error::Error,
    metrics::Metrics,
    migration::Limits,
    pods::AgentSettings,
    secrets::Wrong,
};

/// The name under which the operator writes.
pub const FIELD_MANAGER: &str = "migration-operator";

/// What does not change while an operator runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's name in the names of applications.
    pub cluster: String,
    /// The operator's namespace.
    pub namespace: String,
    /// How agents are run.
    pub agent: AgentSettings,
    /// How long things may take.
    pub limits: Limits,
    /// A label and its value that say that a node can be taken away.
    pub interruptible_label: Option<(String, String)>,
    /// Whether applications get a NetworkPolicy that keeps their agents' port to those who need it.
    pub network_policies: bool,
    /// The only namespace whose applications it looks after; all if `None`.
    pub only: Option<String>,
    /// How often an application to which nothing happens is looked at.
    pub resync: Duration,
}

/// Everything a reconcile needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The agents.
    pub agents: Arc<dyn Agents>,
    /// What does not change.
    pub settings: Settings,
    /// Pods of applications, as they were a moment ago.
    pub(crate) pods: Pods,
    /// Nodes, as they were a moment ago.
    pub nodes: Store<Node>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who issues the agents' certificates, once that is known.
    pub authorities: Mutex<Option<Authorities>>,
    /// By name, what is wrong with the Secrets that credentials come from, and when that was found out.
    pub(crate) credentials: Mutex<HashMap<String, (Instant, Option<Wrong>)>>,
    pub(crate) recorder: Recorder,
    pub(crate) memory: Memory,
    leading: Arc<AtomicBool>,
}

/// What is remembered of an application from one reconcile to the next. All of it can be lost: it is found out again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    /// The checkpoint that was begun last, and when.
    pub checkpoint: Option<(String, Timestamp)>,
    /// Whether that has not been seen to end.
    pub checkpoint_runs: bool,
    /// Checkpoints that have failed since one succeeded.
    pub failures: u32,
    /// Whether the last one did because there are no processes to be checkpointed.
    pub no_processes: bool,
    /// From the last one that succeeded.
    pub frozen: Option<Duration>,
    pub bandwidth: Option<u64>,
    /// What the next one has to send.
    pub upload: Option<u64>,
    /// When the list of checkpoints was looked at, and old ones were deleted.
    pub listed: Option<Timestamp>,
    pub collected: Option<Timestamp>,
    /// Since when the application has been looked at by this operator.
    pub since: Option<Timestamp>,
    /// The checkpoint before it is started anew.
    pub restart: Option<String>,
    /// Why it could not be moved, and when that was found out.
    pub migratable: Option<(Timestamp, Option<(&'static str, String)>)>,
    /// When its NetworkPolicy was looked at.
    pub network: Option<Timestamp>,
    /// When the agents' certificate has to be replaced.
    pub certificate: Option<SystemTime>,
    /// Since when it is tried to delete its checkpoints.
    pub deleting: Option<Timestamp>,
    /// Times its reconcile has failed in a row.
    pub errors: u32,
    /// The version that this operator has written last, and when.
    pub written: Option<(u64, Instant)>,
}

/// How long the cache is waited for, which hears of a write in a moment. Whoever looks sooner reads everything again, to find that it was
/// this operator that has changed it.
const BEHIND: Duration = Duration::from_secs(2);

/// Versions of one kind of object grow, as numbers where they are numbers.
fn version(metadata: &ObjectMeta) -> Option<u64> {
    metadata.resource_version.as_ref()?.parse().ok()
}

/// By uid.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<HashMap<String, Remembered>>);

impl Memory {
    pub fn get(&self, uid: &str) -> Remembered {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    pub fn update<T>(&self, uid: &str, change: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(uid.to_owned()).or_default())
    }

    /// That an object was written: what a cache says that has not heard of it is not worth looking at.
    pub fn wrote(&self, written: &ObjectMeta) {
        let uid = written.uid.as_deref().unwrap_or_default();
        let version = version(written).map(|version| (version, Instant::now()));
        self.update(uid, |remembered| remembered.written = version);
    }

    /// For how long at most the cache, which has this of an object, may be about to hear of what was written.
    pub fn behind(&self, cached: &ObjectMeta) -> Option<Duration> {
        let uid = cached.uid.as_deref().unwrap_or_default();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (written, at) = all.get(uid)?.written?;
        let left = BEHIND.checked_sub(at.elapsed())?;
        (version(cached)? < written).then_some(left)
    }

    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

impl Context {
    /// A context that does not lead until `leading` is true.
    pub fn new(
        client: Client,
        agents: Arc<dyn Agents>,
        settings: Settings,
        pods: Store<Pod>,
        nodes: Store<Node>,
        leading: Arc<AtomicBool>,
    ) -> Self {
        let recorder = Recorder::new(client.clone(), FIELD_MANAGER.into());
        Self {
            client,
            agents,
            settings,
            pods: Pods::new(pods),
            nodes,
            metrics: Arc::default(),
            authorities: Mutex::default(),
            credentials: Mutex::default(),
            recorder,
            memory: Memory::default(),
            leading,
        }
    }

    /// Before anything that changes something.
    ///
    /// # Errors
    /// When another operator leads.
    pub fn must_lead(&self) -> Result<(), Error> {
        if self.leading.load(Ordering::SeqCst) { Ok(()) } else { Err(Error::NotLeading) }
    }

    /// Pods in an application's namespace.
    pub(crate) fn pods_of(&self, app: &MigratableApp) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &app.namespace().unwrap_or_default())
    }

    /// The applications of a namespace.
    pub(crate) fn apps(&self, namespace: &str) -> Api<MigratableApp> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The application's name as agents know it.
    pub(crate) fn full_name(&self, app: &MigratableApp) -> String {
        format!("{}/{}/{}", self.settings.cluster, app.namespace().unwrap_or_default(), app.name_any())
    }

    /// Where a pod's agent is.
    pub(crate) fn at(&self, app: &MigratableApp, pod_ip: &str) -> At {
        At { pod_ip: pod_ip.to_owned(), namespace: app.namespace().unwrap_or_default(), app: app.name_any() }
    }

    /// The agent of one of its pods.
    pub(crate) async fn agent(&self, app: &MigratableApp, pod: &Pod) -> Result<Agent, AgentError> {
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
        match ip {
            Some(ip) => Agent::connect(&*self.agents, &self.at(app, ip)).await,
            None => Err(AgentError::Unreachable {
                address: pod.name_any(),
                reason: "its pod has no address".to_owned(),
            }),
        }
    }

    /// Reports to whoever looks at the application. The same again only counts; one that cannot be reported is logged.
    pub(crate) async fn event(&self, app: &MigratableApp, type_: EventType, reason: &str, note: &str) {
        tracing::info!(app = self.full_name(app), reason, note, "event");
        // The API server refuses longer ones.
        let note = note[..note.floor_char_boundary(1000)].to_owned();
        let event = described(type_, reason, note);
        if let Err(error) = self.recorder.publish(&event, &app.object_ref(&())).await {
            tracing::warn!(app = self.full_name(app), %error, "an event was not reported");
        }
    }
}

/// The recorder takes an event for one of before if all but the note agrees, and reports that one's note again: why something failed
/// this time would never be told. So the action, which nobody reads, differs where the note does.
fn described(type_: EventType, reason: &str, note: String) -> Event {
    let mut hasher = DefaultHasher::new();
    note.hash(&mut hasher);
    let action = format!("Migrating-{:016x}", hasher.finish());
    Event { type_, reason: reason.to_owned(), note: Some(note), action, secondary: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_has_not_heard_of_a_write_is_waited_for_and_not_for_ever() {
        let at = |version: &str| ObjectMeta {
            uid: Some("u".to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        let memory = Memory::default();
        assert_eq!(memory.behind(&at("99")), None);
        memory.wrote(&at("100"));
        assert!(memory.behind(&at("99")).is_some_and(|left| left <= BEHIND));
        assert_eq!(memory.behind(&at("100")), None);
        assert_eq!(memory.behind(&at("101")), None);
        // Who does not count in numbers is not waited for.
        assert_eq!(memory.behind(&at("v")), None);
        let long_ago = Instant::now().checked_sub(BEHIND * 2);
        memory.update("u", |remembered| remembered.written = long_ago.map(|at| (100, at)));
        assert_eq!(memory.behind(&at("99")), None);
    }

    #[test]
    fn an_event_with_another_note_is_another_event() {
        let action = |note: &str| described(EventType::Warning, "MigrationFailed", note.to_owned()).action;
        assert_eq!(action("no such image"), action("no such image"));
        assert_ne!(action("no such image"), action("a file is missing"));
    }
}
