//! The cluster, by `kubectl` and `ci/cluster`, as people use it.

use std::{
    env,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::Failure;

/// Where applications live.
pub const NAMESPACE: &str = "shop";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs `kubectl`, in the applications' namespace unless the words say otherwise, and returns what it prints.
pub fn kubectl(words: &[&str]) -> Result<String, Failure> {
    given(words, "")
}

/// Runs the plugin.
pub fn mapp(words: &[&str]) -> Result<String, Failure> {
    run(&[&["mapp"], words, &["--namespace", NAMESPACE]].concat(), "")
}

/// The same, with something on its standard input.
pub fn given(words: &[&str], input: &str) -> Result<String, Failure> {
    run(&[&["--namespace", NAMESPACE], words].concat(), input)
}

fn run(words: &[&str], input: &str) -> Result<String, Failure> {
    let mut child = Command::new("kubectl")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => {
            Err(format!("kubectl {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())
                .into())
        }
    }
}

/// An object, or a list of them.
pub fn get(words: &[&str]) -> Result<Value, Failure> {
    let words: Vec<&str> = ["get", "-o", "json"].iter().chain(words).copied().collect();
    Ok(serde_json::from_str(&kubectl(&words)?)?)
}

/// Runs `ci/cluster`.
pub fn cluster(words: &[&str]) -> Result<(), Failure> {
    let root = env::var_os("MIGRATION_ROOT").map(PathBuf::from).unwrap_or_default();
    match Command::new(root.join("ci/cluster")).args(words).status()?.success() {
        true => Ok(()),
        false => Err(format!("ci/cluster {} has failed", words.join(" ")).into()),
    }
}

/// Looks until there is something, or `limit` is over; an API server that does not answer is asked again.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        let seen = look();
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if begun.elapsed() > limit {
            let detail = seen.err().map(|error| format!(": {error}")).unwrap_or_default();
            return Err(format!("{what}: not within {} s{detail}", limit.as_secs()).into());
        }
        thread::sleep(PAUSE);
    }
}

/// The address of a node.
pub fn address_of(node: &str) -> Result<String, Failure> {
    let node = get(&["node", node])?;
    let all = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let internal = all.iter().find(|one| one["type"] == "InternalIP").and_then(|one| one["address"].as_str());
    Ok(internal.ok_or("the node has no address")?.to_owned())
}

/// Tells a node's metadata service what to announce, or to take that back.
pub fn announce(node: &str, method: &str, what: &str) -> Result<(), Failure> {
    let url = format!("http://{}/control/{what}", address_of(node)?);
    let sent =
        Command::new("curl").args(["--silent", "--fail", "--max-time", "5", "-X", method, &url]).status()?;
    if sent.success() { Ok(()) } else { Err(format!("{url} cannot be told anything").into()) }
}
