//! Steps of more than one scenario.

use serde_json::Value;

use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{get, until},
    manifest::Manifest,
    observer::{self, Observer},
    redis,
    timeline::Timeline,
};

/// A redis with data, and a digest of that.
pub fn started(name: &str, strategy: &str, mib: u64) -> Result<(Application, String), Failure> {
    let app = Application::start(&Manifest { strategy, ..Manifest::redis(name) })?;
    let digest = redis::fill(&app, mib)?;
    Ok((app, digest))
}

/// What holds at the end of every scenario with a redis: a client that saw nothing wrong, and the same data.
pub fn finish(
    timeline: &mut Timeline,
    app: &Application,
    observer: Observer,
    digest: &str,
) -> Result<(), Failure> {
    let seen = observer.finish()?;
    observer::compare_without(app, digest)?;
    timeline.migration(&app.name, &app.status()?);
    timeline.seen(&app.name, &seen);
    Ok(())
}

/// Its containers run in its own pod and in no other. Kubelets take up to a minute to forget a pod that has ended.
pub fn one_pod(app: &Application) -> Result<(), Failure> {
    until(PATIENCE, "it runs in its own pod only", || {
        let runs = |pod: &&Value| {
            let all = pod["status"]["containerStatuses"].as_array();
            all.into_iter().flatten().any(|one| !one["state"]["running"].is_null())
        };
        let pods = app.pods()?;
        let running = pods.iter().filter(runs);
        let names: Vec<&str> = running.filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        Ok((names == [app.status()?.pod()]).then_some(()))
    })
}

/// A fact.
pub fn expect(fact: bool, otherwise: &str) -> Result<(), Failure> {
    if fact { Ok(()) } else { Err(otherwise.into()) }
}

/// All nodes of the cluster.
pub fn nodes() -> Result<Vec<String>, Failure> {
    let nodes = get(&["nodes"])?;
    let names = nodes["items"].as_array().into_iter().flatten();
    Ok(names.filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned())).collect())
}

/// The only node but this one.
pub fn other_node(node: &str) -> Result<String, Failure> {
    let others: Vec<String> = nodes()?.into_iter().filter(|name| name != node).collect();
    match &others[..] {
        [other] => Ok(other.clone()),
        _ => Err("this takes a cluster of two nodes".into()),
    }
}
