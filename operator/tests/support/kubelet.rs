//! What kubelets and the scheduler do for pods, without running any: pods get a node, an address, an agent that follows a
//! script, and a status; deleted ones end.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use migration_operator::{
    api::APP_LABEL,
    pods::{AGENT, ROLE_ANNOTATION},
};
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use super::{
    CLUSTER,
    scripted_agent::{Running, Scripted},
    world::World,
};

/// Of all tests together: no two pods have the same address.
static NEXT_ADDRESS: AtomicU32 = AtomicU32::new(1);

/// The kubelets of a namespace's pods.
#[derive(Debug)]
pub struct Kubelet {
    task: JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Kubelets {
    client: Client,
    namespace: String,
    /// Where pods go that do not say.
    home: String,
    world: World,
    agents: Scripted,
    running: Arc<Mutex<HashMap<String, Running>>>,
    /// Nodes that do not start pods.
    slow: Arc<std::sync::Mutex<Vec<String>>>,
    /// Whether there is a scheduler, which gives pods their nodes.
    scheduled: bool,
}

/// Makes a node that is ready.
pub async fn node(client: &Client, name: &str, labels: Value) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "500"}}
    }))
    .expect("a node");
    nodes.create(&PostParams::default(), &node).await.expect("node created");
    let status = json!({"status": node.status});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.expect("node is ready");
}

impl Kubelet {
    /// Begins to look after a namespace's pods. Those for `slow` nodes stay pending.
    pub fn start(
        client: Client,
        namespace: &str,
        home: &str,
        world: &World,
        agents: &Scripted,
        slow: Arc<std::sync::Mutex<Vec<String>>>,
        scheduled: bool,
    ) -> Self {
        let kubelets = Kubelets {
            client,
            namespace: namespace.to_owned(),
            home: home.to_owned(),
            world: world.clone(),
            agents: agents.clone(),
            running: Arc::default(),
            slow,
            scheduled,
        };
        Self { task: tokio::spawn(kubelets.run()) }
    }
}

impl Kubelets {
    async fn run(self) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut work = JoinSet::new();
        let mut known: HashMap<String, bool> = HashMap::new();
        let mut events = watcher(pods, watcher::Config::default()).default_backoff().boxed();
        loop {
            let event = events.try_next().await;
            let pod = match event {
                Ok(Some(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => pod,
                Ok(Some(watcher::Event::Delete(pod))) => {
                    self.gone(&pod).await;
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) => return,
                // The API server is away: the watch begins again.
                Err(_) => continue,
            };
            let uid = pod.uid().unwrap_or_default();
            let leaving = pod.metadata.deletion_timestamp.is_some();
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            if self.scheduled && node.is_none() && !leaving {
                continue;
            }
            if known.get(&uid) == Some(&false) && is_let_through(&pod) {
                let kubelets = self.clone();
                work.spawn(async move { kubelets.ready(pod).await });
                continue;
            }
            match known.get(&uid) {
                Some(true) => continue,
                Some(false) if !leaving => continue,
                _ => {}
            }
            known.insert(uid, leaving);
            let kubelets = self.clone();
            work.spawn(
                async move { if leaving { kubelets.end(pod).await } else { kubelets.begin(pod).await } },
            );
            while work.try_join_next().is_some() {}
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn begin(&self, pod: Pod) {
        let name = pod.name_any();
        let spec = pod.spec.clone().unwrap_or_default();
        let node = spec.node_name.clone().or_else(|| pinned(&pod)).unwrap_or_else(|| self.home.clone());
        if spec.node_name.is_none() {
            let binding = Binding {
                metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
                target: ObjectReference {
                    kind: Some("Node".into()),
                    name: Some(node.clone()),
                    ..Default::default()
                },
            };
            let bound: Result<Value, _> =
                self.pods().create_subresource("binding", &name, &PostParams::default(), &binding).await;
            if bound.is_err() {
                return;
            }
        }
        if self.slow.lock().is_ok_and(|slow| slow.contains(&node)) {
            return;
        }
        let number = NEXT_ADDRESS.fetch_add(1, Ordering::SeqCst);
        let ip = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
        if spec.containers.iter().any(|one| one.name == AGENT) {
            let agent = self.agents.start(&self.world, &ip).await;
            self.running.lock().await.insert(pod.uid().unwrap_or_default(), agent);
        }
        if pod.annotations().get(ROLE_ANNOTATION).is_some_and(|role| role == "launched") {
            let app = format!(
                "{CLUSTER}/{}/{}",
                self.namespace,
                pod.labels().get(APP_LABEL).cloned().unwrap_or_default()
            );
            let mut world = self.world.lock();
            world.run(&app, &ip);
            world.entry(&app).launches += 1;
        }
        let running = |name: &str| {
            json!({"name": name, "ready": true, "restartCount": 0, "image": "i", "imageID": "i",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
        };
        let containers: Vec<Value> = spec.containers.iter().map(|one| running(&one.name)).collect();
        let ready = if spec.readiness_gates.is_some() { "False" } else { "True" };
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "containerStatuses": containers,
            "conditions": [{"type": "Ready", "status": ready}]
        }});
        self.report(&name, status).await;
    }

    /// All gates of a pod are open.
    async fn ready(&self, pod: Pod) {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        self.report(&pod.name_any(), status).await;
    }

    async fn report(&self, name: &str, status: Value) {
        for _ in 0..100 {
            let patched =
                self.pods().patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await;
            match patched {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 404 => return,
                // The API server is away.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn end(&self, pod: Pod) {
        self.gone(&pod).await;
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        for _ in 0..100 {
            match self.pods().delete(&pod.name_any(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 404 => return,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn gone(&self, pod: &Pod) {
        let agent = self.running.lock().await.remove(&pod.uid().unwrap_or_default());
        drop(agent);
        if let Some(ip) = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()) {
            self.world.lock().end_pod(ip);
        }
    }
}

/// A container has ended, and its kubelet has started it again, without anything of what was restored into it.
pub async fn restarted(pods: &Api<Pod>, pod: &str, container: &str, exit_code: i32) {
    let moment = "2026-01-01T00:00:01Z";
    let ended = json!({"exitCode": exit_code, "startedAt": moment, "finishedAt": moment});
    let status = json!({"status": {"containerStatuses": [{
        "name": container, "ready": true, "restartCount": 1, "image": "i", "imageID": "i",
        "state": {"running": {"startedAt": moment}}, "lastState": {"terminated": ended}
    }]}});
    pods.patch_status(pod, &PatchParams::default(), &Patch::Strategic(&status)).await.expect("a status");
}

/// Whether a pod that has gates is not ready although all of them are open.
fn is_let_through(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let holds =
        |name: &str| conditions.into_iter().flatten().any(|one| one.type_ == name && one.status == "True");
    pod.metadata.deletion_timestamp.is_none()
        && gates.is_some_and(|gates| gates.iter().all(|gate| holds(&gate.condition_type)))
        && !holds("Ready")
}

/// The node that a pod's affinity names.
fn pinned(pod: &Pod) -> Option<String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let field = required.node_selector_terms.first()?.match_fields.as_ref()?.first()?;
    field.values.as_ref()?.first().cloned()
}
