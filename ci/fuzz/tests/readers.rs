//! Every target, for seconds: what was found before, valid inputs, damaged valid inputs, random bytes.
//!
//! What the fuzzer of `ci/fuzz-run` finds is put into `corpus/<target>/` and stays here for ever.

use std::{fs, path::Path};

use migration_fuzz::{TARGETS, Target};
use migration_harness::sys::{MeteredAllocator, peak_memory};
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{TestCaseError, TestRunner},
};

#[global_allocator]
static ALLOCATOR: MeteredAllocator = MeteredAllocator;

/// A change to bytes.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Some bytes again, elsewhere.
    Repeat(Index, Index, usize),
    Cut(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    // Numbers at the edges of what a length can be are the likeliest to be believed.
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0x7f), Just(0x80), Just(0xff)];
    let bytes = proptest::collection::vec(byte.clone(), 1..9);
    prop_oneof![
        4 => (any::<Index>(), byte).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (any::<Index>(), bytes).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => (any::<Index>(), 1..20_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => (any::<Index>(), any::<Index>(), 1..40_usize).prop_map(|(from, to, count)| Edit::Repeat(from, to, count)),
        1 => any::<Index>().prop_map(Edit::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: Edit) {
    // An index past the last byte is the end.
    let place = |index: &Index, bytes: &[u8]| index.index(bytes.len() + 1);
    match edit {
        Edit::Set(at, value) => {
            if let Some(byte) = {
                let at = place(&at, bytes);
                bytes.get_mut(at)
            } {
                *byte = value;
            }
        }
        Edit::Insert(at, more) => {
            let at = place(&at, bytes);
            bytes.splice(at..at, more);
        }
        Edit::Remove(at, count) => {
            let at = place(&at, bytes);
            bytes.drain(at..bytes.len().min(at + count));
        }
        Edit::Repeat(from, to, count) => {
            let (from, to) = (place(&from, bytes), place(&to, bytes));
            let again = bytes[from..bytes.len().min(from + count)].to_vec();
            bytes.splice(to..to, again);
        }
        Edit::Cut(at) => bytes.truncate(place(&at, bytes)),
    }
}

/// Inputs the fuzzer has found, to the end of time.
fn found(target: &Target) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let Ok(files) = fs::read_dir(directory) else { return Vec::new() };
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

/// How many inputs were taken for valid, and how many not.
#[derive(Debug, Default)]
struct Seen {
    valid: u32,
    invalid: u32,
}

fn exercise(name: &str, cases: u32) -> Seen {
    let target = Target::named(name).unwrap();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for input in found(target).iter().chain(&seeds) {
        target.check(input);
    }
    let seen = std::cell::RefCell::new(Seen::default());
    let check = |input: &[u8]| -> Result<(), TestCaseError> {
        match target.check(input) {
            true => seen.borrow_mut().valid += 1,
            false => seen.borrow_mut().invalid += 1,
        }
        Ok(())
    };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let damaged = (any::<Index>(), proptest::collection::vec(edit(), 0..5));
    let damaged = damaged.prop_map(|(which, edits)| {
        let mut bytes = seeds[which.index(seeds.len())].clone();
        edits.into_iter().for_each(|edit| apply(&mut bytes, edit));
        bytes
    });
    TestRunner::new(config.clone()).run(&damaged, |input| check(&input)).unwrap();
    let random = proptest::collection::vec(any::<u8>(), 0..300);
    TestRunner::new(config).run(&random, |input| check(&input)).unwrap();
    println!("{name}: {seen:?}");
    seen.into_inner()
}

fn assert_both(name: &str, cases: u32) {
    let seen = exercise(name, cases);
    assert!(seen.valid > 0 && seen.invalid > 0, "{name}: {seen:?}");
}

#[test]
fn memory_is_metered() {
    let (kept, peak) = peak_memory(|| {
        drop(vec![1_u8; 3 << 20]);
        vec![1_u8; 1 << 20]
    });
    assert!((3 << 20..4 << 20).contains(&peak), "{} {peak}", kept.len());
}

#[test]
fn every_target_has_a_test() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let tested = ["manifest", "frame", "bundle", "images", "page_stream", "registration", "leases", "names"];
    assert_eq!(names, tested);
}

#[test]
fn a_manifest_is_refused_or_keeps_all_rules() {
    assert_both("manifest", 4000);
}

#[test]
fn a_frame_is_refused_or_holds_what_was_promised() {
    assert_both("frame", 400);
}

#[test]
fn a_bundle_is_refused_or_holds_plain_names() {
    assert_both("bundle", 2000);
}

#[test]
fn images_are_refused_or_make_sense() {
    assert_both("images", 1500);
}

#[test]
fn a_page_stream_is_refused_or_whole() {
    assert_both("page_stream", 2000);
}

#[test]
fn nobody_without_a_userfaultfd_disturbs_a_page_server() {
    assert_eq!(exercise("registration", 500).valid, 0);
}

#[test]
fn a_lease_is_understood_or_keeps_everything() {
    assert_both("leases", 500);
}

#[test]
fn names_and_addresses_survive_printing_and_hide_secrets() {
    assert_both("names", 4000);
}
