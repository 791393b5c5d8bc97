//! Defaults that depend on the user and the machine.

use std::{
    env,
    path::{Path, PathBuf},
};

use lazy_pages::{ids::AppId, store::StoreUrl};

use crate::error::AgentError;

/// Where checkpoints go when nobody says: `MIGRATION_STORE`, else a directory under the user's data directory.
///
/// # Errors
/// When `MIGRATION_STORE` is not a store address.
pub fn default_store() -> Result<StoreUrl, AgentError> {
    match env::var("MIGRATION_STORE") {
        Ok(address) if !address.is_empty() => Ok(address.parse()?),
        _ => Ok(StoreUrl::Local(user_directory("XDG_DATA_HOME", ".local/share").join("store"))),
    }
}

/// Where short-lived metadata files are put, if `MIGRATION_WORK_DIR` says it.
pub fn work_directory() -> Option<PathBuf> {
    env::var_os("MIGRATION_WORK_DIR").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where logs of detached restores go.
pub fn state_directory() -> PathBuf {
    user_directory("XDG_STATE_HOME", ".local/state")
}

/// A log of an application in a state directory.
pub fn log_file(directory: &Path, app: &AppId, extension: &str) -> PathBuf {
    directory.join(format!("{}.{extension}", app.as_str().replace('/', ".")))
}

fn user_directory(variable: &str, below_home: &str) -> PathBuf {
    let base = env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(below_home)));
    base.unwrap_or_else(|| PathBuf::from("/var/lib")).join("migration-agent")
}
