//! `checkpoints` and `report`: what the agent beside an application reads out of the store.

use std::{
    fs,
    io::{self, Write},
};

use serde_json::Value;

use crate::{app::App, cli::Report, error::Error, kubectl::Kubectl};

/// The agent's container.
const AGENT: &str = "migration-agent";

/// Lists the checkpoints of an application.
///
/// # Errors
/// When no agent can be asked, or it fails.
pub fn checkpoints(kubectl: &Kubectl, name: &str, json: bool) -> Result<(), Error> {
    let answer = ask(kubectl, name, &["list".to_owned()], json)?;
    print(&answer);
    Ok(())
}

/// Tells what the last checkpoint and restore of an application did.
///
/// # Errors
/// When no agent can be asked, or it fails.
pub fn report(kubectl: &Kubectl, typed: &Report, json: bool) -> Result<(), Error> {
    let mut words = vec!["report".to_owned()];
    words.extend(typed.checkpoint.iter().map(|id| format!("--checkpoint={id}")));
    words.extend(typed.html.iter().map(|_| "--html=-".to_owned()));
    let answer = ask(kubectl, &typed.name, &words, json)?;
    match &typed.html {
        Some(path) => fs::write(path, answer)
            .map_err(|source| Error::Write { path: path.display().to_string(), source })?,
        None => print(&answer),
    }
    Ok(())
}

/// Has the agent beside an application do something about it.
fn ask(kubectl: &Kubectl, name: &str, words: &[String], json: bool) -> Result<Vec<u8>, Error> {
    let app = App::get(kubectl, name)?;
    let pod = app.pod()?;
    let identity = identity(&kubectl.get("pod", Some(pod))?)
        .ok_or_else(|| Error::NoLauncher { name: name.to_owned(), pod: pod.to_owned() })?;
    kubectl.run(exec(pod, &identity, words, json))
}

fn exec(pod: &str, identity: &str, words: &[String], json: bool) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["exec", pod, &format!("--container={AGENT}"), "--", "migration-agent"].map(str::to_owned).to_vec();
    arguments.extend(words.iter().cloned());
    arguments.push(format!("--app={identity}"));
    arguments.extend(json.then(|| "--json".to_owned()));
    arguments
}

/// What an application is called in the store: its launcher is told.
fn identity(pod: &Value) -> Option<String> {
    let containers = pod["spec"]["containers"].as_array()?;
    containers.iter().find_map(|container| {
        let words = ["command", "args"].into_iter().filter_map(|part| container[part].as_array()).flatten();
        let words: Vec<&str> = words.filter_map(Value::as_str).collect();
        let launcher = words.first().is_some_and(|program| program.ends_with("migration-launch"));
        let at = words.iter().position(|word| *word == "--app").filter(|_| launcher)?;
        words.get(at + 1).map(|name| (*name).to_owned())
    })
}

fn print(answer: &[u8]) {
    // Whoever has stopped reading has read enough.
    let _ = io::stdout().write_all(answer);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_agent_is_asked_about_what_the_launcher_was_told() {
        let pod = json!({"spec": {"containers": [
            {"name": "side", "command": ["--app", "wrong"]},
            {"name": "redis", "command": ["/migration/bin/migration-launch", "--app", "prod/shop/cache", "--control", "/run"]},
        ]}});
        let identity = identity(&pod).unwrap();
        assert_eq!(identity, "prod/shop/cache");
        let words = exec("cache-1", &identity, &["report".to_owned(), "--html=-".to_owned()], false);
        let expected = "exec cache-1 --container=migration-agent -- migration-agent report --html=- --app=prod/shop/cache";
        assert_eq!(words.join(" "), expected);
        let words = exec("cache-1", &identity, &["list".to_owned()], true);
        assert!(words.join(" ").ends_with("list --app=prod/shop/cache --json"));
    }

    #[test]
    fn a_pod_without_a_launcher_has_no_identity() {
        for pod in [json!({}), json!({"spec": {"containers": [{"command": ["redis-server", "--app", "x"]}]}})]
        {
            assert_eq!(identity(&pod), None);
        }
    }
}
