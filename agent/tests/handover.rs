//! Trees that are stopped to be handed over: their memory is all there to be read, and they go on, or end, or become a
//! checkpoint, but never two of these.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    thread,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use common::{Fixture, LIMIT, intact};
use lazy_pages::{
    format::{ObjectId, VerifiedFrame},
    handover::{HandoverStore, PageSource},
    ids::{AppId, PackId},
    reader::{Checkpoint, Pages},
    store::{self, ObjectMeta, ObjectStore, StoreError, StoreUrl},
    units::PAGE_SIZE,
};
use migration_agent::{
    Agent, AgentError, Progress, RestoreRequest, Strategy,
    fence::{Claim, Fence, Runner},
    handover::{Handover, HandoverRequest},
};
use migration_harness::{process, workload::Workload};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn agent(fixture: &Fixture) -> Agent {
    let criu = std::env::var_os("MIGRATION_CRIU").unwrap_or_else(|| "/opt/criu/bin/criu".into());
    let work = fixture.path().join("work");
    Agent::new(fixture.store.parse().unwrap(), Some(criu.into()), Some(work)).unwrap()
}

fn hand_over(agent: &Agent, workload: &Workload) -> Handover {
    let request = HandoverRequest::new("app".parse().unwrap(), workload.pid() as u32);
    let handover = agent.hand_over(&request, &Progress::default()).unwrap();
    for task in workload.tasks() {
        assert_eq!(process::state(task.pid), Some('T'), "{} is stopped", task.name);
    }
    handover
}

/// A source in this very process.
#[derive(Debug)]
struct Here(Arc<Handover>);

#[async_trait]
impl PageSource for Here {
    async fn read(&self, pack: PackId, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let failed =
            |error: AgentError| StoreError::Unavailable { store: "here".into(), reason: error.to_string() };
        let mut bytes = BytesMut::new();
        let mut take = |frame: Bytes| {
            bytes.extend_from_slice(&frame);
            true
        };
        self.0.read_frames(pack, offset, length, &mut take).map_err(failed)?;
        Ok(bytes.freeze())
    }

    fn describe(&self) -> String {
        "here".to_owned()
    }
}

fn store_of(agent: &Agent, handover: &Arc<Handover>) -> Arc<dyn ObjectStore> {
    let (below, source) = (Arc::clone(agent.store()), Arc::new(Here(Arc::clone(handover))));
    Arc::new(HandoverStore::new(below, handover.app().clone(), handover.id(), source))
}

/// Reads every page of the handover through its store; compares those of tasks with the stopped tree's, if it is there.
fn read_everything(agent: &Agent, handover: &Arc<Handover>, compare: bool) -> u64 {
    let store = store_of(agent, handover);
    agent.block_on(async {
        let checkpoint = Checkpoint::open(store, handover.app(), handover.id()).await.unwrap();
        assert!(!checkpoint.bundle().await.unwrap().is_empty());
        let mut pages = 0;
        for object in &checkpoint.manifest().objects {
            let memory = match object.id {
                ObjectId::Task(pid) if compare => Some(File::open(format!("/proc/{pid}/mem")).unwrap()),
                _ => None,
            };
            let mut held = Vec::new();
            let read = checkpoint.read_object(object.id, Pages::All, |run, bytes| {
                pages += run.pages;
                if let Some(memory) = &memory {
                    held.resize(bytes.len(), 0);
                    memory.read_exact_at(&mut held, run.start.get())?;
                    assert!(held == bytes, "{} pages at {} differ", run.pages, run.start);
                }
                Ok(())
            });
            read.await.unwrap();
        }
        checkpoint.lease().release().await.unwrap();
        pages
    })
}

#[test]
fn all_memory_of_a_stopped_tree_can_be_read_and_the_tree_taken_back() {
    let fixture = Fixture::local();
    let agent = agent(&fixture);
    for scenario in ["tree", "threads", "areas"] {
        let workload = Workload::start(scenario, &["--mib", "16"]).unwrap();
        let handover = Arc::new(hand_over(&agent, &workload));
        let pages = read_everything(&agent, &handover, true);
        assert!(pages > 1000, "{scenario}: {pages} pages");

        handover.take_back().unwrap();

        intact(&workload);
        let first = handover.manifest().frames[0];
        let refused =
            handover.read_frames(first.pack, first.offset, first.stored_length.into(), &mut |_| true);
        assert!(matches!(refused, Err(AgentError::HandoverOver { .. })), "{refused:?}");
        assert!(agent.handovers().unwrap().is_empty());
        assert!(
            fixture.manifests().iter().all(|path| !path.contains("/checkpoints/")),
            "it is no checkpoint"
        );
    }
}

#[test]
fn a_stopped_tree_becomes_a_checkpoint_that_gives_the_same_pages_when_the_source_is_gone() {
    let fixture = Fixture::local();
    let agent = agent(&fixture);
    let workload = Workload::start("tree", &["--mib", "16"]).unwrap();
    let handover = Arc::new(hand_over(&agent, &workload));
    // Others read while it is uploaded.
    let manifest = thread::scope(|scope| {
        let reading = scope.spawn(|| read_everything(&agent, &handover, true));
        let manifest = handover.upload(&agent, &Progress::default()).unwrap();
        reading.join().unwrap();
        manifest
    });
    assert_eq!(manifest.id, handover.id());

    // Not before somebody has taken it over.
    let refused = handover.end();
    assert!(matches!(refused, Err(AgentError::NotHandedOver { .. })), "{refused:?}");
    let fence = Fence::new(Arc::clone(agent.store()), handover.app().clone());
    let target = Runner::here(handover.generation());
    assert_eq!(agent.block_on(fence.claim(&target)).unwrap(), Claim::Ours);
    handover.end().unwrap();
    for task in workload.tasks() {
        assert!(process::wait_gone(task.pid, LIMIT), "{} has ended", task.name);
    }

    // The source has nothing any more; the same frames come from the checkpoint.
    let frames = handover.manifest().frames.clone();
    let store = store_of(&agent, &handover);
    for frame in &frames {
        let key = format!("{}/packs/{}", handover.app(), frame.pack);
        let range = store.get_range(&key, frame.offset, u64::from(frame.stored_length));
        let verified = VerifiedFrame::decode(frame, agent.block_on(range).unwrap()).unwrap();
        assert_eq!(verified.bytes().len(), frame.pages as usize * PAGE_SIZE);
    }
    assert_eq!(read_everything(&agent, &handover, false), handover.manifest().stored_pages());
    common::collect_orphans();
    fixture.restore("app", "lazy-storage");
    intact(&workload);
}

#[test]
fn a_stopped_tree_goes_on_only_if_nobody_else_may_run_it() {
    let fixture = Fixture::local();
    let agent = agent(&fixture);
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let handover = hand_over(&agent, &workload);
    let fence = Fence::new(Arc::clone(agent.store()), handover.app().clone());
    agent.block_on(fence.claim(&Runner::here(handover.generation()))).unwrap();

    for _ in 0..2 {
        let refused = handover.take_back();
        assert!(matches!(refused, Err(AgentError::RunsElsewhere { .. })), "{refused:?}");
        assert_eq!(process::state(workload.pid()), Some('T'));
    }
    // Somebody knows that it never will.
    let generation = handover.generation().to_string();
    let shown = fixture.json(&["generation", "--app", "app"]);
    assert_eq!((shown["generation"].as_u64(), &shown["ended"]), (Some(handover.generation()), &false.into()));
    fixture.refused(&["generation", "--app", "app", "--ended", "99"]);
    let shown = fixture.json(&["generation", "--app", "app", "--ended", &generation]);
    assert_eq!(shown["ended"], true);
    handover.take_back().unwrap();
    intact(&workload);
    assert_eq!(agent.block_on(fence.newest()).unwrap(), handover.generation() + 1);
}

#[test]
fn whoever_knows_that_nothing_runs_at_the_target_lets_a_stopped_tree_go_on() {
    let fixture = Fixture::local();
    let agent = agent(&fixture);
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let handover = hand_over(&agent, &workload);
    // Of a generation that nobody has claimed nothing can have ended.
    handover.target_has_ended().unwrap();
    let fence = Fence::new(Arc::clone(agent.store()), handover.app().clone());
    assert!(!agent.block_on(fence.has_ended(handover.generation())).unwrap());
    agent.block_on(fence.claim(&Runner::here(handover.generation()))).unwrap();
    let refused = handover.take_back();
    assert!(matches!(refused, Err(AgentError::RunsElsewhere { .. })), "{refused:?}");

    handover.target_has_ended().unwrap();
    handover.take_back().unwrap();

    intact(&workload);
    assert_eq!(agent.block_on(fence.newest()).unwrap(), handover.generation() + 1);
}

#[test]
fn a_stopped_tree_is_found_again_by_the_next_agent() {
    let fixture = Fixture::local();
    let workload = Workload::start("areas", &["--mib", "16"]).unwrap();
    let id = {
        let agent = agent(&fixture);
        hand_over(&agent, &workload).id()
    };
    // Another one, which knows nothing but what is in its directory.
    let agent = agent(&fixture);
    let mut found = agent.handovers().unwrap();
    assert_eq!(found.len(), 1);
    let handover = Arc::new(found.remove(0));
    assert_eq!(handover.id(), id);
    read_everything(&agent, &handover, true);
    handover.take_back().unwrap();
    intact(&workload);
    assert!(agent.handovers().unwrap().is_empty());
}

#[test]
fn a_store_that_fails_leaves_the_tree_running() {
    let fixture = Fixture::local();
    let agent = agent(&fixture);
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let request = HandoverRequest::new("app".parse().unwrap(), workload.pid() as u32);
    // Where a directory is needed.
    let place = fixture.path().join("store").join(request.app.as_str());
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("handovers"), "").unwrap();
    let refused = agent.hand_over(&request, &Progress::default());
    assert!(refused.is_err());
    assert!(process::wait_until(LIMIT, || process::state(workload.pid()) != Some('T')));
    intact(&workload);
    assert!(agent.handovers().unwrap().is_empty());
}

/// A store that takes the agent's own notes of a handover away once the handover is described in it: when the dump is over, they
/// cannot be written any more.
#[derive(Debug)]
struct TakesNotesAway {
    store: Arc<dyn ObjectStore>,
    notes: PathBuf,
}

impl TakesNotesAway {
    fn open(url: &StoreUrl) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let StoreUrl::Local(directory) = url else { panic!("{url:?}") };
        let notes = directory.with_file_name("work");
        Ok(Arc::new(Self { store: store::open(url)?, notes }))
    }
}

#[async_trait]
impl ObjectStore for TakesNotesAway {
    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.store.put_new(key, body).await?;
        for entry in fs::read_dir(&self.notes).unwrap().map(|entry| entry.unwrap().path()) {
            if key.contains("/handovers/") && entry.join("handover.json").exists() {
                fs::rename(&entry, self.notes.join("taken-away")).unwrap();
            }
        }
        Ok(())
    }

    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.store.get(key, limit).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        self.store.get_range(key, offset, length).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.store.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.delete(key).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.store.probe().await
    }

    fn describe(&self) -> String {
        self.store.describe()
    }

    fn is_local(&self) -> bool {
        self.store.is_local()
    }
}

#[test]
fn a_handover_that_cannot_be_written_down_after_the_dump_leaves_the_tree_running() {
    let fixture = Fixture::local();
    let work = fixture.path().join("work");
    let criu = std::env::var_os("MIGRATION_CRIU").unwrap_or_else(|| "/opt/criu/bin/criu".into());
    let url = fixture.store.parse().unwrap();
    let agent = Agent::with_stores(TakesNotesAway::open, url, Some(criu.into()), Some(work.clone())).unwrap();
    let workload = Workload::start("heap", &["--mib", "8"]).unwrap();
    let request = HandoverRequest::new("app".parse().unwrap(), workload.pid() as u32);
    let refused = agent.hand_over(&request, &Progress::default()).map(drop);
    assert!(matches!(refused, Err(AgentError::Io { .. })), "{refused:?}");
    assert!(work.join("taken-away").exists(), "it failed before the dump was over");
    assert!(process::wait_until(LIMIT, || process::state(workload.pid()) != Some('T')));
    intact(&workload);
    // It runs here and nowhere else: its generation is this machine's.
    let fence = Fence::new(Arc::clone(agent.store()), request.app);
    let runner = agent.block_on(fence.runner(1)).unwrap().unwrap();
    assert_eq!(runner.host, Runner::here(1).host);
}

#[test]
fn a_restore_that_is_to_be_a_run_that_somebody_else_has_claimed_leaves_nothing_running() {
    let fixture = Fixture::local();
    let workload = Workload::start("tree", &["--mib", "8"]).unwrap();
    fixture.checkpoint("app", &workload);
    let agent = agent(&fixture);
    let app: AppId = "app".parse().unwrap();
    let fence = Fence::new(Arc::clone(agent.store()), app.clone());
    agent.block_on(fence.claim(&Runner::here(1))).unwrap();
    for strategy in [Strategy::LazyStorage, Strategy::Full] {
        let nothing = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let program = env!("CARGO_BIN_EXE_migration-agent").into();
        let mut request = RestoreRequest::new(app.clone(), [nothing(), nothing(), nothing()], program);
        (request.generation, request.strategy) = (Some(1), strategy);
        let refused = agent.restore(request, &Progress::default());
        assert!(matches!(refused, Err(AgentError::RunsElsewhere { .. })), "{refused:?}");
        for task in workload.tasks() {
            assert!(process::wait_gone(task.pid, LIMIT), "{} was left", task.name);
        }
        common::collect_orphans();
    }
    // One that is a run of its own is not in the way of anybody.
    fixture.restore("app", "full");
    intact(&workload);
    assert_eq!(agent.block_on(fence.newest()).unwrap(), 2);
}

#[test]
fn nothing_is_read_from_a_stopped_tree_that_somebody_has_let_run() {
    let fixture = Fixture::local();
    let agent = agent(&fixture);
    let workload = Workload::start("threads", &["--mib", "16"]).unwrap();
    let handover = Arc::new(hand_over(&agent, &workload));
    assert!(read_everything(&agent, &handover, true) > 1000);
    assert!(handover.stands_still(), "reading disturbs nothing");

    kill(Pid::from_raw(workload.pid()), Signal::SIGCONT).unwrap();
    assert!(process::wait_until(LIMIT, || !handover.stands_still()));
    handover.stop_again();
    assert!(process::wait_until(LIMIT, || process::state(workload.pid()) == Some('T')));

    let has_run = |result: &Result<(), AgentError>| matches!(result, Err(AgentError::HasRun { .. }));
    let first = handover.manifest().frames[0];
    let mut got = 0;
    let mut take = |_: Bytes| {
        got += 1;
        true
    };
    let refused = handover.read_frames(first.pack, first.offset, first.stored_length.into(), &mut take);
    assert!(has_run(&refused) && got == 0, "{refused:?}, {got} frames");
    let refused = handover.upload(&agent, &Progress::default()).map(drop);
    assert!(has_run(&refused), "{refused:?}");
    assert!(fixture.manifests().iter().all(|path| !path.contains("/checkpoints/")), "it is no checkpoint");

    // What was written down tells the next agent.
    drop(handover);
    let found = agent.handovers().unwrap();
    assert_eq!(found.len(), 1);
    assert!(!found[0].stands_still());
    found[0].take_back().unwrap();
    intact(&workload);
}
