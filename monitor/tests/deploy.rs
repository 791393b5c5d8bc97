//! What is shipped for a cluster, as a real API server and the program itself understand it.

use std::process::Command;

use migration_kube::Cluster;
use serde_json::Value;

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Vec<u8> {
    let said = cluster.kubectl(arguments).unwrap();
    assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    said.stdout
}

#[test]
fn the_daemon_set_is_accepted_and_asks_for_nothing_it_does_not_need() {
    let cluster = Cluster::shared().unwrap();
    let made = cluster.kubectl(&["create", "namespace", "migration-system"]).unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/daemonset.yaml");
    let said = kubectl(cluster, &["create", "--dry-run=server", "-o", "json", "-f", file]);
    let set: Value = serde_json::from_slice(&said).unwrap();
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], Value::Null);
    assert_eq!(pod["hostPID"], Value::Null);
    assert_eq!(pod["volumes"], Value::Null);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["tolerations"][0]["operator"], "Exists");
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    let rights = &containers[0]["securityContext"];
    assert_eq!(rights["readOnlyRootFilesystem"], true);
    assert_eq!(rights["allowPrivilegeEscalation"], false);
    assert_eq!(rights["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!(rights["capabilities"]["add"], Value::Null);

    // The program understands what it is started with.
    let arguments = containers[0]["args"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
    let node = &containers[0]["env"][0];
    let mut program = Command::new(env!("CARGO_BIN_EXE_migration-monitor"));
    program.args(arguments).env_clear().env(node["name"].as_str().unwrap(), "a-node");
    // An environment without a cluster ends it once its options are understood.
    let ended = program.env("KUBECONFIG", "/nonexistent").output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("no way to the API server"));
    assert_eq!(node["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
    for probe in ["livenessProbe", "readinessProbe"] {
        let path = containers[0][probe]["httpGet"]["path"].as_str().unwrap();
        assert!(["/livez", "/readyz"].contains(&path), "{path}");
    }
}
