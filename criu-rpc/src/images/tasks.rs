//! Which tasks a set of images holds, and how the dump went.

use std::{collections::HashSet, time::Duration};

use migration_proto::criu::images as wire;

use super::{
    ImageDir,
    reader::{ImageError, Magic, required},
};

const INVENTORY: Magic = Magic::Alone(0x5831_3116);
const PSTREE: Magic = Magic::Image(0x5027_3030);
const CORE: Magic = Magic::Image(0x5505_3847);
const STATS: Magic = Magic::Service(0x5709_3306);

/// The only image version there has been since 1.6.
const IMAGE_VERSION: u32 = 2;
/// An inventory has a few dozen bytes, plugins' names included.
const INVENTORY_LIMIT: u32 = 64 * 1024;
/// Room for a task with a million threads.
const PSTREE_ENTRY_LIMIT: u32 = 8 * 1024 * 1024;
/// Registers (16 KiB with AMX), pending signals and timers of one task.
const CORE_LIMIT: u32 = 16 * 1024 * 1024;
const STATS_LIMIT: u32 = 4096;

/// The start of every set of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Version of the image format, always 2.
    pub image_version: u32,
    /// TCP connections were left out; a restore has to be told so.
    pub tcp_close: bool,
}

/// A task of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEntry {
    /// Process id, in the innermost process id namespace.
    pub pid: u32,
    /// Its parent; `None` for the root.
    pub parent: Option<u32>,
    /// Process group.
    pub group: u32,
    /// Session.
    pub session: u32,
    /// Thread ids, the leader's first. Empty if the task is dead.
    pub threads: Vec<u32>,
    /// Whether it is a zombie: it has no memory and no files.
    pub dead: bool,
    /// Its name (`comm`).
    pub command: String,
}

/// How a dump went, in CRIU's own measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpStatistics {
    /// Time to stop all tasks.
    pub freezing: Duration,
    /// Time they were stopped, page server included. Of no use after a lazy dump.
    pub frozen: Duration,
    /// Of that, time to collect memory.
    pub memory_dump: Duration,
    /// Of that, time to write or send it.
    pub memory_write: Duration,
    /// Pages of private memory sent or written.
    pub pages_written: u64,
}

impl ImageDir {
    /// Reads `inventory.img`.
    ///
    /// # Errors
    /// When it is missing, corrupt, or of another image version.
    pub fn inventory(&self) -> Result<Inventory, ImageError> {
        let (entry, path) =
            self.entries("inventory.img", INVENTORY)?.single::<wire::InventoryEntry>(INVENTORY_LIMIT)?;
        match required(entry.img_version, "img_version", &path)? {
            IMAGE_VERSION => {
                Ok(Inventory { image_version: IMAGE_VERSION, tcp_close: entry.tcp_close.unwrap_or(false) })
            }
            other => Err(ImageError::Unsupported { path, reason: format!("image version {other}") }),
        }
    }

    /// Reads `pstree.img` and every task's `core-*.img`: every task of the tree, parents before children.
    ///
    /// # Errors
    /// When one is missing or corrupt.
    pub fn tasks(&self) -> Result<Vec<TaskEntry>, ImageError> {
        let mut entries = self.entries("pstree.img", PSTREE)?;
        let mut tasks: Vec<TaskEntry> = Vec::new();
        let mut known = HashSet::new();
        while let Some(entry) = entries.next::<wire::PstreeEntry>(PSTREE_ENTRY_LIMIT)? {
            let path = entries.path();
            let pid = required(entry.pid, "pid", path)?;
            let parent = Some(required(entry.ppid, "ppid", path)?).filter(|&parent| parent != 0);
            let orphan = parent.is_some_and(|parent| !known.contains(&parent));
            if pid == 0 || orphan || parent.is_none() != tasks.is_empty() || !known.insert(pid) {
                return Err(entries.corrupt(format!("task {pid} has no place in the tree")));
            }
            let (group, session) = (required(entry.pgid, "pgid", path)?, required(entry.sid, "sid", path)?);
            let (dead, command) = self.core(pid)?;
            // CRIU leaves garbage there for dead tasks.
            let threads = if dead { Vec::new() } else { entry.threads };
            if !dead && threads.first() != Some(&pid) {
                return Err(entries.corrupt(format!("task {pid} does not lead its threads")));
            }
            tasks.push(TaskEntry { pid, parent, group, session, threads, dead, command });
        }
        if tasks.is_empty() {
            return Err(entries.corrupt("it has no task".to_owned()));
        }
        Ok(tasks)
    }

    /// Reads `stats-dump`, which CRIU writes into its work directory: this has to be opened as that.
    ///
    /// # Errors
    /// When it is missing or corrupt.
    pub fn dump_statistics(&self) -> Result<DumpStatistics, ImageError> {
        let (entry, path) = self.entries("stats-dump", STATS)?.single::<wire::StatsEntry>(STATS_LIMIT)?;
        let dump = required(entry.dump, "dump", &path)?;
        let micros = |field: Option<u32>, name| {
            required(field, name, &path).map(|micros| Duration::from_micros(micros.into()))
        };
        Ok(DumpStatistics {
            freezing: micros(dump.freezing_time, "freezing_time")?,
            frozen: micros(dump.frozen_time, "frozen_time")?,
            memory_dump: micros(dump.memdump_time, "memdump_time")?,
            memory_write: micros(dump.memwrite_time, "memwrite_time")?,
            pages_written: required(dump.pages_written, "pages_written", &path)?,
        })
    }

    /// Whether a task is dead, and its name.
    fn core(&self, pid: u32) -> Result<(bool, String), ImageError> {
        let (entry, path) =
            self.entries(&format!("core-{pid}.img"), CORE)?.single::<wire::CoreEntry>(CORE_LIMIT)?;
        let core = required(entry.tc, "tc", &path)?;
        let state = required(core.task_state, "task_state", &path)?;
        let dead = match state {
            1 | 3 => false,
            2 | 6 => true,
            _ => return Err(ImageError::Corrupt { path, reason: format!("the unknown task state {state}") }),
        };
        let command = required(core.comm, "comm", &path)?;
        Ok((dead, String::from_utf8_lossy(&command).into_owned()))
    }
}
