//! Pods of a Deployment and of a StatefulSet, which need nothing but an annotation.

use serde_json::{Value, json};

use super::steps::{expect, finish, one_pod};
use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{NAMESPACE, get, kubectl, until},
    manifest::Manifest,
    observer::Observer,
    redis,
    timeline::Timeline,
};

pub fn deployment(strategy: &str, mib: u64) -> Result<(), Failure> {
    let manifest = Manifest { strategy, ..Manifest::redis("web") };
    let app = Application::inject(&manifest, &[maker("Deployment", &manifest), service(&manifest)])?;
    let (mut timeline, before) = moved(&app, mib, "Deployment")?;
    expect(app.status()?.pod() != before, "its pod has the same name")?;
    let pods = wanted("deployment", "web")?;
    expect(pods == 1, "the Deployment has more than one pod")?;
    timeline.note("the Deployment has its one pod, and the Service leads there");
    scaled_down(&app, "deployment/web")?;
    timeline.note("scaled to nothing: the application is gone");
    Ok(())
}

pub fn stateful_set(strategy: &str, mib: u64) -> Result<(), Failure> {
    let manifest = Manifest { strategy, ..Manifest::redis("store") };
    let app = Application::inject(&manifest, &[maker("StatefulSet", &manifest), service(&manifest)])?;
    let (mut timeline, before) = moved(&app, mib, "StatefulSet")?;
    expect(app.status()?.pod() == before, "its pod has another name")?;
    timeline.note("the StatefulSet's pod has its name, and the Service leads there");
    scaled_down(&app, "statefulset/store")?;
    timeline.note("scaled to nothing: the application is gone");
    Ok(())
}

/// Moves it while a client writes. Returns the name of its pod before.
fn moved(app: &Application, mib: u64, kind: &str) -> Result<(Timeline, String), Failure> {
    let digest = redis::fill(app, mib)?;
    let observer = Observer::start(app, false)?;
    let status = app.status()?;
    let (source, pod) = (status.node().to_owned(), status.pod().to_owned());
    let mut timeline = Timeline::begin(&format!("a {kind}'s pod is annotated, with {mib} MiB on {source}"));
    app.trigger("rehearsal")?;
    let status = app.wait_until_moved("")?;
    expect(status.node() != source, "it has not left its node")?;
    finish(&mut timeline, app, observer, &digest)?;
    one_pod(app)?;
    let address = app.address()?.ip().to_string();
    until(PATIENCE, "its Service leads to it, and nowhere else", || {
        let name = pod.split('-').next().unwrap_or_default();
        let endpoints = get(&["endpoints", name])?;
        let subsets = endpoints["subsets"].as_array().cloned().unwrap_or_default();
        let all: Vec<Value> =
            subsets.iter().filter_map(|one| one["addresses"].as_array()).flatten().cloned().collect();
        Ok((all.len() == 1 && all[0]["ip"] == address.as_str()).then_some(()))
    })?;
    Ok((timeline, pod))
}

fn scaled_down(app: &Application, maker: &str) -> Result<(), Failure> {
    kubectl(&["scale", maker, "--replicas=0"])?;
    until(PATIENCE, "it is gone with its pod", || {
        let left = kubectl(&["get", "mapp", &app.name, "--ignore-not-found", "-o", "name"])?;
        Ok((left.trim().is_empty() && app.pods()?.is_empty()).then_some(()))
    })
}

fn wanted(kind: &str, name: &str) -> Result<u64, Failure> {
    until(PATIENCE, "it is available", || {
        let status = &get(&[kind, name])?["status"];
        let count = |field: &str| status[field].as_u64().unwrap_or_default();
        Ok((count("availableReplicas") == count("replicas") && count("replicas") > 0)
            .then(|| count("replicas")))
    })
}

fn maker(kind: &str, manifest: &Manifest<'_>) -> Value {
    let labels = json!({"app": manifest.name});
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": manifest.name, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {"migration.io/enabled": "true"}},
                "spec": manifest.pod()
            }
        }
    });
    if kind == "StatefulSet" {
        object["spec"]["serviceName"] = manifest.name.into();
    }
    object
}

fn service(manifest: &Manifest<'_>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": manifest.name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": manifest.name}, "ports": [{"port": manifest.port}]}
    })
}
