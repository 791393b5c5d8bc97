//! The definition on a real API server, with the real kubectl: what is accepted, what is refused and in which words.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use migration_kube::Cluster;
use migration_operator::api::{DeletionPolicy, MigratableApp, definition};
use serde_json::{Value, json};
use tokio::time::sleep;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// As the reference system's README writes one.
const REFERENCE: &str = include_str!("reference.yaml");

/// Every field there is.
const EVERYTHING: &str = include_str!("everything.yaml");

/// A cluster with the definition, and a namespace of one's own.
async fn cluster() -> (&'static Cluster, String) {
    let cluster = Cluster::shared().unwrap();
    cluster.install(&definition().unwrap()).await.unwrap();
    (cluster, cluster.namespace("crd").await.unwrap())
}

/// kubectl with something to read.
fn kubectl(cluster: &Cluster, input: &str, arguments: &[&str]) -> Output {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("KUBECACHEDIR", cluster.kubeconfig().with_file_name("kubectl-cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn shipped() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crd.yaml")).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What kubectl prints when it succeeds.
fn succeeds(cluster: &Cluster, input: &str, arguments: &[&str]) -> String {
    let output = kubectl(cluster, input, arguments);
    assert!(output.status.success(), "kubectl {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn parse(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}

/// The smallest application that is accepted.
fn smallest() -> Value {
    json!({
        "apiVersion": "migration.io/v1alpha1",
        "kind": "MigratableApp",
        "metadata": {"name": "small"},
        "spec": {
            "template": {"spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]}},
            "storage": {"type": "s3", "bucket": "checkpoints"},
        },
    })
}

/// Puts a value at a place like `spec.storage.type`.
fn put(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for part in path.split('.') {
        place = match part.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[part],
        };
    }
    *place = value;
}

#[test]
fn the_definition_that_is_shipped_is_the_one_that_is_generated() {
    let generated = Command::new(env!("CARGO_BIN_EXE_migration-operator")).arg("crd").output().unwrap();
    assert!(generated.status.success(), "{}", text(&generated.stderr));
    assert!(
        text(&generated.stdout) == shipped(),
        "write it again: migration-operator crd > operator/deploy/crd.yaml"
    );
}

#[tokio::test]
async fn the_definition_is_accepted_without_a_warning() {
    let cluster = Cluster::shared().unwrap();
    let output = kubectl(cluster, &shipped(), &["apply", "--server-side", "--validate=warn", "-f", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // The server in front is too old to check fields by itself, and kubectl says so.
    let said = text(&output.stderr);
    assert!(said.lines().all(|line| line.contains("cannot perform warn validation")), "{said}");
    let output = succeeds(
        cluster,
        "",
        &["wait", "--for=condition=Established", "--timeout=60s", "crd/migratableapps.migration.io"],
    );
    assert!(output.contains("condition met"), "{output}");
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client().await.unwrap());
    let conditions = definitions.get("migratableapps.migration.io").await.unwrap().status.unwrap().conditions;
    let not_structural =
        conditions.iter().flatten().find(|condition| condition.type_ == "NonStructuralSchema");
    assert!(not_structural.is_none(), "{not_structural:?}");
}

#[tokio::test]
async fn yaml_of_the_reference_system_applies_unchanged() {
    let (cluster, namespace) = cluster().await;
    let output = kubectl(cluster, REFERENCE, &["apply", "-n", &namespace, "-f", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let again = succeeds(cluster, REFERENCE, &["apply", "-n", &namespace, "-f", "-"]);
    assert!(again.contains("unchanged"), "{again}");
    let stored = succeeds(cluster, "", &["get", "mapp", "redis-app", "-n", &namespace, "-o", "json"]);
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["spec"]["template"], parse(REFERENCE)["spec"]["template"]);
    assert_eq!(stored["spec"]["migrationPolicy"]["targetNodeSelector"], json!({"workload": "migratable"}));
}

#[tokio::test]
async fn every_field_is_stored_as_it_was_written() {
    let (cluster, namespace) = cluster().await;
    succeeds(cluster, EVERYTHING, &["apply", "-n", &namespace, "-f", "-"]);
    let stored = succeeds(cluster, "", &["get", "mapp", "everything", "-n", &namespace, "-o", "json"]);
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["spec"], parse(EVERYTHING)["spec"]);
    let read: MigratableApp = serde_json::from_value(stored.clone()).unwrap();
    let written = serde_json::to_value(&read).unwrap();
    // Read and written again it means the same; only the duration is told in other words.
    let mut expected = stored.clone();
    put(&mut expected, "spec.checkpointPolicy.interval", json!("90s"));
    assert_eq!(written["spec"], expected["spec"]);
    // Nothing that the definition knows is missing from the example.
    let definition = serde_json::to_value(definition().unwrap()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for missing in
        ["", "checkpointPolicy", "checkpointPolicy.deadlineScheduler", "migrationPolicy", "storage"]
    {
        let (mut schema, mut example) = (schema, &stored["spec"]);
        for part in missing.split('.').filter(|part| !part.is_empty()) {
            (schema, example) = (&schema["properties"][part], &example[part]);
        }
        for name in schema["properties"].as_object().unwrap().keys() {
            assert!(!example[name].is_null(), "the example has no {missing}.{name}");
        }
    }
}

#[tokio::test]
async fn what_is_left_out_gets_the_documented_defaults() {
    let (cluster, namespace) = cluster().await;
    succeeds(cluster, &smallest().to_string(), &["apply", "-n", &namespace, "-f", "-"]);
    let apps: Api<MigratableApp> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    let spec = apps.get("small").await.unwrap().spec;
    let stored = serde_json::to_value(&spec).unwrap();
    assert_eq!(
        stored["checkpointPolicy"],
        json!({"interval": "30s", "autoAdjust": true, "memoryThresholdMB": 100, "maxCheckpointChainDepth": 10, "keep": 3})
    );
    assert_eq!(
        stored["migrationPolicy"],
        json!({"autoMigrate": true, "preferOnDemand": true, "migrationTimeoutSeconds": 300, "strategy": "lazy-storage"})
    );
    // The API server's defaults are those of the methods.
    let (checkpoint, migration) =
        (spec.checkpoint_policy.clone().unwrap(), spec.migration_policy.clone().unwrap());
    let (nothing, nowhere) = (Default::default(), Default::default());
    let compared: (&migration_operator::api::CheckpointPolicy, &migration_operator::api::MigrationPolicy) =
        (&nothing, &nowhere);
    assert_eq!(checkpoint.interval(), compared.0.interval());
    assert_eq!(checkpoint.auto_adjust(), compared.0.auto_adjust());
    assert_eq!(checkpoint.memory_threshold_mb(), compared.0.memory_threshold_mb());
    assert_eq!(checkpoint.max_checkpoint_chain_depth(), compared.0.max_checkpoint_chain_depth());
    assert_eq!(checkpoint.keep(), compared.0.keep());
    assert_eq!(migration.auto_migrate(), compared.1.auto_migrate());
    assert_eq!(migration.prefer_on_demand(), compared.1.prefer_on_demand());
    assert_eq!(migration.migration_timeout(), compared.1.migration_timeout());
    assert_eq!(migration.strategy(), compared.1.strategy());
    assert_eq!(spec.deletion_policy, Some(DeletionPolicy::Retain));
}

#[tokio::test]
async fn an_explicit_false_survives_every_update() {
    let (cluster, namespace) = cluster().await;
    let mut app = smallest();
    put(&mut app, "spec.migrationPolicy", json!({"autoMigrate": false, "preferOnDemand": false}));
    put(&mut app, "spec.checkpointPolicy", json!({"autoAdjust": false}));
    succeeds(cluster, &app.to_string(), &["apply", "-n", &namespace, "-f", "-"]);
    succeeds(cluster, "", &["annotate", "mapp", "small", "-n", &namespace, "note=one"]);
    let apps: Api<MigratableApp> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    let mut read = apps.get("small").await.unwrap();
    read.metadata.annotations.get_or_insert_default().insert("note".to_owned(), "two".to_owned());
    apps.replace("small", &Default::default(), &read).await.unwrap();
    let spec = apps.get("small").await.unwrap().spec;
    let (checkpoint, migration) = (spec.checkpoint_policy.unwrap(), spec.migration_policy.unwrap());
    assert_eq!((migration.auto_migrate, migration.prefer_on_demand), (Some(false), Some(false)));
    assert_eq!(checkpoint.auto_adjust, Some(false));
}

/// What is changed, which place the message names, and what it says beside that.
type Case<'a> = (&'a [(&'a str, Value)], &'a str, &'a [&'a str]);

#[tokio::test]
async fn an_invalid_spec_is_refused_with_the_field_and_the_fix() {
    let (cluster, namespace) = cluster().await;
    let agent = json!([{"name": "migration-agent", "image": "a"}]);
    let direct = json!({"strategy": "lazy-direct"});
    let cases: &[Case<'_>] = &[
        (&[("spec.storage.type", json!("floppy"))], "spec.storage.type", &["\"s3\", \"minio\", \"gcs\""]),
        (
            &[("spec.storage.bucket", json!("s3://bucket/dir"))],
            "spec.storage.bucket",
            &["bucket's name alone"],
        ),
        (&[("spec.storage.bucket", Value::Null)], "spec.storage.bucket", &["Required"]),
        (&[("spec.storage.type", json!("minio"))], "spec.storage.endpoint", &["set it to the server's URL"]),
        (&[("spec.storage.endpoint", json!("minio:9000"))], "spec.storage.endpoint", &["http://"]),
        (
            &[("spec.storage.endpoint", json!("https://me:secret@x"))],
            "spec.storage.endpoint",
            &["without credentials"],
        ),
        (&[("spec.storage.downloadEndpoint", json!("x"))], "spec.storage.downloadEndpoint", &["http://"]),
        (
            &[("spec.storage.credentialsSecret", json!("ns/name"))],
            "spec.storage.credentialsSecret",
            &["without its namespace"],
        ),
        (
            &[("spec.storage.expressOneZone", json!(true))],
            "spec.storage.expressOneZone",
            &["general purpose bucket"],
        ),
        (
            &[("spec.storage.bucket", json!("b--use1-az4--x-s3"))],
            "spec.storage.bucket",
            &["general purpose bucket"],
        ),
        (
            &[("spec.storage.asyncPrefetch", json!(false)), ("spec.migrationPolicy", direct.clone())],
            "spec.storage.asyncPrefetch",
            &["use lazy-storage"],
        ),
        (
            &[("spec.storage.compress", json!(false)), ("spec.storage.compressLevel", json!(3))],
            "spec.storage.compressLevel",
            &["remove one of them"],
        ),
        (
            &[("spec.storage.asyncPrefetch", json!(false)), ("spec.storage.prefetchWorkers", json!(3))],
            "spec.storage.prefetchWorkers",
            &["remove one of them"],
        ),
        (
            &[("spec.checkpointPolicy", json!({"interval": "often"}))],
            "spec.checkpointPolicy.interval",
            &["like 30s"],
        ),
        (
            &[("spec.checkpointPolicy", json!({"interval": "10ms"}))],
            "spec.checkpointPolicy.interval",
            &["from 1s to 24h"],
        ),
        (
            &[("spec.checkpointPolicy", json!({"maxCheckpointChainDepth": 0}))],
            "spec.checkpointPolicy.maxCheckpointChainDepth",
            &["greater than or equal to 1"],
        ),
        (
            &[("spec.checkpointPolicy", json!({"memoryThresholdMB": 0}))],
            "spec.checkpointPolicy.memoryThresholdMB",
            &["greater than or equal to 1"],
        ),
        (
            &[("spec.checkpointPolicy", json!({"keep": 0}))],
            "spec.checkpointPolicy.keep",
            &["greater than or equal to 1"],
        ),
        (
            &[("spec.checkpointPolicy", json!({"paths": ["var/lib"]}))],
            "spec.checkpointPolicy.paths",
            &["absolute"],
        ),
        (
            &[("spec.checkpointPolicy", json!({"paths": ["/a/../b"]}))],
            "spec.checkpointPolicy.paths",
            &["`..`"],
        ),
        (
            &[(
                "spec.checkpointPolicy",
                json!({"deadlineScheduler": {"deadlineSeconds": 2, "tMarginMs": 2000}}),
            )],
            "spec.checkpointPolicy.deadlineScheduler",
            &["lower them"],
        ),
        (
            &[("spec.migrationPolicy", json!({"strategy": "magic"}))],
            "spec.migrationPolicy.strategy",
            &["\"lazy-storage\""],
        ),
        (
            &[("spec.migrationPolicy", direct), ("spec.checkpointPolicy", json!({"paths": ["/data"]}))],
            "spec.migrationPolicy.strategy",
            &["memory only", "remove spec.checkpointPolicy.paths"],
        ),
        (
            &[("spec.migrationPolicy", json!({"migrationTimeoutSeconds": 0}))],
            "spec.migrationPolicy.migrationTimeoutSeconds",
            &["greater than or equal to 1"],
        ),
        (
            &[("spec.migrationPolicy", json!({"preDumpQuiesce": {}}))],
            "spec.migrationPolicy.preDumpQuiesce",
            &["exactly one"],
        ),
        (
            &[("spec.migrationPolicy", json!({"preDumpQuiesce": {"command": ["a"], "url": "http://a"}}))],
            "spec.migrationPolicy.preDumpQuiesce",
            &["exactly one"],
        ),
        (
            &[("spec.migrationPolicy", json!({"preDumpQuiesce": {"url": "https://a"}}))],
            "spec.migrationPolicy.preDumpQuiesce.url",
            &["http://"],
        ),
        (
            &[(
                "spec.migrationPolicy",
                json!({"migrationTimeoutSeconds": 60, "preDumpQuiesce": {"command": ["a"], "timeoutSeconds": 60}}),
            )],
            "spec.migrationPolicy.preDumpQuiesce.timeoutSeconds",
            &["less than", "lower it"],
        ),
        (&[("spec.deletionPolicy", json!("Burn"))], "spec.deletionPolicy", &["\"Retain\", \"Delete\""]),
        (&[("spec.container", json!("other"))], "spec.container", &["one of spec.template.spec.containers"]),
        (&[("spec.template.spec.containers", json!([]))], "spec.template.spec.containers", &["at least 1"]),
        (&[("spec.template.spec.containers", agent)], "spec.template.spec.containers", &["use another name"]),
        (&[("spec.template.spec.hostPID", json!(true))], "spec.template.spec.hostPID", &["remove hostPID"]),
        (&[("metadata.name", json!("a".repeat(53)))], "metadata.name", &["at most 52"]),
        (&[("metadata.name", json!("a.b"))], "metadata.name", &["dot"]),
        (&[("spec.checkpontPolicy", json!({}))], "spec.checkpontPolicy", &["unknown field"]),
    ];
    for (changes, place, says) in cases {
        let mut app = smallest();
        changes.iter().for_each(|(path, value)| put(&mut app, path, value.clone()));
        let output = kubectl(cluster, &app.to_string(), &["create", "-n", &namespace, "-f", "-"]);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{changes:?} was accepted");
        for words in says.iter().chain([place]) {
            assert!(message.contains(words), "{changes:?} should be refused with `{words}`, not:\n{message}");
        }
    }
}

#[tokio::test]
async fn what_identifies_the_memory_cannot_be_changed() {
    let (cluster, namespace) = cluster().await;
    let mut app = smallest();
    put(&mut app, "spec.container", json!("app"));
    put(&mut app, "spec.storage.endpoint", json!("https://one.example"));
    succeeds(cluster, &app.to_string(), &["apply", "-n", &namespace, "-f", "-"]);
    let two = json!([{"name": "app", "image": "app"}, {"name": "other", "image": "other"}]);
    for (changes, place) in [
        (vec![("spec.storage.bucket", json!("others"))], "spec.storage.bucket"),
        (vec![("spec.storage.type", json!("gcs"))], "spec.storage.type"),
        (vec![("spec.template.spec.containers", two), ("spec.container", json!("other"))], "spec.container"),
    ] {
        let mut changed = app.clone();
        changes.into_iter().for_each(|(path, value)| put(&mut changed, path, value));
        let output = kubectl(cluster, &changed.to_string(), &["apply", "-n", &namespace, "-f", "-"]);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{place} was changed");
        assert!(message.contains(place) && message.contains("create another MigratableApp"), "{message}");
    }
    // The same store may get another address, and the pod another image.
    put(&mut app, "spec.storage.endpoint", json!("https://two.example"));
    put(&mut app, "spec.template.spec.containers.0.image", json!("app:2"));
    succeeds(cluster, &app.to_string(), &["apply", "-n", &namespace, "-f", "-"]);
}

#[tokio::test]
async fn kubectl_shows_waits_and_annotates() {
    let (cluster, namespace) = cluster().await;
    succeeds(cluster, &smallest().to_string(), &["apply", "-n", &namespace, "-f", "-"]);
    let apps: Api<MigratableApp> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    let status = json!({
        "phase": "Running", "generation": 3, "observedGeneration": 1, "currentNode": "node-b", "currentPodName": "small-3",
        "checkpointStatus": {"lastCheckpointID": "01JZ8Q4Q3M7S6T5V4W3X2Y1Z0A", "lastCheckpointTime": "2026-01-02T03:04:05Z"},
        "migrationHistory": [{
            "fromNode": "node-a", "toNode": "node-b", "timestamp": "2026-01-02T03:00:00Z", "reason": "spot-interruption",
            "duration": "4.2s", "blackout": "350ms", "success": true,
        }],
        "conditions": [{
            "type": "Migratable", "status": "True", "reason": "Checked", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z",
        }],
    });
    apps.patch_status("small", &PatchParams::default(), &Patch::Merge(json!({"status": status})))
        .await
        .unwrap();

    let table = succeeds(cluster, "", &["get", "mapp", "-n", &namespace]);
    let mut lines = table.lines();
    let headings: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(headings, ["NAME", "PHASE", "GENERATION", "NODE", "AGE"]);
    let row: Vec<_> = lines.next().unwrap().split_whitespace().take(4).collect();
    assert_eq!(row, ["small", "Running", "3", "node-b"]);
    let wide = succeeds(cluster, "", &["get", "migratableapps", "-n", &namespace, "-o", "wide"]);
    assert!(wide.contains("MIGRATABLE") && wide.contains("True"), "{wide}");
    let all = succeeds(cluster, "", &["get", "all", "-n", &namespace]);
    assert!(all.contains("migratableapp.migration.io/small"), "{all}");

    let described = succeeds(cluster, "", &["describe", "mapp", "small", "-n", &namespace]);
    for words in ["Current Node:", "node-b", "Blackout:", "350ms", "Keep:", "Strategy:"] {
        assert!(described.contains(words), "{words} in:\n{described}");
    }
    let waited = ["wait", "mapp/small", "-n", &namespace, "--for=condition=Migratable", "--timeout=30s"];
    assert!(succeeds(cluster, "", &waited).contains("condition met"));
    let waited =
        ["wait", "mapp/small", "-n", &namespace, "--for=jsonpath={.status.phase}=Running", "--timeout=30s"];
    assert!(succeeds(cluster, "", &waited).contains("condition met"));
    succeeds(cluster, "", &["annotate", "mapp", "small", "-n", &namespace, "migration.io/retry=requested"]);
    let annotation = "jsonpath={.metadata.annotations.migration\\.io/retry}";
    assert_eq!(
        succeeds(cluster, "", &["get", "mapp", "small", "-n", &namespace, "-o", annotation]),
        "requested"
    );
}

/// What `kubectl explain` prints comes from here.
#[test]
fn every_field_has_a_description() {
    fn look(place: &str, schema: &Value) -> usize {
        let mut seen = 0;
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let place = format!("{place}.{name}");
            let description = field["description"].as_str().unwrap_or_default();
            assert!(description.len() > 10, "{place} is not explained");
            // Those are Kubernetes' own, and explained there.
            if !place.ends_with(".conditions") {
                seen += 1 + look(&place, field) + look(&place, &field["items"]);
            }
        }
        seen
    }
    let definition = serde_json::to_value(definition().unwrap()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(look("spec", &schema["properties"]["spec"]) > 40);
    assert!(look("status", &schema["properties"]["status"]) > 30);
}

#[tokio::test]
async fn kubectl_explains_every_field() {
    let (cluster, namespace) = cluster().await;
    // The API server publishes a definition a moment after it has taken it, and the one in front some moments later.
    let begun = Instant::now();
    let explained = loop {
        let output = kubectl(cluster, "", &["explain", "mapp", "--recursive"]);
        if output.status.success() {
            break text(&output.stdout);
        }
        assert!(begun.elapsed() < PATIENCE, "{}", text(&output.stderr));
        sleep(Duration::from_millis(500)).await;
    };
    let definition = serde_json::to_value(definition().unwrap()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut fields = 0;
    for part in ["spec", "status"] {
        for (name, field) in schema["properties"][part]["properties"].as_object().unwrap() {
            let below = field["properties"].as_object().into_iter().flatten().map(|(name, _)| name);
            // Of a template it knows that it is one: what is in it is the cluster's own version's to say.
            for name in below.filter(|_| name != "template").chain([name]) {
                assert!(explained.contains(&format!(" {name}\t<")), "{name} is not in:\n{explained}");
                fields += 1;
            }
        }
    }
    assert!(fields > 60, "{fields}");
    let bucket = succeeds(cluster, "", &["explain", "mapp.spec.storage.bucket"]);
    assert!(bucket.contains("The bucket; it must exist."), "{bucket}");

    // Whoever knows every field knows what is none, and that all of these are.
    let mut misspelt = smallest();
    put(&mut misspelt, "spec.storage.buckett", json!("b"));
    let refused = kubectl(cluster, &misspelt.to_string(), &["create", "-n", &namespace, "-f", "-"]);
    let message = text(&refused.stderr);
    assert!(!refused.status.success() && message.contains("buckett"), "{message}");
    for good in [REFERENCE, EVERYTHING] {
        succeeds(cluster, good, &["create", "-n", &namespace, "-f", "-"]);
    }
}

#[tokio::test]
async fn a_status_is_checked_too_and_a_spec_does_not_write_it() {
    let (cluster, namespace) = cluster().await;
    let mut app = smallest();
    put(&mut app, "status", json!({"phase": "Failed"}));
    succeeds(cluster, &app.to_string(), &["apply", "-n", &namespace, "-f", "-"]);
    let apps: Api<MigratableApp> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    assert!(apps.get("small").await.unwrap().status.is_none());
    let asleep = json!({"status": {"phase": "Asleep"}});
    let refused = apps.patch_status("small", &PatchParams::default(), &Patch::Merge(asleep)).await;
    assert!(refused.unwrap_err().to_string().contains("status.phase"));
}
