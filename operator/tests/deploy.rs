//! What is shipped: it is what the code says, and a real API server takes it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use migration_kube::{Cluster, Options};
use migration_operator::{
    api::definition,
    manifests::{self, rbac},
};
use serde_json::Value;

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy(path)).unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_migration-operator")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn documents(yaml: &str) -> Vec<Value> {
    yaml.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The entry point, on a cluster.
fn migration(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new(deploy("migration"))
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()
        .unwrap()
}

fn done(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = migration(cluster, arguments);
    assert!(output.status.success(), "migration {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_manifests_that_are_shipped_are_those_that_are_generated() {
    for (file, arguments) in [
        ("operator.yaml", &["manifests"][..]),
        ("chart/files/crd.yaml", &["crd"]),
        ("chart/files/cluster-rules.yaml", &["manifests", "--rules", "cluster"]),
        ("chart/files/namespace-rules.yaml", &["manifests", "--rules", "namespace"]),
        ("chart/files/system-rules.yaml", &["manifests", "--rules", "system"]),
    ] {
        let words = arguments.join(" ");
        assert!(
            read(file) == printed(arguments),
            "write it again: migration-operator {words} > operator/deploy/{file}"
        );
    }
}

#[test]
fn no_right_is_wider_than_it_says() {
    let everywhere = rbac::CLUSTER.iter();
    for rule in everywhere.clone().chain(rbac::NAMESPACE).chain(rbac::SYSTEM) {
        let words = [rule.group, rule.resource].into_iter().chain(rule.verbs.iter().copied());
        assert!(words.into_iter().all(|word| !word.contains('*')), "{rule:?}");
        assert!(!rule.why.is_empty() && !rule.verbs.is_empty(), "{rule:?}");
    }
    assert!(everywhere.clone().all(|rule| rule.resource != "secrets"));
    assert!(everywhere.filter(|rule| rule.resource == "pods").all(|rule| !rule.verbs.contains(&"create")));
}

#[test]
fn the_dashboard_asks_only_for_numbers_that_are_served() {
    let sources = ["../agent/src/service/metrics.rs", "src/metrics.rs"];
    let served: String = sources
        .map(|path| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap())
        .concat();
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in words.filter(|word| word.starts_with("migration_")) {
                let name =
                    name.strip_prefix("migration_operator_").or(name.strip_prefix("migration_")).unwrap();
                let name =
                    name.trim_end_matches("_bucket").trim_end_matches("_seconds").trim_end_matches("_total");
                assert!(served.contains(&format!("\"{name}\"")), "{name} in {expression}");
                asked += 1;
            }
        }
    }
    assert!(asked > 20);
}

#[test]
fn the_chart_has_every_value_it_uses_and_uses_every_value_it_has() {
    let values: Value = serde_saphyr::from_str(&read("chart/values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&read("chart/values.schema.json")).unwrap();
    let templates: String = fs::read_dir(deploy("chart/templates"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    // Those with a level below, and those without.
    let mut paths = Vec::new();
    for (name, value) in values.as_object().unwrap() {
        let below = schema["properties"][name]["properties"].as_object();
        match below {
            Some(below) => {
                paths.extend(value.as_object().unwrap().keys().map(|inner| format!("{name}.{inner}")));
                assert_eq!(below.len(), value.as_object().unwrap().len(), "{name}");
            }
            None => paths.push(name.clone()),
        }
        assert!(schema["properties"][name].is_object(), "{name} is not in the schema");
    }
    for path in &paths {
        assert!(templates.contains(&format!(".Values.{path}")), "{path} is used nowhere");
    }
    for used in templates.split(".Values.").skip(1) {
        let used: String = used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
        assert!(paths.contains(&used), "{used} has no default");
    }
    // Each pair of braces is closed, and each block ended.
    for block in ["{{", "}}"] {
        assert_eq!(templates.matches("{{").count(), templates.matches(block).count());
    }
    let words = |word: &str| {
        templates
            .split("{{")
            .skip(1)
            .filter(|action| action.trim_start_matches('-').trim().starts_with(word))
            .count()
    };
    assert_eq!(words("if ") + words("with ") + words("range ") + words("define "), words("end"));
}

/// What Helm's rendering depends on, but for what is copied from `files/`, which is compared with what the code says above.
fn chart_hash() -> String {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(deploy("chart/templates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.extend(["chart/Chart.yaml", "chart/values.yaml"].map(deploy));
    paths.sort();
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        let text = fs::read(&path).unwrap();
        hasher.update(path.file_name().unwrap().as_encoded_bytes());
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(&text);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// `tests/chart.yaml` is what Helm makes of the chart: Helm itself is not needed here until the chart changes.
#[test]
fn helm_renders_the_chart_to_the_plain_manifests() {
    let rendered =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart.yaml")).unwrap();
    let hash = chart_hash();
    assert!(
        rendered.starts_with(&format!("# chart {hash}\n")),
        "the chart has changed; render it again: (echo '# chart {hash}'; helm template migration operator/deploy/chart \
         -n migration-system --set definition.install=false) > operator/tests/chart.yaml"
    );
    let mut rendered: Vec<Value> = serde_saphyr::from_multiple(&rendered).unwrap();
    let mut plain = documents(&read("operator.yaml"));
    // Helm makes the namespace itself.
    plain.retain(|document| document["kind"] != "Namespace");
    let key = |document: &Value| format!("{} {}", document["kind"], document["metadata"]["name"]);
    rendered.sort_by_key(key);
    plain.sort_by_key(key);
    assert_eq!(rendered.iter().map(key).collect::<Vec<_>>(), plain.iter().map(key).collect::<Vec<_>>());
    for (mut rendered, mut plain) in rendered.into_iter().zip(plain) {
        for labels in ["/metadata/labels", "/spec/template/metadata/labels"] {
            let Some(expected) = plain.pointer(labels).cloned() else { continue };
            let given = rendered.pointer_mut(labels).unwrap();
            for (label, value) in expected.as_object().unwrap() {
                assert_eq!(&given[label], value, "{labels} of {}", key(&plain));
            }
            *given = expected;
        }
        if let Some(container) = rendered.pointer_mut("/spec/template/spec/containers/0") {
            assert_eq!(container.as_object_mut().unwrap().remove("imagePullPolicy").unwrap(), "IfNotPresent");
        }
        if let Some(rules) = plain.get_mut("rules") {
            assert!(rendered["rules"].as_array().unwrap().iter().all(|rule| rule["verbs"].is_array()));
            *rules = rendered["rules"].clone();
        }
        assert_eq!(rendered, plain);
    }
}

#[tokio::test]
async fn one_command_installs_deploys_and_takes_everything_out_again() {
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let early = migration(&cluster, &["deploy"]);
    assert!(
        !early.status.success() && text(&early.stderr).contains("migration install"),
        "{}",
        text(&early.stderr)
    );
    done(&cluster, &["install"]);
    done(&cluster, &["install"]);
    done(
        &cluster,
        &["deploy", "--registry", "registry.example/team/", "--tag", "1.2.3", "--cluster", "prod"],
    );
    let image = ["get", "deploy", "-n", "migration-system", "migration-operator", "-o"];
    let path = "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].args}";
    let deployed = cluster.kubectl(&[&image[..], &[path]].concat()).unwrap();
    let deployed = text(&deployed.stdout);
    for words in [
        "registry.example/team/migration-operator:1.2.3",
        "--agent-image=registry.example/team/migration-agent:1.2.3",
        "--cluster=prod",
    ] {
        assert!(deployed.contains(words), "{words} in {deployed}");
    }
    let namespace = cluster.namespace("shop").await.unwrap();
    done(&cluster, &["allow", &namespace]);
    done(&cluster, &["sample", &namespace]);
    let refused = migration(&cluster, &["uninstall"]);
    let message = text(&refused.stderr);
    assert!(!refused.status.success() && message.contains(&format!("{namespace}/sample")), "{message}");
    done(&cluster, &["disallow", &namespace]);
    done(&cluster, &["undeploy"]);
    done(&cluster, &["uninstall", "--force"]);
    for left in
        ["clusterrole", "clusterrolebinding", "mutatingwebhookconfiguration", "crd", "deploy", "rolebinding"]
    {
        let output = cluster.kubectl(&["get", left, "-A", "-o", "name"]).unwrap();
        let names = text(&output.stdout);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let ours: Vec<_> = names.lines().filter(|name| name.contains("migration")).collect();
        // Who may do what in a namespace that goes with its applications is not asked for by name.
        assert!(ours.is_empty(), "{left}: {ours:?}");
    }
}

#[test]
fn every_document_is_for_the_operator() {
    let options = manifests::Options {
        namespace: "elsewhere".to_owned(),
        image: "operator".to_owned(),
        agent_image: "agent".to_owned(),
        cluster: "c".to_owned(),
        allow: vec!["shop".to_owned()],
    };
    let all = manifests::documents(&options);
    assert!(!serde_json::to_string(&all).unwrap().contains("migration-system"));
    assert_eq!(documents(&read("operator.yaml")).len(), all.len() - 1);
    assert_eq!(documents(&read("crd.yaml"))[0], serde_json::to_value(definition().unwrap()).unwrap());
}
