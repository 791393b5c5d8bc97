//! From a pod to what is to be added to it. No input, no output, no clock.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodTemplateSpec};
use kube::{ResourceExt, api::ObjectMeta};
use serde_json::{Value, json};

use super::{CONTAINER_ANNOTATION, Defaults, ENABLED_ANNOTATION, affinity};
use crate::{
    api::{APP_LABEL, Injection, MigratableApp, MigratableAppSpec},
    injection::{NoOwner, Replacement, owner_of},
    pods::{
        AgentSettings, INJECTED_ANNOTATION, MIGRATION_ANNOTATION, Plan, ROLE_ANNOTATION, Role,
        TEMPLATE_ANNOTATION, Unsupported, build, container_of,
    },
};

/// The longest name of an application, see the definition.
const NAME_LIMIT: usize = 52;
/// How much of the request's id tells pods of one controller apart.
const SUFFIX: usize = 10;

/// A pod that was treated.
#[derive(Clone, Debug)]
pub struct Injected {
    /// The application that it is now, as it will be in the cluster.
    pub app: MigratableApp,
    /// What is to be done to the pod, as a JSON patch.
    pub patch: Vec<Value>,
}

/// Why a pod is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInjected {
    /// It does not ask, or has what it asks for.
    #[error("nothing to do")]
    Nothing,
    /// It cannot be moved.
    #[error("this pod runs, but cannot be moved: {0}")]
    Unsupported(#[from] Unsupported),
    /// Whoever makes it would be in the way.
    #[error("this pod runs, but cannot be moved: {0}")]
    Owner(#[from] NoOwner),
}

/// What a pod becomes.
#[derive(Clone, Copy, Debug)]
pub enum As<'a> {
    /// An application that begins, of this name.
    New(&'a str),
    /// The next place of one that there is.
    Target(&'a Replacement),
}

/// Whether a pod asks to be migratable and is not yet.
pub fn asks(pod: &Pod) -> bool {
    let enabled = pod.annotations().get(ENABLED_ANNOTATION).is_some_and(|value| value == "true");
    enabled && !pod.labels().contains_key(APP_LABEL)
}

/// What makes a pod that asks.
///
/// # Errors
/// When it is to be left alone.
pub fn maker_of(pod: &Pod) -> Result<Injection, NotInjected> {
    if asks(pod) { Ok(owner_of(pod)?) } else { Err(NotInjected::Nothing) }
}

/// What is to be added to a pod.
///
/// # Errors
/// When it is to be left alone.
pub fn inject(
    pod: &Pod,
    namespace: &str,
    becomes: As<'_>,
    defaults: &Defaults,
    agent: &AgentSettings,
    cluster: &str,
) -> Result<Injected, NotInjected> {
    let injection = maker_of(pod)?;
    let name = match becomes {
        As::New(name) => name,
        As::Target(replacement) => &replacement.app,
    };
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    // A copy of the whole pod, which says nothing new.
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let mut template = pod.spec.clone().unwrap_or_default();
    template.node_name = None;
    let spec = MigratableAppSpec {
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: pod.metadata.labels.clone(),
                annotations: Some(annotations),
                ..Default::default()
            }),
            spec: Some(template),
        },
        container: pod.annotations().get(CONTAINER_ANNOTATION).cloned(),
        checkpoint_policy: defaults.checkpoint_policy.clone(),
        migration_policy: defaults.migration_policy.clone(),
        storage: defaults.storage.clone(),
        deletion_policy: defaults.deletion_policy,
        injection: Some(injection),
    };
    let mut app = MigratableApp::new(name, spec);
    app.metadata.namespace = Some(namespace.to_owned());
    let moved = container_of(&app)?.name.clone();
    let role = match becomes {
        As::New(_) => Role::Launch,
        As::Target(replacement) => Role::Restore(&replacement.mark),
    };
    let plan = Plan { app: &app, agent, cluster, name: "", node: None, role };
    let built = build(&plan)?;
    let mut patch = patch(pod, &built, &moved);
    if let As::Target(replacement) = becomes {
        patch.extend(target(pod, replacement));
    }
    Ok(Injected { app, patch })
}

/// A StatefulSet's pod keeps its name, and so its checkpoints, when it is made anew; one of a Deployment is another application
/// each time. `request` tells pods of one controller apart, whose names are not known yet, and applications of pods that have the
/// same name one after the other; `taken` are the names that the pod's own must not be.
pub fn app_name(pod: &Pod, request: &str, taken: bool) -> String {
    let fits = |name: &String| name.len() <= NAME_LIMIT && !name.contains('.') && !taken;
    if let Some(name) = own_name(pod).cloned().filter(fits) {
        return name;
    }
    let given = own_name(pod).or(pod.metadata.generate_name.as_ref());
    let base: String =
        given.map_or("pod", String::as_str).replace('.', "-").chars().take(NAME_LIMIT - SUFFIX - 1).collect();
    let suffix: String = request.chars().filter(char::is_ascii_alphanumeric).take(SUFFIX).collect();
    format!("{}-{}", base.trim_matches('-'), suffix.to_ascii_lowercase())
}

/// The name that a pod has when it is created, if it is not made up then.
pub fn own_name(pod: &Pod) -> Option<&String> {
    pod.metadata.name.as_ref().filter(|name| !name.is_empty())
}

/// What a pod needs beside that to take an application over: where it is to be, and the name that no other can have.
fn target(pod: &Pod, replacement: &Replacement) -> Vec<Value> {
    let mut patch = Patch(Vec::new());
    if let Some(name) = &replacement.name {
        patch.add("/metadata/name", json!(name));
    }
    let before = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    if let Some(affinity) =
        affinity::node_affinity(before.and_then(|one| one.node_affinity.clone()), replacement)
    {
        if before.is_none() {
            patch.add("/spec/affinity", json!({}));
        }
        patch.add("/spec/affinity/nodeAffinity", json!(affinity));
    }
    patch.0
}

/// What leads from one to the other, by adding: what is not known here stays as it is.
fn patch(pod: &Pod, built: &Pod, moved: &str) -> Vec<Value> {
    let (before, after) = (pod.spec.clone().unwrap_or_default(), built.spec.clone().unwrap_or_default());
    let mut patch = Patch(Vec::new());
    patch.entries("/metadata/labels", pod.metadata.labels.is_none(), &[APP_LABEL], built.labels());
    // There is one at least: it is what has asked.
    let annotations = [INJECTED_ANNOTATION, ROLE_ANNOTATION, TEMPLATE_ANNOTATION, MIGRATION_ANNOTATION];
    patch.entries("/metadata/annotations", false, &annotations, built.annotations());

    let init_before = before.init_containers.as_ref().map_or(0, Vec::len);
    let init_after = after.init_containers.unwrap_or_default();
    let new: Vec<&Container> = init_after.iter().take(init_after.len() - init_before).collect();
    patch.in_front("/spec/initContainers", before.init_containers.is_none(), &new);
    if let Some(place) = before.containers.iter().position(|container| container.name == moved) {
        let (old, new) = (&before.containers[place], &after.containers[place]);
        let at = format!("/spec/containers/{place}");
        patch.add(&format!("{at}/command"), json!(new.command));
        let mounts = new.volume_mounts.clone().unwrap_or_default();
        let known = old.volume_mounts.as_ref().map_or(0, Vec::len);
        patch.behind(&format!("{at}/volumeMounts"), old.volume_mounts.is_none(), &mounts[known..]);
        if new.startup_probe != old.startup_probe {
            patch.add(&format!("{at}/startupProbe"), json!(new.startup_probe));
        }
    }
    let gates = after.readiness_gates.unwrap_or_default();
    let known = before.readiness_gates.as_ref().map_or(0, Vec::len);
    if gates.len() > known {
        patch.behind("/spec/readinessGates", before.readiness_gates.is_none(), &gates[known..]);
    }
    patch.behind("/spec/containers", false, &after.containers[before.containers.len()..]);
    let volumes = after.volumes.unwrap_or_default();
    let known = before.volumes.as_ref().map_or(0, Vec::len);
    patch.behind("/spec/volumes", before.volumes.is_none(), &volumes[known..]);
    patch.add("/spec/shareProcessNamespace", json!(true));
    patch.0
}

struct Patch(Vec<Value>);

impl Patch {
    fn add(&mut self, path: &str, value: Value) {
        self.0.push(json!({"op": "add", "path": path, "value": value}));
    }

    /// Those of `keys` that there are.
    fn entries(&mut self, at: &str, absent: bool, keys: &[&str], new: &BTreeMap<String, String>) {
        if absent {
            self.add(at, json!({}));
        }
        for (key, value) in keys.iter().filter_map(|key| new.get_key_value(*key)) {
            let key = key.replace('~', "~0").replace('/', "~1");
            self.add(&format!("{at}/{key}"), json!(value));
        }
    }

    fn in_front<T: serde::Serialize>(&mut self, at: &str, absent: bool, items: &[T]) {
        self.list(at, absent);
        for (place, item) in items.iter().enumerate() {
            self.add(&format!("{at}/{place}"), json!(item));
        }
    }

    fn behind<T: serde::Serialize>(&mut self, at: &str, absent: bool, items: &[T]) {
        self.list(at, absent);
        for item in items {
            self.add(&format!("{at}/-"), json!(item));
        }
    }

    fn list(&mut self, at: &str, absent: bool) {
        if absent {
            self.add(at, json!([]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(metadata: Value, spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn defaults() -> Defaults {
        serde_json::from_value(json!({"storage": {"type": "s3", "bucket": "checkpoints"}})).unwrap()
    }

    fn tried(pod: &Pod) -> Result<Injected, NotInjected> {
        let name = app_name(pod, "0f6c2a8e-5b1d-4e7a", false);
        inject(pod, "shop", As::New(&name), &defaults(), &AgentSettings::default(), "prod")
    }

    fn plain() -> Value {
        json!({"containers": [{"name": "web", "image": "web", "command": ["web"]}]})
    }

    #[test]
    fn pods_that_do_not_ask_are_left_alone() {
        for annotations in [json!({}), json!({"migration.io/enabled": "false"}), json!({"other": "true"})] {
            let pod = pod(json!({"name": "a", "annotations": annotations}), plain());
            assert_eq!(tried(&pod).unwrap_err(), NotInjected::Nothing);
        }
    }

    #[test]
    fn pods_of_applications_are_left_alone() {
        let asked = json!({"migration.io/enabled": "true"});
        let pod =
            pod(json!({"name": "a", "annotations": asked, "labels": {"migration.io/app": "a"}}), plain());
        assert_eq!(tried(&pod).unwrap_err(), NotInjected::Nothing);
    }

    #[test]
    fn a_pod_with_a_name_keeps_it_and_others_get_one_each() {
        let asked = json!({"migration.io/enabled": "true"});
        let name = |metadata: Value| {
            let mut metadata = metadata;
            metadata["annotations"] = asked.clone();
            tried(&pod(metadata, plain())).unwrap().app.name_any()
        };
        assert_eq!(name(json!({"name": "db-0"})), "db-0");
        assert_eq!(name(json!({"generateName": "web-5d4f7c-"})), "web-5d4f7c-0f6c2a8e5b");
        let long = name(json!({"generateName": format!("{}-", "a".repeat(60))}));
        assert!(long.len() <= NAME_LIMIT && long.ends_with("-0f6c2a8e5b"), "{long}");
        assert_eq!(name(json!({"name": "a.b"})), "a-b-0f6c2a8e5b");
    }

    #[test]
    fn a_pod_whose_command_is_not_known_cannot_be_moved() {
        let spec = json!({"containers": [{"name": "web", "image": "web"}]});
        let pod = pod(json!({"name": "a", "annotations": {"migration.io/enabled": "true"}}), spec);
        let error = tried(&pod).unwrap_err();
        assert!(matches!(error, NotInjected::Unsupported(Unsupported::EntrypointUnknown { .. })), "{error}");
    }

    #[test]
    fn nothing_is_taken_away_or_replaced_but_the_command() {
        let spec = json!({
            "containers": [
                {"name": "web", "image": "web", "command": ["web"], "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                {"name": "side", "image": "side"},
            ],
            "initContainers": [{"name": "init", "image": "init"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        });
        let pod = pod(json!({"name": "a", "annotations": {"migration.io/enabled": "true"}}), spec);
        for operation in tried(&pod).unwrap().patch {
            assert_eq!(operation["op"], "add", "{operation}");
            let path = operation["path"].as_str().unwrap();
            let whole = [
                "/spec/containers",
                "/spec/initContainers",
                "/spec/volumes",
                "/spec/containers/0/volumeMounts",
            ];
            assert!(!whole.contains(&path), "{operation}");
        }
    }

    #[test]
    fn pods_whose_maker_could_not_replace_them_by_a_copy_are_left_alone() {
        let owned = |kind: &str, api: &str| {
            let owner = json!({"apiVersion": api, "kind": kind, "name": "o", "uid": "u", "controller": true});
            json!({"name": "a", "annotations": {"migration.io/enabled": "true"}, "ownerReferences": [owner]})
        };
        for (kind, api) in [
            ("DaemonSet", "apps/v1"),
            ("Job", "batch/v1"),
            ("StatefulSet", "apps.example/v1"),
            ("ReplicaSet", "apps/v1"),
        ] {
            let error = tried(&pod(owned(kind, api), plain())).unwrap_err();
            assert!(matches!(error, NotInjected::Owner(_)), "{kind}: {error}");
            assert!(error.to_string().contains("Deployment"), "{error}");
        }
        let mut deployments = owned("ReplicaSet", "apps/v1");
        deployments["labels"] = json!({"pod-template-hash": "5d4f7c"});
        for metadata in [deployments, owned("StatefulSet", "apps/v1")] {
            assert!(tried(&pod(metadata, plain())).is_ok());
        }
    }

    #[test]
    fn a_pod_that_takes_an_application_over_waits_for_it_under_a_name_that_no_other_can_have() {
        let metadata = json!({
            "generateName": "web-5d4f7c-", "annotations": {"migration.io/enabled": "true"},
            "labels": {"pod-template-hash": "5d4f7c"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f7c", "uid": "u", "controller": true}],
        });
        let before = pod(metadata, plain());
        let replacement = Replacement {
            app: "web-5d4f7c-0f6c2a8e5b".to_owned(),
            mark: "0123456789abcdef".to_owned(),
            name: Some("web-5d4f7c-xyz-m01234567-1".to_owned()),
            excluded: vec!["source".to_owned()],
            preferred: vec!["best".to_owned()],
            selector: BTreeMap::new(),
        };
        let becomes = As::Target(&replacement);
        let injected =
            inject(&before, "shop", becomes, &defaults(), &AgentSettings::default(), "prod").unwrap();
        let added = |path: &str| {
            let found = injected.patch.iter().find(|operation| operation["path"] == path);
            found.map_or(Value::Null, |operation| operation["value"].clone())
        };
        assert_eq!(added("/metadata/name"), "web-5d4f7c-xyz-m01234567-1");
        assert_eq!(added("/metadata/labels/migration.io~1app"), "web-5d4f7c-0f6c2a8e5b");
        assert_eq!(added("/metadata/annotations/migration.io~1role"), "restored");
        assert_eq!(added("/metadata/annotations/migration.io~1migration"), "0123456789abcdef");
        assert_eq!(added("/spec/readinessGates/-"), json!({"conditionType": "migration.io/restored"}));
        let command = added("/spec/containers/0/command");
        let words: Vec<&str> = command.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(words.contains(&"--restore") && words.ends_with(&["--", "web"]), "{words:?}");
        let affinity = added("/spec/affinity/nodeAffinity").to_string();
        assert!(affinity.contains("source") && affinity.contains("best"), "{affinity}");
        // What it was before it was treated is what the next one is made of.
        let template = added("/metadata/annotations/migration.io~1template");
        let template: PodTemplateSpec = serde_json::from_str(template.as_str().unwrap()).unwrap();
        assert_eq!(template.spec, before.spec);
    }

    #[test]
    fn defaults_with_an_unknown_word_are_refused() {
        let wrong = json!({"storage": {"type": "s3", "bucket": "checkpoints"}, "checkpontPolicy": {}});
        assert!(serde_json::from_value::<Defaults>(wrong).is_err());
    }
}
