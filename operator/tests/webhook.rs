//! The webhook, asked by a real API server with real controllers.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Pod, Secret},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::reflector,
};
use migration_kube::Cluster;
use migration_operator::{
    agents::{Mtls, PORT},
    certificates::{self, Authorities, Identity},
    context::{Context, Settings},
    migration::Limits,
    pods::{AgentSettings, INJECTED_ANNOTATION},
    webhook::{self, Serving},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

const PATIENCE: Duration = Duration::from_secs(120);

/// An operator's webhook that answers for one namespace.
struct Place {
    cluster: &'static Cluster,
    client: Client,
    system: String,
    namespace: String,
    authorities: Authorities,
    server: JoinHandle<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn place(defaults: Option<&str>) -> Place {
    let cluster = Cluster::shared_with_controllers().unwrap();
    cluster.install(&migration_operator::api::definition().unwrap()).await.unwrap();
    let client = cluster.client().await.unwrap();
    let system = cluster.namespace("system").await.unwrap();
    let namespace = cluster.namespace("webhook").await.unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let label = json!({"metadata": {"labels": {"test": namespace}}});
    namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    if let Some(defaults) = defaults {
        let map: ConfigMap =
            from_json(json!({"metadata": {"name": webhook::DEFAULTS}, "data": {"defaults.yaml": defaults}}));
        Api::namespaced(client.clone(), &system).create(&PostParams::default(), &map).await.unwrap();
    }
    let settings = Settings {
        cluster: "test".to_owned(),
        namespace: system.clone(),
        agent: AgentSettings { image: "agent".to_owned(), native_sidecar: false, ..AgentSettings::default() },
        limits: Limits::default(),
        interruptible_label: None,
        network_policies: false,
        resync: Duration::from_secs(30),
        only: None,
    };
    let (reader, _) = reflector::store();
    let (nodes, _) = reflector::store();
    let leading = Arc::new(AtomicBool::new(true));
    let agents = Arc::new(Mtls::new(PORT));
    let context = Arc::new(Context::new(client.clone(), agents, settings, reader, nodes, leading));
    let now = SystemTime::now();
    let authorities = certificates::load(&client, &system, now).await.unwrap();
    *context.authorities.lock().unwrap() = Some(authorities.clone());

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = Serving::default();
    let _ = serving.context.set(context.clone());
    let own = Identity::Server { names: vec!["127.0.0.1".to_owned()] };
    serving.use_certificate(&authorities.issue(&own, Duration::from_secs(3600), now).unwrap()).unwrap();
    let server = tokio::spawn(async move { webhook::serve(listener, serving).await });

    let manifests = migration_operator::manifests::documents(&migration_operator::manifests::Options {
        namespace: system.clone(),
        image: String::new(),
        agent_image: String::new(),
        cluster: String::new(),
        allow: Vec::new(),
    });
    let mut shipped =
        manifests.into_iter().find(|document| document["kind"] == "MutatingWebhookConfiguration").unwrap();
    shipped["metadata"] = json!({"name": namespace});
    let hook = &mut shipped["webhooks"][0];
    hook["clientConfig"] = json!({
        "url": format!("https://{address}{}", webhook::PATH),
        "caBundle": k8s_openapi::ByteString(authorities.bundle().into_bytes()),
    });
    hook["namespaceSelector"] = json!({"matchLabels": {"test": namespace}});
    hook["timeoutSeconds"] = json!(30);
    let configuration: MutatingWebhookConfiguration = from_json(shipped);
    Api::all(client.clone()).create(&PostParams::default(), &configuration).await.unwrap();
    let place = Place { cluster, client, system, namespace, authorities, server };
    place.wait_until_asked().await;
    place
}

impl Place {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The API server asks a moment after it was told to.
    async fn wait_until_asked(&self) {
        let begun = Instant::now();
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let probe = pod("probe", true, Some("probe"));
        // With defaults it is treated, without it is warned about; either way kubectl tells.
        loop {
            let made: Pod = self.api().create(&dry, &probe).await.unwrap();
            if is_treated(&made) || !self.warnings(&probe).is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the API server does not ask");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What kubectl says when such a pod would be made.
    fn warnings(&self, pod: &Pod) -> String {
        let mut pod = serde_json::to_value(pod).unwrap();
        (pod["apiVersion"], pod["kind"]) = (json!("v1"), json!("Pod"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pod.to_string()).unwrap();
        let path = file.path().to_str().unwrap();
        let arguments = ["create", "-n", &self.namespace, "--dry-run=server", "--validate=false", "-f", path];
        let output = self.cluster.kubectl(&arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said.lines().filter(|line| line.starts_with("Warning: ") && line.contains("migration.io")).collect()
    }
}

const DEFAULTS: &str = "storage: {type: s3, bucket: checkpoints}\ncheckpointPolicy: {interval: 10s}\n";

fn pod(name: &str, asks: bool, command: Option<&str>) -> Pod {
    let mut annotations = BTreeMap::from([("kept", "yes")]);
    if asks {
        annotations.insert("migration.io/enabled", "true");
    }
    from_json(json!({
        "metadata": {"name": name, "annotations": annotations, "labels": {"app": "web"}},
        "spec": {
            "containers": [{
                "name": "web", "image": "web", "command": command.map(|command| [command]), "args": ["--serve"],
                "env": [{"name": "A", "value": "b"}], "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }))
}

fn is_treated(pod: &Pod) -> bool {
    pod.annotations().contains_key(INJECTED_ANNOTATION)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_asks_gets_launcher_agent_and_secrets_and_keeps_everything_else() {
    let place = place(Some(DEFAULTS)).await;
    let asked = pod("web-0", true, Some("web"));
    let made: Pod = place.api().create(&PostParams::default(), &asked).await.unwrap();
    assert!(is_treated(&made));
    assert_eq!(made.labels()["migration.io/app"], "web-0");
    assert_eq!((made.labels()["app"].as_str(), made.annotations()["kept"].as_str()), ("web", "yes"));
    let spec = made.spec.unwrap();
    assert_eq!(spec.share_process_namespace, Some(true));
    let names: Vec<_> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["web", "migration-agent"]);
    let (web, before) = (&spec.containers[0], &asked.spec.as_ref().unwrap().containers[0]);
    let command = web.command.clone().unwrap();
    assert_eq!(command[0], "/migration/bin/migration-launch");
    assert_eq!(command[1..3], ["--app", &format!("test/{}/web-0", place.namespace)]);
    assert_eq!(command.last().unwrap(), "web");
    assert_eq!((&web.args, &web.env, &web.image), (&before.args, &before.env, &before.image));
    assert_eq!(web.volume_mounts.as_ref().unwrap()[0], before.volume_mounts.as_ref().unwrap()[0]);
    assert_eq!(web.volume_mounts.as_ref().unwrap().len(), 3);
    assert_eq!(spec.volumes.as_ref().unwrap()[0].name, "data");
    // Every Secret that it mounts is there.
    let mounted: Vec<String> = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.secret.as_ref()?.secret_name.clone())
        .collect();
    assert!(!mounted.is_empty());
    for name in mounted {
        let secret: Secret = place.api().get(&name).await.unwrap();
        assert!(secret.data.unwrap().contains_key("tls.crt"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_pods_are_left_alone() {
    let place = place(Some(DEFAULTS)).await;
    let made: Pod =
        place.api().create(&PostParams::default(), &pod("plain", false, Some("web"))).await.unwrap();
    assert!(!is_treated(&made));
    let mut owned = pod("owned", true, Some("web"));
    owned.metadata.labels.get_or_insert_default().insert("migration.io/app".to_owned(), "app".to_owned());
    let made: Pod = place.api().create(&PostParams::default(), &owned).await.unwrap();
    assert!(!is_treated(&made));
    assert_eq!(made.spec.unwrap().containers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_moved_runs_and_its_maker_is_warned() {
    let place = place(Some(DEFAULTS)).await;
    let unknown = pod("unknown", true, None);
    let warning = place.warnings(&unknown);
    assert!(warning.contains("cannot be moved") && warning.contains("command"), "{warning}");
    let made: Pod = place.api().create(&PostParams::default(), &unknown).await.unwrap();
    assert!(!is_treated(&made));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_defaults_pods_run_and_their_maker_is_told_what_to_write() {
    let place = place(None).await;
    let asked = pod("web", true, Some("web"));
    let warning = place.warnings(&asked);
    assert!(warning.contains(&format!("{}/{}", place.system, webhook::DEFAULTS)), "{warning}");
    let made: Pod = place.api().create(&PostParams::default(), &asked).await.unwrap();
    assert!(!is_treated(&made));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_while_no_operator_answers() {
    let place = place(Some(DEFAULTS)).await;
    place.server.abort();
    let begun = Instant::now();
    for number in 0.. {
        let made: Pod = place
            .api()
            .create(&PostParams::default(), &pod(&format!("web-{number}"), true, Some("web")))
            .await
            .unwrap();
        if !is_treated(&made) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_makes_no_secret() {
    let place = place(Some(DEFAULTS)).await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let made: Pod = place.api().create(&dry, &pod("dry", true, Some("web"))).await.unwrap();
    assert!(is_treated(&made));
    let secrets: Api<Secret> = place.api();
    let ours = secrets.list(&ListParams::default()).await.unwrap();
    let ours: Vec<_> =
        ours.iter().map(ResourceExt::name_any).filter(|name| name.contains("migration")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_does_not_fight_what_was_added_to_its_pods() {
    let place = place(Some(DEFAULTS)).await;
    let template = pod("", true, Some("web"));
    let deployment: Deployment = from_json(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": template.metadata.labels, "annotations": template.metadata.annotations},
                "spec": template.spec,
            },
        },
    }));
    place.api().create(&PostParams::default(), &deployment).await.unwrap();
    let pods: Api<Pod> = place.api();
    let begun = Instant::now();
    let first = loop {
        let list = pods.list(&ListParams::default()).await.unwrap().items;
        if list.len() == 3 {
            break list;
        }
        assert!(begun.elapsed() < PATIENCE && list.len() < 3, "{} pods", list.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(first.iter().all(is_treated));
    let apps: std::collections::BTreeSet<_> =
        first.iter().map(|pod| pod.labels()["migration.io/app"].clone()).collect();
    assert_eq!(apps.len(), 3, "each pod is an application of its own: {apps:?}");
    // The controller has looked at what came of its request, and makes no others.
    let deployments: Api<Deployment> = place.api();
    loop {
        let status = deployments.get("web").await.unwrap().status.unwrap_or_default();
        if status.replicas == Some(3) && status.observed_generation == Some(1) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let uids = |pods: Vec<Pod>| {
        pods.into_iter().filter_map(|pod| pod.metadata.uid).collect::<std::collections::BTreeSet<_>>()
    };
    let later = pods.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(uids(later), uids(first));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_is_told_whom_to_trust() {
    let place = place(Some(DEFAULTS)).await;
    assert!(!webhook::announce(&place.client, &place.authorities.bundle()).await.unwrap());
    let configuration: MutatingWebhookConfiguration = from_json(json!({
        "metadata": {"name": "migration-operator"},
        "webhooks": [{
            "name": "pods.migration.io",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "nobody", "namespace": place.system, "path": "/mutate-pods"}},
            "failurePolicy": "Ignore",
            "sideEffects": "NoneOnDryRun",
            "namespaceSelector": {"matchLabels": {"no": "namespace"}},
        }],
    }));
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(place.client.clone());
    configurations.create(&PostParams::default(), &configuration).await.unwrap();
    assert!(webhook::announce(&place.client, &place.authorities.bundle()).await.unwrap());
    let told = configurations.get("migration-operator").await.unwrap();
    let hook = &told.webhooks.as_ref().unwrap()[0];
    assert_eq!(hook.client_config.ca_bundle.as_ref().unwrap().0, place.authorities.bundle().into_bytes());
    assert_eq!(hook.client_config.service.as_ref().unwrap().name, "nobody");
    // Told once, it is not told again.
    assert!(webhook::announce(&place.client, &place.authorities.bundle()).await.unwrap());
    let again = configurations.get("migration-operator").await.unwrap();
    assert_eq!(again.metadata.resource_version, told.metadata.resource_version);
}
