//! What is applied: an application's object, and the containers that scenarios move.

use serde_json::{Value, json};

/// The name of the container that moves.
pub const CONTAINER: &str = "app";
/// The image with redis.
pub const SAMPLE: &str = "migration-sample:0.1.0";
/// The image with everything else, which `ci/cluster load` brings.
pub const APPLICATIONS: &str = "migration-applications:0.1.0";

/// An application that is to be.
#[derive(Clone)]
pub struct Manifest<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where clients find it.
    pub port: u16,
    /// How its memory gets to the target.
    pub strategy: &'a str,
    /// Between two periodic checkpoints.
    pub interval: &'a str,
    /// Seconds after which a migration is given up.
    pub timeout: u32,
    /// Where it begins if there is room. Afterwards it may go anywhere.
    pub node: Option<&'a str>,
    /// Files that travel with it, open or not.
    pub paths: Vec<&'a str>,
    /// What it is made from.
    pub image: &'a str,
    /// What is run.
    pub command: Vec<&'a str>,
    /// Variables.
    pub environment: Value,
    /// Where a volume is mounted that its pod has to itself.
    pub volume: Option<&'a str>,
}

impl<'a> Manifest<'a> {
    /// Something out of an image.
    pub fn new(name: &'a str, image: &'a str, command: &[&'a str], port: u16) -> Self {
        Self {
            name,
            port,
            strategy: "lazy-storage",
            interval: "10m",
            timeout: 300,
            node: None,
            paths: Vec::new(),
            image,
            command: command.to_vec(),
            environment: json!([]),
            volume: None,
        }
    }

    /// A redis that keeps everything in memory.
    pub fn redis(name: &'a str) -> Self {
        let command = ["redis-server", "--save", "", "--protected-mode", "no", "--bind", "0.0.0.0"];
        Self::new(name, SAMPLE, &[&command[..], &["--enable-debug-command", "yes"]].concat(), 6379)
    }

    /// `ledger.py`, a tree of processes that keeps books in files of a volume.
    pub fn ledger(name: &'a str, options: &[&'a str]) -> Self {
        let command = [&["python3", "/applications/ledger.py", "/data"], options].concat();
        Self { volume: Some("/data"), paths: vec!["/data"], ..Self::new(name, APPLICATIONS, &command, 6379) }
    }

    /// The same with a variable.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment = json!([{"name": name, "value": value}]);
        self
    }

    /// The pod, as it is in the template of whatever makes it.
    pub fn pod(&self) -> Value {
        let affinity = self.node.map(|node| {
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference":
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}}]}})
        });
        let probe = (self.port != 0).then(|| json!({"tcpSocket": {"port": self.port}, "periodSeconds": 1}));
        let mounts: Vec<Value> =
            self.volume.iter().map(|path| json!({"name": "data", "mountPath": path})).collect();
        let volumes: Vec<Value> =
            self.volume.iter().map(|_| json!({"name": "data", "emptyDir": {}})).collect();
        json!({"affinity": affinity, "volumes": volumes, "containers": [{
            "name": CONTAINER, "image": self.image, "command": self.command[..1], "args": self.command[1..],
            "env": self.environment, "volumeMounts": mounts, "readinessProbe": probe,
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}}
        }]})
    }

    /// Its object.
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp",
            "metadata": {"name": self.name, "namespace": crate::cluster::NAMESPACE},
            "spec": {
                "template": {"metadata": {"labels": {"app": self.name}}, "spec": self.pod()},
                "checkpointPolicy": {"interval": self.interval, "keep": 3, "paths": self.paths},
                "migrationPolicy": {"strategy": self.strategy, "migrationTimeoutSeconds": self.timeout},
                "storage": storage()
            }
        })
    }
}

/// The cluster's store.
pub fn storage() -> Value {
    json!({"type": "minio", "bucket": "checkpoints", "endpoint": "http://10.82.0.1:9000", "region": "us-east-1",
        "credentialsSecret": "store-credentials"})
}
