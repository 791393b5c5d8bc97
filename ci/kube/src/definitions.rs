//! Custom resources of a stack: the server in front has to be told of each of their groups.
//!
//! A [`Follower`] does that as definitions come and go, whoever applies them, `kubectl` included.

use std::{
    collections::BTreeSet,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::{
    runtime,
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    cluster,
    error::Error,
    stack::{ANSWER, PATIENCE, PAUSE},
};

/// The Service that stands for the server that knows CEL.
pub const SERVICE: &str = "definitions";
/// Where it is.
pub const SERVICE_NAMESPACE: &str = "kube-system";
/// The group of definitions themselves.
pub const GROUP: &str = "apiextensions.k8s.io/v1";
/// Who applies definitions.
const MANAGER: &str = "migration-kube";

/// What an APIService says that stands for the server behind.
pub fn behind(port: u16) -> Value {
    json!({
        "service": {"name": SERVICE, "namespace": SERVICE_NAMESPACE, "port": port},
        "insecureSkipTLSVerify": true,
    })
}

/// A thread that registers the groups of definitions with the server in front. Ends when dropped.
pub struct Follower {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Follower {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(kubeconfig: &Path, port: u16) -> Result<Self, Error> {
        let (stop, stopped) = oneshot::channel();
        let kubeconfig = kubeconfig.to_owned();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("make a runtime"))?;
        let thread = thread::Builder::new()
            .name("definitions".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = follow(&kubeconfig, port) => {}
                    }
                });
            })
            .map_err(Error::io("start a thread"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            _ = thread.join();
        }
    }
}

async fn follow(kubeconfig: &Path, port: u16) {
    let Ok(client) = cluster::client(kubeconfig).await else { return };
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut events = watcher(definitions.clone(), watcher::Config::default()).default_backoff().boxed();
    let mut registered = BTreeSet::new();
    while let Some(event) = events.next().await {
        // A watch that broke is taken up again by itself.
        if event.is_err() {
            continue;
        }
        while let Err(error) = register(&client, &definitions, &mut registered, port).await {
            eprintln!("definitions: {error}; trying again");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Makes what is registered agree with the definitions there are.
async fn register(
    client: &Client,
    definitions: &Api<CustomResourceDefinition>,
    registered: &mut BTreeSet<(String, String)>,
    port: u16,
) -> Result<(), kube::Error> {
    let list = definitions.list(&ListParams::default()).await?;
    let wanted: BTreeSet<_> =
        list.iter().filter(|definition| is_established(definition)).flat_map(groups).collect();
    let services: Api<APIService> = Api::all(client.clone());
    for (group, version) in wanted.difference(registered) {
        let name = format!("{version}.{group}");
        let mut spec = behind(port);
        spec["group"] = json!(group);
        spec["version"] = json!(version);
        spec["groupPriorityMinimum"] = json!(1000);
        spec["versionPriority"] = json!(15);
        let service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}));
        // Created and not applied: the server in front cannot apply these.
        match services.create(&PostParams::default(), &service.map_err(kube::Error::SerdeError)?).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            other => drop(other?),
        }
    }
    for (group, version) in registered.difference(&wanted) {
        match services.delete(&format!("{version}.{group}"), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            other => drop(other?),
        }
    }
    *registered = wanted;
    Ok(())
}

fn groups(definition: &CustomResourceDefinition) -> Vec<(String, String)> {
    let served = definition.spec.versions.iter().filter(|version| version.served);
    served.map(|version| (definition.spec.group.clone(), version.name.clone())).collect()
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// Waits until a group of the API, like `migration.io/v1alpha1`, answers.
///
/// # Errors
/// When it does not in time.
pub async fn wait_until_served(client: &Client, group_version: &str) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let seen = match timeout(ANSWER, client.list_api_group_resources(group_version)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        if begun.elapsed() > PATIENCE {
            let what = format!("an answer of the group {group_version}");
            return Err(Error::Timeout { what, seconds: PATIENCE.as_secs(), detail: seen });
        }
        sleep(PAUSE).await;
    }
}

/// Applies a definition and waits until its resources can be used.
///
/// # Errors
/// When the server refuses it, or does not serve it in time.
pub async fn install(client: &Client, definition: &CustomResourceDefinition) -> Result<(), Error> {
    let name = definition.metadata.name.clone().unwrap_or_default();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions
        .patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(definition))
        .await
        .map_err(Error::kube(format!("install the definition {name}")))?;
    for (group, version) in groups(definition) {
        wait_until_served(client, &format!("{group}/{version}")).await?;
    }
    Ok(())
}
