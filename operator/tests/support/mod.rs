//! A real API server, kubelets and agents that follow scripts, and operators to be started and killed.

// Each test binary uses its own part of this.
#![allow(dead_code)]

pub mod deployed;
pub mod kubelet;
pub mod scripted_agent;
pub mod world;

use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    StreamExt,
    future::{join_all, pending},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use migration_kube::Cluster;
use migration_operator::{
    api::{
        MigratableApp, MigratableAppStatus,
        migration::{Migration, MigrationStage},
    },
    context::Settings,
    controller,
    migration::Limits,
    pods::AgentSettings,
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};

use self::{kubelet::Kubelet, scripted_agent::Scripted, world::World};

/// The cluster's name.
pub const CLUSTER: &str = "test";

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One test's part of the cluster.
pub struct Scene {
    pub client: Client,
    pub namespace: String,
    pub world: World,
    pub agents: Scripted,
    /// Nodes that do not start pods.
    pub slow: Arc<Mutex<Vec<String>>>,
    /// The operators' requests to the API server.
    pub requests: Arc<AtomicUsize>,
    _kubelet: Kubelet,
}

/// An operator; killed when dropped, without being told.
pub struct Operator {
    pub task: JoinHandle<()>,
    pub leading: Arc<AtomicBool>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        // What it has spawned finds that it does not lead any more.
        self.leading.store(false, Ordering::SeqCst);
        self.task.abort();
    }
}

/// The API server that all tests of a binary share, with the definition in it.
pub async fn cluster() -> &'static Cluster {
    let cluster = Cluster::shared().expect("an API server (ci/build-kube builds it)");
    cluster.install(&migration_operator::api::definition().expect("a definition")).await.expect("definition");
    cluster
}

impl Scene {
    /// A namespace with three nodes, `a`, `b` and `c`; applications are started on `a`.
    pub async fn new(name: &str) -> Self {
        Self::within(cluster().await, name).await
    }

    /// As [`Scene::new`], with controllers, and a scheduler, by which pods get to any of the nodes.
    pub async fn with_controllers(name: &str) -> Self {
        let cluster = Cluster::shared_with_controllers().expect("an API server (ci/build-kube builds it)");
        let definition = migration_operator::api::definition().expect("a definition");
        cluster.install(&definition).await.expect("definition");
        Self::made(cluster, name, true).await
    }

    pub async fn within(cluster: &Cluster, name: &str) -> Self {
        Self::made(cluster, name, false).await
    }

    async fn made(cluster: &Cluster, name: &str, scheduled: bool) -> Self {
        // The operators' log, with the output of the test that is theirs.
        let filter = tracing_subscriber::EnvFilter::new("warn,migration_operator=info");
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let namespace = cluster.namespace(name).await.expect("a namespace");
        let client = impatient(cluster.client().await.expect("a client"), &namespace);
        let scene_label = json!({"scene": namespace, "kubernetes.io/arch": "amd64"});
        join_all(["a", "b", "c"].map(|node| {
            let (client, name, labels) = (client.clone(), format!("{namespace}-{node}"), scene_label.clone());
            async move { kubelet::node(&client, &name, labels).await }
        }))
        .await;
        let (world, agents, slow) = (World::new(), Scripted::default(), Arc::default());
        let home = format!("{namespace}-a");
        let kubelet =
            Kubelet::start(client.clone(), &namespace, &home, &world, &agents, Arc::clone(&slow), scheduled);
        let requests = Arc::default();
        Self { client, namespace, world, agents, slow, requests, _kubelet: kubelet }
    }

    pub fn node(&self, letter: &str) -> String {
        format!("{}-{letter}", self.namespace)
    }

    /// The application's name as agents know it.
    pub fn full_name(&self, app: &str) -> String {
        format!("{CLUSTER}/{}/{app}", self.namespace)
    }

    pub fn settings(&self) -> Settings {
        settings(&self.namespace)
    }

    pub fn operator(&self) -> Operator {
        self.operator_with(self.settings())
    }

    pub fn operator_with(&self, settings: Settings) -> Operator {
        self.led(settings, Arc::new(AtomicBool::new(true)))
    }

    /// One that works only while it leads.
    pub fn led(&self, settings: Settings, leading: Arc<AtomicBool>) -> Operator {
        let agents = Arc::new(self.agents.clone());
        let running =
            controller::run(self.counted(), agents, settings, Arc::clone(&leading), |_| {}, pending());
        Operator { task: tokio::spawn(running), leading }
    }

    /// A client whose requests are counted.
    pub fn counted(&self) -> Client {
        let (client, requests) = (self.client.clone(), Arc::clone(&self.requests));
        let service = tower::service_fn(move |request| {
            requests.fetch_add(1, Ordering::SeqCst);
            let client = client.clone();
            async move { client.send(request).await }
        });
        Client::new(service, self.namespace.clone())
    }

    pub fn apps(&self) -> Api<MigratableApp> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an application. `change` is merged into its spec.
    pub async fn create(&self, name: &str, change: Value) {
        let mut spec = json!({
            "template": {"spec": {"containers": [{
                "name": "main", "image": "redis", "command": ["redis-server"], "args": ["--save", ""]
            }]}},
            // No checkpoint comes in between unless a test wants it.
            "checkpointPolicy": {"interval": "1h"},
            "migrationPolicy": {"targetNodeSelector": {"scene": self.namespace}, "migrationTimeoutSeconds": 60},
            "storage": {"type": "minio", "bucket": "checkpoints", "endpoint": "http://store.example:9000"}
        });
        merge(&mut spec, change);
        let app = json!({
            "apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp", "metadata": {"name": name}, "spec": spec
        });
        let app: MigratableApp = serde_json::from_value(app).expect("an application");
        self.apps().create(&PostParams::default(), &app).await.expect("application created");
    }

    pub async fn status(&self, name: &str) -> MigratableAppStatus {
        let begun = Instant::now();
        loop {
            match self.apps().get_opt(name).await {
                Ok(app) => return app.and_then(|app| app.status).unwrap_or_default(),
                // The API server is away, or does not know its groups again yet.
                Err(error) => {
                    assert!(begun.elapsed() < 3 * PATIENCE, "the API server does not answer: {error}")
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until a status is as wanted.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        mut wanted: impl FnMut(&MigratableAppStatus) -> bool,
    ) -> MigratableAppStatus {
        let begun = Instant::now();
        loop {
            let status = self.status(name).await;
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{name}: not {what}: {}", pretty(&status));
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn until_running(&self, name: &str) -> MigratableAppStatus {
        let running = |status: &MigratableAppStatus| holds(status, "Ready") && holds(status, "Migratable");
        self.until(name, "running", running).await
    }

    /// Waits for the end of a migration.
    pub async fn until_over(&self, name: &str, history: usize) -> MigratableAppStatus {
        self.until(name, "at the end of a migration", |status| {
            status.migration_history.len() >= history
                && status.migration.as_ref().is_some_and(|migration| migration.stage.is_over())
        })
        .await
    }

    pub async fn until_stage(&self, name: &str, stage: MigrationStage) -> MigratableAppStatus {
        self.until(name, &format!("{stage:?}"), |status| {
            status
                .migration
                .as_ref()
                .is_some_and(|migration| migration.stage == stage || migration.stage.is_over())
        })
        .await
    }

    /// Does something in the moment in which a stage has been written down.
    pub fn when_written<T: Send + 'static>(
        &self,
        name: &str,
        stage: MigrationStage,
        then: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.when(name, then, move |migration| migration.stage == stage)
    }

    fn when<T: Send + 'static>(
        &self,
        name: &str,
        then: impl FnOnce() -> T + Send + 'static,
        is: impl Fn(&Migration) -> bool + Send + Sync + 'static,
    ) -> JoinHandle<T> {
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut changes = watcher(self.apps(), only).default_backoff().applied_objects().boxed();
        tokio::spawn(async move {
            let written = async {
                while let Some(change) = changes.next().await {
                    let status = change.ok().and_then(|app| app.status).unwrap_or_default();
                    if status.migration.is_some_and(|migration| is(&migration)) {
                        return;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, written).await.expect("the stage is written down");
            then()
        })
    }

    /// As [`Scene::when_written`], for a migration that comes after the last one.
    pub async fn when_next_written<T: Send + 'static>(
        &self,
        name: &str,
        stage: MigrationStage,
        then: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let last = self.status(name).await.migration.map(|migration| migration.id);
        self.when(name, then, move |migration| {
            migration.stage == stage && Some(&migration.id) != last.as_ref()
        })
    }

    /// Annotates the pod in which an application runs.
    pub async fn annotate_pod(&self, app: &str, annotations: Value) {
        let pod = self.status(app).await.current_pod_name.expect("a pod");
        let patch = json!({"metadata": {"annotations": annotations}});
        self.pods().patch(&pod, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("pod annotated");
    }

    pub async fn annotate_app(&self, app: &str, annotations: Value) {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.apps()
            .patch(app, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .expect("application annotated");
    }

    pub async fn trigger(&self, app: &str) {
        self.annotate_pod(app, json!({"migration.io/trigger": "requested", "migration.io/reason": "test"}))
            .await;
    }

    /// Waits until the only pod left is the one it runs in, and gives its address.
    pub async fn until_alone(&self, app: &str) -> String {
        let begun = Instant::now();
        loop {
            let current = self.status(app).await.current_pod_name;
            let labelled = ListParams::default().labels(&format!("migration.io/app={app}"));
            let Ok(pods) = self.pods().list(&labelled).await else {
                // The API server is away.
                assert!(begun.elapsed() < PATIENCE, "{app}: pods cannot be listed");
                sleep(Duration::from_millis(200)).await;
                continue;
            };
            let pods = pods.items;
            if let [pod] = &pods[..]
                && Some(pod.name_any()) == current
            {
                return pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
            }
            let names: Vec<String> = pods.iter().map(|pod| pod.name_any()).collect();
            assert!(begun.elapsed() < PATIENCE, "{app}: pods {names:?}, current {current:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// It runs in exactly one pod, the one its status names, and nothing that must not happen has.
    pub async fn assert_runs_once(&self, app: &str) {
        let ip = self.until_alone(app).await;
        let world = self.world.lock();
        assert_eq!(world.violations, Vec::<String>::new());
        assert_eq!(world.apps[&self.full_name(app)].runs, [ip], "{app} runs where its status says");
    }

    /// Reasons of the events about an application, oldest first.
    pub async fn events(&self, app: &str) -> Vec<String> {
        let events: Api<k8s_openapi::api::events::v1::Event> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let mut all = events.list(&ListParams::default()).await.expect("events").items;
        all.retain(|event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(app)));
        all.sort_by_key(|event| event.event_time.clone());
        all.into_iter().filter_map(|event| event.reason).collect()
    }
}

/// Those of an operator that is impatient, for a namespace alone.
pub fn settings(namespace: &str) -> Settings {
    Settings {
        cluster: CLUSTER.to_owned(),
        namespace: namespace.to_owned(),
        agent: AgentSettings { native_sidecar: false, ..AgentSettings::default() },
        limits: Limits {
            look: Duration::from_millis(200),
            grace: Duration::from_secs(3),
            ..Limits::default()
        },
        interruptible_label: None,
        network_policies: false,
        only: Some(namespace.to_owned()),
        resync: Duration::from_secs(5),
    }
}

/// A client whose requests fail when there is no answer, instead of waiting for ever.
fn impatient(client: Client, namespace: &str) -> Client {
    let service = tower::service_fn(move |request| {
        let client = client.clone();
        async move {
            let answer = tokio::time::timeout(Duration::from_secs(30), client.send(request)).await;
            answer.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))
        }
    });
    Client::new(service, namespace)
}

/// Whether a condition is true.
pub fn holds(status: &MigratableAppStatus, type_: &str) -> bool {
    status.conditions.iter().any(|one| one.type_ == type_ && one.status == "True")
}

/// A condition's reason.
pub fn reason<'a>(status: &'a MigratableAppStatus, type_: &str) -> &'a str {
    status.conditions.iter().find(|one| one.type_ == type_).map_or("", |one| &one.reason)
}

pub fn pretty(value: &(impl serde::Serialize + Debug)) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| format!("{value:?}"))
}

pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
