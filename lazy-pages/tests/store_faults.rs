//! Checkpoints through a store that misbehaves: whatever it does, what is committed is complete, what is read is right,
//! and everything else is an error that says so.

#[path = "format/support.rs"]
#[allow(dead_code, reason = "the tests of the format use the rest")]
mod support;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lazy_pages::{
    catalog::{CatalogError, Retention},
    format::{Manifest, ObjectId, bundle, keys},
    ids::CheckpointId,
    reader::{Checkpoint, Pages, ReadError},
    store::{
        LocalStore, ObjectStore, StoreError,
        faulty::{Fault, FaultPlan, FaultyStore},
    },
    units::PAGE_SIZE,
    verify::verify,
    writer::{Parent, ParentError, WriteError},
};
use support::{Model, Object, Writing, app, page};
use tempfile::TempDir;

/// Seeds of each test; `STORE_FAULTS_SEEDS` makes a longer run of it.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("STORE_FAULTS_SEEDS").ok().map(|text| text.parse().expect("a number of seeds"));
    0..count.unwrap_or(200)
}

/// A directory in memory where there is one: a store syncs every object, and these tests make thousands.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap()
}

/// Faults met and outcomes seen over all seeds, so that a test can tell that it saw everything it is about.
#[derive(Debug, Default)]
struct Tally {
    faults: BTreeMap<Fault, u64>,
    outcomes: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn saw(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    fn met(&mut self, store: &FaultyStore) {
        for (fault, count) in store.injected() {
            *self.faults.entry(fault).or_default() += count;
        }
    }

    fn assert(&self, test: &str, faults: &[Fault], outcomes: &[&str]) {
        println!("{test}: {self:?}");
        for fault in faults {
            assert!(self.faults.contains_key(fault), "{test}: {fault:?} never happened: {self:?}");
        }
        for outcome in outcomes {
            assert!(self.outcomes.contains_key(outcome), "{test}: {outcome} never happened: {self:?}");
        }
    }
}

const ALL: [Fault; 8] = [
    Fault::Unavailable,
    Fault::Denied,
    Fault::Other,
    Fault::Truncated,
    Fault::Shortened,
    Fault::Flipped,
    Fault::PutHidden,
    Fault::PutLost,
];

fn plan(text: &str, seed: u64) -> FaultPlan {
    FaultPlan { seed, ..text.parse().expect("a plan") }
}

/// A store below, a misbehaving one before it, and how to write to either.
struct Pair {
    below: Arc<dyn ObjectStore>,
    clean: Writing,
    faulty: Arc<FaultyStore>,
    through: Writing,
}

impl Pair {
    fn new(directory: &Path, plan: FaultPlan) -> Self {
        let below: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(directory.to_owned()));
        let faulty = Arc::new(FaultyStore::new(below.clone(), plan));
        Self { clean: Writing::on(below.clone()), through: Writing::on(faulty.clone()), below, faulty }
    }

    fn committed(&self) -> Vec<CheckpointId> {
        self.clean.runtime.block_on(self.clean.catalog().list(&app())).unwrap()
    }

    /// Checks that a checkpoint is there with every bit of `model`.
    fn assert_complete(&self, id: CheckpointId, model: &Model) {
        self.clean.expect(id, model);
        let checkpoint = self.clean.open(id);
        self.clean.runtime.block_on(verify(&checkpoint, true, &mut |_| {})).unwrap();
        self.clean.runtime.block_on(checkpoint.lease().release()).unwrap();
    }
}

/// Two tasks and a shared object; lazy and eager pages, zeros, and more pages than a frame has.
fn model(seed: u64) -> Model {
    let base = seed as u32 * 1000;
    let pages = |first: u64, count: u32, lazy: bool| {
        (0..count).map(move |at| {
            let content = if at % 7 == 3 { 0 } else { base + at + 1 };
            (first + u64::from(at), (lazy, content))
        })
    };
    let task = Object {
        areas: vec![(1000, 1200)],
        pages: pages(1010, 90, true).chain(pages(5000, 10, false)).collect(),
    };
    let second = Object { areas: vec![(300, 340)], pages: pages(310, 20, true).collect() };
    let shared = Object { areas: Vec::new(), pages: pages(0, 5, false).collect() };
    let objects = [(ObjectId::Task(100), task), (ObjectId::Task(101), second), (ObjectId::Shared(7), shared)];
    Model { objects: objects.into() }
}

/// What was injected, and nothing that the writer made of it by mistake.
fn is_injected(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable { reason, .. }
        | StoreError::Denied { reason, .. }
        | StoreError::Other { reason, .. } => reason.starts_with("an injected"),
        StoreError::Truncated { .. } => true,
        _ => false,
    }
}

/// Writes `model` through the faults; the checkpoint's name, and whether writing said that it exists.
fn write(pair: &Pair, model: &Model, parent: Option<Arc<Parent>>) -> (CheckpointId, bool) {
    let id = CheckpointId::new();
    let sealed = pair.through.seal(model, id, parent);
    match sealed.and_then(|sealed| pair.through.runtime.block_on(sealed.commit(model.meta()))) {
        Ok(manifest) => {
            assert_eq!(manifest.id, id);
            (id, true)
        }
        Err(WriteError::Store(error)) if is_injected(&error) => (id, false),
        Err(error) => panic!("an error that no fault explains: {error:?}"),
    }
}

/// What must be below after a write: everything or nothing.
fn check_write(pair: &Pair, (id, ok): (CheckpointId, bool), model: &Model, tally: &mut Tally) {
    let exists = pair.committed().contains(&id);
    match (ok, exists) {
        (true, true) => tally.saw("committed"),
        (true, false) => panic!("{id} was said to be committed and does not exist"),
        (false, false) => tally.saw("not committed"),
        // Only an answer that was lost explains it.
        (false, true) => {
            assert!(pair.faulty.injected().contains_key(&Fault::PutHidden));
            tally.saw("committed, answer lost");
        }
    }
    if exists {
        pair.assert_complete(id, model);
    }
}

#[test]
fn a_checkpoint_is_committed_whole_or_fails_and_does_not_exist() {
    let directory = scratch();
    let mut tally = Tally::default();
    for seed in seeds() {
        // From hardly any faults to so many that little comes to its end.
        let text = [
            "errors=0.01,ambiguous=0.01,truncate=0.02,flip=0.02",
            "errors=0.05,ambiguous=0.05,truncate=0.1,flip=0.1,latency=1ms",
            "ambiguous=0.15,stall=0.1:5ms",
            "errors=0.1,ambiguous=0.1,truncate=0.3,flip=0.3",
        ][seed as usize % 4];
        let pair = Pair::new(&directory.path().join(seed.to_string()), plan(text, seed));
        let mut memory = model(seed);
        let first = write(&pair, &memory, None);
        check_write(&pair, first, &memory, &mut tally);

        let parent = match pair.through.runtime.block_on(Parent::load(pair.faulty.clone(), &app(), first.0)) {
            Ok(parent) => {
                assert!(pair.committed().contains(&first.0), "a parent that does not exist was loaded");
                tally.saw("parent loaded");
                Some(parent)
            }
            Err(
                ParentError::Catalog(
                    CatalogError::Store(_)
                    | CatalogError::Manifest { .. }
                    | CatalogError::UnknownCheckpoint { .. },
                )
                | ParentError::HashesDamaged { .. }
                | ParentError::Store(_),
            ) => {
                tally.saw("parent refused");
                None
            }
            Err(error) => panic!("an error that no fault explains: {error:?}"),
        };
        let inherits = parent.is_some();
        for at in [0, 30, 31, 60] {
            *memory.page_mut(10 + at) = 900_000 + seed as u32 * 10 + at as u32;
        }
        let second = write(&pair, &memory, parent);
        check_write(&pair, second, &memory, &mut tally);
        if inherits && second.1 {
            tally.saw("committed on a parent");
        }
        tally.met(&pair.faulty);
    }
    let outcomes = [
        "committed",
        "not committed",
        "committed, answer lost",
        "parent loaded",
        "parent refused",
        "committed on a parent",
    ];
    tally.assert("writing", &ALL, &outcomes);
    assert!(tally.faults.contains_key(&Fault::Stall));
}

/// Everything a reader can get out of a checkpoint.
#[derive(Debug, PartialEq)]
struct Content {
    bundle: Vec<bundle::File>,
    frames: Vec<Bytes>,
    /// By object and page number.
    pages: HashMap<(ObjectId, u64), Vec<u8>>,
}

/// Reads all of a checkpoint, in every way there is. Whatever part can be read is compared with `expected`, also when
/// another part fails later.
async fn read(
    store: Arc<dyn ObjectStore>,
    id: CheckpointId,
    expected: Option<&Content>,
) -> Result<Content, ReadError> {
    let checkpoint = Checkpoint::open(store, &app(), id).await?;
    let manifest: Arc<Manifest> = checkpoint.manifest().clone();
    let same = |same: bool| assert!(same, "what was read is not what was written");
    let outcome = async {
        let bundle = checkpoint.bundle().await?;
        same(expected.is_none_or(|expected| expected.bundle == bundle));
        let hashes = checkpoint.page_hashes().await?;
        assert_eq!(hashes.len() as u64, manifest.stored_pages());
        let frames = checkpoint.fetch_frames(0..manifest.frames.len() as u32).await?;
        let frames: Vec<Bytes> = frames.iter().map(|frame| Bytes::copy_from_slice(frame.bytes())).collect();
        same(expected.is_none_or(|expected| expected.frames == frames));
        let mut pages = HashMap::new();
        for object in &manifest.objects {
            let sink = |run: lazy_pages::format::Run, bytes: &[u8]| {
                for (at, page) in bytes.chunks(PAGE_SIZE).enumerate() {
                    let key = (object.id, run.start.page() + at as u64);
                    same(expected.is_none_or(|expected| expected.pages[&key] == page));
                    pages.insert(key, page.to_vec());
                }
                Ok(())
            };
            checkpoint.read_object(object.id, Pages::All, sink).await?;
        }
        Ok(Content { bundle, frames, pages })
    };
    let outcome = outcome.await;
    // It may fail like anything else; the lease then dies of age.
    drop(checkpoint.lease().release().await);
    outcome
}

#[test]
fn what_is_read_through_faults_is_right_or_an_error() {
    let directory = scratch();
    let clean = Writing::on(Arc::new(LocalStore::new(directory.path().to_owned())));
    let memory = model(1);
    let id = clean.write(&memory, None).unwrap().id;
    clean.expect(id, &memory);
    let below: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(directory.path().to_owned()));
    let expected = clean.runtime.block_on(read(below.clone(), id, None)).unwrap();
    for (number, (_, content)) in &memory.objects[&ObjectId::Task(100)].pages {
        let found = expected.pages.get(&(ObjectId::Task(100), *number));
        assert!(found.map_or(*content == 0, |found| *found == page(*content)));
    }

    let mut tally = Tally::default();
    for seed in seeds().flat_map(|seed| seed * 5..seed * 5 + 5) {
        let text = [
            "flip=0.03,truncate=0.03",
            "flip=0.3",
            "truncate=0.2",
            "errors=0.02,flip=0.05,truncate=0.05,latency=1ms",
        ][seed as usize % 4];
        let faulty = Arc::new(FaultyStore::new(below.clone(), plan(text, seed)));
        let met = |fault| faulty.injected().contains_key(&fault);
        match clean.runtime.block_on(read(faulty.clone(), id, Some(&expected))) {
            Ok(content) => {
                assert_eq!(content, expected);
                // Everything that was read counts: nothing was asked for twice, so no damaged body was overlooked.
                assert!(!met(Fault::Flipped) && !met(Fault::Shortened) && !met(Fault::Truncated));
                tally.saw("read");
            }
            Err(error) => {
                assert!(!faulty.injected().is_empty(), "an error without a fault: {error:?}");
                tally.saw(match error {
                    ReadError::Catalog(CatalogError::Manifest { .. }) => "manifest refused",
                    ReadError::Catalog(CatalogError::Store(_)) | ReadError::Store(_) => "store failed",
                    ReadError::Frame(_) => "frame refused",
                    ReadError::BundleChanged => "bundle refused",
                    ReadError::HashesChanged => "hashes refused",
                    other => panic!("an error that no fault explains: {other:?}"),
                });
            }
        }
        tally.met(&faulty);
    }
    let faults =
        [Fault::Unavailable, Fault::Denied, Fault::Other, Fault::Truncated, Fault::Shortened, Fault::Flipped];
    let outcomes =
        ["read", "manifest refused", "store failed", "frame refused", "bundle refused", "hashes refused"];
    tally.assert("reading", &faults, &outcomes);
}

#[test]
fn deleting_through_faults_takes_nothing_from_another_checkpoint() {
    let directory = scratch();
    let mut tally = Tally::default();
    for seed in seeds() {
        let text = ["errors=0.05,truncate=0.1,flip=0.1", "flip=0.3", "truncate=0.2,ambiguous=0.2"]
            [seed as usize % 3];
        let pair = Pair::new(&directory.path().join(seed.to_string()), plan(text, seed));
        let before = model(seed);
        let mut after = before.clone();
        *after.page_mut(10) = 999_999;
        let first = pair.clean.write(&before, None).unwrap().id;
        let second = pair.clean.write(&after, Some(first)).unwrap().id;
        let reader = (seed % 2 == 0).then(|| pair.clean.open(first));

        let deleted = pair.through.runtime.block_on(pair.through.catalog().delete(&app(), first));
        let exists = pair.committed().contains(&first);
        match &deleted {
            Ok(deleted) => {
                assert!(!exists, "a deleted checkpoint exists");
                tally.saw(if deleted.left.is_some() { "deleted, rest left" } else { "deleted" });
            }
            Err(_) if exists => tally.saw("not deleted"),
            Err(_) => tally.saw("deleted, rest not known"),
        }
        if exists {
            pair.assert_complete(first, &before);
        }
        pair.assert_complete(second, &after);
        if let Some(reader) = reader {
            // Whoever has opened it can read it to its end.
            pair.clean.runtime.block_on(verify(&reader, true, &mut |_| {})).map_or_else(
                |error| assert!(!exists && error.to_string().contains("has no object"), "{error}"),
                drop,
            );
            let frames = reader.manifest().frames.len() as u32;
            pair.clean.runtime.block_on(reader.fetch_frames(0..frames)).unwrap();
            pair.clean.runtime.block_on(reader.lease().release()).unwrap();
        }
        tally.met(&pair.faulty);
    }
    let outcomes = ["deleted", "deleted, rest left", "not deleted", "deleted, rest not known"];
    tally.assert("deleting", &ALL, &outcomes);
}

#[test]
fn retention_through_faults_keeps_what_it_must_and_is_finished_without_them() {
    let directory = scratch();
    let mut tally = Tally::default();
    let keep = Retention { keep: Some(2), keep_for: None };
    for seed in seeds().step_by(2) {
        let text = ["errors=0.03,truncate=0.05,flip=0.05", "flip=0.2", "truncate=0.1,ambiguous=0.2"]
            [seed as usize / 2 % 3];
        let pair = Pair::new(&directory.path().join(seed.to_string()), plan(text, seed));
        let mut model = model(seed);
        let mut all: Vec<(CheckpointId, Model)> = Vec::new();
        for generation in 0..5 {
            *model.page_mut(10 + generation) = 999_998;
            let parent = all.last().map(|(id, _)| *id);
            all.push((pair.clean.write(&model, parent).unwrap().id, model.clone()));
        }
        let pin = pair.clean.catalog().pin(&app(), all[1].0, &"kept".parse().unwrap()).await_on(&pair);
        pin.unwrap();

        let collected = pair.through.catalog().collect(&app(), keep).await_on(&pair);
        match &collected {
            Ok(done) if done.left.is_some() => tally.saw("something left"),
            Ok(_) => tally.saw("collected"),
            Err(_) => tally.saw("failed"),
        }
        let committed = pair.committed();
        for (at, (id, model)) in all.iter().enumerate() {
            match committed.contains(id) {
                true => pair.assert_complete(*id, model),
                false => assert!(at == 0 || at == 2, "checkpoint {at} is gone"),
            }
        }

        // What crashed an hour and a day ago is in nobody's way.
        for lease in pair.below.list(&keys::leases(&app())).await_on(&pair).unwrap() {
            pair.below.delete(&lease.key).await_on(&pair).unwrap();
        }
        pair.clean.catalog().collect(&app(), keep).await_on(&pair).unwrap();
        let left: Vec<&(CheckpointId, Model)> = [1, 3, 4].map(|at| &all[at]).into();
        let mut expected = vec![keys::pin(&app(), &"kept".parse().unwrap())];
        for (id, model) in &left {
            pair.assert_complete(*id, model);
            let manifest = pair.clean.catalog().load_manifest(&app(), *id).await_on(&pair).unwrap();
            expected.extend(manifest.packs.iter().map(|pack| keys::pack(&app(), pack.id)));
            expected.extend([keys::manifest, keys::bundle, keys::hashes].map(|key| key(&app(), *id)));
        }
        expected.sort();
        expected.dedup();
        let found = pair.below.list("").await_on(&pair).unwrap();
        let mut found: Vec<String> = found.into_iter().map(|object| object.key).collect();
        found.sort();
        assert_eq!(found, expected, "seed {seed}");
        tally.met(&pair.faulty);
    }
    tally.assert("retention", &ALL, &["collected", "something left", "failed"]);
}

/// Runs a future on the runtime of a pair.
trait AwaitOn: Future + Sized {
    fn await_on(self, pair: &Pair) -> Self::Output {
        pair.clean.runtime.block_on(self)
    }
}

impl<F: Future> AwaitOn for F {}

#[test]
fn an_ambiguous_put_is_done_or_not_done_as_it_is_counted() {
    let directory = scratch();
    let pair = Pair::new(directory.path(), plan("ambiguous=1", 3));
    let body = |number: u32| Bytes::from(format!("body {number}"));
    pair.clean.runtime.block_on(async {
        for number in 0..100 {
            let put = pair.faulty.put_new(&format!("key-{number}"), body(number)).await;
            assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
        }
        let listed = pair.below.list("").await.unwrap();
        for object in &listed {
            let number = object.key.trim_start_matches("key-").parse().unwrap();
            assert_eq!(pair.below.get(&object.key, u64::MAX).await.unwrap(), body(number));
            // What is there is never replaced, and who tries is told, unless that answer is lost too.
            let again = pair.faulty.put_new(&object.key, Bytes::from_static(b"other")).await;
            assert!(
                matches!(again, Err(StoreError::AlreadyExists { .. } | StoreError::Unavailable { .. })),
                "{again:?}"
            );
            assert_eq!(pair.below.get(&object.key, u64::MAX).await.unwrap(), body(number));
        }
        assert_eq!(pair.faulty.injected()[&Fault::PutHidden], listed.len() as u64);
        assert!((20..80).contains(&listed.len()), "{} of 100", listed.len());
    });
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let directory = scratch();
    let outcomes = |name: &str, seed| {
        let pair = Pair::new(
            &directory.path().join(name),
            plan("errors=0.2,truncate=0.2,flip=0.2,ambiguous=0.3", seed),
        );
        let operations = async {
            let mut outcomes = Vec::new();
            for number in 0..150 {
                let key = format!("key-{}", number / 3);
                let outcome = match number % 3 {
                    0 => pair.faulty.put_new(&key, Bytes::from(vec![7; 100])).await.map(|()| Bytes::new()),
                    1 => pair.faulty.get(&key, u64::MAX).await,
                    _ => pair.faulty.get_range(&key, 10, 20).await,
                };
                outcomes.push(outcome.map_err(|error| std::mem::discriminant(&error)));
            }
            outcomes
        };
        (pair.clean.runtime.block_on(operations), pair.faulty.injected())
    };
    let (first, faults) = outcomes("first", 7);
    assert!(ALL.iter().all(|fault| faults.contains_key(fault)), "{faults:?}");
    assert_eq!((first, faults), outcomes("second", 7));
    assert_ne!(outcomes("third", 7), outcomes("fourth", 8));
}

#[test]
fn an_outage_ends_and_a_stall_ends() {
    let directory = scratch();
    let below: Arc<dyn ObjectStore> = Arc::new(LocalStore::new(directory.path().to_owned()));
    Writing::new().runtime.block_on(async {
        let faulty = FaultyStore::new(below.clone(), plan("outage=0s+3600s", 0));
        let refused = faulty.list("").await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
        assert_eq!(faulty.injected(), [(Fault::Outage, 1)].into());

        let faulty = FaultyStore::new(below.clone(), plan("outage=0s+20ms", 0));
        tokio::time::sleep(Duration::from_millis(25)).await;
        assert!(faulty.list("").await.unwrap().is_empty());
        assert!(faulty.injected().is_empty());

        let faulty = FaultyStore::new(below.clone(), plan("stall=1:100ms", 0));
        let asked = Instant::now();
        faulty.list("").await.unwrap();
        assert!(asked.elapsed() >= Duration::from_millis(100));
        assert_eq!(faulty.injected(), [(Fault::Stall, 1)].into());
    });
}

/// Runs the daemon on the store in `directory`, which holds no checkpoint, with these faults.
fn serve(directory: &Path, faults: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazy-pages"));
    command.args(["serve", "--app", "nothing", "--store"]).arg(directory.join("store"));
    command
        .arg("--dir")
        .arg(directory.join("images"))
        .env_remove("RUST_LOG")
        .env_remove("MIGRATION_STORE_FAULTS");
    if let Some(faults) = faults {
        command.env("MIGRATION_STORE_FAULTS", faults);
    }
    command.output().unwrap()
}

#[test]
fn a_plan_in_the_environment_reaches_another_process() {
    let directory = scratch();
    for (faults, said, warnings) in [
        (None, "has no checkpoint", 0),
        (Some(""), "has no checkpoint", 0),
        (Some("seed=1"), "has no checkpoint", 1),
        (Some("errors=1"), "an injected error", 1),
        (Some("erors=1"), "MIGRATION_STORE_FAULTS is not understood: `erors=1`", 0),
    ] {
        let output = serve(directory.path(), faults);
        let output_text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&output_text);
        assert!(!output.status.success() && text.contains(said), "{faults:?}: {text}");
        assert_eq!(text.matches("will misbehave on purpose").count(), warnings, "{faults:?}: {text}");
    }
}
