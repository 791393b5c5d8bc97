//! Checkpoints with known content, a store that misbehaves on demand, and processes that fault.

use std::{
    collections::HashMap,
    fmt,
    io::{BufRead, BufReader, Write},
    os::unix::{
        net::UnixListener,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use lazy_pages::{
    format::{Host, Manifest, ObjectId, Task, Vma, bundle},
    ids::{AppId, CheckpointId},
    server::{Limits, Outcome, PageServer, PageServerConfig},
    store::{ObjectMeta, ObjectStore, StoreError},
    units::{PAGE_SIZE, VirtAddr},
    writer::{CheckpointMeta, CheckpointWriter, Compression, WriterOptions},
};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};

/// Page number where the tests put their areas: far from anything else of a process.
pub const BASE: u64 = 0x10_0000;
pub const SEED: u64 = 0x5eed;
pub const PID: u32 = 4242;
/// Nothing in these tests takes longer than this, unless it never ends.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The content of a page, as `target.c` knows it.
pub fn page_content(page: u64) -> Vec<u8> {
    if page / 8 % 4 == 3 {
        return vec![0; PAGE_SIZE];
    }
    let word = |index: u64| {
        let count = (page * (PAGE_SIZE as u64 / 8)).wrapping_add(index + 1);
        let mut z = SEED.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..PAGE_SIZE as u64 / 8).flat_map(|index| word(index).to_ne_bytes()).collect()
}

/// Pages of an area that are not zero.
pub fn stored_pages(start: u64, pages: u64) -> u64 {
    (start..start + pages).filter(|page| page / 8 % 4 != 3).count() as u64
}

pub fn area(start: u64, pages: u64) -> Vma {
    Vma {
        start: VirtAddr::of_page(start),
        end: VirtAddr::of_page(start + pages),
        wipe_on_fork: false,
        dont_fork: false,
        grows_down: false,
    }
}

pub fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn app() -> AppId {
    "server-test".parse().unwrap()
}

/// Writes a checkpoint of live tasks with these areas, and of zombies, into `store`.
pub fn checkpoint(
    store: &Arc<dyn ObjectStore>,
    runtime: &Runtime,
    live: &[(u32, Vec<Vma>)],
    dead: &[u32],
) -> Arc<Manifest> {
    let options = WriterOptions { compression: Compression::Lz4, ..WriterOptions::default() };
    let id = CheckpointId::new();
    let mut writer =
        CheckpointWriter::begin(store.clone(), runtime.handle().clone(), app(), id, None, options).unwrap();
    for (pid, areas) in live {
        writer.open(ObjectId::Task(*pid), *pid).unwrap();
        for area in areas {
            let mut at = area.start;
            while at < area.end {
                let buffer = writer.buffer(true, at, area.end.pages_from(at)).unwrap();
                let pages = (buffer.len() / PAGE_SIZE) as u64;
                for (page, bytes) in buffer.chunks_mut(PAGE_SIZE).enumerate() {
                    bytes.copy_from_slice(&page_content(at.page() + page as u64));
                }
                writer.filled().unwrap();
                at = at.add(pages);
            }
        }
    }
    let sealed = writer.finish_pages().unwrap();
    let root = live[0].0;
    let parent = |pid| if pid == root { 1 } else { root };
    let task = |pid, dead| Task { pid, parent_pid: parent(pid), threads: 1, dead, command: "target".into() };
    let file = bundle::File { name: "inventory.img".into(), content: Bytes::from_static(b"images") };
    let meta = CheckpointMeta {
        vmas: live.iter().map(|(pid, areas)| (ObjectId::Task(*pid), areas.clone())).collect(),
        tasks: live
            .iter()
            .map(|(pid, _)| task(*pid, false))
            .chain(dead.iter().map(|pid| task(*pid, true)))
            .collect(),
        host: Host::default(),
        streams: Vec::new(),
        bundle: bundle::pack([file]).unwrap(),
        files: Vec::new(),
        large_images: Vec::new(),
    };
    Arc::new(runtime.block_on(sealed.commit(meta)).unwrap())
}

type Behaviour = Box<dyn Fn(&str, u64, Bytes) -> Answer + Send + Sync>;

/// What the store does with a read.
pub enum Answer {
    Bytes(Bytes),
    Later(Duration, Bytes),
    Error(StoreError),
}

/// Objects in memory. Reads of packs go through the behaviour a test has set.
pub struct TestStore {
    objects: Mutex<HashMap<String, Bytes>>,
    behaviour: Mutex<Option<Arc<Behaviour>>>,
    /// Reads of this many bytes and more wait until the other end of the channel is dropped.
    held: Mutex<Option<(u64, watch::Receiver<()>)>>,
}

impl fmt::Debug for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

impl TestStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { objects: Mutex::default(), behaviour: Mutex::default(), held: Mutex::default() })
    }

    /// Answers no read before what is returned is dropped: until then no page arrives.
    pub fn hold(&self) -> watch::Sender<()> {
        self.hold_from(0)
    }

    /// The same for reads of at least `bytes`.
    pub fn hold_from(&self, bytes: u64) -> watch::Sender<()> {
        let (hold, held) = watch::channel(());
        *self.held.lock().unwrap() = Some((bytes, held));
        hold
    }

    pub fn behave(&self, how: impl Fn(&str, u64, Bytes) -> Answer + Send + Sync + 'static) {
        *self.behaviour.lock().unwrap() = Some(Arc::new(Box::new(how)));
    }

    /// Changes every pack.
    pub fn damage_packs(&self, how: impl Fn(&mut Vec<u8>)) {
        for (key, bytes) in self.objects.lock().unwrap().iter_mut().filter(|(key, _)| key.contains("/packs/"))
        {
            let mut changed = bytes.to_vec();
            how(&mut changed);
            assert!(changed != bytes[..], "{key} was not changed");
            *bytes = changed.into();
        }
    }

    pub fn remove_packs(&self) {
        self.objects.lock().unwrap().retain(|key, _| !key.contains("/packs/"));
    }
}

#[async_trait]
impl ObjectStore for TestStore {
    async fn get(&self, key: &str, _limit: u64) -> Result<Bytes, StoreError> {
        let found = self.objects.lock().unwrap().get(key).cloned();
        found.ok_or_else(|| StoreError::NotFound { store: self.describe(), key: key.into() })
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let held = self.held.lock().unwrap().clone();
        if let Some((_, mut held)) = held.filter(|(from, _)| length >= *from) {
            while held.changed().await.is_ok() {}
        }
        let object = self.get(key, u64::MAX).await?;
        let bytes = object.slice(offset as usize..(offset + length) as usize);
        let behaviour = self.behaviour.lock().unwrap().clone();
        match behaviour.map_or(Answer::Bytes(bytes.clone()), |behave| behave(key, offset, bytes)) {
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Later(delay, bytes) => {
                tokio::time::sleep(delay).await;
                Ok(bytes)
            }
            Answer::Error(error) => Err(error),
        }
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.objects.lock().unwrap().insert(key.into(), body);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let objects = self.objects.lock().unwrap();
        let under = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        let mut list: Vec<_> =
            under.map(|(key, bytes)| ObjectMeta { key: key.clone(), length: bytes.len() as u64 }).collect();
        list.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(list)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn describe(&self) -> String {
        "a test's store".into()
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// A served checkpoint: a server in this process, and a place for its socket.
pub struct Served {
    pub server: PageServer,
    _runtime: Runtime,
    directory: TempDir,
}

impl Served {
    /// Serves a checkpoint of one task with these areas.
    pub fn new(areas: &[Vma]) -> Self {
        Self::with(&[(PID, areas.to_vec())], &[], |_| {}, |_| {})
    }

    pub fn with(
        live: &[(u32, Vec<Vma>)],
        dead: &[u32],
        prepare: impl FnOnce(&TestStore),
        limit: impl FnOnce(&mut Limits),
    ) -> Self {
        let (runtime, store) = (runtime(), TestStore::new());
        let objects: Arc<dyn ObjectStore> = store.clone();
        let manifest = checkpoint(&objects, &runtime, live, dead);
        prepare(&store);
        let mut limits = Limits::for_store(&*store);
        limits.store_patience = Duration::from_secs(5);
        limit(&mut limits);
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("lazy-pages.socket")).unwrap();
        let server = PageServer::start(PageServerConfig {
            store: objects,
            manifest,
            listener,
            runtime: runtime.handle().clone(),
            limits,
            anchor: None,
        })
        .unwrap();
        Self { server, _runtime: runtime, directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("lazy-pages.socket")
    }

    /// A process that has registered these areas and was let run.
    pub fn restored(&self, areas: &[Vma]) -> Target {
        restored(&self.socket(), areas)
    }

    pub fn outcome(&self) -> Outcome {
        self.server.wait_timeout(LIMIT).expect("serving should have ended")
    }

    /// Asserts that serving ends with every page in memory.
    pub fn assert_resident(&self) -> lazy_pages::server::ServerStats {
        match self.outcome() {
            Outcome::Resident(stats) => {
                assert_eq!(stats.missing_pages, 0);
                stats
            }
            other => panic!("not resident: {other:?}"),
        }
    }
}

pub fn restored(socket: &Path, areas: &[Vma]) -> Target {
    let mut target = Target::start(socket);
    target.map(areas);
    target.ok(&format!("arm; pid {PID}; send; finish"));
    target
}

/// See `target.c`. Killed when dropped.
pub struct Target {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it; it has connected to `socket` when its first command is answered.
    pub fn start(socket: &Path) -> Self {
        Self::spawn(Command::new(executable()), socket)
    }

    /// The same under another user.
    pub fn start_as(user: u32, socket: &Path) -> Self {
        // Where that user can execute it.
        let copy = socket.with_file_name("target");
        std::fs::copy(executable(), &copy).unwrap();
        let mut command = Command::new(copy);
        command.uid(user);
        Self::spawn(command, socket)
    }

    fn spawn(mut command: Command, socket: &Path) -> Self {
        command.args([socket.as_os_str(), SEED.to_string().as_ref()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, stdout }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn map(&mut self, areas: &[Vma]) {
        for area in areas {
            let (start, pages) = (area.start.page(), area.end.pages_from(area.start));
            self.ok(&format!("map {start} {pages}"));
            if area.wipe_on_fork {
                self.ok(&format!("wipeonfork {start} {pages}"));
            }
            if area.dont_fork {
                self.ok(&format!("dontfork {start} {pages}"));
            }
        }
    }

    /// Says what to do without waiting for it.
    pub fn tell(&mut self, commands: &str) {
        writeln!(self.stdin, "{commands}").unwrap();
    }

    /// The answer to what was said; empty when the process has ended.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Does it and expects that nothing is wrong.
    pub fn ok(&mut self, commands: &str) {
        self.tell(commands);
        let answer = self.answer();
        assert_eq!(answer, "ok", "`{commands}`");
    }

    /// Does it and returns the answer.
    pub fn ask(&mut self, commands: &str) -> String {
        self.tell(commands);
        self.answer()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Waits for its end; the signal that ended it.
    pub fn signal(&mut self) -> Option<i32> {
        let asked = Instant::now();
        while asked.elapsed() < LIMIT {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.signal();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the process should have ended");
    }

    /// Expects that it is killed while it does what it was told, without having seen a wrong byte.
    pub fn assert_killed(&mut self) {
        assert_eq!(self.signal(), Some(9));
        assert_eq!(self.answer(), "", "nothing is seen of a page that never came");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Either fails when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `target.c`, compiled once for each version of it.
fn executable() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/target.c");
        let version = blake3::hash(&std::fs::read(&source).unwrap()).to_hex();
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("target-{}", &version[..16]));
        if !built.exists() {
            let mine = built.with_extension(std::process::id().to_string());
            let compiler = std::env::var_os("CC").unwrap_or("cc".into());
            let mut compile = Command::new(compiler);
            compile.args(["-Wall", "-O1", "-pthread", "-o"]).args([&mine, &source]);
            assert!(compile.status().unwrap().success(), "target.c does not compile");
            std::fs::rename(mine, &built).unwrap();
        }
        built
    })
}
