use proptest::prelude::*;

use super::*;

fn pages() -> PagesRecord {
    let column = vec![1, 2, 3];
    PagesRecord {
        version: RECORD_VERSION,
        outcome: "resident".to_owned(),
        moments: Moments {
            width_us: 2000,
            faults: column.clone(),
            installed_pages: column.clone(),
            fetched_bytes: column.clone(),
            waits: column.clone(),
            longest_wait_us: column,
        },
        heat: Heat {
            width_us: 8000,
            rows: vec![HeatRow { pid: 1, start: 4096, end: 8192, pages: 1, faults: vec![4] }],
        },
        ..PagesRecord::default()
    }
}

#[test]
fn what_is_kept_is_read_back() {
    let record = pages();
    assert_eq!(PagesRecord::decode(&record.encode().unwrap()).unwrap(), record);
    let stages = vec![Span { name: "a \"stage\" <&".to_owned(), from_us: 1, to_us: 2 }];
    let taken = TakenRecord { version: RECORD_VERSION, stages: stages.clone(), ..TakenRecord::default() };
    assert_eq!(TakenRecord::decode(&taken.encode().unwrap()).unwrap(), taken);
    let restore = RestoreRecord { version: RECORD_VERSION, stages, ..RestoreRecord::default() };
    assert_eq!(RestoreRecord::decode(&restore.encode().unwrap()).unwrap(), restore);
}

#[test]
fn another_version_is_refused_before_anything_else_is_looked_at() {
    let refused = PagesRecord::decode(br#"{"version": 2, "moments": "something else"}"#);
    assert!(matches!(refused, Err(RecordError::Version(2))));
}

#[test]
fn parts_that_do_not_fit_and_records_that_are_too_large_are_refused() {
    let damages: [fn(&mut PagesRecord); 6] = [
        |record| record.moments.waits.push(1),
        |record| record.moments.width_us = 0,
        |record| record.heat.width_us = 0,
        |record| record.heat.rows.push(HeatRow::default()),
        |record| record.heat.rows[0].end = 1,
        |record| record.taken_over_us = vec![1; MAX_ENTRIES + 1],
    ];
    for damage in damages {
        let mut record = pages();
        damage(&mut record);
        let refused = PagesRecord::decode(&serde_json::to_vec(&record).unwrap());
        assert!(matches!(refused, Err(RecordError::Shape)), "{record:?}");
    }
    let backwards = vec![Span { name: String::new(), from_us: 2, to_us: 1 }];
    let taken = TakenRecord { version: RECORD_VERSION, stages: backwards, ..TakenRecord::default() };
    assert!(matches!(TakenRecord::decode(&taken.encode().unwrap()), Err(RecordError::Shape)));
    let large = PagesRecord { reason: Some("x".repeat(MAX_RECORD as usize)), ..pages() };
    assert!(matches!(large.encode(), Err(RecordError::TooLarge(_))));
    assert!(matches!(
        PagesRecord::decode(&serde_json::to_vec(&large).unwrap()),
        Err(RecordError::TooLarge(_))
    ));
}

proptest! {
    #[test]
    fn whatever_the_bytes_are_nothing_breaks(at in 0_usize..2000, byte: u8, cut in 0_usize..2000) {
        let mut bytes = pages().encode().unwrap().to_vec();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(length - cut % length);
        if let Ok(record) = PagesRecord::decode(&bytes) {
            prop_assert!(record.is_sound());
        }
        let _ = TakenRecord::decode(&bytes).is_ok();
        let _ = RestoreRecord::decode(&bytes).is_ok();
    }
}
