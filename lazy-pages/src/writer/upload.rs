//! Packs on their way into the store: at most [`MAX_IN_FLIGHT`] at a time, the first failure remembered, everything
//! stopped when the writer is dropped.
//!
//! It also chooses the codec, since it alone sees whether bytes or CPU time are scarce.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, select_biased};
use tokio::{runtime::Handle, task::JoinSet};

use super::WriteError;
use crate::{format::Codec, store::ObjectStore, writer::Compression};

/// Packs sent at a time: with 8 MiB each, enough to fill a link of 300 MB/s at 60 MB/s a connection, in 64 MiB of
/// memory.
pub(super) const MAX_IN_FLIGHT: usize = 8;

/// Below this many bytes a second and worker, a full window of uploads is worth lz4 even where bytes cost nothing else.
const LZ4_BELOW: u64 = 400_000_000;

/// Below this many bytes a second and worker, zstd's smaller output is worth its CPU time.
const ZSTD_BELOW: u64 = 200_000_000;

/// State of one writer that all its threads and tasks share.
#[derive(Debug)]
pub(super) struct Uploads {
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    compression: Compression,
    workers: u64,
    in_flight: AtomicUsize,
    /// Bytes a second the store took lately, over all uploads in flight.
    rate: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
    permits: (Sender<()>, Receiver<()>),
    /// Buffers of packs that were stored.
    spare: Mutex<VecDeque<Vec<u8>>>,
    failure: Mutex<Failure>,
    stopped: Receiver<()>,
}

#[derive(Debug)]
struct Failure {
    first: Option<WriteError>,
    /// Dropping it wakes everybody who waits.
    stop: Option<Sender<()>>,
}

impl Uploads {
    pub fn new(
        store: Arc<dyn ObjectStore>,
        runtime: Handle,
        compression: Compression,
        workers: usize,
    ) -> Arc<Self> {
        let (stop, stopped) = bounded(0);
        let permits = bounded(MAX_IN_FLIGHT);
        for _ in 0..MAX_IN_FLIGHT {
            // The channel has room for all of them.
            let _ = permits.0.try_send(());
        }
        Arc::new(Self {
            store,
            runtime,
            compression,
            workers: workers as u64,
            in_flight: AtomicUsize::new(0),
            rate: AtomicU64::new(u64::MAX),
            tasks: Mutex::new(JoinSet::new()),
            permits,
            spare: Mutex::new(VecDeque::new()),
            failure: Mutex::new(Failure { first: None, stop: Some(stop) }),
            stopped,
        })
    }

    /// The codec for the next frame. A store that keeps up gets plain bytes if it is on this machine, else lz4, which
    /// is nearly as fast as the network. One that falls behind is helped as far as compressing is faster than it.
    pub fn codec(&self) -> Codec {
        if let Some(codec) = self.compression.codec() {
            return codec;
        }
        let behind = self.in_flight.load(Ordering::Relaxed) >= MAX_IN_FLIGHT;
        let rate = self.rate.load(Ordering::Relaxed) / self.workers;
        if behind && rate < ZSTD_BELOW {
            Codec::Zstd
        } else if !self.store.is_local() || (behind && rate < LZ4_BELOW) {
            Codec::Lz4
        } else {
            Codec::None
        }
    }

    /// The level that zstd uses.
    pub fn zstd_level(&self) -> i32 {
        self.compression.level()
    }

    /// Bytes a second the store took lately; 0 before it has taken any.
    pub fn bytes_per_second(&self) -> u64 {
        match self.rate.load(Ordering::Relaxed) {
            u64::MAX => 0,
            rate => rate,
        }
    }

    /// An empty buffer for a pack, a used one if there is one.
    pub fn buffer(&self, capacity: usize) -> Vec<u8> {
        lock(&self.spare).pop_front().unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    /// Sends a pack, once fewer than [`MAX_IN_FLIGHT`] are being sent. Called from the writer's own thread.
    ///
    /// # Errors
    /// When the writer has failed or was dropped.
    pub fn send(self: &Arc<Self>, key: String, pack: Vec<u8>) -> Result<(), WriteError> {
        self.wait_for(&self.permits.1)?;
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let permit = Permit(self.clone());
        let task = async move {
            let uploads = &permit.0;
            let length = pack.len() as u64;
            let body = Bytes::from(pack);
            let begin = Instant::now();
            match uploads.store.put_new(&key, body.clone()).await {
                Ok(()) => {
                    uploads.measured(length * in_flight as u64, begin.elapsed());
                    // A store that keeps the bytes themselves keeps the buffer.
                    if let Ok(body) = body.try_into_mut() {
                        let mut buffer = Vec::from(body);
                        buffer.clear();
                        lock(&uploads.spare).push_back(buffer);
                    }
                }
                Err(error) => uploads.fail(error.into()),
            }
        };
        lock(&self.tasks).spawn_on(task, &self.runtime);
        Ok(())
    }

    /// Receives from `channel`, unless the writer fails first.
    ///
    /// # Errors
    /// When the writer has failed or was dropped.
    pub fn wait_for<T>(&self, channel: &Receiver<T>) -> Result<T, WriteError> {
        select_biased! {
            recv(self.stopped) -> _ => Err(self.error()),
            recv(channel) -> item => item.map_err(|_| self.error()),
        }
    }

    /// Remembers the first failure and wakes everybody who waits.
    pub fn fail(&self, error: WriteError) {
        let mut failure = lock(&self.failure);
        failure.first.get_or_insert(error);
        failure.stop = None;
    }

    /// # Errors
    /// The first failure, if there was one.
    pub fn check(&self) -> Result<(), WriteError> {
        match &lock(&self.failure).first {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Why a part of the pipeline is gone: the first failure, if there was one.
    pub fn error(&self) -> WriteError {
        self.check().err().unwrap_or(WriteError::Stopped)
    }

    /// Waits until all packs sent so far are durable.
    ///
    /// # Errors
    /// The first failure.
    pub async fn finish(&self) -> Result<(), WriteError> {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while let Some(ended) = tasks.join_next().await {
            if ended.is_err() {
                self.fail(WriteError::Stopped);
            }
            self.check()?;
        }
        self.check()
    }

    /// Stops all uploads; those under way may or may not be done.
    pub fn stop(&self) {
        lock(&self.failure).stop = None;
        lock(&self.tasks).abort_all();
    }

    fn measured(&self, bytes: u64, time: Duration) {
        let now = (bytes as f64 / time.as_secs_f64().max(1e-6)) as u64;
        let update = |before| Some(if before == u64::MAX { now } else { before / 4 * 3 + now / 4 });
        let _ = self.rate.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }
}

/// Gives the place back also when the task is aborted.
struct Permit(Arc<Uploads>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        let _ = self.0.permits.0.try_send(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is valid after every single statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
