//! What checkpoints and restores did, written down beside the checkpoint when everything that matters is done.
//!
//! Nobody waits for it: the store is talked to in the background, and whoever drops the [`Agent`] waits a few seconds at
//! most. What cannot be kept is missing in the report, and nowhere else.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant, SystemTime},
};

use lazy_pages::{
    ids::{AppId, CheckpointId},
    record::{Machine, RECORD_VERSION, Records, RestoreName, RestoreRecord, Span, TakenRecord, unix_us},
    store::StoreError,
};

use crate::{
    agent::Agent,
    progress::{Progress, Stage},
    restore::Strategy,
};

/// How long the end of a program may be held up by a store that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What CRIU does while the memory stays where it is, instead of reading it.
pub(crate) const DESCRIBING: &str = "freezing, describing";
/// What is committed of a tree whose memory stays where it is.
pub(crate) const STORING: &str = "storing the description";

/// Records on their way. Dropping it waits for them.
#[derive(Debug)]
pub(crate) struct Keeping {
    /// Every record on its way has a copy; none is ever sent over.
    under_way: Option<Sender<()>>,
    ended: Mutex<Receiver<()>>,
}

impl Default for Keeping {
    fn default() -> Self {
        let (under_way, ended) = mpsc::channel();
        Self { under_way: Some(under_way), ended: Mutex::new(ended) }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.under_way = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the store takes too long: there will be no report of the last operation");
        }
    }
}

impl Agent {
    fn keep(&self, kept: impl Future<Output = Result<(), StoreError>> + Send + 'static) {
        let under_way = self.keeping.under_way.clone();
        self.runtime.spawn(async move {
            if let Err(error) = kept.await {
                tracing::warn!(%error, "there will be no report of this operation");
            }
            drop(under_way);
        });
    }

    /// Keeps how a checkpoint was taken, or a tree stopped: it began at `started`, and the processes were let go, stopped or
    /// ended at `over`. `facts` are all but the times.
    pub(crate) fn keep_taken(
        &self,
        app: &AppId,
        id: CheckpointId,
        facts: TakenRecord,
        progress: &Progress,
        (started, over): (Instant, Instant),
    ) {
        let mut stages = spans(progress, started);
        let name = match &facts {
            TakenRecord { left_running: true, .. } => "letting it go on",
            TakenRecord { handed_over: true, .. } => {
                rename(&mut stages, Stage::Dumping, DESCRIBING);
                rename(&mut stages, Stage::Committing, STORING);
                "stopping the source"
            }
            _ => "ending the source",
        };
        let committed = stages.last().map_or(0, |stage| stage.to_us);
        let to_us = micros(over.saturating_duration_since(started)).max(committed);
        stages.push(Span { name: name.to_owned(), from_us: committed, to_us });
        let record = TakenRecord {
            version: RECORD_VERSION,
            machine: Machine::here(),
            begun_unix_us: begun(started),
            stages,
            ..facts
        };
        let records = Records::new(Arc::clone(&self.store), app.clone());
        self.keep(async move { records.keep_taken(id, &record).await });
    }

    /// Keeps how a restore came to run, which began at `started` and took `running`.
    pub(crate) fn keep_restore(
        &self,
        app: &AppId,
        name: RestoreName,
        (pid, strategy, files, fetched_bytes): (u32, Strategy, u64, u64),
        progress: &Progress,
        (started, running): (Instant, Duration),
    ) {
        let running_us = micros(running);
        let mut stages = spans(progress, started);
        stages.retain(|stage| stage.name != Stage::Filling.label());
        if let Some(last) = stages.last_mut() {
            last.to_us = running_us.max(last.from_us);
        }
        let record = RestoreRecord {
            version: RECORD_VERSION,
            machine: Machine::here(),
            begun_unix_us: begun(started),
            strategy: strategy.to_string(),
            pid,
            stages,
            running_us,
            fetched_bytes,
            files,
        };
        let records = Records::new(Arc::clone(&self.store), app.clone());
        self.keep(async move { records.keep_restore(name, &record).await });
    }
}

fn spans(progress: &Progress, started: Instant) -> Vec<Span> {
    let spans = progress.stages_since(started).into_iter();
    spans
        .map(|(stage, from, to)| Span {
            name: stage.label().to_owned(),
            from_us: micros(from),
            to_us: micros(to),
        })
        .collect()
}

fn rename(spans: &mut [Span], stage: Stage, name: &str) {
    for span in spans.iter_mut().filter(|span| span.name == stage.label()) {
        name.clone_into(&mut span.name);
    }
}

fn begun(started: Instant) -> u64 {
    unix_us(SystemTime::now()).saturating_sub(micros(started.elapsed()))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
