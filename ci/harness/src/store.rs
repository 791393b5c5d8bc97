//! Places for checkpoints that exist as long as their value: a directory, or a bucket of an S3 server that is a process
//! of its own.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;

use crate::process;

/// Where checkpoints are kept.
pub struct Store {
    name: &'static str,
    url: String,
    environment: Vec<(&'static str, String)>,
    server: Option<Child>,
    folder: TempDir,
}

/// What `s3-server` says when it is ready.
#[derive(Deserialize)]
struct Ready {
    endpoint: String,
    bucket: String,
    access_key: String,
    secret_key: String,
}

impl Store {
    /// A new directory under `parent`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn local(parent: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("store-").tempdir_in(parent)?;
        let url = format!("file://{}", folder.path().display());
        Ok(Store { name: "local", url, environment: Vec::new(), server: None, folder })
    }

    /// A new S3 server on loopback whose bucket is a new directory under `parent`.
    ///
    /// # Errors
    /// When the program is not built or does not start.
    pub fn s3(parent: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("store-").tempdir_in(parent)?;
        // A file rather than a pipe: nobody reads it once the server runs.
        let output = File::create_new(folder.path().join("ready"))?;
        let buckets = folder.path().join("buckets");
        std::fs::create_dir(&buckets)?;
        let mut command = Command::new(process::program("s3-server")?);
        command.arg("--dir").arg(&buckets).stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
        let server = command.spawn()?;
        let mut store =
            Store { name: "s3", url: String::new(), environment: Vec::new(), server: Some(server), folder };

        let file = store.folder.path().join("ready");
        let mut text = String::new();
        process::wait_until(Duration::from_secs(20), || {
            let runs = store.server_runs();
            text = std::fs::read_to_string(&file).unwrap_or_default();
            text.ends_with('\n') || !runs
        });
        if !text.ends_with('\n') {
            return Err(io::Error::other("s3-server does not get ready"));
        }
        let Ready { endpoint, bucket, access_key, secret_key } = serde_json::from_str(&text)?;
        store.url = format!("s3://{bucket}/checkpoints?endpoint={endpoint}&region=us-east-1&path-style=true");
        store.environment = vec![("AWS_ACCESS_KEY_ID", access_key), ("AWS_SECRET_ACCESS_KEY", secret_key)];
        Ok(store)
    }

    fn server_runs(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None)))
    }

    /// The directory its objects are under.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What kind it is: `local` or `s3`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its address, for `--store`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Environment with the credentials it wants.
    pub fn environment(&self) -> &[(&'static str, String)] {
        &self.environment
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
