//! The API as its users meet it: YAML in, YAML out, and the definition `kubectl` installs.

use std::process::Command;
use std::time::Duration;

use migration_operator::api::{MigratableApp, Phase, StorageType};
use serde_json::{Value, json};

const FULL: &str = r#"
apiVersion: migration.io/v1alpha1
kind: MigratableApp
metadata:
  name: redis
  namespace: shop
spec:
  template:
    metadata:
      labels: {app: redis}
    spec:
      containers:
      - name: redis
        image: redis:7
        command: [redis-server, --save, ""]
  checkpointPolicy:
    interval: 30s
    autoAdjust: true
    memoryThresholdMB: 100
    maxCheckpointChainDepth: 10
  migrationPolicy:
    autoMigrate: true
    targetNodeSelector: {pool: spot}
    preferOnDemand: true
    migrationTimeoutSeconds: 300
  storage:
    type: s3
    bucket: checkpoints
    endpoint: https://storage.example
    region: eu-central-1
    credentialsSecret: store-credentials
status:
  phase: Running
  generation: 2
  observedGeneration: 5
  currentNode: node-b
  currentPodName: redis-2
  checkpointStatus:
    lastCheckpointID: 01JZ8Q4Q3M7S6T5V4W3X2Y1Z0A
    lastCheckpointTime: "2026-01-02T03:04:05Z"
    checkpointChainDepth: 3
    checkpointChainRoot: 01JZ8Q4Q3M7S6T5V4W3X2Y1Z00
    totalCheckpointSize: 268435456
  migrationHistory:
  - fromNode: node-a
    toNode: node-b
    timestamp: "2026-01-02T03:00:00Z"
    reason: spot-interruption
    duration: 4.2s
    success: true
    message: moved
  conditions:
  - type: Ready
    status: "True"
    reason: Running
    message: ""
    lastTransitionTime: "2026-01-02T03:04:05Z"
"#;

const SMALLEST: &str = r#"
apiVersion: migration.io/v1alpha1
kind: MigratableApp
metadata: {name: a}
spec:
  template: {spec: {containers: [{name: a, image: b}]}}
  storage: {type: minio, bucket: c}
"#;

fn parse(yaml: &str) -> MigratableApp {
    serde_saphyr::from_str(yaml).expect("valid YAML of a MigratableApp")
}

fn as_json(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).expect("valid YAML")
}

/// The definition as the command prints it, parsed again.
fn definition() -> Value {
    let output =
        Command::new(env!("CARGO_BIN_EXE_migration-operator")).arg("crd").output().expect("command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    as_json(std::str::from_utf8(&output.stdout).expect("UTF-8"))
}

fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
}

#[test]
fn every_field_survives_being_read_and_written() {
    assert_eq!(serde_json::to_value(parse(FULL)).unwrap(), as_json(FULL));
}

#[test]
fn yaml_written_here_reads_back_as_the_same_object() {
    let app = parse(FULL);
    assert_eq!(parse(&serde_saphyr::to_string(&app).unwrap()), app);
}

#[test]
fn nothing_is_filled_in_when_a_field_is_absent() {
    let app = parse(SMALLEST);
    assert!(app.spec.checkpoint_policy.is_none());
    assert!(app.status.is_none());
    assert_eq!(serde_json::to_value(&app).unwrap(), as_json(SMALLEST));
}

#[test]
fn an_explicit_false_survives() {
    let yaml = format!(
        "{SMALLEST}  migrationPolicy: {{autoMigrate: false, preferOnDemand: false}}\n  checkpointPolicy: {{autoAdjust: false}}\n"
    );
    let app = parse(&yaml);
    let migration = app.spec.migration_policy.clone().unwrap();
    assert!(!migration.auto_migrate() && !migration.prefer_on_demand());
    assert!(!app.spec.checkpoint_policy.clone().unwrap().auto_adjust());
    let written = serde_json::to_value(&app).unwrap();
    assert_eq!(written["spec"]["migrationPolicy"], json!({"autoMigrate": false, "preferOnDemand": false}));
    assert_eq!(written["spec"]["checkpointPolicy"], json!({"autoAdjust": false}));
}

#[test]
fn absent_policies_mean_the_documented_defaults() {
    let app = parse(SMALLEST);
    let checkpoint = app.spec.checkpoint_policy.unwrap_or_default();
    assert_eq!(checkpoint.interval(), Duration::from_secs(30));
    assert!(checkpoint.auto_adjust());
    assert_eq!(checkpoint.memory_threshold_mb(), 100);
    assert_eq!(checkpoint.max_checkpoint_chain_depth(), 10);
    let migration = app.spec.migration_policy.unwrap_or_default();
    assert!(migration.auto_migrate() && migration.prefer_on_demand());
    assert_eq!(migration.migration_timeout(), Duration::from_secs(300));
}

#[test]
fn durations_are_read_as_kubernetes_writes_them() {
    for (text, seconds) in [("30s", 30.0), ("1m30s", 90.0), ("1h", 3600.0), ("1.5s", 1.5), ("250ms", 0.25)] {
        let app = parse(&format!("{SMALLEST}  checkpointPolicy: {{interval: {text}}}\n"));
        assert_eq!(
            app.spec.checkpoint_policy.unwrap().interval(),
            Duration::from_secs_f64(seconds),
            "{text}"
        );
    }
}

#[test]
fn a_word_outside_a_closed_set_is_refused() {
    assert_eq!(parse(FULL).spec.storage.kind, StorageType::S3);
    assert_eq!(parse(FULL).status.unwrap().phase, Some(Phase::Running));
    for (good, bad) in [("type: s3", "type: floppy"), ("phase: Running", "phase: Asleep")] {
        assert!(serde_saphyr::from_str::<MigratableApp>(&FULL.replace(good, bad)).is_err(), "{bad}");
    }
}

#[test]
fn the_definition_has_the_names_users_type() {
    let definition = definition();
    assert_eq!(definition["kind"], "CustomResourceDefinition");
    assert_eq!(definition["metadata"]["name"], "migratableapps.migration.io");
    assert_eq!(definition["spec"]["group"], "migration.io");
    assert_eq!(definition["spec"]["scope"], "Namespaced");
    assert_eq!(definition["spec"]["names"]["shortNames"], json!(["mapp"]));
    let version = &definition["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    assert_eq!(version["subresources"], json!({"status": {}}));
    let columns: Vec<_> =
        version["additionalPrinterColumns"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    // The wide ones too; `kubectl get` without `-o wide` shows those it always has, see `crd.rs`.
    assert_eq!(columns, ["Phase", "Generation", "Node", "Migratable", "Checkpoint", "Age"]);
}

#[test]
fn the_definition_lists_its_closed_sets_and_limits() {
    let definition = definition();
    let spec = &schema(&definition)["spec"]["properties"];
    assert_eq!(spec["storage"]["properties"]["type"]["enum"], json!(["s3", "minio", "gcs"]));
    assert_eq!(spec["storage"]["required"], json!(["bucket", "type"]));
    assert_eq!(
        spec["checkpointPolicy"]["properties"]["maxCheckpointChainDepth"]["minimum"].as_f64(),
        Some(1.0)
    );
    assert!(spec["checkpointPolicy"]["properties"]["interval"]["x-kubernetes-validations"].is_array());
    let phase = schema(&definition)["status"]["properties"]["phase"]["enum"].as_array().unwrap().clone();
    for word in ["Pending", "Running", "Migrating", "Failed"] {
        assert!(phase.contains(&json!(word)), "{word}");
    }
}

#[test]
fn the_pod_template_keeps_what_this_version_does_not_know() {
    let definition = definition();
    let template = &schema(&definition)["spec"]["properties"]["template"];
    assert_eq!(template["type"], "object");
    assert_eq!(template["x-kubernetes-preserve-unknown-fields"], true);
}
