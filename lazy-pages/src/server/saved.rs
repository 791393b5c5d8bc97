//! What a page server leaves to its successor beside its state: what it was started with.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::server::{
    daemon::{DaemonConfig, Restore},
    sys::{process::duplicate, shared::memory_file},
};

/// The name of the configuration in `/proc/PID/fd`.
pub const CONFIG_NAME: &str = "lazy-pages-config";

/// A configuration as it is kept for a successor.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    store: String,
    restores: Vec<SavedRestore>,
    json: bool,
    patience: Duration,
    revival: Vec<OsString>,
    /// Not in what versions before knew of none have left.
    #[serde(default)]
    prefetch: Option<u32>,
    #[serde(default)]
    origin: Option<String>,
    #[serde(default)]
    anchor: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct SavedRestore {
    app: String,
    checkpoint: Option<String>,
    directory: PathBuf,
}

impl Saved {
    /// Of this configuration.
    pub fn of(config: &DaemonConfig) -> Self {
        let restore = |restore: &Restore| SavedRestore {
            app: restore.app.to_string(),
            checkpoint: restore.checkpoint.map(|id| id.to_string()),
            directory: restore.directory.clone(),
        };
        Self {
            store: config.store.to_string(),
            restores: config.restores.iter().map(restore).collect(),
            json: config.json,
            patience: config.patience,
            prefetch: config.prefetch,
            revival: config.revival.clone(),
            origin: config.origin.clone(),
            anchor: config.anchor.clone(),
        }
    }

    /// Puts it where every process that shares the table of descriptors finds it.
    ///
    /// # Errors
    /// When there is no memory or no descriptor for it.
    pub fn save(&self) -> io::Result<OwnedFd> {
        memory_file(CONFIG_NAME, &serde_json::to_vec(self)?)
    }

    /// The one another process has left at this descriptor.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(number: RawFd) -> io::Result<DaemonConfig> {
        Self::read(&read_whole(number)?)
    }

    /// The one that is encoded here.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(bytes: &[u8]) -> io::Result<DaemonConfig> {
        let saved: Self = serde_json::from_slice(bytes)?;
        let restore = |saved: SavedRestore| {
            let checkpoint = saved.checkpoint.map(|id| id.parse()).transpose().map_err(io::Error::other)?;
            let app = saved.app.parse().map_err(io::Error::other)?;
            Ok(Restore { app, checkpoint, directory: saved.directory })
        };
        Ok(DaemonConfig {
            store: saved.store.parse().map_err(io::Error::other)?,
            restores: saved.restores.into_iter().map(restore).collect::<io::Result<_>>()?,
            json: saved.json,
            patience: saved.patience,
            prefetch: saved.prefetch,
            revival: saved.revival,
            origin: saved.origin,
            anchor: saved.anchor,
        })
    }
}

/// The content of one of our memory files.
///
/// # Errors
/// When it is not open.
pub fn read_whole(number: RawFd) -> io::Result<Vec<u8>> {
    let file = File::from(duplicate(number)?);
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::ids::CheckpointId;

    #[test]
    fn a_successor_reads_the_configuration_it_was_left() {
        let config = DaemonConfig {
            store: "s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=us-east-1&path-style=true"
                .parse()
                .unwrap(),
            restores: vec![
                Restore { app: "a/b/c".parse().unwrap(), checkpoint: None, directory: "/run/c".into() },
                Restore {
                    app: "d".parse().unwrap(),
                    checkpoint: Some(CheckpointId::new()),
                    directory: "relative".into(),
                },
            ],
            json: true,
            patience: Duration::from_millis(1500),
            prefetch: Some(0),
            revival: vec!["guardian".into(), "--state".into()],
            origin: Some("elsewhere".to_owned()),
            anchor: Some("outside".to_owned()),
        };
        let file = Saved::of(&config).save().unwrap();
        assert_eq!(Saved::load(file.as_raw_fd()).unwrap(), config);
    }
}
