//! What every operation needs: a store, a CRIU, a place for short-lived files.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use criu_rpc::Criu;
use lazy_pages::{
    server::daemon::Stores,
    store::{self, ObjectStore, StoreUrl},
    writer::Compression,
};
use tokio::runtime::Runtime;

use crate::{error::AgentError, records::Keeping};

/// Checkpoints and restores process trees. Its methods block; call them from a thread that may.
///
/// ```no_run
/// use migration_agent::{Agent, CheckpointRequest, Progress};
///
/// let agent = Agent::new("file:///var/lib/checkpoints".parse()?, None, None)?;
/// let request = CheckpointRequest::new("redis".parse()?, 4711);
/// let report = agent.checkpoint(&request, &Progress::default())?;
/// println!("{} is safe; frozen for {} ms", report.checkpoint, report.frozen_ms);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Agent {
    /// Before the runtime, which it needs at its end.
    pub(crate) keeping: Keeping,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) store_url: StoreUrl,
    pub(crate) runtime: Runtime,
    criu: Option<PathBuf>,
    /// The one that was found last. To ask it what it can do takes as long as a small restore.
    found: Mutex<Option<Arc<Criu>>>,
    pub(crate) work_parent: Option<PathBuf>,
    pub(crate) compression: Compression,
}

impl Agent {
    /// Uses the store at `store_url`, the CRIU at `criu` (else `MIGRATION_CRIU`, else the one in `PATH`), and puts
    /// short-lived files under `work_parent` (else on a tmpfs it finds).
    ///
    /// # Errors
    /// When the store cannot be opened. It is not talked to yet.
    pub fn new(
        store_url: StoreUrl,
        criu: Option<PathBuf>,
        work_parent: Option<PathBuf>,
    ) -> Result<Self, AgentError> {
        Self::with_stores(store::open, store_url, criu, work_parent)
    }

    /// The same with a store of the caller's own, which `stores` makes of an address. The page server of a lazy restore is
    /// another process and makes it anew, so the program that is named as that has to call [`serve_pages`] with the same
    /// function.
    ///
    /// [`serve_pages`]: crate::serving::serve_pages
    ///
    /// # Errors
    /// When the store cannot be opened. It is not talked to yet.
    pub fn with_stores(
        stores: Stores,
        store_url: StoreUrl,
        criu: Option<PathBuf>,
        work_parent: Option<PathBuf>,
    ) -> Result<Self, AgentError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(AgentError::io("cannot start the runtime"))?;
        let store = {
            let _context = runtime.enter();
            stores(&store_url)?
        };
        let (found, compression) = (Mutex::default(), Compression::default());
        let keeping = Keeping::default();
        Ok(Self { keeping, store, store_url, runtime, criu, found, work_parent, compression })
    }

    /// Compresses what it stores like that from now on. Whatever is there can be read.
    #[must_use]
    pub fn compress(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// The CRIU to use.
    pub(crate) fn criu(&self) -> Result<Arc<Criu>, AgentError> {
        if !rustix::process::geteuid().is_root() {
            return Err(AgentError::NotRoot);
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(criu) = found.as_ref().filter(|criu| criu.is_unchanged()) {
            return Ok(Arc::clone(criu));
        }
        Ok(Arc::clone(found.insert(Arc::new(Criu::locate(self.criu.as_deref())?))))
    }

    /// The store, for what this type has no method for.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Runs a store operation to its end.
    pub fn block_on<F: Future>(&self, operation: F) -> F::Output {
        self.runtime.block_on(operation)
    }
}
