use lazy_pages::record::{
    Heat, HeatRow, Machine, Moments, PagesRecord, RestoreRecord, Span, TakenRecord, Wait,
};
use proptest::prelude::*;
use quick_xml::{Reader, events::Event};

use super::*;
use crate::report::{Blackout, Contents, text};

/// A report of which everything is known, and whose names are `name`.
fn report(name: &str, numbers: &[u64]) -> Report {
    let number = |at: usize| numbers[at % numbers.len()];
    let machine = Machine { name: name.to_owned(), boot: "b".to_owned() };
    let span = |from_us, to_us| Span { name: name.to_owned(), from_us, to_us };
    let begun_unix_us = 1_700_000_000_000_000;
    let taken = TakenRecord {
        machine: machine.clone(),
        begun_unix_us,
        stages: vec![span(0, 100_000), span(100_000, 400_000)],
        frozen_us: 300_000,
        upload_us: 250_000,
        uploaded_bytes: number(0),
        ..TakenRecord::default()
    };
    let run = RestoreRecord {
        machine: machine.clone(),
        begun_unix_us: begun_unix_us + 500_000,
        strategy: name.to_owned(),
        stages: vec![span(0, 200_000)],
        running_us: 200_000,
        pid: 4711,
        ..RestoreRecord::default()
    };
    let column = numbers.to_vec();
    let mut pages = PagesRecord {
        machine,
        begun_unix_us: begun_unix_us + 600_000,
        ended_us: 900_000,
        resident_us: Some(800_000),
        outcome: name.to_owned(),
        reason: Some(name.to_owned()),
        moments: Moments {
            width_us: 2000,
            faults: column.clone(),
            installed_pages: column.clone(),
            fetched_bytes: column.clone(),
            waits: column.clone(),
            longest_wait_us: column.clone(),
        },
        heat: Heat {
            width_us: 8000,
            rows: vec![HeatRow { pid: 4711, start: 0x1000, end: 0x9000, pages: 8, faults: column }],
        },
        slowest: vec![Wait { waited_us: 65_432, at_us: 157_000, pid: 4711, address: 0x55c7_e01e_9000 }],
        taken_over_us: vec![400_000],
        ..PagesRecord::default()
    };
    pages.numbers.faults = 4_242;
    pages.numbers.stalls = [1, 2, 3, 4, 5, 6];
    pages.numbers.last_error = Some(name.to_owned());
    let contents = Contents {
        created_unix_ms: 1_700_000_000_000,
        parent: None,
        depth: 0,
        command: name.to_owned(),
        tasks: 1,
        threads: 5,
        pages: number(0),
        zero_pages: 1,
        unchanged_pages: 2,
        stored_pages: 3,
        uploaded_bytes: number(1),
        upload_bytes_per_second: number(2),
        files: 4,
    };
    let mut report = Report {
        app: name.to_owned(),
        checkpoint: "01M83AB67XG5WBS9SE9SYNGCYT".to_owned(),
        contents: Some(contents),
        taken: Some(taken),
        restores: 1,
        restore: Some("01M83AB8MY".to_owned()),
        run: Some(run),
        pages: Some(pages),
        blackout: None,
        unknown: vec![name.to_owned()],
    };
    report.blackout = Blackout::of(&report);
    report
}

/// The names of the elements and all text of a page. Fails if it is not well formed.
fn parsed(html: &str) -> (Vec<String>, String) {
    let mut reader = Reader::from_str(html);
    let (mut names, mut open, mut text) = (Vec::new(), Vec::new(), String::new());
    loop {
        match reader.read_event().unwrap() {
            Event::Eof => break,
            Event::Start(element) => {
                open.push(element.name().as_ref().to_vec());
                names.push(String::from_utf8(element.name().as_ref().to_vec()).unwrap());
                element.attributes().for_each(|attribute| drop(attribute.unwrap()));
            }
            Event::Empty(element) => {
                names.push(String::from_utf8(element.name().as_ref().to_vec()).unwrap());
                element.attributes().for_each(|attribute| drop(attribute.unwrap()));
            }
            Event::End(element) => assert_eq!(open.pop().as_deref(), Some(element.name().as_ref())),
            Event::Text(part) => text.push_str(&String::from_utf8_lossy(&part)),
            Event::GeneralRef(part) => match &*part {
                b"amp" => text.push('&'),
                b"lt" => text.push('<'),
                b"gt" => text.push('>'),
                b"quot" => text.push('"'),
                b"#39" => text.push('\''),
                other => panic!("{other:?} means nothing"),
            },
            Event::DocType(_) => {}
            other => panic!("{other:?} has no place in a report"),
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    (names, text)
}

#[test]
fn a_page_is_well_formed_shows_all_numbers_and_needs_nothing_else() {
    let report = report("cache", &[1, 20, 300]);
    assert_eq!(report.blackout.as_ref().unwrap().total_us, 600_000);
    let html = page(&report);
    let (names, seen) = parsed(&html);
    assert_eq!(names.iter().filter(|name| *name == "svg").count(), 5, "a drawing is missing");
    for never in ["script", "link", "img", "iframe", "object"] {
        assert!(!names.iter().any(|name| name == never), "{never}");
    }
    assert!(!html.contains("http") && !html.contains("url(") && !html.contains("@import"));
    for (_, value) in key_numbers(&report) {
        assert!(seen.contains(&value), "{value} is missing");
    }
    for (_, rows) in all_numbers(&report) {
        for (name, value) in rows {
            assert!(seen.contains(name) && seen.contains(&value), "{name} {value} is missing");
        }
    }
    for number in ["600 ms", "65.4 ms", "0x55c7e01e9000", "4\u{202f}242", "6 (28.6 %)"] {
        assert!(seen.contains(number), "{number} is missing");
    }
}

#[test]
fn what_is_not_known_is_left_out_and_said() {
    let mut report = report("cache", &[1]);
    (report.taken, report.run, report.pages, report.blackout) = (None, None, None, None);
    report.unknown = vec!["how the pages came".to_owned()];
    let (names, seen) = parsed(&page(&report));
    assert!(!names.iter().any(|name| name == "svg"));
    assert!(seen.contains("how the pages came") && seen.contains("no restore is known"));
    assert!(text::page(&report).contains("how the pages came"));
}

#[test]
fn parts_of_a_blackout_are_all_of_it() {
    let mut report = report("cache", &[1]);
    let blackout = report.blackout.clone().unwrap();
    assert_eq!(blackout.parts.iter().map(|part| part.took_us).sum::<u64>(), blackout.total_us);
    // A target whose clock is behind has run before the checkpoint was there: that cannot be told.
    report.run.as_mut().unwrap().begun_unix_us -= 500_000;
    assert_eq!(Blackout::of(&report), None);
    report.taken.as_mut().unwrap().left_running = true;
    assert_eq!(Blackout::of(&report), None);
}

proptest! {
    #[test]
    fn no_name_gets_out_of_its_place(name in "\\PC*|[<>&\"'\\x00-\\x1f/a-z=]{0,40}") {
        let report = report(&name, &[1, 2]);
        let (names, seen) = parsed(&page(&report));
        let (expected, _) = parsed(&page(&self::report("plain", &[1, 2])));
        prop_assert_eq!(names, expected);
        if !name.is_empty() && name.chars().all(|c| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')) {
            prop_assert!(seen.contains(&name));
        }
        let text = text::page(&report);
        prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }

    #[test]
    fn whatever_the_numbers_are_there_is_a_page(
        numbers in prop::collection::vec(any::<u64>(), 1..20),
        times in prop::collection::vec(any::<u64>(), 8),
    ) {
        let mut report = report("cache", &numbers);
        let (taken, run) = (report.taken.as_mut().unwrap(), report.run.as_mut().unwrap());
        taken.begun_unix_us = times[0];
        taken.frozen_us = times[1];
        taken.upload_us = times[2];
        taken.stages[1].to_us = times[3].max(taken.stages[1].from_us);
        run.begun_unix_us = times[4];
        run.running_us = times[5];
        let pages = report.pages.as_mut().unwrap();
        pages.begun_unix_us = times[6];
        pages.resident_us = Some(times[7]);
        pages.moments.width_us = times[7].max(1);
        pages.heat.width_us = times[6].max(1);
        pages.numbers.stalls = [u64::MAX; 6];
        pages.numbers.missing_pages = times[0];
        pages.heat.rows[0].pages = times[0];
        report.blackout = Blackout::of(&report);
        parsed(&page(&report));
        text::page(&report);
    }
}
