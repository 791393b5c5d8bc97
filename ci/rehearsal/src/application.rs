//! An application that can move, and what its status says.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    Failure,
    cluster::{NAMESPACE, get, given, kubectl, until},
    manifest::{Manifest, storage},
};

/// How long anything may take in a cluster on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// An application. What was applied for it is deleted when this is dropped.
pub struct Application {
    /// Its name.
    pub name: String,
    /// Where clients find it.
    pub port: u16,
    /// What was applied: an object and its name.
    applied: Vec<String>,
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

    /// Whether a migration other than `before` has come to an end.
    pub fn is_over(&self, before: &str) -> bool {
        let over = ["Succeeded", "Failed", "Cancelled"].contains(&self.migration("stage"));
        over && self.migration("id") != before
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
    /// Applies it and waits until it can be moved.
    pub fn start(manifest: &Manifest<'_>) -> Result<Self, Failure> {
        let app = Self::apply(manifest)?;
        app.wait_until_migratable()?;
        Ok(app)
    }

    /// Applies it.
    pub fn apply(manifest: &Manifest<'_>) -> Result<Self, Failure> {
        let name = manifest.name.to_owned();
        let applied = vec![format!("mapp/{name}")];
        let app = Self { name, port: manifest.port, applied };
        given(&["apply", "--validate=false", "-f", "-"], &manifest.object().to_string())?;
        Ok(app)
    }

    /// Applies what makes its pods, `kind/name`, and waits until the operator knows the application and can move it. `also` goes with it.
    pub fn inject(manifest: &Manifest<'_>, objects: &[Value]) -> Result<Self, Failure> {
        let defaults = json!({"storage": storage(), "checkpointPolicy": {"interval": manifest.interval},
            "migrationPolicy": {"strategy": manifest.strategy}});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "migration-injection", "namespace": "migration-system"},
            "data": {"defaults.yaml": defaults.to_string()}});
        given(&["apply", "--namespace", "migration-system", "-f", "-"], &map.to_string())?;
        let named = |object: &Value| {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
            format!("{}/{}", word(&object["kind"]), word(&object["metadata"]["name"]))
        };
        let applied = objects.iter().map(named).collect();
        let mut app = Self { name: String::new(), port: manifest.port, applied };
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        given(&["apply", "-f", "-"], &list.to_string())?;
        app.name = until(PATIENCE, "the operator knows it", || {
            let pods = get(&["pods", "-l", &format!("app={}", manifest.name)])?;
            let name = pods["items"][0]["metadata"]["labels"]["migration.io/app"].as_str().map(str::to_owned);
            Ok(name.filter(|name| get(&["mapp", name]).is_ok()))
        })?;
        app.wait_until_migratable()?;
        Ok(app)
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

    /// Its pods.
    pub fn pods(&self) -> Result<Vec<Value>, Failure> {
        let found = get(&["pods", "-l", &format!("migration.io/app={}", self.name)])?;
        Ok(found["items"].as_array().cloned().unwrap_or_default())
    }

    /// Where its pods can be reached.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        addresses(&self.name, self.port)
    }

    /// Where it is now.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        let pod = get(&["pod", self.status()?.pod()])?;
        let address: IpAddr = pod["status"]["podIP"].as_str().unwrap_or_default().parse()?;
        Ok(SocketAddr::new(address, self.port))
    }

    /// Asks for it to be moved, as people do.
    pub fn trigger(&self, reason: &str) -> Result<(), Failure> {
        let pod = self.status()?.pod().to_owned();
        let reason = format!("migration.io/reason={reason}");
        kubectl(&["annotate", "--overwrite", "pod", &pod, "migration.io/trigger=requested", &reason])
            .map(drop)
    }

    /// Waits until its migration has reached a stage, or one after it, and returns what is said of it.
    pub fn wait_for_stage(&self, before: &str, stage: &str) -> Result<Status, Failure> {
        until(PATIENCE, &format!("{}: {stage}", self.name), || {
            let status = self.status()?;
            let begun = status.migration("id") != before;
            Ok((begun && rank(status.migration("stage")) >= rank(stage)).then_some(status))
        })
    }

    /// Waits until a migration other than `before` has ended, well or not.
    pub fn wait_until_over(&self, before: &str) -> Result<Status, Failure> {
        until(PATIENCE, &format!("{}: the migration is over", self.name), || {
            let status = self.status()?;
            Ok(status.is_over(before).then_some(status))
        })
    }

    /// Waits until a migration other than `before` has ended well, and returns what is said of it.
    pub fn wait_until_moved(&self, before: &str) -> Result<Status, Failure> {
        let status = self.wait_until_over(before)?;
        match status.migration("stage") {
            "Succeeded" => Ok(status),
            stage => Err(format!("{}: {stage}: {}", self.name, status.migration("message")).into()),
        }
    }

    /// What its events say, one a line, with their reasons.
    pub fn events(&self) -> Result<String, Failure> {
        let found = get(&["events", "--field-selector", &format!("involvedObject.name={}", self.name)])?;
        let lines = found["items"].as_array().into_iter().flatten().map(|event| {
            let word = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            let (kind, reason, text) = (word("type"), word("reason"), word("message"));
            let text = if text.is_empty() { word("note") } else { text };
            format!("{kind} {reason} {text}")
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Where the pods of an application of this name can be reached.
pub fn addresses(name: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let pods = get(&["pods", "-l", &format!("migration.io/app={name}")])?;
    let addresses = pods["items"].as_array().into_iter().flatten();
    let addresses = addresses.filter_map(|pod| pod["status"]["podIP"].as_str()?.parse::<IpAddr>().ok());
    Ok(addresses.map(|address| SocketAddr::new(address, port)).collect())
}

/// How far a stage is.
fn rank(stage: &str) -> usize {
    let stages =
        ["ChoosingTarget", "Preparing", "Dumping", "Restoring", "Filling", "RemovingSource", "Succeeded"];
    stages.iter().position(|one| *one == stage).unwrap_or_default()
}

impl Drop for Application {
    fn drop(&mut self) {
        let mut names: Vec<&str> = self.applied.iter().map(String::as_str).collect();
        // What its maker leaves behind has to be gone before the next one comes.
        let app = format!("mapp/{}", self.name);
        if !self.name.is_empty() && !names.contains(&app.as_str()) {
            names.push(&app);
        }
        for name in names {
            if let Err(error) = kubectl(&["delete", name, "--ignore-not-found", "--timeout=120s"]) {
                eprintln!("scenario: {error}");
            }
        }
        let gone = until(PATIENCE, &format!("{} is gone", self.name), || {
            let left =
                kubectl(&["get", "pods", "-o", "name", "-l", &format!("migration.io/app={}", self.name)])?;
            Ok(left.trim().is_empty().then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("scenario: {NAMESPACE}: {error}");
        }
    }
}
