//! What a checkpoint and its restores did, kept beside the checkpoint for whoever wonders afterwards.
//!
//! Three kinds, each an object of JSON: how a checkpoint was taken, or a tree stopped to be handed over ([`TakenRecord`]), how a restore came to run
//! ([`RestoreRecord`]), and how its pages came ([`PagesRecord`]). The last two belong together if they have the same lease in
//! their names. Nothing depends on them: they are written when everything that matters is done, a failure to write one is
//! no failure, and a checkpoint is complete without. They go with their checkpoint when it is deleted.
//!
//! What was read is of this version, not larger than [`MAX_RECORD`], and as long as it says, or it is refused.

use std::{
    collections::BTreeSet,
    fs,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    format::keys::{self, RESTORES},
    ids::{AppId, CheckpointId, LeaseId},
    server::ServerStats,
    store::{ObjectStore, StoreError},
};

/// The version that is written and read.
pub const RECORD_VERSION: u32 = 1;

/// Bytes of a record at most.
pub const MAX_RECORD: u64 = 1 << 20;

/// Entries of a list in a record at most.
const MAX_ENTRIES: usize = 1024;

/// What a restore's agent has to tell.
const AGENT: &str = "agent.json";
/// What its page server has to tell.
const PAGES: &str = "pages.json";

/// Where something happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Which start of it: times of the same one can be compared.
    pub boot: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { name, boot: boot.trim().to_owned() }
    }
}

/// A stage, in microseconds since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// When it began.
    pub from_us: u64,
    /// When it was over.
    pub to_us: u64,
}

/// How a checkpoint was taken, or how a tree was stopped to be handed over: then no memory was read, and nothing of it uploaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Where.
    pub machine: Machine,
    /// When it began, by the machine's clock.
    pub begun_unix_us: u64,
    /// The steps, one after the other.
    pub stages: Vec<Span>,
    /// How long the processes did not run, by CRIU's clock; it ended with the last stage. Those of a handover do not run
    /// afterwards either.
    pub frozen_us: u64,
    /// From the first page until everything but the manifest was in the store.
    pub upload_us: u64,
    /// Whether the processes went on.
    pub left_running: bool,
    /// Whether they were stopped, with their memory, for another machine to run them.
    #[serde(default)]
    pub handed_over: bool,
    /// Bytes of memory that CRIU read.
    pub memory_bytes: u64,
    /// Bytes sent to the store.
    pub uploaded_bytes: u64,
    /// Pages taken over unread, because they had not arrived yet.
    pub pending_pages: u64,
}

/// How a restore came to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Where.
    pub machine: Machine,
    /// When it began, by the machine's clock.
    pub begun_unix_us: u64,
    /// `full`, `lazy-storage`, `lazy-direct` or `lazy-hybrid`.
    pub strategy: String,
    /// The root of the tree.
    pub pid: u32,
    /// The steps, one after the other.
    pub stages: Vec<Span>,
    /// From its beginning until the processes ran.
    pub running_us: u64,
    /// Bytes fetched before that, page servers excepted.
    pub fetched_bytes: u64,
    /// Files that were put back.
    pub files: u64,
}

/// How the pages of a restore came. Times are in microseconds since the first task registered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Where.
    pub machine: Machine,
    /// When the first task registered, by the machine's clock.
    pub begun_unix_us: u64,
    /// When it ended.
    pub ended_us: u64,
    /// When CRIU let the processes run.
    pub running_us: Option<u64>,
    /// When all pages were in memory.
    pub resident_us: Option<u64>,
    /// `resident`, `gone` (the processes ended before) or `failed`.
    pub outcome: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was counted in all.
    pub numbers: ServerStats,
    /// What was counted moment by moment.
    pub moments: Moments,
    /// Where in memory pages were waited for.
    pub heat: Heat,
    /// The longest waits, the longest first.
    pub slowest: Vec<Wait>,
    /// When another page server went on in the place of one that had died.
    pub taken_over_us: Vec<u64>,
    /// What came before the last of these has no certain time.
    pub torn: bool,
}

/// Counts in moments of equal length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    /// Length of a moment.
    pub width_us: u64,
    /// Page faults.
    pub faults: Vec<u64>,
    /// Pages put into memory.
    pub installed_pages: Vec<u64>,
    /// Bytes that came.
    pub fetched_bytes: Vec<u64>,
    /// Waits that ended.
    pub waits: Vec<u64>,
    /// The longest of them, in microseconds.
    pub longest_wait_us: Vec<u64>,
}

/// Faults by address and time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heat {
    /// Length of a moment.
    pub width_us: u64,
    /// Parts of the memory, ascending.
    pub rows: Vec<HeatRow>,
}

/// A part of the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeatRow {
    /// Whose, in the checkpoint.
    pub pid: u32,
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Pages in between that are restored on demand.
    pub pages: u64,
    /// Faults that had to be fetched for, by moment.
    pub faults: Vec<u64>,
}

/// A wait for a page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// How long.
    pub waited_us: u64,
    /// When it ended.
    pub at_us: u64,
    /// Whose memory, in the checkpoint.
    pub pid: u32,
    /// The first page that came with it.
    pub address: u64,
}

/// What is known of a restore.
#[derive(Clone, Debug, Default)]
pub struct Restore {
    /// What the agent has told.
    pub agent: Option<RestoreRecord>,
    /// What the page server has told.
    pub pages: Option<PagesRecord>,
    /// What there is and cannot be read.
    pub unreadable: Vec<String>,
}

/// A record that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is no JSON, or not of this kind.
    #[error("it is no record: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error("it is of version {0}; this program reads version {RECORD_VERSION}")]
    Version(u32),
    /// Its parts do not fit each other, or are too many.
    #[error("its parts do not fit each other")]
    Shape,
    /// It is larger than any that is written.
    #[error("it has {0} bytes, more than any that is written")]
    TooLarge(usize),
}

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// Whether its parts fit each other.
    fn is_sound(&self) -> bool;

    /// As it is stored.
    ///
    /// # Errors
    /// [`RecordError::TooLarge`].
    fn encode(&self) -> Result<Bytes, RecordError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() as u64 > MAX_RECORD {
            Err(RecordError::TooLarge(bytes.len()))
        } else {
            Ok(bytes.into())
        }
    }

    /// What was stored.
    ///
    /// # Errors
    /// When it cannot be used.
    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if bytes.len() as u64 > MAX_RECORD {
            return Err(RecordError::TooLarge(bytes.len()));
        }
        let Version { version } = serde_json::from_slice(bytes)?;
        if version != RECORD_VERSION {
            return Err(RecordError::Version(version));
        }
        let record: Self = serde_json::from_slice(bytes)?;
        if record.is_sound() { Ok(record) } else { Err(RecordError::Shape) }
    }
}

fn are_stages(stages: &[Span]) -> bool {
    stages.len() <= MAX_ENTRIES && stages.iter().all(|stage| stage.from_us <= stage.to_us)
}

impl Record for TakenRecord {
    fn is_sound(&self) -> bool {
        are_stages(&self.stages)
    }
}

impl Record for RestoreRecord {
    fn is_sound(&self) -> bool {
        are_stages(&self.stages)
    }
}

impl Record for PagesRecord {
    fn is_sound(&self) -> bool {
        let moments = &self.moments;
        let length = moments.faults.len();
        let columns =
            [&moments.installed_pages, &moments.fetched_bytes, &moments.waits, &moments.longest_wait_us];
        let columns = columns.iter().all(|column| column.len() == length);
        let width = self.heat.rows.first().map_or(0, |row| row.faults.len());
        let rows = self.heat.rows.iter().all(|row| row.faults.len() == width && row.start <= row.end);
        let few = [length, width, self.heat.rows.len(), self.slowest.len(), self.taken_over_us.len()];
        columns
            && rows
            && few.iter().all(|entries| *entries <= MAX_ENTRIES)
            && moments.width_us > 0
            && self.heat.width_us > 0
    }
}

/// Microseconds since 1970.
pub fn unix_us(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Whose records, and in which store.
#[derive(Clone, Debug)]
pub struct Records {
    store: Arc<dyn ObjectStore>,
    app: AppId,
}

/// Which restore: of which checkpoint, whether that is a handover, and the lease it was read under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RestoreName {
    /// In order of time.
    pub lease: LeaseId,
    /// Of which checkpoint, or handover.
    pub checkpoint: CheckpointId,
    /// It is one of a handover.
    pub handover: bool,
}

impl Records {
    /// Those of `app` in `store`.
    pub fn new(store: Arc<dyn ObjectStore>, app: AppId) -> Self {
        Self { store, app }
    }

    /// Keeps how a checkpoint was taken. Doing so twice is harmless.
    ///
    /// # Errors
    /// When the store fails, or it is too large.
    pub async fn keep_taken(&self, id: CheckpointId, record: &TakenRecord) -> Result<(), StoreError> {
        self.keep(keys::taken(&self.app, id, record.handed_over), record).await
    }

    /// Keeps how a restore came to run. Doing so twice is harmless.
    ///
    /// # Errors
    /// When the store fails, or it is too large.
    pub async fn keep_restore(&self, name: RestoreName, record: &RestoreRecord) -> Result<(), StoreError> {
        self.keep(self.key(name, AGENT), record).await
    }

    /// Keeps how the pages of a restore came. Doing so twice is harmless.
    ///
    /// # Errors
    /// When the store fails, or it is too large.
    pub async fn keep_pages(&self, name: RestoreName, record: &PagesRecord) -> Result<(), StoreError> {
        self.keep(self.key(name, PAGES), record).await
    }

    fn key(&self, name: RestoreName, role: &str) -> String {
        keys::restored(&self.app, name.checkpoint, name.handover, name.lease, role)
    }

    async fn keep(&self, key: String, record: &impl Record) -> Result<(), StoreError> {
        let failed = |error: RecordError| StoreError::Other {
            store: self.store.describe(),
            reason: error.to_string(),
        };
        match self.store.put_new(&key, record.encode().map_err(failed)?).await {
            Err(StoreError::AlreadyExists { .. }) => Ok(()),
            other => other,
        }
    }

    /// How a checkpoint was taken; `None` if nobody has told.
    ///
    /// # Errors
    /// When the store fails. One that cannot be read is told in the `Err` inside.
    pub async fn taken(
        &self,
        id: CheckpointId,
        handover: bool,
    ) -> Result<Option<Result<TakenRecord, RecordError>>, StoreError> {
        self.read(&keys::taken(&self.app, id, handover)).await
    }

    /// Everything that is known of a restore.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn restore(&self, name: RestoreName) -> Result<Restore, StoreError> {
        let mut restore = Restore::default();
        let mut refused = |key: &str, error: RecordError| restore.unreadable.push(format!("{key}: {error}"));
        let key = self.key(name, AGENT);
        let agent = self.read(&key).await?.and_then(|read| read.map_err(|error| refused(&key, error)).ok());
        let key = self.key(name, PAGES);
        let pages = self.read(&key).await?.and_then(|read| read.map_err(|error| refused(&key, error)).ok());
        (restore.agent, restore.pages) = (agent, pages);
        Ok(restore)
    }

    async fn read<R: Record>(&self, key: &str) -> Result<Option<Result<R, RecordError>>, StoreError> {
        match self.store.get(key, MAX_RECORD).await {
            Ok(bytes) => Ok(Some(R::decode(&bytes))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(StoreError::TooLarge { .. }) => Ok(Some(Err(RecordError::TooLarge(MAX_RECORD as usize + 1)))),
            Err(other) => Err(other),
        }
    }

    /// The restores that something is known of, the newest first.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn restores(&self) -> Result<Vec<RestoreName>, StoreError> {
        let mut found = BTreeSet::new();
        for (prefix, handover) in [(keys::checkpoints(&self.app), false), (keys::handovers(&self.app), true)]
        {
            for object in self.store.list(&prefix).await? {
                let part = keys::checkpoint_part(&prefix, &object.key);
                if let Some((checkpoint, part)) = part
                    && let Some((lease, _)) =
                        part.strip_prefix(RESTORES).and_then(|part| part.split_once('/'))
                    && let Ok(lease) = lease.parse::<LeaseId>()
                {
                    found.insert(RestoreName { lease, checkpoint, handover });
                }
            }
        }
        Ok(found.into_iter().rev().collect())
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
