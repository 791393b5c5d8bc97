//! Pods as they are made from an application's template.

use migration_operator::{
    api::MigratableApp,
    pods::{AgentSettings, Plan, Role, Unsupported, build},
};
use serde_json::{Value, json};

fn app(pod: Value) -> MigratableApp {
    serde_json::from_value(json!({
        "apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp",
        "metadata": {"name": "cache", "namespace": "shop", "uid": "u"},
        "spec": {
            "template": {"metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}}, "spec": pod},
            "storage": {"type": "s3", "bucket": "checkpoints", "region": "eu-central-1", "credentialsSecret": "keys"}
        }
    }))
    .unwrap()
}

fn redis() -> Value {
    json!({
        "serviceAccountName": "redis",
        "containers": [
            {
                "name": "redis", "image": "redis:7", "command": ["redis-server"], "args": ["--save", ""],
                "env": [{"name": "A", "value": "b"}],
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
                "securityContext": {"runAsUser": 999},
                "livenessProbe": {"tcpSocket": {"port": 6379}, "initialDelaySeconds": 5, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 6379}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]
            },
            {"name": "exporter", "image": "exporter:1"}
        ],
        "volumes": [{"name": "data", "emptyDir": {}}]
    })
}

fn built(app: &MigratableApp, native_sidecar: bool, role: Role<'_>) -> Value {
    let agent = AgentSettings { native_sidecar, image: "agent:1".to_owned(), ..AgentSettings::default() };
    let plan = Plan { app, agent: &agent, cluster: "prod", name: "cache-1", node: Some("node-b"), role };
    serde_json::to_value(build(&plan).unwrap()).unwrap()
}

fn container<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    pod["spec"][list].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn everything_the_template_says_about_the_container_stays_but_for_its_command() {
    let pod = built(&app(redis()), true, Role::Launch);
    let mut moved = container(&pod, "containers", "redis").clone();
    let template = redis();
    let given = &template["containers"][0];
    let launcher =
        ["/migration/bin/migration-launch", "--app", "prod/shop/cache", "--control", "/migration/run"];
    let mut command = launcher.to_vec();
    command.extend(["--pid-base", "10000", "--", "redis-server"]);
    assert_eq!(moved["command"], json!(command));
    let mounts = moved["volumeMounts"].as_array().unwrap().clone();
    assert_eq!(mounts[0], given["volumeMounts"][0]);
    assert_eq!(
        mounts[1],
        json!({"name": "migration-tools", "mountPath": "/migration/bin", "readOnly": true})
    );
    assert_eq!(mounts[2], json!({"name": "migration-run", "mountPath": "/migration/run"}));
    moved["command"] = given["command"].clone();
    moved["volumeMounts"] = given["volumeMounts"].clone();
    assert_eq!(&moved, given);
    assert_eq!(container(&pod, "containers", "exporter"), &template["containers"][1]);
    assert_eq!(pod["spec"]["serviceAccountName"], "redis");
    assert_eq!(pod["metadata"]["labels"], json!({"team": "x", "migration.io/app": "cache"}));
    assert_eq!(pod["metadata"]["annotations"], json!({"note": "y", "migration.io/role": "launched"}));
    assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "cache");
    assert_eq!(pod["spec"]["shareProcessNamespace"], true);
}

#[test]
fn a_target_waits_and_is_not_ended_by_the_probe_of_what_does_not_run_yet() {
    let pod = built(&app(redis()), true, Role::Restore("0123"));
    let moved = container(&pod, "containers", "redis");
    let command: Vec<&str> = moved["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let (options, rest) = command.split_at(command.iter().position(|word| *word == "--").unwrap());
    assert!(options.contains(&"--restore") && !options.contains(&"--pid-base"), "{command:?}");
    assert_eq!(rest, ["--", "redis-server"]);
    let startup = json!({"tcpSocket": {"port": 6379}, "periodSeconds": 1, "failureThreshold": 3600});
    assert_eq!(moved["startupProbe"], startup);
    assert_eq!(moved["livenessProbe"], redis()["containers"][0]["livenessProbe"]);
    let terms =
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let field = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-b"]}]}]);
    assert_eq!(pod.pointer(terms), Some(&field));
    assert_eq!(pod["metadata"]["annotations"]["migration.io/migration"], "0123");
}

#[test]
fn the_agent_is_a_sidecar_as_the_cluster_has_them() {
    let native = built(&app(redis()), true, Role::Launch);
    assert_eq!(container(&native, "initContainers", "migration-agent")["restartPolicy"], "Always");
    assert_eq!(container(&native, "containers", "migration-agent"), &Value::Null);
    let plain = built(&app(redis()), false, Role::Launch);
    let agent = container(&plain, "containers", "migration-agent");
    assert_eq!((&agent["restartPolicy"], &agent["image"]), (&Value::Null, &json!("agent:1")));
    let security = &agent["securityContext"];
    assert_eq!((&security["privileged"], &security["readOnlyRootFilesystem"]), (&Value::Null, &json!(true)));
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let added: Vec<&str> =
        security["capabilities"]["add"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for needed in ["SYS_ADMIN", "SYS_PTRACE", "CHECKPOINT_RESTORE", "SYS_RESOURCE"] {
        assert!(added.contains(&needed), "{needed}");
    }
}

#[test]
fn the_agent_has_every_capability_that_a_process_it_restores_can_have() {
    let added = |security: Value| -> Vec<String> {
        let mut pod = redis();
        pod["containers"][0]["securityContext"] = security;
        let pod = built(&app(pod), false, Role::Launch);
        let agent = container(&pod, "containers", "migration-agent");
        serde_json::from_value(agent["securityContext"]["capabilities"]["add"].clone()).unwrap()
    };
    let has = |all: &[String], name: &str| all.iter().filter(|one| *one == name).count() == 1;
    // What runtimes give everybody, and CRIU itself has no use for.
    for name in ["AUDIT_WRITE", "NET_BIND_SERVICE", "NET_RAW", "SYS_CHROOT", "SYS_TIME"] {
        assert!(has(&added(json!({})), name), "{name}");
    }
    let own = added(json!({"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK", "SYS_PTRACE"]}}));
    assert!(has(&own, "IPC_LOCK") && has(&own, "SYS_PTRACE") && !has(&own, "NET_RAW"), "{own:?}");
    assert_eq!(added(json!({"privileged": true})), ["ALL"]);
}

#[test]
fn a_read_only_root_leaves_criu_room_in_memory() {
    let pod = built(&app(redis()), false, Role::Launch);
    let agent = container(&pod, "containers", "migration-agent");
    for path in ["/tmp", "/run"] {
        let mounts = agent["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["mountPath"] == path).unwrap();
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        assert_eq!((&volume["emptyDir"]["medium"], &mount["readOnly"]), (&json!("Memory"), &Value::Null));
    }
}

#[test]
fn credentials_are_files_that_only_the_agent_has() {
    let pod = built(&app(redis()), false, Role::Launch);
    let mounts = |name: &str| container(&pod, "containers", name)["volumeMounts"].to_string();
    assert!(mounts("migration-agent").contains("migration-store"));
    for other in ["redis", "exporter"] {
        assert!(!mounts(other).contains("migration-store"), "{other}");
    }
    let agent = container(&pod, "containers", "migration-agent");
    assert_eq!(
        agent["env"],
        json!([
            {"name": "MIGRATION_STORE", "value": "s3://checkpoints?region=eu-central-1"},
            {"name": "AWS_SHARED_CREDENTIALS_FILE", "value": "/migration/store/credentials"}
        ])
    );
}

#[test]
fn what_cannot_be_moved_is_refused_with_what_to_write_instead() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut pod = redis();
        change(&mut pod);
        let app = app(pod);
        let agent = AgentSettings::default();
        let plan = Plan { app: &app, agent: &agent, cluster: "c", name: "n", node: None, role: Role::Launch };
        build(&plan).unwrap_err()
    };
    let error = refused(&|pod| pod["containers"][0]["command"] = Value::Null);
    assert_eq!(error, Unsupported::EntrypointUnknown { container: "redis".to_owned() });
    assert!(error.to_string().contains("command: [...]"), "{error}");
    assert!(matches!(refused(&|pod| pod["hostPID"] = json!(true)), Unsupported::CannotMove { .. }));
    assert!(matches!(refused(&|pod| pod["containers"] = json!([])), Unsupported::NoContainer));
    let taken = json!([{"name": "migration-run", "emptyDir": {}}]);
    assert!(matches!(refused(&|pod| pod["volumes"] = taken.clone()), Unsupported::NameTaken { .. }));
}

#[test]
fn one_of_several_containers_is_moved_as_the_application_says() {
    let mut app = app(redis());
    app.spec.container = Some("nothing".to_owned());
    let agent = AgentSettings::default();
    let plan = Plan { app: &app, agent: &agent, cluster: "c", name: "n", node: None, role: Role::Launch };
    assert_eq!(build(&plan).unwrap_err(), Unsupported::NoSuchContainer { container: "nothing".to_owned() });
    app.spec.container = Some("exporter".to_owned());
    app.spec.template.spec.as_mut().unwrap().containers[1].command = Some(vec!["/exporter".to_owned()]);
    let pod = built(&app, true, Role::Launch);
    assert_eq!(container(&pod, "containers", "redis"), &redis()["containers"][0]);
    assert_eq!(container(&pod, "containers", "exporter")["command"][0], "/migration/bin/migration-launch");
}

#[test]
fn a_target_is_made_with_what_was_started_and_with_all_else_that_the_template_says_by_now() {
    let mut app = app(redis());
    let started = json!({"image": "redis:6", "command": ["redis-server", "--old"], "args": ["--port", "1"]});
    app.status = Some(serde_json::from_value(json!({"program": started})).unwrap());
    let target = built(&app, true, Role::Restore("0123"));
    let moved = container(&target, "containers", "redis");
    let command: Vec<&str> = moved["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(command.ends_with(&["--", "redis-server", "--old"]), "{command:?}");
    assert_eq!((&moved["image"], &moved["args"]), (&started["image"], &started["args"]));
    assert_eq!(moved["resources"], redis()["containers"][0]["resources"]);
    // What is started anew is what the template says.
    let launched = built(&app, true, Role::Launch);
    assert_eq!(container(&launched, "containers", "redis")["image"], "redis:7");
}
