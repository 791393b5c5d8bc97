//! What goes wrong on purpose. Each takes itself back when it is dropped, also after an error.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    Failure,
    cluster::{announce, cluster, get, until},
};

fn report(what: &str, result: Result<(), Failure>) {
    if let Err(error) = result {
        eprintln!("scenario: {what}: {error}");
    }
}

/// A notice that stands until this is dropped.
pub struct Notice {
    node: String,
    path: &'static str,
}

impl Notice {
    /// The cloud takes a node back in so many seconds.
    pub fn spot(node: &str, seconds: u64) -> Result<Self, Failure> {
        Self::announce(node, "aws/spot", &format!("?action=terminate&in={seconds}"))
    }

    /// The cloud advises to leave a node.
    pub fn rebalance(node: &str) -> Result<Self, Failure> {
        Self::announce(node, "aws/rebalance", "")
    }

    fn announce(node: &str, path: &'static str, query: &str) -> Result<Self, Failure> {
        let notice = Self { node: node.to_owned(), path };
        announce(node, "POST", &format!("{path}{query}"))?;
        Ok(notice)
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        let clean = || {
            announce(&self.node, "DELETE", self.path)?;
            until(Duration::from_secs(120), "the node is free again", || {
                let node = get(&["node", &self.node])?;
                Ok((!node["spec"]["taints"].to_string().contains("migration.io")).then_some(()))
            })
        };
        report(&self.node, clean());
    }
}

/// A node that has ended with everything on it, and is brought back when this is dropped.
pub struct Killed(String);

impl Killed {
    /// Ends it.
    pub fn kill(node: &str) -> Result<Self, Failure> {
        let killed = Self(node.to_owned());
        cluster(&["kill", node])?;
        Ok(killed)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // What its Node left behind has to be gone, or its kubelet finds pods of before.
        thread::sleep(Duration::from_secs(1));
        report(&self.0, cluster(&["start", &self.0]));
    }
}

/// A link that is slow until this is dropped.
pub struct Slow(String);

impl Slow {
    /// Gives a node's link another bandwidth, as `tc` writes it.
    pub fn link(node: &str, rate: &str) -> Result<Self, Failure> {
        let slow = Self(node.to_owned());
        cluster(&["rate", node, rate])?;
        Ok(slow)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        report(&self.0, cluster(&["rate", &self.0]));
    }
}

/// A link that is cut until this is dropped.
pub struct Unplugged(String);

impl Unplugged {
    /// Cuts it.
    pub fn unplug(node: &str) -> Result<Self, Failure> {
        let unplugged = Self(node.to_owned());
        cluster(&["unplug", node])?;
        Ok(unplugged)
    }
}

impl Drop for Unplugged {
    fn drop(&mut self) {
        report(&self.0, cluster(&["plug", &self.0]));
    }
}

/// A node that has no image of this name, or another one, until this is dropped.
pub struct OtherImage {
    node: String,
    image: String,
}

impl OtherImage {
    /// `image` is gone from `node`. Nobody has it to be pulled from.
    pub fn none(node: &str, image: &str) -> Result<Self, Failure> {
        let other = Self { node: node.to_owned(), image: reference(image) };
        other.name(&other.image, &other.kept())?;
        other.containerd(&["images", "rm", &other.image])?;
        Ok(other)
    }

    /// Instead of it there is `another` of its name.
    pub fn is(&self, another: &str) -> Result<(), Failure> {
        self.name(&reference(another), &self.image)
    }

    fn kept(&self) -> String {
        format!("{}-kept", self.image)
    }

    fn name(&self, image: &str, name: &str) -> Result<(), Failure> {
        self.containerd(&["images", "tag", "--force", image, name])
    }

    fn containerd(&self, words: &[&str]) -> Result<(), Failure> {
        cluster(&[&["exec", &self.node, "ctr", "-n", "k8s.io"], words].concat())
    }
}

impl Drop for OtherImage {
    fn drop(&mut self) {
        let back = self.name(&self.kept(), &self.image);
        report(&self.node, back.and_then(|()| self.containerd(&["images", "rm", &self.kept()])));
    }
}

/// What containerd calls an image that has no registry in its name.
fn reference(image: &str) -> String {
    format!("docker.io/library/{image}")
}

/// A store that cannot be used until this is dropped.
pub struct StoreDown(());

impl StoreDown {
    /// From now on it is `silent` or `refusing`.
    pub fn now(how: &str) -> Result<Self, Failure> {
        let down = Self(());
        cluster(&["store", how])?;
        Ok(down)
    }
}

impl Drop for StoreDown {
    fn drop(&mut self) {
        report("the store", cluster(&["store", "well"]));
    }
}

/// Kills the operator that leads, and says which that was.
pub fn kill_operator() -> Result<String, Failure> {
    let lease = get(&["lease", "migration-operator", "--namespace", "migration-system"])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let pod = holder.rsplit_once('-').ok_or("nobody leads")?.0.to_owned();
    kill_container(&get(&["pod", &pod, "--namespace", "migration-system"])?, "operator")?;
    Ok(pod)
}

/// Kills one container of a pod, without notice.
pub fn kill_container(pod: &Value, name: &str) -> Result<(), Failure> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let container = container_of(pod, name).ok_or_else(|| format!("{name} does not run"))?;
    cluster(&["exec", node, "ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", &container])
}

/// The id of a pod's container.
fn container_of(pod: &Value, name: &str) -> Option<String> {
    let status = &pod["status"];
    let all = [&status["containerStatuses"], &status["initContainerStatuses"]];
    let mut all = all.into_iter().filter_map(Value::as_array).flatten();
    let one = all.find(|one| one["name"] == name && !one["state"]["running"].is_null())?;
    Some(one["containerID"].as_str()?.trim_start_matches("containerd://").to_owned())
}

/// Kills the agent that serves in a pod, as a crash would: its container goes on.
pub fn kill_agent(pod: &Value) -> Result<(), Failure> {
    kill_in_agents_container(pod, "migration-agent serve .*--listen", "agent")
}

/// Kills what serves pages in a pod, if any still have to come.
pub fn kill_page_server(pod: &Value) -> Result<(), Failure> {
    kill_in_agents_container(pod, "migration-agent page-server", "page server")
}

/// Kills a process of a pod by its command line.
fn kill_in_agents_container(pod: &Value, command: &str, what: &str) -> Result<(), Failure> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let container = container_of(pod, "migration-agent").ok_or("the agent's container does not run")?;
    // Its pod's processes are told from others of the node by what they see as their first one. The container's own first one
    // is left alone.
    let script = r#"inside=$(ctr -n k8s.io tasks ls | awk -v id="$0" '$1 == id { print $2 }')
        for pid in $(pgrep -f "$1"); do
            if [ "$pid" != "$inside" ] && [ "$(readlink /proc/$pid/ns/pid)" = "$(readlink /proc/$inside/ns/pid)" ]; then kill -KILL $pid && exit; fi
        done
        exit 1"#;
    cluster(&["exec", node, "bash", "-c", script, &container, command])
        .map_err(|_| format!("no {what} runs there").into())
}
