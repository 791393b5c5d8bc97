//! A redis that can move, and what its status says.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use migration_harness::redis::Client;
use serde_json::{Value, json};

use crate::{
    Failure,
    cluster::{NAMESPACE, get, given, kubectl, until},
};

/// How long one command may take; pages may have to come from the store for it.
const ANSWER: Duration = Duration::from_secs(60);
/// How long anything may take in a cluster on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Redis' port.
pub const PORT: u16 = 6379;

/// An application. It is deleted when this is dropped.
pub struct Application {
    /// Its name.
    pub name: String,
}

/// What its status says.
pub struct Status(Value);

impl Status {
    /// Where it is.
    pub fn node(&self) -> &str {
        self.text("/currentNode")
    }

    /// Its pod.
    pub fn pod(&self) -> &str {
        self.text("/currentPodName")
    }

    /// Pending, Running, Migrating, Failed.
    pub fn phase(&self) -> &str {
        self.text("/phase")
    }

    /// What the last migration says of itself.
    pub fn migration(&self, field: &str) -> &str {
        self.text(&format!("/migration/{field}"))
    }

    /// When the newest periodic checkpoint was made, if there is one.
    pub fn checkpointed(&self) -> Option<&str> {
        Some(self.text("/checkpointStatus/lastCheckpointTime")).filter(|time| !time.is_empty())
    }

    /// How long the operator says it stood still.
    pub fn blackout_ms(&self) -> Option<u64> {
        self.0.pointer("/migration/blackoutMs").and_then(Value::as_u64)
    }

    /// Whether a condition is true.
    pub fn is(&self, condition: &str) -> bool {
        let all = self.0["conditions"].as_array();
        all.into_iter().flatten().any(|one| one["type"] == condition && one["status"] == "True")
    }

    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

impl Application {
    /// Applies it and waits until it can be moved. With `node`, it begins there.
    pub fn start(name: &str, strategy: &str, interval: &str, node: Option<&str>) -> Result<Self, Failure> {
        let app = Self::apply(name, strategy, interval, node)?;
        app.wait_until_migratable()?;
        Ok(app)
    }

    /// Applies it.
    pub fn apply(name: &str, strategy: &str, interval: &str, node: Option<&str>) -> Result<Self, Failure> {
        // A wish: afterwards it may go anywhere.
        let affinity = node.map(|node| {
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference":
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}}]}})
        });
        let object = json!({
            "apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"affinity": affinity, "containers": [{
                    "name": "redis", "image": "migration-sample:0.1.0", "command": ["redis-server"],
                    "args": ["--save", "", "--protected-mode", "no", "--bind", "0.0.0.0", "--enable-debug-command", "yes"],
                    "ports": [{"containerPort": PORT}],
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}}
                }]}},
                "checkpointPolicy": {"interval": interval, "keep": 3},
                "migrationPolicy": {"strategy": strategy},
                "storage": {"type": "minio", "bucket": "checkpoints", "endpoint": "http://10.82.0.1:9000", "region": "us-east-1",
                    "credentialsSecret": "store-credentials"}
            }
        });
        given(&["apply", "--validate=false", "-f", "-"], &object.to_string())?;
        Ok(Self { name: name.to_owned() })
    }

    /// Waits until it can be moved.
    pub fn wait_until_migratable(&self) -> Result<(), Failure> {
        until(PATIENCE, &format!("{} is ready to be moved", self.name), || {
            let status = self.status()?;
            Ok((status.phase() == "Running" && status.is("Ready") && status.is("Migratable")).then_some(()))
        })
    }

    /// What its status says now.
    pub fn status(&self) -> Result<Status, Failure> {
        Ok(Status(get(&["mapp", &self.name])?["status"].clone()))
    }

    /// The addresses of its pods.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let pods = get(&["pods", "-l", &format!("migration.io/app={}", self.name)])?;
        let addresses = pods["items"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|pod| pod["status"]["podIP"].as_str()?.parse::<IpAddr>().ok());
        Ok(addresses.map(|address| SocketAddr::new(address, PORT)).collect())
    }

    /// A connection to where it is now.
    pub fn client(&self) -> Result<Client, Failure> {
        until(PATIENCE, &format!("{} answers", self.name), || {
            let pod = get(&["pod", self.status()?.pod()])?;
            let address: IpAddr = pod["status"]["podIP"].as_str().unwrap_or_default().parse()?;
            Ok(Some(Client::connect_to(SocketAddr::new(address, PORT), ANSWER)?))
        })
    }

    /// Fills it, and returns a digest of all its data.
    pub fn fill(&self, mib: u64) -> Result<String, Failure> {
        let mut client = self.client()?;
        client.load(0, mib << 20)?;
        Ok(client.digest()?)
    }

    /// Asks for it to be moved, as people do.
    pub fn trigger(&self, reason: &str) -> Result<(), Failure> {
        let pod = self.status()?.pod().to_owned();
        let reason = format!("migration.io/reason={reason}");
        kubectl(&["annotate", "--overwrite", "pod", &pod, "migration.io/trigger=requested", &reason])
            .map(drop)
    }

    /// Waits until a migration other than `before` has ended well, and returns what is said of it.
    pub fn wait_until_moved(&self, before: &str) -> Result<Status, Failure> {
        let status = until(PATIENCE, &format!("{} has moved", self.name), || {
            let status = self.status()?;
            let over = ["Succeeded", "Failed", "Cancelled"].contains(&status.migration("stage"));
            Ok((over && status.migration("id") != before).then_some(status))
        })?;
        match status.migration("stage") {
            "Succeeded" => Ok(status),
            stage => Err(format!("{}: {stage}: {}", self.name, status.migration("message")).into()),
        }
    }

    /// Compares all of its data with what it was.
    pub fn compare(&self, digest: &str) -> Result<(), Failure> {
        match self.client()?.digest()? {
            now if now == digest => Ok(()),
            now => Err(format!("{}: its data is {now} and was {digest}", self.name).into()),
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if let Err(error) = kubectl(&["delete", "mapp", &self.name, "--timeout=120s"]) {
            eprintln!("scenario: {error}");
        }
    }
}
