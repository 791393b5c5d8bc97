//! Reading a checkpoint.
//!
//! What always holds:
//! - No byte comes out that was not checked against the manifest: pages only as [`VerifiedFrame`]s, the bundle by its
//!   hash.
//! - An open checkpoint holds a lease, so its packs are not deleted; release it when all is read.
//! - Memory is bounded whatever the size of the checkpoint: requests of at most 4 MiB, of which at most eight are
//!   under way for a caller.
//! - Dropping a future stops the requests it started.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::{
    catalog::{Catalog, CatalogError, Lease},
    format::{
        FRAME_PAGES, FrameEntry, FrameError, Manifest, MemoryMap, ObjectId, PageHash, Run, Source,
        VerifiedFrame, bundle, keys,
    },
    ids::{AppId, CheckpointId, PackId},
    store::{ObjectStore, StoreError},
    units::{PAGE_SIZE, VirtAddr},
};

/// Bytes of one request: enough that its round trip hardly counts, small enough for several at a time.
const MAX_REQUEST: u64 = 4 << 20;

/// Requests under way for one caller; with [`MAX_REQUEST`], enough to fill a link of 300 MB/s at 60 MB/s a connection.
const REQUESTS_AHEAD: usize = 8;

/// Bytes of no use between two wanted frames that are fetched with them rather than in two requests.
const MAX_GAP: u64 = 64 << 10;

/// Bytes of a bundle that is asked for before the manifest tells its length. Most have some hundred KiB.
const EARLY_BUNDLE: u64 = 16 << 20;

static ZEROS: [u8; FRAME_PAGES * PAGE_SIZE] = [0; FRAME_PAGES * PAGE_SIZE];

/// An existing checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    store: Arc<dyn ObjectStore>,
    manifest: Arc<Manifest>,
    lease: Lease,
    fetched: Arc<AtomicU64>,
    /// The packed bundle, if it came with the manifest; nothing has been checked of it.
    early: Option<Bytes>,
}

/// Which pages of an object to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Those that must be in memory before the process runs.
    Eager,
    /// All that a complete set of images holds: the eager ones and every other stored page. Zero pages of lazy-capable
    /// areas are not among them, since that memory is zero when it is made.
    All,
}

impl Pages {
    /// Whether `run` of `object` is among them.
    pub fn include(self, object: &MemoryMap, run: &Run) -> bool {
        object.is_eager(run) || (self == Self::All && run.source != Source::Zero)
    }
}

impl Checkpoint {
    /// Opens checkpoint `id` of `app`: takes a lease, then reads the manifest.
    ///
    /// # Errors
    /// When there is no such checkpoint, its manifest cannot be used, or the store fails.
    pub async fn open(store: Arc<dyn ObjectStore>, app: &AppId, id: CheckpointId) -> Result<Self, ReadError> {
        let lease = Lease::acquire(store.clone(), app, id).await?;
        match Catalog::new(store.clone()).load_manifest(app, id).await {
            Ok(manifest) => {
                let (manifest, fetched) = (Arc::new(manifest), Arc::default());
                Ok(Self { store, manifest, lease, fetched, early: None })
            }
            Err(error) => {
                // What counts is why it cannot be opened; the lease dies of age if it has to.
                drop(lease.release().await);
                Err(error.into())
            }
        }
    }

    /// As [`Self::open`], and asks for the bundle at the same time: a restore needs it next.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_to_restore(
        store: Arc<dyn ObjectStore>,
        app: &AppId,
        id: CheckpointId,
    ) -> Result<Self, ReadError> {
        let key = keys::bundle(app, id);
        let (opened, bundle) =
            tokio::join!(Self::open(Arc::clone(&store), app, id), store.get(&key, EARLY_BUNDLE));
        // Whatever it failed with, it is asked for again, and the same said then.
        Ok(Self { early: bundle.ok(), ..opened? })
    }

    /// Opens the newest checkpoint of `app`, also if those that were the newest are being deleted meanwhile.
    ///
    /// # Errors
    /// As [`Self::open`]; [`CatalogError::NoCheckpoint`] when there is none.
    pub async fn open_newest(store: Arc<dyn ObjectStore>, app: &AppId) -> Result<Self, ReadError> {
        let mut gone = None;
        loop {
            let id = Catalog::new(store.clone()).newest(app).await?;
            match Self::open(store.clone(), app, id).await {
                // If it was deleted between the two, there is a newer one or none.
                Err(ReadError::Catalog(CatalogError::UnknownCheckpoint { .. })) if gone != Some(id) => {
                    gone = Some(id);
                }
                other => return other,
            }
        }
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The claim on its packs.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Bytes read from the store so far, the manifest excepted.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// CRIU's images other than pages.
    ///
    /// # Errors
    /// When the bundle is missing or not what was stored.
    pub async fn bundle(&self) -> Result<Vec<bundle::File>, ReadError> {
        let (app, id) = (&self.manifest.app, self.manifest.id);
        let blob = self.manifest.bundle;
        let bytes = match &self.early {
            Some(early) => early.clone(),
            None => self.store.get(&keys::bundle(app, id), blob.length).await?,
        };
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if !blob.matches(&bytes) {
            return Err(ReadError::BundleChanged);
        }
        Ok(bundle::unpack(&bytes)?)
    }

    /// The hash of every stored page, in the order of objects and their runs.
    ///
    /// # Errors
    /// When the hashes are missing or not what was stored.
    pub async fn page_hashes(&self) -> Result<Vec<PageHash>, ReadError> {
        let (app, id) = (&self.manifest.app, self.manifest.id);
        let blob = self.manifest.page_hashes;
        let bytes = self.store.get(&keys::hashes(app, id), blob.length).await?;
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if !blob.matches(&bytes) {
            return Err(ReadError::HashesChanged);
        }
        let (hashes, _) = bytes.as_chunks::<{ PageHash::BYTES }>();
        Ok(hashes.iter().copied().map(PageHash).collect())
    }

    /// The frames with these numbers, in order. Neighbours are fetched together.
    ///
    /// # Errors
    /// When a frame is missing or not what was stored, or there are not that many.
    pub async fn fetch_frames(&self, frames: Range<u32>) -> Result<Vec<VerifiedFrame>, ReadError> {
        let known = self.manifest.frames.len();
        if frames.end as usize > known {
            return Err(ReadError::NoSuchFrame { frame: frames.end.saturating_sub(1), known });
        }
        let mut fetched = Vec::with_capacity(frames.len());
        let mut ahead = self.fetch_in_order(frames);
        while let Some(batch) = ahead.next().await? {
            for arrived in batch {
                fetched.push(arrived.frame?);
            }
        }
        Ok(fetched)
    }

    /// Gives pages of `object` to `sink`, ascending, in stretches of at most a frame. Meant for a thread that may
    /// block: `sink` runs in between requests.
    ///
    /// # Errors
    /// When a page is missing or not what was stored, the object is unknown, or `sink` fails.
    pub async fn read_object(
        &self,
        object: ObjectId,
        pages: Pages,
        mut sink: impl FnMut(Run, &[u8]) -> io::Result<()>,
    ) -> Result<(), ReadError> {
        self.read_objects(&[object], pages, |_, run, bytes| sink(run, bytes)).await
    }

    /// The same for several objects, one after another in the order of the manifest. Many small ones that were stored
    /// together come with few requests.
    ///
    /// # Errors
    /// As [`Self::read_object`].
    pub async fn read_objects(
        &self,
        objects: &[ObjectId],
        pages: Pages,
        mut sink: impl FnMut(ObjectId, Run, &[u8]) -> io::Result<()>,
    ) -> Result<(), ReadError> {
        let mut unknown: HashSet<ObjectId> = objects.iter().copied().collect();
        let maps: Vec<&MemoryMap> =
            self.manifest.objects.iter().filter(|map| unknown.remove(&map.id)).collect();
        if let Some(object) = unknown.into_iter().min() {
            return Err(ReadError::NoSuchObject(object));
        }
        let wanted = || {
            maps.iter().copied().flat_map(move |map| {
                map.runs.iter().filter(move |run| pages.include(map, run)).map(move |run| (map.id, run))
            })
        };
        // Frames in the order of first use, and how often each is used: pages that changed since the parent was made
        // interrupt the pages of its frames, so a frame may be needed again a few runs later.
        let mut order = Vec::new();
        let mut uses: HashMap<u32, u32> = HashMap::new();
        for (_, run) in wanted() {
            if let Source::Stored { frame, .. } = run.source {
                let count = uses.entry(frame.0).or_insert(0);
                if *count == 0 {
                    order.push(frame.0);
                }
                *count += 1;
            }
        }
        let mut ahead = self.fetch_in_order(order);
        let mut here: HashMap<u32, VerifiedFrame> = HashMap::new();
        for (object, run) in wanted() {
            let Source::Stored { frame, first, .. } = run.source else {
                for stretch in stretches(*run) {
                    sink(object, stretch, &ZEROS[..stretch.pages as usize * PAGE_SIZE])?;
                }
                continue;
            };
            while !here.contains_key(&frame.0) {
                // The order holds every frame of every run, so there is one more.
                let batch = ahead.next().await?.ok_or(ReadError::Stopped)?;
                for arrived in batch {
                    here.insert(arrived.number, arrived.frame?);
                }
            }
            if let Some(bytes) = here.get(&frame.0) {
                sink(object, *run, bytes.pages(first, run.pages))?;
            }
            if let Some(left) = uses.get_mut(&frame.0) {
                *left -= 1;
                if *left == 0 {
                    here.remove(&frame.0);
                }
            }
        }
        Ok(())
    }

    /// These pages of `object`, one after another.
    ///
    /// # Errors
    /// When one of them is not in the checkpoint, is missing in the store or not what was stored.
    pub async fn read_pages(
        &self,
        object: ObjectId,
        start: VirtAddr,
        pages: u64,
    ) -> Result<Vec<u8>, ReadError> {
        let map = self.manifest.object(object).ok_or(ReadError::NoSuchObject(object))?;
        let end = start.add(pages);
        let first = map.runs.partition_point(|run| run.end() <= start);
        let runs: Vec<&Run> = map.runs[first..].iter().take_while(|run| run.start < end).collect();
        let mut order: Vec<u32> = runs.iter().filter_map(|run| frame_number(run)).collect();
        order.sort_unstable();
        order.dedup();
        let mut ahead = self.fetch_in_order(order);
        let mut here = HashMap::new();
        while let Some(batch) = ahead.next().await? {
            for arrived in batch {
                here.insert(arrived.number, arrived.frame?);
            }
        }
        let mut bytes = Vec::with_capacity(pages as usize * PAGE_SIZE);
        let mut at = start;
        for run in runs {
            let (from, until) = (run.start.max(at), run.end().min(end));
            if from != at {
                break;
            }
            let count = until.pages_from(from);
            match run.source {
                Source::Zero => bytes.resize(bytes.len() + count as usize * PAGE_SIZE, 0),
                Source::Stored { frame, first, .. } => {
                    let frame = here.get(&frame.0).ok_or(ReadError::Stopped)?;
                    let skipped = from.pages_from(run.start) as u32;
                    bytes.extend_from_slice(frame.pages(first + skipped, count));
                }
            }
            at = until;
        }
        if at != end {
            return Err(ReadError::NoSuchPage { object, page: at });
        }
        Ok(bytes)
    }

    /// Starts fetching frames; results come in the order given.
    pub(crate) fn fetch_in_order(&self, frames: impl IntoIterator<Item = u32>) -> Ahead {
        let requests = requests(&self.manifest.frames, frames);
        Ahead {
            store: self.store.clone(),
            manifest: self.manifest.clone(),
            fetched: self.fetched.clone(),
            requests: requests.into(),
            under_way: VecDeque::new(),
        }
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }
}

fn frame_number(run: &Run) -> Option<u32> {
    match run.source {
        Source::Zero => None,
        Source::Stored { frame, .. } => Some(frame.0),
    }
}

/// Pieces of `run` no longer than a frame.
fn stretches(run: Run) -> impl Iterator<Item = Run> {
    let frame = FRAME_PAGES as u64;
    (0..run.pages.div_ceil(frame)).map(move |number| Run {
        start: run.start.add(number * frame),
        pages: frame.min(run.pages - number * frame),
        ..run
    })
}

/// One ranged GET and the frames that come out of it.
#[derive(Debug)]
struct Request {
    pack: PackId,
    offset: u64,
    end: u64,
    frames: Vec<u32>,
}

/// Cuts a sequence of frames into requests: frames that follow each other in a pack, with small gaps, share one.
fn requests(entries: &[FrameEntry], frames: impl IntoIterator<Item = u32>) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for number in frames {
        let entry = &entries[number as usize];
        let end = entry.stored_end();
        match requests.last_mut() {
            Some(last)
                if last.pack == entry.pack
                    && (last.end..=last.end + MAX_GAP).contains(&entry.offset)
                    && end - last.offset <= MAX_REQUEST =>
            {
                last.end = end;
                last.frames.push(number);
            }
            _ => requests.push(Request { pack: entry.pack, offset: entry.offset, end, frames: vec![number] }),
        }
    }
    requests
}

/// A frame that arrived.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub number: u32,
    pub frame: Result<VerifiedFrame, FrameError>,
    /// Of its pages, if it is intact.
    pub hashes: Vec<PageHash>,
}

/// Requests under way, and those to come.
pub(crate) struct Ahead {
    store: Arc<dyn ObjectStore>,
    manifest: Arc<Manifest>,
    fetched: Arc<AtomicU64>,
    requests: VecDeque<Request>,
    under_way: VecDeque<Task>,
}

struct Task(JoinHandle<Result<Vec<Fetched>, ReadError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ahead {
    /// The frames of the next request; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<Vec<Fetched>>, ReadError> {
        while self.under_way.len() < REQUESTS_AHEAD
            && let Some(request) = self.requests.pop_front()
        {
            let fetch = fetch(self.store.clone(), self.manifest.clone(), self.fetched.clone(), request);
            self.under_way.push_back(Task(tokio::spawn(fetch)));
        }
        let Some(task) = self.under_way.front_mut() else { return Ok(None) };
        let result = (&mut task.0).await.map_err(|_| ReadError::Stopped)?;
        self.under_way.pop_front();
        result.map(Some)
    }
}

async fn fetch(
    store: Arc<dyn ObjectStore>,
    manifest: Arc<Manifest>,
    fetched: Arc<AtomicU64>,
    request: Request,
) -> Result<Vec<Fetched>, ReadError> {
    let length = request.end - request.offset;
    let key = keys::pack(&manifest.app, request.pack);
    let body = store.get_range(&key, request.offset, length).await?;
    if body.len() as u64 != length {
        let (store, got) = (store.describe(), body.len() as u64);
        return Err(StoreError::Truncated { store, key, got, wanted: length }.into());
    }
    fetched.fetch_add(length, Ordering::Relaxed);
    // Unpacking and hashing megabytes is no work for a thread that serves connections.
    let unpacked = tokio::task::spawn_blocking(move || {
        let unpack = |number: &u32| {
            let entry = &manifest.frames[*number as usize];
            let start = (entry.offset - request.offset) as usize;
            let stored = body.slice(start..start + entry.stored_length as usize);
            let mut hashes = Vec::with_capacity(FRAME_PAGES);
            let frame = VerifiedFrame::decode_with_hashes(entry, stored, &mut hashes);
            Fetched { number: *number, frame, hashes }
        };
        request.frames.iter().map(unpack).collect()
    });
    unpacked.await.map_err(|_| ReadError::Stopped)
}

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be found, or its manifest cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A frame is damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The bundle is not the one the manifest names.
    #[error("the bundle is not what was stored")]
    BundleChanged,
    /// The bundle is the one that was stored, but it cannot be unpacked.
    #[error(transparent)]
    Bundle(#[from] bundle::BundleError),
    /// The hashes are not those the manifest names.
    #[error("the page hashes are not what was stored")]
    HashesChanged,
    /// No such frame.
    #[error("there is no frame {frame} among {known}")]
    NoSuchFrame {
        /// What was asked for.
        frame: u32,
        /// How many there are.
        known: usize,
    },
    /// No such object.
    #[error("the checkpoint holds no memory of {0:?}")]
    NoSuchObject(ObjectId),
    /// No such page.
    #[error("the checkpoint says nothing of the page at {page} of {object:?}")]
    NoSuchPage {
        /// Whose memory.
        object: ObjectId,
        /// The page.
        page: VirtAddr,
    },
    /// Whoever takes the pages failed.
    #[error("pages cannot be delivered")]
    Sink(#[from] io::Error),
    /// The runtime is shutting down.
    #[error("reading was stopped")]
    Stopped,
}
