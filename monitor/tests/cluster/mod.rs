//! A node with pods in a real API server, a cloud, and monitors that can be killed.

mod network;

use std::{
    ops::Deref,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use migration_kube::{Cluster, Options};
use migration_monitor::{
    Cloud,
    health::Heartbeat,
    kubernetes::{self, Settings},
    policy::{Policy, Rebalance},
};
use network::Network;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Watched, until};

pub const APP: &str = "migration.io/app";

/// A cluster that is shared, or one of a test's own.
pub enum Which {
    Shared(&'static Cluster),
    Own(Box<Cluster>),
}

impl Deref for Which {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        match self {
            Self::Shared(cluster) => cluster,
            Self::Own(cluster) => cluster,
        }
    }
}

pub struct World {
    pub cluster: Which,
    pub client: Client,
    pub namespace: String,
    pub node: String,
    pub watched: Watched,
    pub settings: Settings,
}

/// A monitor in this process; killing it is dropping it.
pub struct Monitor(JoinHandle<()>);

impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The program itself.
pub struct Program(Child);

impl Program {
    pub fn kill(&mut self) {
        // It may have ended, which its test will notice.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The value of one of our annotations.
pub fn annotation(pod: &Pod, name: &str) -> Option<String> {
    pod.annotations().get(&format!("migration.io/{name}")).cloned()
}

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("migration.io", "v1alpha1", "MigratableApp"))
}

impl World {
    /// In the cluster that all tests share.
    pub async fn new(cloud: Cloud) -> Self {
        let cluster = tokio::task::spawn_blocking(Cluster::shared).await.unwrap().unwrap();
        Self::make(Which::Shared(cluster), cloud).await
    }

    /// In a cluster that can be broken.
    pub async fn alone(cloud: Cloud) -> Self {
        let cluster = Cluster::start(Options::default()).await.unwrap();
        Self::make(Which::Own(Box::new(cluster)), cloud).await
    }

    async fn make(cluster: Which, cloud: Cloud) -> Self {
        let client = cluster.client().await.unwrap();
        let namespace = cluster.namespace("monitor").await.unwrap();
        let settings = Settings {
            node: String::new(),
            cordon: false,
            policy: Policy { rebalance: Rebalance::Checkpoint, lead: Duration::from_secs(900) },
            acknowledge: None,
        };
        let watched = Watched::of(cloud).await;
        let mut world = Self { cluster, client, namespace, node: String::new(), watched, settings };
        world.node = world.node("node").await;
        world.settings.node.clone_from(&world.node);
        world
            .change_node(json!({"spec": {"taints": [{"key": "somebody/else", "effect": "NoSchedule"}]}}))
            .await;
        world
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A node that no other test has.
    pub async fn node(&self, name: &str) -> String {
        let name = format!("{}-{name}", self.namespace);
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.nodes().create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        name
    }

    pub async fn pod(&self, name: &str, node: &str, labels: &[(&str, &str)]) {
        self.pod_in(&self.namespace, name, node, labels).await;
    }

    pub async fn pod_in(&self, namespace: &str, name: &str, node: &str, labels: &[(&str, &str)]) {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    pub async fn annotate(&self, name: &str, annotations: Value) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        self.pods().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn change_node(&self, patch: Value) {
        self.nodes().patch(&self.node, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub async fn read(&self, name: &str) -> Pod {
        self.pods().get(name).await.unwrap()
    }

    pub async fn read_node(&self) -> Node {
        self.nodes().get(&self.node).await.unwrap()
    }

    /// An application as the operator has it, in a phase.
    pub async fn application(&self, name: &str, phase: &str) {
        let definition: CustomResourceDefinition = serde_json::from_value(json!({
            "metadata": {"name": "migratableapps.migration.io"},
            "spec": {
                "group": "migration.io",
                "scope": "Namespaced",
                "names": {"kind": "MigratableApp", "plural": "migratableapps", "singular": "migratableapp"},
                "versions": [{
                    "name": "v1alpha1",
                    "served": true,
                    "storage": true,
                    "schema": {"openAPIV3Schema": {
                        "type": "object", "x-kubernetes-preserve-unknown-fields": true
                    }},
                }],
            },
        }))
        .unwrap();
        self.cluster.install(&definition).await.unwrap();
        let resource = resource();
        let app = DynamicObject::new(name, &resource).data(json!({"status": {"phase": phase}}));
        self.applications().create(&PostParams::default(), &app).await.unwrap();
    }

    fn applications(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource())
    }

    /// Puts an application into another phase.
    pub async fn phase(&self, name: &str, phase: &str) {
        let patch = Patch::Merge(json!({"status": {"phase": phase}}));
        self.applications().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Announces that the machine is taken away in two minutes.
    pub fn spot(&self) -> Timestamp {
        let deadline = Timestamp::from_second(Timestamp::now().as_second() + 120).unwrap();
        self.watched.server.aws_spot(Some(("terminate", deadline)));
        deadline
    }

    pub fn monitor(&self) -> Monitor {
        self.monitor_as(self.client.clone())
    }

    pub fn monitor_as(&self, client: Client) -> Monitor {
        let (settings, view) = (self.settings.clone(), self.watched.view.clone());
        let metrics = Arc::clone(&self.watched.metrics);
        Monitor(tokio::spawn(async move {
            match kubernetes::run(client, settings, view, Heartbeat::default(), metrics).await {}
        }))
    }

    /// The program, on the same metadata service.
    pub fn program(&self, more: &[&str]) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_migration-monitor"));
        command.args(["kubernetes", "--node-name", &self.node, "--metadata", &self.watched.server.url()]);
        command.args(["--cloud", "aws", "--interval-ms", "200"]).args(more).stdin(Stdio::null());
        command.stderr(Stdio::null());
        Program(command.env("KUBECONFIG", self.cluster.kubeconfig()).spawn().unwrap())
    }

    /// A client that may do everything, and the network between it and the API server.
    pub async fn through_a_network(&self) -> (Network, Client) {
        let kubeconfig = Kubeconfig::read_from(self.cluster.kubeconfig()).unwrap();
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let network = Network::to(config.cluster_url.authority().unwrap().as_str()).await;
        config.cluster_url = format!("https://{}", network.address).parse().unwrap();
        (network, Client::try_from(config).unwrap())
    }

    /// A client with the rights of `monitor/deploy/rbac.yaml`.
    pub async fn as_shipped(&self) -> Client {
        let namespace = self.cluster.kubectl(&["create", "namespace", "migration-system"]).unwrap();
        let said = String::from_utf8_lossy(&namespace.stderr);
        assert!(namespace.status.success() || said.contains("AlreadyExists"), "{said}");
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbac.yaml");
        let applied = self.cluster.kubectl(&["apply", "--validate=false", "-f", file]).unwrap();
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        self.cluster.service_account("migration-system", "migration-monitor").await.unwrap()
    }

    /// A client with less than those rights: pods of other namespaces can be seen only.
    pub async fn as_somebody_who_may_change_pods_here_only(&self) -> Client {
        let (here, name) = (self.namespace.as_str(), format!("{}-limited", self.namespace));
        let who = format!("--serviceaccount={here}:limited");
        for arguments in [
            &["create", "clusterrole", &name, "--verb=get,list,patch", "--resource=nodes,nodes/status"][..],
            &["create", "clusterrolebinding", &name, &format!("--clusterrole={name}"), &who],
            &["create", "clusterrole", &format!("{name}-sees"), "--verb=list", "--resource=pods"],
            &[
                "create",
                "clusterrolebinding",
                &format!("{name}-sees"),
                &format!("--clusterrole={name}-sees"),
                &who,
            ],
            &["create", "role", "changes", "-n", here, "--verb=patch", "--resource=pods"],
            &["create", "rolebinding", "changes", "-n", here, "--role=changes", &who],
        ] {
            let made = self.cluster.kubectl(arguments).unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        self.cluster.service_account(here, "limited").await.unwrap()
    }

    /// Waits until these pods are triggered.
    pub async fn triggered<S: AsRef<str>>(&self, names: &[S]) {
        for name in names {
            let name = name.as_ref();
            until(&format!("{name} is triggered"), async || {
                let pod = self.read(name).await;
                annotation(&pod, "trigger").is_some() && annotation(&pod, "notice").is_some()
            })
            .await;
        }
    }

    pub async fn is_tainted(&self) -> bool {
        let taints = self.read_node().await.spec.unwrap_or_default().taints.unwrap_or_default();
        taints.iter().any(|taint| taint.key == kubernetes::TAINT)
    }

    async fn has_condition(&self) -> bool {
        let conditions = self.read_node().await.status.unwrap_or_default().conditions.unwrap_or_default();
        conditions.iter().any(|one| one.type_ == kubernetes::CONDITION && one.status == "True")
    }

    /// Waits until the node has taint and condition.
    pub async fn marked(&self) {
        until("the node is marked", async || self.is_tainted().await && self.has_condition().await).await;
    }

    /// Waits until it has neither.
    pub async fn unmarked(&self) {
        until("the node is not marked any more", async || {
            !self.is_tainted().await && !self.has_condition().await
        })
        .await;
    }
}
