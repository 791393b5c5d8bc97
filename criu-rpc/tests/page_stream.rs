//! The page-server wire by itself: both layouts, and hostile bytes.

use std::io::{self, Read, Write};

use criu_rpc::{PAGE_SIZE, PageObject, PageStream, PageStreamError, Record, Version};
use proptest::prelude::*;

const NARROW: Version = Version { major: 4, minor: 1, sublevel: 1 };
const WIDE: Version = Version { major: 4, minor: 2, sublevel: 0 };

/// A socket that plays back bytes, keeps answers, and counts reads.
struct Script {
    input: Vec<u8>,
    position: usize,
    /// Most bytes one read gives.
    piece: usize,
    answers: Vec<u8>,
    reads: usize,
    largest_read: usize,
}

impl Script {
    fn new(input: Vec<u8>) -> Self {
        Self { input, position: 0, piece: usize::MAX, answers: Vec::new(), reads: 0, largest_read: 0 }
    }
}

impl Read for &mut Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        self.largest_read = self.largest_read.max(buffer.len());
        let length = buffer.len().min(self.piece).min(self.input.len() - self.position);
        buffer[..length].copy_from_slice(&self.input[self.position..self.position + length]);
        self.position += length;
        Ok(length)
    }
}

impl Write for &mut Script {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.answers.extend_from_slice(buffer);
        Ok(buffer.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn record(version: Version, command: u16, flags: u16, pages: u64, vaddr: u64, object: u64) -> Vec<u8> {
    let word = u32::from(command) | u32::from(flags) << 16;
    let mut bytes = word.to_ne_bytes().to_vec();
    if version >= WIDE {
        bytes.extend([0; 4]);
        bytes.extend(pages.to_ne_bytes());
    } else {
        bytes.extend((pages as u32).to_ne_bytes());
    }
    bytes.extend(vaddr.to_ne_bytes());
    bytes.extend(object.to_ne_bytes());
    bytes
}

const OPEN2: u16 = 4;
const ADD_F: u16 = 6;
const FORCE_CLOSE: u16 = 0x1024;

/// A task with two runs of pages, a shared object with one, and the end.
fn conversation(version: Version) -> Vec<u8> {
    let pages = |count: usize, seed: u8| vec![seed; count * PAGE_SIZE];
    [
        record(version, OPEN2, 0, 0, 0, 77 << 8 | 1),
        record(version, ADD_F, 6, 3, 0x7000_0000, 77 << 8 | 1),
        pages(3, 1),
        record(version, ADD_F, 4, 1, 0x7fff_0000_0000, 77 << 8 | 1),
        pages(1, 2),
        record(version, OPEN2, 0, 0, 0, 5 << 8 | 2),
        record(version, ADD_F, 4, 2, 0, 5 << 8 | 2),
        pages(2, 3),
        record(version, FORCE_CLOSE, 0, 0, 0, 0),
    ]
    .concat()
}

#[test]
fn both_layouts_tell_the_same_story() {
    for (version, header) in [(NARROW, 24), (WIDE, 32)] {
        for piece in [usize::MAX, 5000, 7] {
            let mut script = Script { piece, ..Script::new(conversation(version)) };
            let mut stream = PageStream::new(&mut script, version);
            let mut buffer = vec![0; 3 * PAGE_SIZE];
            assert_eq!(stream.next().unwrap(), Record::Open(PageObject::Task(77)));
            assert_eq!(stream.next().unwrap(), Record::Pages { vaddr: 0x7000_0000, pages: 3, lazy: true });
            stream.read_pages(&mut buffer).unwrap();
            assert!(buffer.iter().all(|&byte| byte == 1));
            assert_eq!(
                stream.next().unwrap(),
                Record::Pages { vaddr: 0x7fff_0000_0000, pages: 1, lazy: false }
            );
            stream.read_pages(&mut buffer[..PAGE_SIZE]).unwrap();
            assert!(buffer[..PAGE_SIZE].iter().all(|&byte| byte == 2));
            assert_eq!(stream.next().unwrap(), Record::Open(PageObject::Shared(5)));
            assert_eq!(stream.next().unwrap(), Record::Pages { vaddr: 0, pages: 2, lazy: false });
            stream.read_pages(&mut buffer[..100]).unwrap();
            stream.read_pages(&mut []).unwrap();
            stream.read_pages(&mut buffer[100..2 * PAGE_SIZE]).unwrap();
            assert!(buffer[..2 * PAGE_SIZE].iter().all(|&byte| byte == 3));
            assert_eq!(stream.next().unwrap(), Record::Close);
            stream.finish(-5).unwrap();
            assert_eq!(stream.next().unwrap(), Record::End);
            // Two objects without a parent, and the status.
            assert_eq!(script.answers, [&[0, 0][..], &(-5i32).to_ne_bytes()].concat());
            if piece == usize::MAX {
                // One read for each of six headers and the end, one for each piece of pages.
                assert_eq!(script.reads, 7 + 4, "with headers of {header} bytes");
            }
        }
    }
}

/// What a stream of one task says to a record after its opening.
fn after_open(bytes: Vec<u8>) -> PageStreamError {
    let mut script = Script::new([record(WIDE, OPEN2, 0, 0, 0, 1 << 8 | 1), bytes].concat());
    let mut stream = PageStream::new(&mut script, WIDE);
    stream.next().unwrap();
    stream.next().unwrap_err()
}

#[test]
fn what_is_not_understood_is_refused() {
    let pages = |flags, count, vaddr| after_open(record(WIDE, ADD_F, flags, count, vaddr, 1 << 8 | 1));
    assert!(matches!(pages(1, 1, 0x1000), PageStreamError::NoContent { .. }), "pages of a parent");
    assert!(matches!(pages(2, 1, 0x1000), PageStreamError::NoContent { .. }), "lazy pages without content");
    assert!(matches!(pages(5, 1, 0x1000), PageStreamError::NoContent { .. }));
    assert!(matches!(pages(4 | 8, 1, 0x1000), PageStreamError::UnexpectedCommand { .. }));
    assert!(matches!(pages(4, 0, 0x1000), PageStreamError::BadRange { .. }));
    assert!(matches!(pages(4, 1, 0x1001), PageStreamError::BadRange { .. }));
    assert!(matches!(pages(4, u64::MAX, 0x1000), PageStreamError::BadRange { .. }));
    assert!(matches!(pages(4, 1 << 52, 0x1000), PageStreamError::BadRange { .. }));
    assert!(matches!(pages(4, 1, u64::MAX - 4095), PageStreamError::BadRange { .. }));
    for command in [0, 1, 2, 3, 5, 7, 8, 0x1022, 0x1025, 0xffff] {
        let error = after_open(record(WIDE, command, 4, 1, 0x1000, 1 << 8 | 1));
        assert!(matches!(error, PageStreamError::UnexpectedCommand { command: c, .. } if c == command));
    }
    for object in [0, 1, 1 << 8, 1 << 8 | 3, (1 << 31) << 8 | 1, u64::MAX] {
        let error = after_open(record(WIDE, OPEN2, 0, 0, 0, object));
        assert!(matches!(error, PageStreamError::BadObject(id) if id == object), "{object:#x}: {error:?}");
    }
}

#[test]
fn an_end_before_the_close_is_an_error_wherever_it_comes() {
    let whole = conversation(WIDE);
    for length in 0..whole.len() {
        let mut script = Script::new(whole[..length].to_vec());
        assert!(matches!(drain(&mut script, WIDE), Err(PageStreamError::ClosedEarly)), "at {length}");
    }
    drain(&mut Script::new(whole), WIDE).unwrap();
}

#[test]
fn calls_out_of_order_are_refused_and_change_nothing() {
    let mut script = Script::new(conversation(WIDE));
    let mut stream = PageStream::new(&mut script, WIDE);
    assert!(matches!(stream.finish(0), Err(PageStreamError::OutOfOrder(_))));
    assert!(matches!(stream.read_pages(&mut [0]), Err(PageStreamError::OutOfOrder(_))));
    stream.next().unwrap();
    stream.next().unwrap();
    assert!(matches!(stream.next(), Err(PageStreamError::OutOfOrder(_))));
    assert!(matches!(
        stream.read_pages(&mut vec![0; 3 * PAGE_SIZE + 1]),
        Err(PageStreamError::OutOfOrder(_))
    ));
    stream.read_pages(&mut vec![0; 3 * PAGE_SIZE]).unwrap();
    assert_eq!(stream.next().unwrap(), Record::Pages { vaddr: 0x7fff_0000_0000, pages: 1, lazy: false });
}

#[test]
fn an_opened_object_is_answered_only_with_the_following_call() {
    let mut script = Script::new(conversation(WIDE));
    let mut stream = PageStream::new(&mut script, WIDE);
    assert_eq!(stream.next().unwrap(), Record::Open(PageObject::Task(77)));
    assert_eq!(script.answers, [0; 0]);
    script.position = 0;
    let mut stream = PageStream::new(&mut script, WIDE);
    stream.next().unwrap();
    stream.next().unwrap();
    assert_eq!(script.answers, [0]);
}

#[test]
fn pages_before_any_object_are_refused() {
    let mut script = Script::new(record(WIDE, ADD_F, 4, 1, 0x1000, 1 << 8 | 1));
    let error = PageStream::new(&mut script, WIDE).next().unwrap_err();
    assert!(matches!(error, PageStreamError::NoObject));
}

/// Reads a stream to its end through a small buffer.
fn drain(script: &mut Script, version: Version) -> Result<(), PageStreamError> {
    let mut stream = PageStream::new(script, version);
    let mut buffer = [0; PAGE_SIZE];
    loop {
        match stream.next()? {
            Record::Open(_) => {}
            Record::Pages { pages, .. } => {
                for _ in 0..pages {
                    stream.read_pages(&mut buffer)?;
                }
            }
            Record::Close => stream.finish(0)?,
            Record::End => return Ok(()),
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_are_never_a_whole_dump(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        wide in any::<bool>(),
    ) {
        let version = if wide { WIDE } else { NARROW };
        let mut script = Script::new(bytes);
        prop_assert!(drain(&mut script, version).is_err());
        prop_assert!(script.largest_read <= PAGE_SIZE);
    }

    #[test]
    fn records_with_random_fields_never_panic(
        records in proptest::collection::vec((0u16..8, 0u16..16, any::<u64>(), any::<u64>(), 0u64..2048), 1..20),
        wide in any::<bool>(),
    ) {
        let version = if wide { WIDE } else { NARROW };
        let bytes = records
            .into_iter()
            .flat_map(|(command, flags, pages, vaddr, object)| record(version, command, flags, pages, vaddr, object));
        let mut script = Script::new(bytes.collect());
        prop_assert!(drain(&mut script, version).is_err());
        prop_assert!(script.largest_read <= PAGE_SIZE);
    }
}
