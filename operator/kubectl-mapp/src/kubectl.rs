//! Running `kubectl`: with the same cluster, context and namespace.

use std::{
    ffi::OsString,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{cli::Cluster, error::Error};

/// The applications' kind, as kubectl knows it whatever else is called alike.
pub const KIND: &str = "migratableapps.migration.io";

/// See the module's description.
#[derive(Debug)]
pub struct Kubectl {
    options: Vec<OsString>,
}

impl Kubectl {
    /// For this cluster.
    pub fn new(cluster: &Cluster) -> Self {
        let mut options = Vec::new();
        let mut option = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                options.extend([OsString::from(name), value]);
            }
        };
        option("--namespace", cluster.namespace.as_ref().map(OsString::from));
        option("--context", cluster.context.as_ref().map(OsString::from));
        option("--kubeconfig", cluster.kubeconfig.as_ref().map(OsString::from));
        Self { options }
    }

    /// Runs it, and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Vec<u8>, Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        // What follows two dashes is for somebody else.
        let end = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
        arguments.splice(end..end, self.options.iter().cloned());
        let output = Command::new("kubectl")
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::NoKubectl)?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let said =
                    if said.is_empty() { format!("kubectl ended with {}", output.status) } else { said };
                Err(Error::Kubectl(said))
            }
        }
    }

    /// Gets objects of a kind, one or all.
    ///
    /// # Errors
    /// When it fails.
    pub fn get(&self, kind: &str, name: Option<&str>) -> Result<Value, Error> {
        let arguments = ["get", kind].into_iter().chain(name).chain(["--output=json"]);
        Ok(serde_json::from_slice(&self.run(arguments)?)?)
    }

    /// Writes annotations, whatever they were.
    ///
    /// # Errors
    /// When it fails.
    pub fn annotate(&self, kind: &str, name: &str, annotations: &[(&str, &str)]) -> Result<(), Error> {
        let words = annotations.iter().map(|(name, value)| format!("{name}={value}"));
        let arguments = ["annotate", kind, name, "--overwrite"].map(str::to_owned).into_iter().chain(words);
        self.run(arguments).map(drop)
    }
}
