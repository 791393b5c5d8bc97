//! A store in memory that can fail, and a naive model of a process tree's memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lazy_pages::{
    catalog::Catalog,
    format::{Host, Manifest, ObjectId, Source, Task, Vma, bundle},
    ids::{AppId, CheckpointId},
    reader::{Checkpoint, Pages},
    store::{ObjectMeta, ObjectStore, StoreError},
    units::{PAGE_SIZE, VirtAddr},
    writer::{CheckpointMeta, CheckpointWriter, Compression, Parent, SealedPages, WriteError, WriterOptions},
};
use tokio::runtime::Runtime;

/// Called with the key before an object is deleted.
type DeleteHook = Box<dyn Fn(&MemoryStore, &str) + Send>;

/// Objects in memory.
#[derive(Default)]
pub struct MemoryStore {
    pub objects: Mutex<BTreeMap<String, Bytes>>,
    /// Puts that succeed before all others fail; negative: all succeed.
    pub puts_left: AtomicI64,
    /// Calls of any kind that succeed before all others fail; negative: all succeed.
    pub calls_left: AtomicI64,
    /// The first call that fails for want of [`Self::calls_left`] is carried out all the same.
    pub last_call_is_carried_out: AtomicBool,
    /// Every call begins up to so many microseconds later.
    delay: AtomicU64,
    calls: AtomicU64,
    /// Puts of packs never end.
    pub hang: AtomicBool,
    /// Not on this machine.
    pub remote: AtomicBool,
    pub on_delete: Mutex<Option<DeleteHook>>,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryStore")
    }
}

impl MemoryStore {
    pub fn new() -> Arc<Self> {
        let store = Self::default();
        store.puts_left.store(-1, Ordering::SeqCst);
        store.calls_left.store(-1, Ordering::SeqCst);
        Arc::new(store)
    }

    pub fn keys(&self, infix: &str) -> Vec<String> {
        self.objects.lock().unwrap().keys().filter(|key| key.contains(infix)).cloned().collect()
    }

    pub fn bytes(&self, infix: &str) -> usize {
        let objects = self.objects.lock().unwrap();
        objects.iter().filter(|(key, _)| key.contains(infix)).map(|(_, body)| body.len()).sum()
    }

    pub fn insert(&self, key: &str, body: impl Into<Bytes>) {
        self.objects.lock().unwrap().insert(key.to_owned(), body.into());
    }

    /// Every call begins up to so much later.
    pub fn delay_up_to(&self, most: Duration) {
        self.delay.store(most.as_micros() as u64, Ordering::SeqCst);
    }

    async fn linger(&self) {
        let most = self.delay.load(Ordering::SeqCst);
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if most > 0 {
            let part = call.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            tokio::time::sleep(Duration::from_micros(part % most)).await;
        }
    }

    fn failed(&self, key: &str, counter: &AtomicI64) -> Result<(), StoreError> {
        let before = counter.load(Ordering::SeqCst);
        if before < 0 {
            return Ok(());
        }
        if before == 0 {
            return Err(StoreError::Unavailable {
                store: self.describe(),
                reason: format!("no {key} today"),
            });
        }
        counter.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    /// Whether this call is carried out although it fails. Only one is.
    fn carries_out(&self) -> bool {
        self.last_call_is_carried_out.swap(false, Ordering::SeqCst)
    }

    fn find(&self, key: &str) -> Result<Bytes, StoreError> {
        self.failed(key, &self.calls_left)?;
        let found = self.objects.lock().unwrap().get(key).cloned();
        found.ok_or_else(|| StoreError::NotFound { store: self.describe(), key: key.to_owned() })
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.linger().await;
        let body = self.find(key)?;
        if body.len() as u64 > limit {
            return Err(StoreError::TooLarge { store: self.describe(), key: key.to_owned(), limit });
        }
        Ok(body)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.linger().await;
        let body = self.find(key)?;
        let (start, end) = (offset as usize, (offset + length) as usize);
        if end > body.len() {
            let got = body.len().saturating_sub(start) as u64;
            return Err(StoreError::Truncated {
                store: self.describe(),
                key: key.to_owned(),
                got,
                wanted: length,
            });
        }
        Ok(body.slice(start..end))
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        if self.hang.load(Ordering::SeqCst) && key.contains("/packs/") {
            std::future::pending::<()>().await;
        }
        self.linger().await;
        let answer = self.failed(key, &self.calls_left);
        if answer.is_err() && !self.carries_out() {
            return answer;
        }
        self.failed(key, &self.puts_left)?;
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(key) {
            return Err(StoreError::AlreadyExists { store: self.describe(), key: key.to_owned() });
        }
        objects.insert(key.to_owned(), body);
        answer
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.linger().await;
        self.failed(prefix, &self.calls_left)?;
        let objects = self.objects.lock().unwrap();
        let found = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, body)| ObjectMeta { key: key.clone(), length: body.len() as u64 }).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.linger().await;
        let answer = self.failed(key, &self.calls_left);
        if answer.is_err() && !self.carries_out() {
            return answer;
        }
        if let Some(hook) = &*self.on_delete.lock().unwrap() {
            hook(self, key);
        }
        self.objects.lock().unwrap().remove(key);
        answer
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn is_local(&self) -> bool {
        !self.remote.load(Ordering::SeqCst)
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn app() -> AppId {
    "test/default/app".parse().unwrap()
}

/// What a page holds: 0 is all zero, odd numbers compress well, even numbers do not.
pub type Content = u32;

/// The bytes of a page.
pub fn page(content: Content) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    let mut state = u64::from(content).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        if content == 0 {
            break;
        }
        if content.is_multiple_of(2) || at == 0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Memory of a tree: for each object its areas, and what CRIU would send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub objects: BTreeMap<ObjectId, Object>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object {
    /// First and last page number, the latter excluded.
    pub areas: Vec<(u64, u64)>,
    /// By page number: lazy, content.
    pub pages: BTreeMap<u64, (bool, Content)>,
}

impl Model {
    /// One task with one area of these pages.
    pub fn simple(contents: impl IntoIterator<Item = Content>) -> Self {
        let pages: BTreeMap<u64, _> =
            contents.into_iter().enumerate().map(|(at, c)| (1000 + at as u64, (true, c))).collect();
        let areas = vec![(990, 1010 + pages.len() as u64)];
        Self { objects: [(ObjectId::Task(100), Object { areas, pages })].into() }
    }

    pub fn page_mut(&mut self, number: u64) -> &mut Content {
        let object = self.objects.get_mut(&ObjectId::Task(100)).unwrap();
        &mut object.pages.get_mut(&(1000 + number)).unwrap().1
    }

    pub fn meta(&self) -> CheckpointMeta {
        let vma = |(start, end): &(u64, u64)| Vma {
            start: VirtAddr::of_page(*start),
            end: VirtAddr::of_page(*end),
            wipe_on_fork: start % 2 == 0,
            dont_fork: start % 3 == 0,
            grows_down: start % 5 == 0,
        };
        let mut tasks: Vec<Task> = Vec::new();
        for id in self.objects.keys() {
            if let ObjectId::Task(pid) = *id {
                let parent_pid = tasks.first().map_or(1, |root| root.pid);
                tasks.push(Task { pid, parent_pid, threads: 3, dead: false, command: format!("task {pid}") });
            }
        }
        let root = tasks[0].pid;
        tasks.push(Task { pid: 999_999, parent_pid: root, threads: 0, dead: true, command: "zombie".into() });
        CheckpointMeta {
            vmas: self.objects.iter().map(|(id, o)| (*id, o.areas.iter().map(vma).collect())).collect(),
            tasks,
            host: Host {
                kernel: "6.18".into(),
                architecture: "x86_64".into(),
                cpu_features: vec!["fpu".into(), "avx2".into()],
                criu_version: 40201,
            },
            streams: Vec::new(),
            bundle: bundle::pack(files()).unwrap(),
            files: Vec::new(),
            large_images: Vec::new(),
        }
    }
}

pub fn files() -> Vec<bundle::File> {
    let file = |name: &str, content: &[u8]| bundle::File {
        name: name.to_owned(),
        content: Bytes::copy_from_slice(content),
    };
    vec![file("inventory.img", b"inventory"), file("core-100.img", &[7; 5000]), file("empty.img", b"")]
}

/// How to write in a test.
pub struct Writing {
    pub runtime: Runtime,
    /// Where checkpoints go, unless [`Self::on`] says otherwise.
    pub store: Arc<MemoryStore>,
    target: Arc<dyn ObjectStore>,
    pub compression: Compression,
    pub rewrite_sparse: bool,
}

impl Writing {
    pub fn new() -> Self {
        let store = MemoryStore::new();
        Self {
            runtime: runtime(),
            target: store.clone(),
            store,
            compression: Compression::Auto,
            rewrite_sparse: true,
        }
    }

    /// Checkpoints go to another store.
    pub fn on(target: Arc<dyn ObjectStore>) -> Self {
        Self { target, ..Self::new() }
    }

    pub fn begin(
        &self,
        id: CheckpointId,
        parent: Option<Arc<Parent>>,
    ) -> Result<CheckpointWriter, WriteError> {
        let options = WriterOptions {
            compression: self.compression,
            rewrite_sparse: self.rewrite_sparse,
            ..WriterOptions::default()
        };
        CheckpointWriter::begin(
            self.target.clone(),
            self.runtime.handle().clone(),
            app(),
            id,
            parent,
            options,
        )
    }

    pub fn parent(&self, id: CheckpointId) -> Arc<Parent> {
        self.runtime.block_on(Parent::load(self.target.clone(), &app(), id)).unwrap()
    }

    /// Everything up to the commit.
    pub fn seal(
        &self,
        model: &Model,
        id: CheckpointId,
        parent: Option<Arc<Parent>>,
    ) -> Result<SealedPages, WriteError> {
        let mut writer = self.begin(id, parent)?;
        send(&mut writer, model)?;
        writer.finish_pages()
    }

    /// Writes a checkpoint, and gives up the lease on its parent.
    pub fn write(&self, model: &Model, parent: Option<CheckpointId>) -> Result<Manifest, WriteError> {
        let parent = parent.map(|id| self.parent(id));
        let sealed = self.seal(model, CheckpointId::new(), parent.clone())?;
        let result = self.runtime.block_on(sealed.commit(model.meta()));
        if let Some(parent) = parent {
            self.runtime.block_on(parent.lease().release()).unwrap();
        }
        result
    }

    pub fn open(&self, id: CheckpointId) -> Checkpoint {
        self.runtime.block_on(Checkpoint::open(self.target.clone(), &app(), id)).unwrap()
    }

    pub fn catalog(&self) -> Catalog {
        Catalog::new(self.target.clone())
    }

    /// Checks that checkpoint `id` holds exactly `model`, by every way of reading.
    pub fn expect(&self, id: CheckpointId, model: &Model) {
        let checkpoint = self.open(id);
        let manifest = checkpoint.manifest().clone();
        assert_eq!(self.runtime.block_on(checkpoint.bundle()).unwrap(), files());
        let count = manifest.frames.len() as u32;
        let frames = self.runtime.block_on(checkpoint.fetch_frames(0..count)).unwrap();
        assert_eq!(frames.len(), manifest.frames.len());
        assert_eq!(manifest.objects.len(), model.objects.len());
        for (id, object) in &model.objects {
            let map = manifest.object(*id).unwrap();
            let mut all = HashMap::new();
            let mut eager = HashMap::new();
            for (which, into) in [(Pages::All, &mut all), (Pages::Eager, &mut eager)] {
                let mut last = 0;
                let sink = |run: lazy_pages::format::Run, bytes: &[u8]| {
                    assert_eq!(bytes.len(), run.pages as usize * PAGE_SIZE);
                    assert!(run.start.page() >= last, "pages come in ascending order");
                    last = run.end().page();
                    for (at, page) in bytes.chunks(PAGE_SIZE).enumerate() {
                        into.insert(run.start.page() + at as u64, page.to_vec());
                    }
                    Ok(())
                };
                self.runtime.block_on(checkpoint.read_object(*id, which, sink)).unwrap();
            }
            let areas = || object.areas.iter().flat_map(|(start, end)| *start..*end);
            let everything = areas().chain(object.pages.keys().copied());
            for number in everything {
                let address = VirtAddr::of_page(number);
                let run = map.run_at(address).expect("a page of an area, or one that was sent, is known");
                let inside = map.vma_at(address).is_some();
                let (_, content) = object.pages.get(&number).copied().unwrap_or((true, 0));
                let plain = page(content);
                let outside = !inside;
                match run.source {
                    Source::Zero => {
                        assert_eq!(content, 0, "only zero pages are zero");
                        assert_eq!(eager.contains_key(&number), outside);
                        assert_eq!(all.contains_key(&number), outside);
                    }
                    Source::Stored { frame, first, eager: is_eager } => {
                        let position = first + address.pages_from(run.start) as u32;
                        let found = frames[frame.0 as usize].pages(position, 1);
                        assert!(found == plain, "page {number:#x} of {id:?} differs");
                        assert_eq!(is_eager, !inside);
                        assert_eq!(eager.contains_key(&number), is_eager);
                        assert!(all.contains_key(&number));
                    }
                }
                for read in [&all, &eager] {
                    assert!(read.get(&number).is_none_or(|bytes| *bytes == plain));
                }
            }
            let known: u64 = map.runs.iter().map(|run| run.pages).sum();
            let mut distinct: Vec<u64> = areas().chain(object.pages.keys().copied()).collect();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(known, distinct.len() as u64, "nothing else is known");
        }
        self.runtime.block_on(checkpoint.lease().release()).unwrap();
    }
}

/// At least half of each frame is referred to, and four fifths of all.
pub fn assert_dense(manifest: &Manifest) {
    let needed = needed_pages(manifest);
    for (frame, needed) in manifest.frames.iter().zip(&needed) {
        assert!(needed * 2 >= frame.pages, "{needed} of {} pages are needed", frame.pages);
    }
    let pages: u32 = manifest.frames.iter().map(|frame| frame.pages).sum();
    let needed: u32 = needed.iter().sum();
    assert!(needed * 5 >= pages * 4, "{needed} of {pages} pages are needed");
}

/// How many pages of each frame are referred to.
pub fn needed_pages(manifest: &Manifest) -> Vec<u32> {
    let mut needed = vec![0_u64; manifest.frames.len()];
    for run in manifest.objects.iter().flat_map(|object| &object.runs) {
        if let Source::Stored { frame, first, .. } = run.source {
            for page in u64::from(first)..u64::from(first) + run.pages {
                needed[frame.0 as usize] |= 1 << page;
            }
        }
    }
    needed.into_iter().map(u64::count_ones).collect()
}

/// What CRIU would send: runs of up to 16 pages, each of one kind.
pub fn send(writer: &mut CheckpointWriter, model: &Model) -> Result<(), WriteError> {
    for (number, (id, object)) in model.objects.iter().enumerate() {
        writer.open(*id, number as u32 + 1)?;
        let pages: Vec<(u64, bool, Content)> = object.pages.iter().map(|(n, (l, c))| (*n, *l, *c)).collect();
        for run in pages.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 == b.1) {
            for record in run.chunks(16) {
                let mut left = record;
                while let [(first, lazy, _), ..] = left {
                    let buffer = writer.buffer(*lazy, VirtAddr::of_page(*first), left.len() as u64)?;
                    let count = buffer.len() / PAGE_SIZE;
                    for (space, (.., content)) in buffer.chunks_mut(PAGE_SIZE).zip(left) {
                        space.copy_from_slice(&page(*content));
                    }
                    writer.filled()?;
                    left = &left[count..];
                }
            }
        }
    }
    Ok(())
}
