use proptest::prelude::*;

use super::*;

fn every_kind() -> Vec<Record> {
    let (space, a, b) = (SpaceId(3), VirtAddr::of_page(5), VirtAddr::of_page(9));
    vec![
        Record::Task { space, object: 7, uffd: 11, image_pid: 42, pid: u32::MAX },
        Record::Fork { parent: space, space: SpaceId(4), uffd: 12 },
        Record::Remap { space, from: a, to: b, pages: 3 },
        Record::Remove { space, start: a, end: b },
        Record::Closed { space },
        Record::Process { pid: 4711, pidfd: 13 },
        Record::Foreign { uffd: 14 },
    ]
}

#[test]
fn what_is_recorded_is_read_back() {
    let journal = Arc::new(Journal::create().unwrap());
    let mut writer = journal.writer();
    every_kind().into_iter().for_each(|record| writer.append(record));
    assert_eq!(journal.snapshot().unwrap().records, every_kind());
    // A successor goes on after the last record.
    let mut successor = journal.writer();
    successor.append(Record::Closed { space: SpaceId(8) });
    let records = journal.snapshot().unwrap().records;
    assert_eq!(records[every_kind().len()..], [Record::Closed { space: SpaceId(8) }]);
}

#[test]
fn messages_are_there_until_what_they_meant_is_recorded() {
    let journal = Arc::new(Journal::create().unwrap());
    let mut writer = journal.writer();
    writer.append(Record::Closed { space: SpaceId(1) });
    // As the kernel would, and then the server dies, or does not.
    journal.set(STAGED_SPACE, 6);
    writer.commit.staged = true;
    writer.publish();
    let message = &journal.stage()[..MESSAGE_WORDS];
    message[0].store(0x15, Ordering::Relaxed);
    message[1].store(4096, Ordering::Relaxed);
    message[2].store(8192, Ordering::Relaxed);
    let removed = Event::Remove { start: VirtAddr::of_page(1), end: VirtAddr::of_page(2) };
    let seen = journal.snapshot().unwrap();
    assert_eq!(seen.staged, [(SpaceId(6), removed)]);
    assert_eq!(seen.records.len(), 1);
    assert_eq!(writer.message(0), Some(removed));

    let (start, end) = (VirtAddr::of_page(1), VirtAddr::of_page(2));
    writer.append(Record::Remove { space: SpaceId(6), start, end });
    assert_eq!(journal.snapshot().unwrap(), seen, "half done is not done");
    writer.commit();
    let seen = journal.snapshot().unwrap();
    assert_eq!((seen.records.len(), seen.staged.len()), (2, 0));
    assert_eq!(writer.message(0), None);
}

#[test]
fn connections_are_known_while_they_are_open() {
    let journal = Journal::create().unwrap();
    (0..MAX_CONNECTIONS as RawFd).for_each(|socket| journal.add_connection(socket));
    assert_eq!(journal.connections().len(), MAX_CONNECTIONS);
    journal.add_connection(99);
    assert!(!journal.connections().contains(&99), "there is no room");
    journal.remove_connection(7);
    journal.remove_connection(98);
    journal.add_connection(99);
    let known = journal.connections();
    assert!(known.contains(&99) && known.contains(&0) && !known.contains(&7));
    assert_eq!((journal.value(Number::Resident), journal.error()), (0, None));
}

#[test]
fn a_full_journal_is_refused_for_ever() {
    let journal = Arc::new(Journal::create().unwrap());
    let mut writer = journal.writer();
    writer.commit.records = RECORDS as u64 - 1;
    writer.append(Record::Closed { space: SpaceId(1) });
    assert!(!journal.is_full());
    writer.append(Record::Closed { space: SpaceId(1) });
    assert!(journal.is_full());
    assert!(journal.snapshot().is_err());
}

#[test]
fn a_damaged_journal_is_refused() {
    let journal = Journal::create().unwrap();
    for records in [1, RECORDS as u64 + 1, (1 << 22) - 1] {
        journal.set(COMMIT, Commit { reads: 9, records, staged: false }.encode());
        assert!(journal.snapshot().is_err(), "{records}");
    }
}

proptest! {
    #[test]
    fn whatever_is_in_it_is_replayed_or_refused(words in prop::collection::vec(any::<[u64; RECORD_WORDS]>(), 0..40)) {
        let journal = Journal::create().unwrap();
        for (at, words) in words.iter().enumerate() {
            let first = HEADER_WORDS + at * RECORD_WORDS;
            for (word, value) in words.iter().enumerate() {
                // A kind that exists, most of the time.
                let value = if word == 0 { value & ((1 << KIND) - 1) & 7 | (value >> KIND & 7) << KIND } else { value >> (value % 64) };
                journal.set(first + word, value);
            }
        }
        let records = words.len() as u64;
        journal.set(COMMIT, Commit { reads: 0, records, staged: false }.encode());
        if let Ok(snapshot) = journal.snapshot() {
            let manifest = crate::server::replay::tests::manifest();
            let _ = crate::server::replay::Replayed::new(&snapshot, &manifest);
        }
    }
}

#[test]
fn an_error_longer_than_its_room_is_cut() {
    let journal = Journal::create().unwrap();
    assert_eq!(journal.error(), None);
    journal.set_error("store gone");
    assert_eq!(journal.error().as_deref(), Some("store gone"));
    journal.set_error(&"x".repeat(1000));
    assert_eq!(journal.error().unwrap().len(), ERROR_WORDS * 8);
}

#[test]
fn a_phase_and_an_outcome_are_what_was_said_last() {
    let journal = Journal::create().unwrap();
    assert_eq!((journal.phase(), journal.outcome()), (Phase::New, None));
    for phase in Phase::ALL {
        journal.enter(phase);
        assert_eq!(journal.phase(), phase);
    }
    journal.conclude(0);
    assert_eq!((journal.phase(), journal.outcome(), journal.is_finished()), (Phase::Over, Some(0), false));
    journal.finish(0);
    assert!(journal.is_finished());
}

#[test]
fn waits_are_counted_by_how_long_they_were() {
    let journal = Journal::create().unwrap();
    for waited in [0, 100, 101, 1_000_000, 1_000_001, u64::from(u32::MAX)] {
        journal.count_stall(waited, FrameIndex(0));
    }
    assert_eq!(journal.stalls(), [2, 1, 0, 0, 1, 2]);
    assert_eq!(journal.value(Number::LongestFault), u64::from(u32::MAX));
    assert_eq!(journal.error(), None, "what follows is not touched");
}
