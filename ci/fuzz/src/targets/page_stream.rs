//! CRIU's page-server protocol. The input is which of the two layouts, how much a read gives, and what CRIU sends.

use std::io::{self, Read, Write};

use criu_rpc::{PAGE_SIZE, PageObject, PageStream, PageStreamError, Record, Version};

use crate::Target;

const NARROW: Version = Version { major: 4, minor: 1, sublevel: 1 };
const WIDE: Version = Version { major: 4, minor: 2, sublevel: 0 };

/// Nothing is allocated for a length on the wire; the bound is this file's own buffers.
pub const TARGET: Target = Target { name: "page_stream", run, seeds, memory: (16 << 10, 2) };

/// The other end, which gives the input piece by piece.
struct Peer<'i> {
    input: &'i [u8],
    piece: usize,
    answers: usize,
}

impl Read for &mut Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(buffer.len() <= PAGE_SIZE, "more is read at once than was asked for");
        let length = buffer.len().min(self.piece).min(self.input.len());
        let (now, later) = self.input.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.input = later;
        Ok(length)
    }
}

impl Write for &mut Peer<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.answers += buffer.len();
        Ok(buffer.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn run(input: &[u8]) -> bool {
    let [wide, piece, input @ ..] = input else { return false };
    let version = if wide % 2 == 0 { NARROW } else { WIDE };
    let mut peer = Peer { input, piece: usize::from(*piece) + 1, answers: 0 };
    let mut stream = PageStream::new(&mut peer, version);
    let mut open = None;
    let mut opened = 0;
    let whole = loop {
        match stream.next() {
            Ok(Record::Open(object)) => {
                if let PageObject::Task(pid) = object {
                    assert!(pid != 0 && i32::try_from(pid).is_ok());
                }
                opened += 1;
                open = Some(object);
            }
            Ok(Record::Pages { vaddr, pages, .. }) => {
                assert!(open.is_some() && pages != 0 && vaddr.is_multiple_of(PAGE_SIZE as u64));
                let end = pages.checked_mul(PAGE_SIZE as u64).and_then(|bytes| vaddr.checked_add(bytes));
                assert!(end.is_some_and(|end| end <= 1 << 57));
                if !read(&mut stream, pages) {
                    break false;
                }
            }
            Ok(Record::Close) => stream.finish(0).expect("a status is owed"),
            Ok(Record::End) => break true,
            Err(error) => {
                assert!(!matches!(error, PageStreamError::OutOfOrder(_)), "every call was in order");
                break false;
            }
        }
    };
    // One byte for each opening, four for the status.
    assert!(!whole || (peer.input.is_empty() && peer.answers == opened + 4));
    whole
}

/// Reads all pages of a record; whether they all came.
fn read(stream: &mut PageStream<&mut Peer<'_>>, pages: u64) -> bool {
    let mut page = [0; PAGE_SIZE];
    for _ in 0..pages {
        match stream.read_pages(&mut page) {
            Ok(()) => {}
            Err(PageStreamError::ClosedEarly) => return false,
            Err(other) => panic!("pages that were announced cannot be read: {other}"),
        }
    }
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let (open, add, close) = (4, 6, 0x1024);
    let mut seeds = Vec::new();
    for wide in [0, 1] {
        let record = |command: u16, flags: u16, pages: u32, vaddr: u64, object: u64| {
            let mut bytes = [command.to_ne_bytes(), flags.to_ne_bytes()].concat();
            if wide == 1 {
                bytes.extend([0; 4]);
                bytes.extend(u64::from(pages).to_ne_bytes());
            } else {
                bytes.extend(pages.to_ne_bytes());
            }
            bytes.extend(vaddr.to_ne_bytes());
            bytes.extend(object.to_ne_bytes());
            bytes
        };
        seeds.push(
            [
                vec![wide, 99],
                record(open, 0, 0, 0, 77 << 8 | 1),
                record(add, 6, 1, 0x7000_0000, 77 << 8 | 1),
                vec![1; PAGE_SIZE],
                record(open, 0, 0, 0, 5 << 8 | 2),
                record(add, 4, 2, 0, 5 << 8 | 2),
                vec![2; 2 * PAGE_SIZE],
                record(close, 0, 0, 0, 0),
            ]
            .concat(),
        );
        let (first, last) = (record(open, 0, 0, 0, 77 << 8 | 1), record(close, 0, 0, 0, 0));
        seeds.push([vec![wide, 255], first, last].concat());
    }
    seeds
}
