//! What tests rely on when they use a cluster of this crate.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Node, Pod, Secret},
        rbac::v1::{Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
};
use migration_kube::{Cluster, Options};
use serde_json::{Value, json};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn toasters(plural: &str) -> CustomResourceDefinition {
    from_json(json!({
        "metadata": {"name": format!("{plural}.kitchen.example")},
        "spec": {
            "group": "kitchen.example",
            "names": {"plural": plural, "singular": plural, "kind": plural, "listKind": format!("{plural}List")},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "properties": {"slots": {
                    "type": "integer",
                    "x-kubernetes-validations": [{"rule": "self % 2 == 0", "message": "slots come in pairs"}],
                }}}},
            }}}],
        },
    }))
}

fn toaster(kind: &str, slots: u32) -> (ApiResource, DynamicObject) {
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kitchen.example", "v1", kind), kind);
    let object = DynamicObject::new("one", &resource).data(json!({"spec": {"slots": slots}}));
    (resource, object)
}

#[tokio::test]
async fn a_client_lists_namespaces() {
    let cluster = Cluster::shared().unwrap();
    let own = cluster.namespace("list").await.unwrap();
    let namespaces: Api<Namespace> = Api::all(cluster.client().await.unwrap());
    let names: Vec<_> = namespaces
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .filter_map(|it| it.metadata.name)
        .collect();
    for expected in ["default", "kube-system", own.as_str()] {
        assert!(names.iter().any(|name| name == expected), "{expected} in {names:?}");
    }
}

#[tokio::test]
async fn rules_of_a_definition_are_enforced() {
    let cluster = Cluster::shared().unwrap();
    cluster.install(&toasters("toasters")).await.unwrap();
    let namespace = cluster.namespace("rules").await.unwrap();
    let (resource, even) = toaster("toasters", 4);
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client().await.unwrap(), &namespace, &resource);
    api.create(&PostParams::default(), &even).await.unwrap();
    let odd = api.patch("one", &PatchParams::default(), &Patch::Merge(json!({"spec": {"slots": 3}}))).await;
    let message = odd.unwrap_err().to_string();
    assert!(message.contains("slots come in pairs"), "{message}");
}

#[tokio::test]
async fn kubectl_sees_one_server() {
    let cluster = Cluster::shared().unwrap();
    cluster.install(&toasters("kettles")).await.unwrap();
    let namespace = cluster.namespace("kubectl").await.unwrap();
    let (resource, object) = toaster("kettles", 2);
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client().await.unwrap(), &namespace, &resource);
    api.create(&PostParams::default(), &object).await.unwrap();
    let output = cluster.kubectl(&["get", "configmaps,kettles", "-n", &namespace, "-o", "name"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("kettles.kitchen.example/one"), "{text}");
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says_and_no_more() {
    let cluster = Cluster::shared().unwrap();
    let namespace = cluster.namespace("roles").await.unwrap();
    let admin = cluster.client().await.unwrap();
    let role: Role = from_json(json!({
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}],
    }));
    let binding: RoleBinding = from_json(json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": namespace}],
    }));
    Api::namespaced(admin.clone(), &namespace).create(&PostParams::default(), &role).await.unwrap();
    Api::namespaced(admin, &namespace).create(&PostParams::default(), &binding).await.unwrap();

    let robot = cluster.service_account(&namespace, "robot").await.unwrap();
    let begun = Instant::now();
    // Roles are known to the authorizer a moment after they were made.
    while let Err(error) =
        Api::<ConfigMap>::namespaced(robot.clone(), &namespace).list(&ListParams::default()).await
    {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let secrets = Api::<Secret>::namespaced(robot.clone(), &namespace).list(&ListParams::default()).await;
    assert!(matches!(secrets, Err(kube::Error::Api(status)) if status.is_forbidden()));
    let elsewhere = Api::<ConfigMap>::namespaced(robot, "default").list(&ListParams::default()).await;
    assert!(matches!(elsewhere, Err(kube::Error::Api(status)) if status.is_forbidden()));
}

#[tokio::test]
async fn the_api_server_comes_back_with_its_data() {
    let cluster = Cluster::start(Options::default()).await.unwrap();
    cluster.install(&toasters("ovens")).await.unwrap();
    let namespace = cluster.namespace("restart").await.unwrap();
    let (resource, object) = toaster("ovens", 2);
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client().await.unwrap(), &namespace, &resource);
    api.create(&PostParams::default(), &object).await.unwrap();

    cluster.stop_api_server().unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), api.get("one")).await;
    assert!(!matches!(answer, Ok(Ok(_))), "it answers");
    cluster.start_api_server().await.unwrap();
    let begun = Instant::now();
    // What is behind the server is found again after a look of the server's own.
    let found = loop {
        match tokio::time::timeout(Duration::from_secs(10), api.get("one")).await {
            Ok(Ok(found)) => break found,
            answer => assert!(begun.elapsed() < PATIENCE, "{answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(found.data["spec"]["slots"], 2);
}

#[tokio::test]
async fn controllers_make_pods_and_the_scheduler_binds_them() {
    let cluster = Cluster::start(Options { controllers: true, ..Options::default() }).await.unwrap();
    let client = cluster.client().await.unwrap();
    let node: Node = from_json(json!({
        "metadata": {"name": "node-a"},
        "status": {
            "capacity": {"cpu": "8", "memory": "8Gi", "pods": "100"},
            "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "100"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": ""}],
        },
    }));
    Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
    let labels = BTreeMap::from([("app", "web")]);
    let deployment: Deployment = from_json(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": "web"}]}},
        },
    }));
    Api::<Deployment>::namespaced(client.clone(), "default")
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let begun = Instant::now();
    loop {
        let list = pods.list(&ListParams::default()).await.unwrap();
        let bound =
            list.iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())).count();
        if bound == 2 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{bound} of {} pods are bound", list.items.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `kube-stack up` in a process of its own, and the directory it tells.
fn by_hand() -> (Child, PathBuf) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kube-stack"))
        .arg("up")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let kubeconfig = Path::new(line.trim().strip_prefix("export KUBECONFIG=").unwrap());
    (child, kubeconfig.parent().unwrap().to_owned())
}

/// The processes whose command line names the directory.
fn processes_of(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let lines = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(directory)).collect()
}

fn wait_until_gone(directory: &Path) {
    let begun = Instant::now();
    while directory.exists() || !processes_of(directory).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "left: {} {:?}", directory.exists(), processes_of(directory));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nothing_is_left_when_the_process_is_killed() {
    let (mut child, directory) = by_hand();
    assert!(processes_of(&directory).len() >= 3, "{:?}", processes_of(&directory));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(&directory);
}

#[test]
fn nothing_is_left_when_standard_input_ends() {
    let (mut child, directory) = by_hand();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    wait_until_gone(&directory);
}
