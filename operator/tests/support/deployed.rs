//! Pods that somebody else makes: Deployments, StatefulSets and bare pods in a scene with controllers, and an operator whose webhook
//! treats them.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use futures::future::pending;
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Endpoints, Namespace, Pod, Service},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use migration_operator::{
    api::{APP_LABEL, MigratableApp},
    certificates::{self, Authorities, Identity},
    controller,
    manifests::{self, Options},
    pods::INJECTED_ANNOTATION,
    webhook::{self, Serving},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use super::{Operator, PATIENCE, Scene, holds, merge};

/// A scene whose namespace's pods go through the webhook.
pub struct Deployed {
    pub scene: Scene,
    authorities: Authorities,
}

/// An operator with its webhook.
pub struct Hooked {
    operator: Option<Operator>,
    server: JoinHandle<()>,
}

impl Drop for Hooked {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Hooked {
    /// Takes the operator out: killed when dropped. Its webhook goes on, as that of one that does not lead.
    pub fn take(&mut self) -> Operator {
        self.operator.take().expect("it was not taken before")
    }

    /// From now on the API server gets no answer.
    pub fn stop_webhook(&self) {
        self.server.abort();
    }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

impl Deployed {
    /// `policy` is the migration policy of all pods.
    pub async fn new(name: &str, policy: Value) -> Self {
        let scene = Scene::with_controllers(name).await;
        let namespaces: Api<Namespace> = Api::all(scene.client.clone());
        let label = json!({"metadata": {"labels": {"test": scene.namespace}}});
        namespaces
            .patch(&scene.namespace, &PatchParams::default(), &Patch::Merge(label))
            .await
            .expect("label");
        let mut migration =
            json!({"targetNodeSelector": {"scene": scene.namespace}, "migrationTimeoutSeconds": 60});
        merge(&mut migration, policy);
        let defaults = json!({
            "storage": {"type": "minio", "bucket": "checkpoints", "endpoint": "http://store.example:9000"},
            "checkpointPolicy": {"interval": "1s", "autoAdjust": false},
            "migrationPolicy": migration,
        });
        let map: ConfigMap = object(
            json!({"metadata": {"name": webhook::DEFAULTS}, "data": {"defaults.yaml": defaults.to_string()}}),
        );
        let maps: Api<ConfigMap> = Api::namespaced(scene.client.clone(), &scene.namespace);
        maps.create(&PostParams::default(), &map).await.expect("defaults");
        let now = SystemTime::now();
        let authorities =
            certificates::load(&scene.client, &scene.namespace, now).await.expect("authorities");
        Self { scene, authorities }
    }

    /// Starts an operator, and has the API server ask it.
    pub async fn operator(&self) -> Hooked {
        self.operator_as(self.scene.counted()).await
    }

    /// Starts one that is somebody.
    pub async fn operator_as(&self, client: Client) -> Hooked {
        let scene = &self.scene;
        let serving = Serving::default();
        let own = Identity::Server { names: vec!["127.0.0.1".to_owned()] };
        let issued = self.authorities.issue(&own, Duration::from_secs(3600), SystemTime::now());
        serving.use_certificate(&issued.expect("a certificate")).expect("usable");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (served, authorities) = (serving.clone(), self.authorities.clone());
        let server = tokio::spawn(async move { webhook::serve(listener, served).await });
        let leading = Arc::new(AtomicBool::new(true));
        let agents = Arc::new(scene.agents.clone());
        let ready = move |context: Arc<migration_operator::context::Context>| {
            *context.authorities.lock().expect("not poisoned") = Some(authorities);
            let _ = serving.context.set(context);
        };
        let running =
            controller::run(client, agents, scene.settings(), Arc::clone(&leading), ready, pending());
        let operator = Some(Operator { task: tokio::spawn(running), leading });
        let hooked = Hooked { operator, server };
        self.announce(&format!("https://{address}{}", webhook::PATH)).await;
        hooked
    }

    async fn announce(&self, url: &str) {
        let scene = &self.scene;
        let mut shipped = manifests::documents(&Options {
            namespace: scene.namespace.clone(),
            image: String::new(),
            agent_image: String::new(),
            cluster: String::new(),
            allow: Vec::new(),
        })
        .into_iter()
        .find(|document| document["kind"] == "MutatingWebhookConfiguration")
        .expect("it is shipped");
        shipped["metadata"] = json!({"name": scene.namespace});
        let hook = &mut shipped["webhooks"][0];
        let bundle = k8s_openapi::ByteString(self.authorities.bundle().into_bytes());
        hook["clientConfig"] = json!({"url": url, "caBundle": bundle});
        hook["namespaceSelector"] = json!({"matchLabels": {"test": scene.namespace}});
        hook["timeoutSeconds"] = json!(30);
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(scene.client.clone());
        let params = PatchParams::apply("test").force();
        configurations.patch(&scene.namespace, &params, &Patch::Apply(shipped)).await.expect("configured");
        // The API server asks a moment after it was told to.
        let begun = Instant::now();
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let probe: Pod = object(json!({"metadata": self.metadata("probe"), "spec": self.spec()}));
        loop {
            let made = scene.pods().create(&dry, &probe).await.expect("a dry run");
            if made.annotations().contains_key(INJECTED_ANNOTATION) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the API server does not ask");
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn metadata(&self, name: &str) -> Value {
        json!({"name": name, "labels": {"app": name}, "annotations": {"migration.io/enabled": "true"}})
    }

    fn spec(&self) -> Value {
        json!({
            "nodeSelector": {"scene": self.scene.namespace},
            "containers": [{"name": "main", "image": "redis", "command": ["redis-server"]}],
        })
    }

    fn template(&self, name: &str) -> Value {
        let mut template = json!({"metadata": self.metadata(name), "spec": self.spec()});
        template["metadata"]["name"] = Value::Null;
        template
    }

    pub fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.scene.client.clone(), &self.scene.namespace)
    }

    pub fn stateful_sets(&self) -> Api<StatefulSet> {
        Api::namespaced(self.scene.client.clone(), &self.scene.namespace)
    }

    /// A Deployment of this name, and a Service that selects its pods.
    pub async fn deploy(&self, name: &str, replicas: usize) {
        let selector = json!({"matchLabels": {"app": name}});
        let deployment: Deployment = object(json!({
            "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": selector, "template": self.template(name)},
        }));
        self.deployments().create(&PostParams::default(), &deployment).await.expect("a Deployment");
        let service: Service = object(json!({
            "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 6379}]},
        }));
        let services: Api<Service> = Api::namespaced(self.scene.client.clone(), &self.scene.namespace);
        services.create(&PostParams::default(), &service).await.expect("a Service");
    }

    pub async fn stateful(&self, name: &str, replicas: usize) {
        let selector = json!({"matchLabels": {"app": name}});
        let set: StatefulSet = object(json!({
            "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": selector, "serviceName": name, "template": self.template(name)},
        }));
        self.stateful_sets().create(&PostParams::default(), &set).await.expect("a StatefulSet");
    }

    pub async fn bare(&self, name: &str) {
        let pod: Pod = object(json!({"metadata": self.metadata(name), "spec": self.spec()}));
        self.scene.pods().create(&PostParams::default(), &pod).await.expect("a pod");
    }

    /// The pods that have this label `app`.
    pub async fn pods(&self, name: &str) -> Vec<Pod> {
        let labelled = ListParams::default().labels(&format!("app={name}"));
        self.scene.pods().list(&labelled).await.expect("pods").items
    }

    /// Waits until as many applications run as were asked for and have a checkpoint, and gives their names.
    pub async fn until_running(&self, name: &str, replicas: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let apps = self.apps_of(name).await;
            let good = |app: &MigratableApp| {
                let status = app.status.clone().unwrap_or_default();
                holds(&status, "Ready") && holds(&status, "Migratable") && holds(&status, "Checkpointed")
            };
            if apps.len() == replicas && apps.iter().all(good) {
                return apps.iter().map(ResourceExt::name_any).collect();
            }
            let seen: Vec<_> = apps.iter().map(|app| (app.name_any(), super::pretty(&app.status))).collect();
            assert!(begun.elapsed() < PATIENCE, "{replicas} of {name}: {seen:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The applications whose template has this label `app`.
    pub async fn apps_of(&self, name: &str) -> Vec<MigratableApp> {
        let mut apps = self.scene.apps().list(&ListParams::default()).await.expect("applications").items;
        apps.retain(|app| {
            let metadata = app.spec.template.metadata.as_ref();
            metadata.and_then(|metadata| metadata.labels.as_ref()).and_then(|labels| labels.get("app"))
                == Some(&name.to_owned())
        });
        apps
    }

    /// Waits until exactly so many pods are there, all of them ready, each of them an application of its own and its maker's, and
    /// none of them is going; and gives them.
    pub async fn until_pods(&self, name: &str, expected: usize) -> Vec<Pod> {
        let begun = Instant::now();
        loop {
            let pods = self.pods(name).await;
            let good = |pod: &Pod| {
                let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
                pod.metadata.deletion_timestamp.is_none()
                    && conditions
                        .into_iter()
                        .flatten()
                        .any(|one| one.type_ == "Ready" && one.status == "True")
            };
            if pods.len() == expected && pods.iter().all(good) {
                return pods;
            }
            let seen: Vec<_> =
                pods.iter().map(|pod| (pod.name_any(), pod.labels().clone(), pod.status.clone())).collect();
            assert!(begun.elapsed() < PATIENCE, "{expected} pods of {name}: {seen:#?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a Deployment has what it wants, and nothing more.
    pub async fn until_satisfied(&self, name: &str, replicas: i32) {
        let begun = Instant::now();
        loop {
            let status =
                self.deployments().get(name).await.expect("the Deployment").status.unwrap_or_default();
            if (status.replicas, status.ready_replicas) == (Some(replicas), Some(replicas)) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{replicas} replicas of {name}: {status:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the Service of a Deployment has exactly these pods.
    pub async fn until_served_by(&self, name: &str, pods: &[Pod]) {
        let endpoints: Api<Endpoints> = Api::namespaced(self.scene.client.clone(), &self.scene.namespace);
        let mut expected: Vec<String> = pods.iter().map(ip).collect();
        expected.sort();
        let begun = Instant::now();
        loop {
            let found = endpoints.get_opt(name).await.expect("endpoints").and_then(|one| one.subsets);
            let mut served: Vec<String> = found
                .into_iter()
                .flatten()
                .flat_map(|subset| subset.addresses.unwrap_or_default())
                .map(|address| address.ip)
                .collect();
            served.sort();
            if served == expected {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{name} is served by {served:?} instead of {expected:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What is true of an application, whatever anybody believes.
    pub fn world(&self, app: &str) -> super::world::App {
        self.scene.world.app(&self.scene.full_name(app))
    }

    pub fn assert_nothing_ran_twice(&self) {
        assert_eq!(self.scene.world.lock().violations, Vec::<String>::new());
    }

    /// Waits until an application's object is gone.
    pub async fn until_ended(&self, app: &str) {
        let begun = Instant::now();
        while let Some(there) = self.scene.apps().get_opt(app).await.expect("an answer") {
            assert!(begun.elapsed() < PATIENCE, "{app} stays: {}", super::pretty(&there));
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The application that a pod is.
pub fn app_of(pod: &Pod) -> String {
    pod.labels().get(APP_LABEL).cloned().unwrap_or_default()
}

pub fn ip(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default()
}

pub fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// The controller of a pod.
pub fn controller_of(pod: &Pod) -> Option<String> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.name.clone()).next()
}
