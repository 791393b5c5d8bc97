//! What every store promises, asked of each of them: a directory, and a bucket of a real S3 server over a socket.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lazy_pages::store::{
    LocalStore, ObjectMeta, ObjectStore, S3Config, S3Store, StaticCredentials, StoreError, StoreUrl, open,
};
use migration_harness::s3::{S3Options, S3Server};
use tempfile::TempDir;

const NO_LIMIT: u64 = u64::MAX;

/// An S3 server with an empty bucket.
struct Bucket {
    server: S3Server,
    _directory: TempDir,
}

impl Bucket {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let server = S3Server::start(directory.path(), S3Options::default()).expect("a server");
        Self { server, _directory: directory }
    }

    fn config(&self, prefix: &str) -> S3Config {
        config(&self.server.url(prefix))
    }

    fn credentials(&self) -> StaticCredentials {
        StaticCredentials {
            access_key: self.server.access_key.clone(),
            secret_key: self.server.secret_key.clone(),
            session_token: None,
        }
    }

    fn store(&self, prefix: &str) -> Arc<dyn ObjectStore> {
        Arc::new(S3Store::with_credentials(self.config(prefix), self.credentials()).expect("a store"))
    }
}

fn config(url: &str) -> S3Config {
    match url.parse().expect("a valid address") {
        StoreUrl::S3(config) => config,
        StoreUrl::Local(path) => panic!("{path:?} is a directory"),
    }
}

fn local(directory: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(LocalStore::new(directory.join("not/yet/there")))
}

/// Bytes that differ at every offset and for every seed.
fn body(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    bytes.flatten().take(length).collect::<Vec<u8>>().into()
}

fn keys(listed: &[ObjectMeta]) -> Vec<&str> {
    listed.iter().map(|object| &*object.key).collect()
}

/// Runs one promise against each kind of store.
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        mod directory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let directory = tempfile::tempdir().expect("a directory");
                super::$name(super::local(directory.path())).await;
            })*
        }
        mod bucket {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let bucket = super::Bucket::new();
                super::$name(bucket.store("some/prefix")).await;
            })*
        }
        mod bucket_without_prefix {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let bucket = super::Bucket::new();
                super::$name(bucket.store("")).await;
            })*
        }
    };
}

promises! {
    an_object_is_read_as_it_was_written,
    an_object_is_never_overwritten,
    one_of_many_racing_writers_wins,
    ranges_are_exact,
    an_object_that_ends_early_is_an_error,
    a_limit_is_kept,
    a_missing_object_is_not_found,
    an_empty_store_lists_nothing,
    a_listing_is_complete_sorted_and_by_prefix,
    deleting_is_idempotent,
    names_that_are_not_names_are_refused,
    many_readers_at_once_are_served,
    a_probe_leaves_nothing_behind,
}

async fn an_object_is_read_as_it_was_written(store: Arc<dyn ObjectStore>) {
    for (key, length) in [("empty", 0), ("a/b/c/small", 17), ("a/pack", 8 << 20), ("a/.b-c_d.e", 4096)] {
        let written = body(length as u64, length);
        store.put_new(key, written.clone()).await.expect(key);
        assert!(store.get(key, NO_LIMIT).await.expect(key) == written, "{key} differs");
    }
}

async fn an_object_is_never_overwritten(store: Arc<dyn ObjectStore>) {
    store.put_new("a/object", body(1, 5000)).await.expect("the first");
    for second in [body(2, 5000), body(1, 5000), Bytes::new()] {
        let error = store.put_new("a/object", second).await.expect_err("the second");
        assert!(matches!(&error, StoreError::AlreadyExists { key, .. } if key == "a/object"), "{error:?}");
    }
    assert_eq!(store.get("a/object", NO_LIMIT).await.expect("there"), body(1, 5000));
}

async fn one_of_many_racing_writers_wins(store: Arc<dyn ObjectStore>) {
    for round in 0..5 {
        let key = format!("race/{round}/manifest");
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (store, key) = (Arc::clone(&store), key.clone());
                tokio::spawn(async move { (writer, store.put_new(&key, body(writer, 100_000)).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for writer in writers {
            match writer.await.expect("no panic") {
                (writer, Ok(())) => winners.push(writer),
                (_, Err(StoreError::AlreadyExists { .. })) => {}
                (_, Err(error)) => panic!("{error:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(store.get(&key, NO_LIMIT).await.expect("there"), body(winners[0], 100_000));
    }
}

async fn ranges_are_exact(store: Arc<dyn ObjectStore>) {
    let whole = body(3, 1_000_000);
    store.put_new("pack", whole.clone()).await.expect("written");
    for (offset, length) in
        [(0, 1), (0, 1_000_000), (1, 4096), (999_999, 1), (123_456, 500_000), (4096, 0), (1_000_000, 0)]
    {
        let range = store.get_range("pack", offset as u64, length as u64).await.expect("in range");
        assert_eq!(range, whole.slice(offset..offset + length), "{length} bytes at {offset}");
    }
}

async fn an_object_that_ends_early_is_an_error(store: Arc<dyn ObjectStore>) {
    store.put_new("pack", body(4, 1000)).await.expect("written");
    for (offset, length, there) in
        [(0, 1001, 1000), (999, 2, 1), (1000, 1, 0), (5000, 10, 0), (0, u64::MAX, 1000), (u64::MAX, 1, 0)]
    {
        let error = store.get_range("pack", offset, length).await.expect_err("out of range");
        let StoreError::Truncated { key, got, wanted, .. } = &error else { panic!("{error:?}") };
        assert_eq!((&**key, *got, *wanted), ("pack", there, length), "{length} bytes at {offset}");
    }
}

async fn a_limit_is_kept(store: Arc<dyn ObjectStore>) {
    store.put_new("manifest", body(5, 1000)).await.expect("written");
    let error = store.get("manifest", 999).await.expect_err("too large");
    assert!(matches!(error, StoreError::TooLarge { limit: 999, .. }), "{error:?}");
    assert_eq!(store.get("manifest", 1000).await.expect("fits"), body(5, 1000));
}

async fn a_missing_object_is_not_found(store: Arc<dyn ObjectStore>) {
    let missing = |error: StoreError| {
        assert!(matches!(&error, StoreError::NotFound { key, .. } if key == "a/b"), "{error:?}");
    };
    missing(store.get("a/b", NO_LIMIT).await.expect_err("missing"));
    missing(store.get_range("a/b", 0, 1).await.expect_err("missing"));
    assert!(store.get_range("a/b", 0, 0).await.expect("no bytes asked for").is_empty());
    // A name is not an object because others begin with it.
    store.put_new("a/b/c", Bytes::from_static(b"c")).await.expect("written");
    missing(store.get("a/b", NO_LIMIT).await.expect_err("still missing"));
    store.delete("a/b").await.expect("deleting nothing");
    assert_eq!(store.get("a/b/c", NO_LIMIT).await.expect("there"), "c");
}

async fn an_empty_store_lists_nothing(store: Arc<dyn ObjectStore>) {
    for prefix in ["", "a", "a/b/"] {
        assert_eq!(store.list(prefix).await.expect("an empty listing"), []);
    }
}

async fn a_listing_is_complete_sorted_and_by_prefix(store: Arc<dyn ObjectStore>) {
    let mut expected = Vec::new();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..1100_usize {
        // Sorts differently as text than as paths: `-` and `.` come before `/`.
        let key = format!("app/packs{}/{number:04}", ["", "-x", ".y"][number % 3]);
        expected.push(ObjectMeta { key: key.clone(), length: (number % 7) as u64 });
        let store = Arc::clone(&store);
        writers.spawn(async move { store.put_new(&key, body(0, number % 7)).await.expect("written") });
    }
    writers.join_all().await;
    expected.sort_by(|a, b| a.key.cmp(&b.key));
    store.put_new("another/object", Bytes::new()).await.expect("written");
    assert_eq!(store.list("app/").await.expect("listed"), expected);
    assert_eq!(store.list("").await.expect("listed").len(), 1101);
    let some = store.list("app/packs/000").await.expect("listed");
    assert_eq!(keys(&some), ["app/packs/0000", "app/packs/0003", "app/packs/0006", "app/packs/0009"]);
    assert_eq!(keys(&store.list("an").await.expect("listed")), ["another/object"]);
    assert_eq!(store.list("app/packs/0").await.expect("listed").len(), 334);
    assert_eq!(store.list("app/packs/0000/").await.expect("listed"), []);
    assert_eq!(store.list("ap/").await.expect("listed"), []);
}

async fn deleting_is_idempotent(store: Arc<dyn ObjectStore>) {
    store.delete("never/was").await.expect("deleting nothing");
    store.put_new("a/object", body(1, 10)).await.expect("written");
    store.put_new("a/other", body(2, 10)).await.expect("written");
    for _ in 0..2 {
        store.delete("a/object").await.expect("deleted");
    }
    assert!(matches!(store.get("a/object", 100).await, Err(StoreError::NotFound { .. })));
    assert_eq!(keys(&store.list("").await.expect("listed")), ["a/other"]);
    store.put_new("a/object", body(3, 10)).await.expect("the name is free again");
    assert_eq!(store.get("a/object", 100).await.expect("there"), body(3, 10));
}

async fn names_that_are_not_names_are_refused(store: Arc<dyn ObjectStore>) {
    for key in
        ["", "/", "/etc/passwd", "a//b", "a/", "../x", "a/../../x", "a/./b", "a b", "a\nb", ".incoming/x"]
    {
        let refused = |error: StoreError| {
            assert!(matches!(&error, StoreError::InvalidKey { key: named, .. } if named == key), "{error:?}");
        };
        refused(store.put_new(key, Bytes::new()).await.expect_err(key));
        refused(store.get(key, NO_LIMIT).await.expect_err(key));
        refused(store.get_range(key, 0, 1).await.expect_err(key));
        refused(store.delete(key).await.expect_err(key));
    }
    for prefix in ["/", "..", "a//"] {
        assert!(matches!(store.list(prefix).await, Err(StoreError::InvalidKey { .. })), "{prefix:?}");
    }
}

async fn many_readers_at_once_are_served(store: Arc<dyn ObjectStore>) {
    let whole = body(6, 4 << 20);
    store.put_new("pack", whole.clone()).await.expect("written");
    let readers: Vec<_> = (0..64_u64)
        .map(|reader| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.get_range("pack", reader * 65536, 65536).await })
        })
        .collect();
    for (reader, range) in readers.into_iter().enumerate() {
        let range = range.await.expect("no panic").expect("read");
        assert_eq!(range, whole.slice(reader * 65536..(reader + 1) * 65536));
    }
}

async fn a_probe_leaves_nothing_behind(store: Arc<dyn ObjectStore>) {
    store.probe().await.expect("a good store");
    store.probe().await.expect("a good store, again");
    assert_eq!(store.list("").await.expect("listed"), []);
}

// What only a directory does.

#[tokio::test]
async fn what_is_in_a_directory_is_for_its_owner_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("deep/root");
    let store = LocalStore::new(root.clone());
    store.put_new("a/b", body(1, 100)).await.expect("written");
    let mode = |path: &str| root.join(path).metadata().expect(path).permissions().mode() & 0o7777;
    assert_eq!(mode(""), 0o700);
    assert_eq!(mode("../../deep"), 0o700);
    assert_eq!(mode("a"), 0o700);
    assert_eq!(mode(".incoming"), 0o700);
    assert_eq!(mode("a/b"), 0o600);
    assert_eq!(std::fs::read_dir(root.join(".incoming")).expect("there").count(), 0);
}

#[tokio::test]
async fn a_probe_of_a_directory_removes_what_a_crash_left_long_ago() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = LocalStore::new(directory.path().to_owned());
    let incoming = directory.path().join(".incoming");
    std::fs::create_dir(&incoming).expect("made");
    // ULIDs of 2020 and of now.
    let old = incoming.join("01DXF6DT000000000000000000");
    let new = incoming.join(lazy_pages::ids::PackId::new().to_string());
    for path in [&old, &new] {
        std::fs::write(path, b"half a pack").expect("written");
    }
    assert_eq!(store.list("").await.expect("listed"), []);
    store.probe().await.expect("a good store");
    assert!(!old.exists());
    assert!(new.exists());
}

#[tokio::test]
async fn a_directory_that_was_removed_is_made_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("root");
    let store = LocalStore::new(root.clone());
    store.put_new("a/b/c", body(1, 100)).await.expect("written");
    std::fs::remove_dir_all(&root).expect("removed");
    store.put_new("a/b/d", body(2, 100)).await.expect("written again");
    assert_eq!(keys(&store.list("").await.expect("listed")), ["a/b/d"]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_an_error() {
    let store = LocalStore::new("/proc/no-such-directory/store".into());
    let error = store.put_new("a/b", body(1, 100)).await.expect_err("nothing can be made there");
    assert!(matches!(&error, StoreError::Other { .. } | StoreError::Denied { .. }), "{error:?}");
    assert_eq!(store.list("").await.expect("listed"), []);
}

#[tokio::test]
async fn links_in_a_directory_are_not_listed() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = LocalStore::new(directory.path().to_owned());
    store.put_new("a/b", body(1, 100)).await.expect("written");
    std::os::unix::fs::symlink("/etc", directory.path().join("a/etc")).expect("linked");
    std::os::unix::fs::symlink("b", directory.path().join("a/link")).expect("linked");
    assert_eq!(keys(&store.list("").await.expect("listed")), ["a/b"]);
}

#[tokio::test]
async fn a_file_in_place_of_the_directory_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let store = LocalStore::new(file.clone());
    let error = store.probe().await.expect_err("not a directory");
    assert!(error.to_string().contains(file.to_str().expect("text")), "{error}");
    assert_eq!(std::fs::read(&file).expect("still there"), b"");
}

// What only a bucket does.

#[tokio::test]
async fn stores_with_different_prefixes_are_apart() {
    let bucket = Bucket::new();
    let (one, two, whole) = (bucket.store("one"), bucket.store("one-two/x"), bucket.store(""));
    one.put_new("object", body(1, 10)).await.expect("written");
    two.put_new("object", body(2, 10)).await.expect("written");
    assert_eq!(one.get("object", 100).await.expect("there"), body(1, 10));
    assert_eq!(keys(&one.list("").await.expect("listed")), ["object"]);
    assert_eq!(keys(&whole.list("").await.expect("listed")), ["one-two/x/object", "one/object"]);
}

#[tokio::test]
async fn wrong_credentials_are_denied_at_once_and_never_shown() {
    let bucket = Bucket::new();
    let wrong = |access: &str, secret: &str, token: Option<&str>| StaticCredentials {
        access_key: access.to_owned(),
        secret_key: secret.to_owned(),
        session_token: token.map(str::to_owned),
    };
    let right = bucket.credentials();
    for credentials in [
        wrong(&right.access_key, "hush-secret", None),
        wrong("AKIANOBODY", "hush-secret", Some("hush-token")),
        wrong(&right.access_key, "hush-secret", Some("hush\ntoken")),
    ] {
        let shown = format!("{credentials:?}");
        let store = S3Store::with_credentials(bucket.config(""), credentials).expect("a store");
        let mut shown = vec![shown, format!("{store:?} {}", store.describe())];
        let before = bucket.server.faults.requests();
        let errors = [
            store.probe().await.expect_err("probe"),
            store.get("object", 100).await.expect_err("get"),
            store.get_range("object", 0, 1).await.expect_err("get_range"),
            store.put_new("object", body(1, 1 << 20)).await.expect_err("put_new"),
            store.list("").await.expect_err("list"),
            store.delete("object").await.expect_err("delete"),
        ];
        for error in &errors {
            assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
            shown.push(format!("{error} {error:?}"));
        }
        let after = bucket.server.faults.requests();
        assert!(after.gets - before.gets <= 2 && after.puts - before.puts <= 2, "tried again: {after:?}");
        for text in shown {
            assert!(!text.contains("hush"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_wrong_bucket_is_no_store() {
    let bucket = Bucket::new();
    let config = S3Config { bucket: "elsewhere".to_owned(), ..bucket.config("") };
    let store = S3Store::with_credentials(config, bucket.credentials()).expect("a store");
    for error in [
        store.probe().await.expect_err("probe"),
        store.get("object", 100).await.expect_err("get"),
        store.put_new("object", body(1, 100)).await.expect_err("put_new"),
        store.list("").await.expect_err("list"),
    ] {
        assert!(
            matches!(&error, StoreError::NoSuchStore { store } if store.contains("elsewhere")),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_objects_come_from_the_download_endpoint_and_nothing_else_does() {
    let (bucket, near) = (Bucket::new(), Bucket::new());
    let endpoint = near.config("").endpoint;
    let config = S3Config { download_endpoint: endpoint, ..bucket.config("") };
    let store = S3Store::with_credentials(config, bucket.credentials()).expect("a store");
    let (both, far) = (body(1, 300_000), body(2, 100_000));
    store.put_new("packs/both", both.clone()).await.expect("put");
    store.put_new("packs/far", far.clone()).await.expect("put");
    near.store("").put_new("packs/both", both.clone()).await.expect("put");
    let count = |bucket: &Bucket| bucket.server.faults.requests();

    let before = (count(&bucket), count(&near));
    assert_eq!(store.get_range("packs/both", 1000, 5000).await.expect("a part"), both.slice(1000..6000));
    assert_eq!(count(&bucket).gets, before.0.gets, "the server itself was asked");
    assert_eq!(count(&near).gets, before.1.gets + 1);

    // What it does not have, or breaks off, comes from the server itself.
    assert_eq!(store.get_range("packs/far", 7, 5000).await.expect("a part"), far.slice(7..5007));
    near.server.faults.cut_next_gets(1);
    assert_eq!(store.get_range("packs/both", 0, 200_000).await.expect("a part"), both.slice(..200_000));

    let before = count(&near);
    store.get("packs/both", 1 << 20).await.expect("get");
    store.list("").await.expect("list");
    store.delete("packs/far").await.expect("delete");
    store.probe().await.expect("probe");
    assert_eq!(count(&near).gets + count(&near).puts, before.gets + before.puts);

    drop(near);
    assert_eq!(store.get_range("packs/both", 0, 10).await.expect("a part"), both.slice(..10));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_soon() {
    let bucket = Bucket::new();
    let (config, credentials) = (bucket.config(""), bucket.credentials());
    drop(bucket);
    let store = S3Store::with_credentials(config, credentials).expect("a store");
    let started = Instant::now();
    for error in [
        store.get("object", 100).await.expect_err("get"),
        store.put_new("object", body(1, 100)).await.expect_err("put_new"),
        store.list("").await.expect_err("list"),
    ] {
        assert!(matches!(&error, StoreError::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains("onnect"), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_server_that_is_busy_for_a_while_is_asked_again() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    let faults = &bucket.server.faults;
    faults.refuse_next(4);
    store.put_new("object", body(1, 100_000)).await.expect("written in the end");
    faults.refuse_next(4);
    assert_eq!(store.get("object", NO_LIMIT).await.expect("read in the end"), body(1, 100_000));
    faults.refuse_next(4);
    assert_eq!(store.list("").await.expect("listed in the end").len(), 1);
    faults.refuse_next(4);
    store.delete("object").await.expect("deleted in the end");
    let requests = faults.requests();
    assert_eq!((requests.puts, requests.gets, requests.lists, requests.deletes), (5, 5, 5, 5));
}

#[tokio::test]
async fn a_server_that_stays_busy_is_given_up() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    bucket.server.faults.refuse_next(u64::MAX);
    let error = store.get("object", 100).await.expect_err("busy");
    assert!(matches!(&error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("SlowDown"), "{error}");
    assert_eq!(bucket.server.faults.requests().gets, 8);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_fetched_again_and_never_given() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    let whole = body(1, 300_000);
    store.put_new("pack", whole.clone()).await.expect("written");
    bucket.server.faults.cut_next_gets(3);
    assert_eq!(store.get("pack", NO_LIMIT).await.expect("read in the end"), whole);
    bucket.server.faults.cut_next_gets(3);
    assert_eq!(store.get_range("pack", 5, 200_000).await.expect("read in the end"), whole.slice(5..200_005));
    bucket.server.faults.cut_next_gets(u64::MAX);
    let outcome = store.get_range("pack", 0, 300_000).await;
    assert!(matches!(&outcome, Err(StoreError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_is_read_all_the_same() {
    let bucket = Bucket::new();
    bucket.server.faults.know_no_ranges(true);
    let store = bucket.store("");
    ranges_are_exact(Arc::clone(&store)).await;
    store.delete("pack").await.expect("deleted");
    an_object_that_ends_early_is_an_error(store).await;
}

#[tokio::test]
async fn a_put_without_an_answer_succeeds_when_the_object_is_ours() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    for (seed, length) in [(1, 0), (2, 1000), (3, 2 << 20)] {
        let key = format!("object/{seed}");
        bucket.server.faults.carry_out_next_puts_silently(1);
        store.put_new(&key, body(seed, length)).await.expect("ours");
        assert_eq!(store.get(&key, NO_LIMIT).await.expect("there"), body(seed, length));
    }
}

#[tokio::test]
async fn a_put_that_never_arrived_is_made_again() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    bucket.server.faults.lose_next_puts(2);
    store.put_new("object", body(1, 1000)).await.expect("written in the end");
    assert_eq!(store.get("object", NO_LIMIT).await.expect("there"), body(1, 1000));
    assert_eq!(bucket.server.faults.requests().puts, 3);
}

#[tokio::test]
async fn a_put_without_an_answer_fails_when_the_object_is_somebody_elses() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    store.put_new("object", body(1, 1000)).await.expect("theirs");
    for (seed, length) in [(2, 1000), (2, 999), (2, 1001), (1, 999)] {
        bucket.server.faults.lose_next_puts(1);
        let error = store.put_new("object", body(seed, length)).await.expect_err("not ours");
        assert!(matches!(&error, StoreError::AlreadyExists { .. }), "{error:?}");
    }
    assert_eq!(store.get("object", NO_LIMIT).await.expect("there"), body(1, 1000));
}

#[tokio::test]
async fn a_put_that_is_never_answered_is_unavailable_and_settled() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    bucket.server.faults.lose_next_puts(u64::MAX);
    let error = store.put_new("lost", body(1, 100)).await.expect_err("never stored");
    assert!(matches!(&error, StoreError::Unavailable { .. }), "{error:?}");
    bucket.server.faults.lose_next_puts(0);
    assert!(matches!(store.get("lost", 100).await, Err(StoreError::NotFound { .. })));
    // Stored by the first try, all later ones lost: reading back tells.
    bucket.server.faults.carry_out_next_puts_silently(1);
    bucket.server.faults.lose_next_puts(u64::MAX);
    store.put_new("silent", body(2, 100)).await.expect("ours");
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    bucket.server.faults.overwrite(true);
    let error = store.probe().await.expect_err("overwrites");
    assert!(matches!(&error, StoreError::NoConditionalCreate { .. }), "{error:?}");
    assert_eq!(store.list("").await.expect("listed"), []);
}

#[tokio::test]
async fn small_answers_come_at_once() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    store.put_new("pack", body(1, 100_000)).await.expect("written");
    let mut times = Vec::new();
    for turn in 0..50 {
        let started = Instant::now();
        store.get_range("pack", turn * 1000, 1000).await.expect("read");
        times.push(started.elapsed());
    }
    times.sort();
    // Delayed acknowledgements would cost 40 ms each. A busy machine may cost more, but not half of the time.
    assert!(times[25] < Duration::from_millis(35), "{times:?}");
}

#[tokio::test]
async fn delayed_answers_overlap() {
    let bucket = Bucket::new();
    let store = bucket.store("");
    store.put_new("pack", body(1, 64_000)).await.expect("written");
    bucket.server.faults.delay_answers(Duration::from_millis(200));
    let started = Instant::now();
    let readers: Vec<_> = (0..32)
        .map(|turn| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.get_range("pack", turn * 1000, 1000).await })
        })
        .collect();
    for reader in readers {
        reader.await.expect("no panic").expect("read");
    }
    // One after the other they would take more than six seconds.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

// Addresses.

#[tokio::test]
async fn an_address_opens_its_store() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("file://{}/store", directory.path().display());
    let store = open(&url.parse().expect("valid")).expect("a directory");
    assert!(store.is_local());
    assert_eq!(store.describe(), url);
    store.put_new("object", body(1, 10)).await.expect("written");
    assert!(directory.path().join("store/object").is_file());

    let url = "s3://bucket/prefix?endpoint=http://127.0.0.1:9&region=us-east-1&path-style=true";
    let store = open(&url.parse().expect("valid")).expect("a bucket");
    assert!(!store.is_local());
    assert_eq!(store.describe(), url);
}

#[tokio::test]
async fn a_profile_that_is_missing_is_named() {
    let url = "s3://bucket?endpoint=http://127.0.0.1:9&profile=no-such-profile-anywhere";
    let store = open(&url.parse().expect("valid")).expect("a bucket");
    let error = store.get("object", 10).await.expect_err("no credentials");
    assert!(matches!(&error, StoreError::Denied { .. }), "{error:?}");
    assert!(error.to_string().contains("no-such-profile-anywhere"), "{error}");
}
