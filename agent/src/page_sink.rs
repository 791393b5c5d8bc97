//! The page sink: CRIU's stream of pages goes into the checkpoint writer while the tree is frozen.
//!
//! Nothing here allocates or locks for each page: a page's bytes go from the socket straight into the writer's buffer.
//! When the sink fails it returns, which closes the socket: CRIU then gives up the dump and lets the tree go on.
//!
//! The sink is also who knows when every task is frozen and none has been looked at: when CRIU opens the first object. Then
//! it asks which pages have not arrived in the tree ([`arriving`](crate::arriving)), and takes them over from the parent
//! when CRIU has sent all others.

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::net::UnixStream,
};

use criu_rpc::{PageObject, PageStream, Record, Version, images::PagemapEntry};
use lazy_pages::{
    format::ObjectId,
    server::Pending,
    units::{PAGE_SIZE, VirtAddr},
    writer::{CheckpointWriter, ParentPages, SealedPages, TakenOver},
};

use crate::{dumped_images::object_id, error::AgentError, pagemap, progress::Progress};

/// What the sink has when CRIU has sent its last page. The writer takes more: the contents of files.
pub struct Received {
    /// Has all pages that CRIU sent, and packs them meanwhile.
    pub writer: CheckpointWriter,
    /// The page map of each object as sent, and the number of its pages file.
    entries: HashMap<PageObject, (u32, Vec<PagemapEntry>)>,
    /// What may not have arrived in the tree.
    pending: Vec<Pending>,
}

impl Received {
    /// Ends the writing of pages, and takes over from the parent what has not arrived and was not sent.
    pub fn seal(self) -> Result<ReceivedPages, AgentError> {
        let mut pages = self.writer.finish_pages()?;
        let taken = take_over(&mut pages, &self.pending)?;
        Ok(ReceivedPages { pages, entries: self.entries, taken })
    }
}

/// All pages of a checkpoint.
pub struct ReceivedPages {
    /// The pages, packed.
    pub pages: SealedPages,
    /// The page map of each object as sent, and the number of its pages file.
    pub entries: HashMap<PageObject, (u32, Vec<PagemapEntry>)>,
    /// What was taken over from the parent.
    pub taken: HashMap<ObjectId, Vec<TakenOver>>,
}

impl ReceivedPages {
    /// How many pages were taken over from the parent.
    pub fn taken_pages(&self) -> u64 {
        self.taken.values().flatten().map(|taken| taken.pages).sum()
    }
}

/// Gives CRIU's end of the page socket a larger buffer, so that it and the sink seldom wait for each other. A kernel that
/// grants less only costs some speed.
pub fn widen(socket: &UnixStream) {
    const BUFFER: usize = 4 << 20;
    if nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::SndBuf, &BUFFER);
    }
}

/// Takes CRIU's page stream into the writer, at memory speed. `pending` is called once, when the tree is frozen and CRIU
/// waits to look at the first page: what it returns is taken over from the parent unless CRIU sends it.
pub fn receive_pages(
    socket: UnixStream,
    version: Version,
    mut writer: CheckpointWriter,
    progress: &Progress,
    pending: impl FnOnce() -> Result<Vec<Pending>, AgentError>,
) -> Result<Received, AgentError> {
    let mut stream = PageStream::new(socket, version);
    let mut entries: HashMap<PageObject, (u32, Vec<PagemapEntry>)> = HashMap::new();
    let mut current = None;
    let mut ask = Some(pending);
    let mut pending = Vec::new();
    // Numbers of pages files are free to choose as long as they differ.
    let mut pages_id = 0;
    loop {
        match stream.next()? {
            Record::Open(object) => {
                if let Some(ask) = ask.take() {
                    pending = ask()?;
                }
                pages_id += 1;
                writer.open(object_id(object), pages_id)?;
                current = Some(object);
                entries.insert(object, (pages_id, Vec::new()));
            }
            Record::Pages { vaddr, pages, lazy } => {
                let mut address = VirtAddr::containing(vaddr);
                let mut left = pages;
                while left > 0 {
                    let buffer = writer.buffer(lazy, address, left)?;
                    let filled = (buffer.len() / PAGE_SIZE) as u64;
                    stream.read_pages(buffer)?;
                    writer.filled()?;
                    address = address.add(filled);
                    left -= filled;
                    progress.add_bytes(filled * PAGE_SIZE as u64);
                }
                if let Some((_, known)) = current.and_then(|object| entries.get_mut(&object)) {
                    pagemap::append(known, PagemapEntry { vaddr, pages, lazy, present: !lazy });
                }
            }
            Record::End => return Err(AgentError::NoCommit),
            Record::Close => {
                // This only ends the transfer: the dump is committed or given up in answer to `post-dump`.
                stream.finish(0)?;
                return Ok(Received { writer, entries, pending });
            }
        }
    }
}

/// Takes over from the parent what has not arrived and was not sent.
fn take_over(
    pages: &mut SealedPages,
    pending: &[Pending],
) -> Result<HashMap<ObjectId, Vec<TakenOver>>, AgentError> {
    let mut by_task: BTreeMap<u32, Vec<ParentPages>> = BTreeMap::new();
    for &Pending { pid, start, object, image, pages } in pending {
        by_task.entry(pid).or_default().push(ParentPages { start, object, image, pages });
    }
    let mut taken = HashMap::new();
    for (pid, ranges) in by_task {
        let task = ObjectId::Task(pid);
        taken.insert(task, pages.inherit(task, &ranges)?);
    }
    Ok(taken)
}
#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        thread,
    };

    use lazy_pages::{
        catalog::Catalog,
        format::{Host, Manifest, Source, Task, Vma, bundle},
        ids::{AppId, CheckpointId},
        store::{LocalStore, ObjectStore},
        writer::{CheckpointMeta, Parent, WriterOptions},
    };
    use tempfile::TempDir;
    use tokio::runtime::Runtime;

    use super::*;

    const VERSION: Version = Version { major: 4, minor: 2, sublevel: 0 };
    const PID: u32 = 77;
    const TASK: u64 = (PID as u64) << 8 | 1;

    /// CRIU's side of a dump of one task with these lazy pages, each filled with its number. `answered` is called when
    /// the object was answered; `false` when the sink has gone.
    fn send(mut socket: UnixStream, pages: &[(u64, u64)], answered: impl FnOnce()) -> bool {
        let record = |command: u16, flags: u16, pages: u64, vaddr: u64, object: u64| {
            let word = u64::from(command) | u64::from(flags) << 16;
            [word, pages, vaddr, object].map(u64::to_ne_bytes).concat()
        };
        let talk = || {
            socket.write_all(&record(4, 0, 0, 0, TASK))?;
            socket.read_exact(&mut [0])?;
            answered();
            for &(first, count) in pages {
                socket.write_all(&record(6, 6, count, first * PAGE_SIZE as u64, TASK))?;
                for page in first..first + count {
                    socket.write_all(&[page as u8; PAGE_SIZE])?;
                }
            }
            socket.write_all(&record(0x1024, 0, 0, 0, 0))?;
            socket.read_exact(&mut [0; 4])
        };
        talk().is_ok()
    }

    struct Fixture {
        store: Arc<dyn ObjectStore>,
        runtime: Runtime,
        _directory: TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = Arc::new(LocalStore::new(directory.path().to_owned()));
            Self { store, runtime: Runtime::new().unwrap(), _directory: directory }
        }

        fn app() -> AppId {
            "app".parse().unwrap()
        }

        /// A dump of these pages; gives whether CRIU was content, too.
        fn dump(
            &self,
            parent: Option<Arc<Parent>>,
            pages: &[(u64, u64)],
            pending: impl FnOnce() -> Result<Vec<Pending>, AgentError>,
            answered: impl FnOnce() + Send,
        ) -> (Result<ReceivedPages, AgentError>, bool) {
            let handle = self.runtime.handle().clone();
            let (store, id) = (Arc::clone(&self.store), CheckpointId::new());
            let writer =
                CheckpointWriter::begin(store, handle, Self::app(), id, parent, WriterOptions::default())
                    .unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            thread::scope(|scope| {
                let criu = scope.spawn(|| send(theirs, pages, answered));
                let received = receive_pages(ours, VERSION, writer, &Progress::default(), pending);
                (received.and_then(Received::seal), criu.join().unwrap())
            })
        }

        fn commit(&self, received: ReceivedPages) -> Manifest {
            let vma = Vma {
                start: VirtAddr::of_page(100),
                end: VirtAddr::of_page(200),
                wipe_on_fork: false,
                dont_fork: false,
                grows_down: false,
            };
            let task = Task { pid: PID, parent_pid: 1, threads: 1, dead: false, command: "task".into() };
            let meta = CheckpointMeta {
                vmas: [(ObjectId::Task(PID), vec![vma])].into(),
                tasks: vec![task],
                host: Host::default(),
                streams: Vec::new(),
                bundle: bundle::pack(Vec::new()).unwrap(),
                files: Vec::new(),
                large_images: Vec::new(),
            };
            self.runtime.block_on(received.pages.commit(meta)).unwrap()
        }

        /// A committed checkpoint of pages 100 to 149, to build on.
        fn parent(&self) -> Arc<Parent> {
            let (received, content) = self.dump(None, &[(100, 50)], || Ok(Vec::new()), || ());
            assert!(content);
            let id = self.commit(received.unwrap()).id;
            self.runtime.block_on(Parent::load(Arc::clone(&self.store), &Self::app(), id)).unwrap()
        }
    }

    fn pending(start: u64, image: u64, pages: u64) -> Pending {
        let (start, image) = (VirtAddr::of_page(start), VirtAddr::of_page(image));
        Pending { pid: PID, start, object: ObjectId::Task(PID), image, pages }
    }

    #[test]
    fn what_has_not_arrived_is_asked_for_once_and_before_the_first_answer() {
        let fixture = Fixture::new();
        let asked = AtomicU32::new(0);
        let ask = || {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(Vec::new())
        };
        let answered = || assert_eq!(asked.load(Ordering::SeqCst), 1);
        let (received, content) = fixture.dump(None, &[(100, 3)], ask, answered);
        assert!(content);
        let received = received.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(received.taken_pages(), 0);
        fixture.commit(received);
    }

    #[test]
    fn pages_that_were_not_sent_are_taken_over_from_the_parent() {
        let fixture = Fixture::new();
        let parent = fixture.parent();
        let ask = || Ok(vec![pending(100, 100, 30), pending(150, 130, 20)]);
        let (received, content) = fixture.dump(Some(parent.clone()), &[(95, 10), (155, 5)], ask, || ());
        assert!(content);
        let received = received.unwrap();
        let taken = |start, pages| TakenOver { start: VirtAddr::of_page(start), pages };
        let expected = [taken(105, 25), taken(150, 5), taken(160, 10)];
        assert_eq!(received.taken[&ObjectId::Task(PID)], expected);
        assert_eq!(received.taken_pages(), 40);

        let second = fixture.commit(received);

        assert_eq!(second.parent, Some(parent.manifest().id));
        assert_eq!(second.statistics.pages_total, 55);
        let place = |manifest: &Manifest, page| {
            let run = *manifest.object(ObjectId::Task(PID)).unwrap().run_at(VirtAddr::of_page(page)).unwrap();
            match run.source {
                Source::Stored { frame, first, .. } => {
                    let frame = manifest.frames[frame.0 as usize];
                    (frame.pack, frame.offset, first + VirtAddr::of_page(page).pages_from(run.start) as u32)
                }
                Source::Zero => panic!("page {page} is not zero"),
            }
        };
        for (now, before) in [(105, 105), (129, 129), (150, 130), (154, 134), (160, 140), (169, 149)] {
            assert_eq!(place(&second, now), place(parent.manifest(), before));
        }
        fixture.runtime.block_on(parent.lease().release()).unwrap();
    }

    #[test]
    fn when_it_is_not_known_what_has_not_arrived_criu_is_told_to_give_up() {
        let fixture = Fixture::new();
        let refuse = || Err(AgentError::RestoredMeanwhile { pid: PID });
        let (received, content) = fixture.dump(None, &[(100, 3)], refuse, || panic!("it was answered"));
        assert!(matches!(received, Err(AgentError::RestoredMeanwhile { pid: PID })));
        assert!(!content);

        // So are pages that the parent does not know.
        let parent = fixture.parent();
        let ask = || Ok(vec![pending(100, 190, 20)]);
        let (received, _) = fixture.dump(Some(parent.clone()), &[(100, 3)], ask, || ());
        assert!(matches!(received, Err(AgentError::Write(_))));
        fixture.runtime.block_on(parent.lease().release()).unwrap();
        let listed = fixture.runtime.block_on(Catalog::new(Arc::clone(&fixture.store)).list(&Fixture::app()));
        assert_eq!(listed.unwrap(), [parent.manifest().id]);
    }
}
