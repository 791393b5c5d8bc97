//! The operator's rights, on a real API server, with its own service account.

mod support;

use std::{
    future::pending,
    sync::{Arc, atomic::AtomicBool},
};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod, Secret},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use migration_kube::Cluster;
use migration_operator::{
    api::{MigratableApp, migration::MigrationStage},
    certificates,
    context::Settings,
    controller,
    manifests::{self, rbac},
    network,
};
use serde_json::{Value, json};

use self::support::{Scene, deployed::Deployed};

/// The namespaces of one test: the operator's, one that may have applications, one that may not.
struct Place {
    cluster: &'static Cluster,
    operator: Client,
    system: String,
    allowed: String,
    other: String,
}

/// Roles are known to the authorizer a moment after they were made.
async fn settled<T, F: Future<Output = Result<T, kube::Error>>>(mut act: impl FnMut() -> F) -> T {
    let begun = std::time::Instant::now();
    loop {
        match act().await {
            Ok(done) => return done,
            Err(kube::Error::Api(status)) if status.is_forbidden() && begun.elapsed().as_secs() < 60 => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn place() -> Place {
    let cluster = support::cluster().await;
    let system = cluster.namespace("system").await.unwrap();
    let allowed = cluster.namespace("allowed").await.unwrap();
    let other = cluster.namespace("other").await.unwrap();
    let operator = operator(cluster, &system, &allowed).await;
    Place { cluster, operator, system, allowed, other }
}

/// The operator's service account with the roles that are shipped.
async fn operator(cluster: &Cluster, system: &str, allowed: &str) -> Client {
    let options = manifests::Options {
        namespace: system.to_owned(),
        image: "operator".to_owned(),
        agent_image: "agent".to_owned(),
        cluster: "test".to_owned(),
        allow: vec![allowed.to_owned()],
    };
    for mut document in manifests::documents(&options) {
        match document["kind"].as_str().unwrap() {
            // Tests share the names that are not of a namespace; each has its own binding of them.
            "ClusterRoleBinding" => {
                document["metadata"]["name"] = json!(format!("migration-operator-{system}"))
            }
            kind if kind.contains("Role") => {}
            _ => continue,
        }
        apply(cluster, &document);
    }
    let operator = cluster.service_account(system, manifests::NAME).await.unwrap();
    let pods: Api<Pod> = Api::all(operator.clone());
    let one = ListParams::default().limit(1);
    settled(|| pods.list(&one)).await;
    operator
}

fn apply(cluster: &Cluster, document: &Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), document.to_string()).unwrap();
    let output = cluster.kubectl(&["apply", "-f", file.path().to_str().unwrap()]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What `kubectl auth can-i` says of the operator.
fn may(place: &Place, verb: &str, resource: &str, namespace: Option<&str>) -> bool {
    let account = format!("--as=system:serviceaccount:{}:{}", place.system, manifests::NAME);
    let mut arguments = vec!["auth", "can-i", verb];
    arguments.extend(resource.split(' '));
    arguments.push(&account);
    arguments.extend(namespace.map_or(vec!["--all-namespaces"], |namespace| vec!["-n", namespace]));
    let output = place.cluster.kubectl(&arguments).unwrap();
    output.stdout.starts_with(b"yes")
}

fn resource(rule: &rbac::Rule) -> Vec<String> {
    let (plain, sub) =
        rule.resource.split_once('/').map_or((rule.resource, None), |(plain, sub)| (plain, Some(sub)));
    let group = if rule.group.is_empty() { String::new() } else { format!(".{}", rule.group) };
    let sub = sub.map_or(String::new(), |sub| format!("/{sub}"));
    match rule.names {
        [] => vec![format!("{plain}{group}{sub}")],
        names => names.iter().map(|name| format!("{plain}{group}/{name}")).collect(),
    }
}

#[tokio::test]
async fn every_right_of_the_table_is_there() {
    let place = place().await;
    let tables =
        [(rbac::CLUSTER, None), (rbac::NAMESPACE, Some(&place.allowed)), (rbac::SYSTEM, Some(&place.system))];
    for (table, namespace) in tables {
        for rule in table {
            for (name, verb) in
                resource(rule).iter().flat_map(|name| rule.verbs.iter().map(move |verb| (name, verb)))
            {
                let name = match name.split_once('/') {
                    // A subresource is asked for apart.
                    Some((plain, sub)) if rule.names.is_empty() => format!("{plain} --subresource={sub}"),
                    _ => name.clone(),
                };
                let words: Vec<&str> = name.split(' ').collect();
                let account = format!("--as=system:serviceaccount:{}:{}", place.system, manifests::NAME);
                let mut arguments = vec!["auth", "can-i", verb];
                arguments.extend(words);
                arguments.push(&account);
                arguments.extend(
                    namespace.map_or(vec!["--all-namespaces"], |namespace| vec!["-n", namespace.as_str()]),
                );
                let output = place.cluster.kubectl(&arguments).unwrap();
                assert!(
                    output.stdout.starts_with(b"yes"),
                    "{arguments:?}: {}",
                    String::from_utf8_lossy(&output.stdout)
                );
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_in_the_table_is_refused() {
    let place = place().await;
    let (allowed, other, system) = (place.allowed.as_str(), place.other.as_str(), place.system.as_str());
    for (verb, what, namespace) in [
        ("get", "secrets", None),
        ("list", "secrets", None),
        ("watch", "secrets", None),
        ("list", "secrets", Some(system)),
        ("delete", "secrets", Some(system)),
        ("get", "secrets", Some(allowed)),
        ("list", "secrets", Some(allowed)),
        ("delete", "secrets", Some(allowed)),
        ("get", "secrets", Some(other)),
        ("create", "secrets", Some(other)),
        ("create", "pods", Some(other)),
        ("delete", "pods", Some(other)),
        ("create", "pods --subresource=exec", Some(allowed)),
        ("create", "pods", Some(system)),
        ("patch", "nodes", None),
        ("update", "migratableapps.migration.io", Some(allowed)),
        ("create", "migratableapps.migration.io", Some(other)),
        ("delete", "migratableapps.migration.io", Some(other)),
        ("get", "replicasets.apps", Some(other)),
        ("list", "replicasets.apps", Some(allowed)),
        ("patch", "replicasets.apps", Some(allowed)),
        ("patch", "statefulsets.apps", Some(allowed)),
        ("patch", "pods --subresource=status", Some(other)),
        ("create", "clusterroles.rbac.authorization.k8s.io", None),
        ("create", "rolebindings.rbac.authorization.k8s.io", Some(allowed)),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io/another", None),
        ("list", "networkpolicies.networking.k8s.io", None),
        ("delete", "networkpolicies.networking.k8s.io", Some(allowed)),
        ("patch", "networkpolicies.networking.k8s.io", Some(other)),
        ("update", "leases.coordination.k8s.io/another", Some(system)),
        ("impersonate", "serviceaccounts", None),
    ] {
        assert!(!may(&place, verb, what, namespace), "may {verb} {what} in {namespace:?}");
    }
}

#[tokio::test]
async fn with_these_rights_it_can_do_its_work() {
    let place = place().await;
    let operator = place.operator.clone();
    // The credentials, and the authority: read, made, renewed.
    let mut credentials = Secret::default();
    credentials.metadata.name = Some("store-credentials".to_owned());
    let admin = place.cluster.client().await.unwrap();
    Api::namespaced(admin.clone(), &place.system).create(&PostParams::default(), &credentials).await.unwrap();
    let own: Api<Secret> = Api::namespaced(operator.clone(), &place.system);
    settled(|| own.get("store-credentials")).await;
    let now = std::time::SystemTime::now();
    let made = certificates::load(&operator, &place.system, now).await.unwrap();
    assert_eq!(certificates::load(&operator, &place.system, now).await.unwrap(), made);
    let later = now + std::time::Duration::from_secs(300 * 24 * 3600);
    let renewed = certificates::renew(&operator, &place.system, later).await.unwrap();
    assert_ne!(renewed, made);

    // An application: its finalizer, status, Secret and pod.
    let app: MigratableApp = serde_json::from_value(json!({
        "metadata": {"name": "app"},
        "spec": {
            "template": {"spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]}},
            "storage": {"type": "s3", "bucket": "checkpoints"},
        },
    }))
    .unwrap();
    Api::namespaced(admin.clone(), &place.allowed).create(&PostParams::default(), &app).await.unwrap();
    let apps: Api<MigratableApp> = Api::namespaced(operator.clone(), &place.allowed);
    let finalizer = json!({"metadata": {"finalizers": ["migration.io/checkpoints"]}});
    apps.patch_metadata("app", &PatchParams::default(), &Patch::Merge(&finalizer)).await.unwrap();
    let status = json!({"apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp", "status": {"phase": "Running"}});
    apps.patch_status("app", &PatchParams::apply("migration-operator"), &Patch::Apply(&status))
        .await
        .unwrap();
    let secrets: Api<Secret> = Api::namespaced(operator.clone(), &place.allowed);
    let mirrored = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "app-credentials"}});
    let (by_us, mirrored) = (PatchParams::apply("migration-operator"), Patch::Apply(&mirrored));
    settled(|| secrets.patch("app-credentials", &by_us, &mirrored)).await;
    let pods: Api<Pod> = Api::namespaced(operator.clone(), &place.allowed);
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "app-1"}, "spec": {"containers": [{"name": "app", "image": "app"}]}}),
    )
    .unwrap();
    let plainly = PostParams::default();
    settled(|| pods.create(&plainly, &pod)).await;
    pods.delete("app-1", &DeleteParams::default().grace_period(0)).await.unwrap();

    // And not where nobody allowed it.
    let elsewhere: Api<Pod> = Api::namespaced(operator.clone(), &place.other);
    let refused = elsewhere.create(&PostParams::default(), &pod).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.is_forbidden()));
    let maps: Api<ConfigMap> = Api::namespaced(operator, &place.allowed);
    assert!(maps.list(&ListParams::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_moves_with_exactly_these_rights() {
    let scene = Scene::new("rights").await;
    let client = operator(support::cluster().await, &scene.namespace, &scene.namespace).await;
    let leading = Arc::new(AtomicBool::new(true));
    let agents = Arc::new(scene.agents.clone());
    let settings = Settings { network_policies: true, ..scene.settings() };
    let policies: Api<NetworkPolicy> = Api::namespaced(scene.client.clone(), &scene.namespace);
    let closed =
        json!({"metadata": {"name": "closed"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    policies.create(&PostParams::default(), &serde_json::from_value(closed).unwrap()).await.unwrap();
    let operator = tokio::spawn(controller::run(client, agents, settings, leading, |_| {}, pending()));
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    scene.trigger("app").await;
    let after = scene.until_over("app", 1).await;
    assert_eq!(after.migration.map(|migration| migration.stage), Some(MigrationStage::Succeeded));
    assert_ne!(after.current_node, Some(scene.node("a")));
    // Somebody else has closed its pods: only the agents' port is opened.
    let policy = policies.get(&network::policy_name("app")).await.unwrap();
    let app = scene.apps().get("app").await.unwrap();
    assert_eq!(policy.spec, network::policy(&app, &scene.namespace, true).spec);
    assert_eq!(policy.metadata.owner_references.unwrap()[0].uid, app.metadata.uid.unwrap());
    operator.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_others_move_with_exactly_these_rights() {
    let place = Deployed::new("others", json!({})).await;
    let cluster = Cluster::shared_with_controllers().unwrap();
    let namespace = &place.scene.namespace;
    let client = operator(cluster, namespace, namespace).await;
    let _operator = place.operator_as(client).await;
    place.deploy("web", 1).await;
    place.stateful("db", 1).await;
    place.bare("cache").await;
    for name in ["web", "db", "cache"] {
        let app = place.until_running(name, 1).await.remove(0);
        place.scene.trigger(&app).await;
        let after = place.scene.until_over(&app, 1).await;
        let ended = after.migration.clone().map(|migration| migration.stage);
        assert_eq!(ended, Some(MigrationStage::Succeeded), "{}", support::pretty(&after));
        place.until_pods(name, 1).await;
    }
    place.assert_nothing_ran_twice();
    // And an application goes with its pod.
    let pod = place.until_pods("cache", 1).await.remove(0);
    place.scene.pods().delete(&kube::ResourceExt::name_any(&pod), &DeleteParams::default()).await.unwrap();
    place.until_ended("cache").await;
}
