//! What can go wrong with a cluster for tests.

use std::{io, path::PathBuf};

/// Why there is no cluster, or why it did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs are not there.
    #[error("{} is missing: run ci/build-kube (or ci/setup), or set MIGRATION_KUBE to where it put them", .0.display())]
    Missing(PathBuf),
    /// A file or process could not be had.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Certificates could not be made.
    #[error("cannot make certificates")]
    Certificates(#[from] rcgen::Error),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server refused something.
    #[error("cannot {what}")]
    Kube {
        /// What was tried.
        what: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s; {detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// What was seen last.
        detail: String,
    },
    /// Only a cluster that this process has started can do this.
    #[error("cannot {0}: the cluster is not one that this process has started (MIGRATION_KUBECONFIG is set)")]
    NotOurs(&'static str),
}

impl Error {
    /// For `map_err`: a failed system call.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For `map_err`: a refused request.
    pub(crate) fn kube(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kube { what, source: Box::new(source) }
    }
}
