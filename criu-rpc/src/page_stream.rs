//! The receiving end of a dump's memory: the page-server side of CRIU's wire, over our end of a socketpair.
//!
//! CRIU sends fixed-size records in native byte order, one object (a task's memory or a shared object) after another, each
//! record of pages followed by their bytes. The tree is frozen meanwhile, so a record costs one read for its header and
//! its bytes go straight into the caller's buffer; nothing is allocated.
//!
//! What always holds: a length on the wire is never trusted with memory; every record is either understood in full or an
//! error. After an error the stream is of no use: drop it, and CRIU fails the dump and lets the tree run on. The same is
//! true when the caller dies. The status given to [`PageStream::finish`] decides over the dump.

use std::io::{self, Read, Write};

use crate::{PAGE_SIZE, version::Version};

/// Bytes of a record since 4.2: `u32 cmd, u32 padding, u64 nr_pages, u64 vaddr, u64 dst_id`.
const WIDE_RECORD: usize = 32;
/// Bytes of a record before: `u32 cmd, u32 nr_pages, u64 vaddr, u64 dst_id`.
const NARROW_RECORD: usize = 24;

/// Starts an object; the answer is one byte, whether its parent's pages are here.
const OPEN2: u16 = 4;
/// Pages of the current object.
const ADD_F: u16 = 6;
/// End of a dump over TCP, answered with a status.
const CLOSE: u16 = 0x1023;
/// End of a dump over a descriptor, answered with a status.
const FORCE_CLOSE: u16 = 0x1024;

const PE_PARENT: u16 = 1;
const PE_LAZY: u16 = 2;
const PE_PRESENT: u16 = 4;

const TYPE_TASK: u64 = 1;
const TYPE_SHARED: u64 = 2;

/// No address space of a supported architecture goes beyond.
const ADDRESS_LIMIT: u64 = 1 << 57;

/// What pages belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageObject {
    /// Memory of the task with this process id, as in the images.
    Task(u32),
    /// A shared memory object or memfd with this `shmid`; addresses are offsets in it.
    Shared(u64),
}

/// What CRIU sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The next pages belong to this object. CRIU waits, and looks at none of its pages, until [`PageStream::next`] is
    /// called again. The first object, be it a task's or shared, is opened when every task is frozen and no private page
    /// of any of them has been looked at.
    Open(PageObject),
    /// `pages` pages from `vaddr`; their bytes are to be read with [`PageStream::read_pages`] before the next record.
    Pages {
        /// Address of the first page, in bytes, a multiple of the page size.
        vaddr: u64,
        /// Their number, not zero.
        pages: u64,
        /// Whether a restore may do without them at first.
        lazy: bool,
    },
    /// Everything has been sent. CRIU waits, the tree frozen, for [`PageStream::finish`].
    Close,
    /// CRIU has taken the status and closed its end.
    End,
}

/// Why a page stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum PageStreamError {
    /// The socket failed.
    #[error("cannot read criu's page stream")]
    Io(#[from] io::Error),
    /// CRIU gave up or died.
    #[error("criu closed the page stream before its end")]
    ClosedEarly,
    /// A command this side does not serve.
    #[error("criu sent the unexpected command {command:#x} with flags {flags:#x} in its page stream")]
    UnexpectedCommand {
        /// Low half of the first word.
        command: u16,
        /// High half.
        flags: u16,
    },
    /// Pages that are not in the stream but elsewhere.
    #[error("criu sent pages at {vaddr:#x} without their content (flags {flags:#x})")]
    NoContent {
        /// Where.
        vaddr: u64,
        /// PE_* flags.
        flags: u16,
    },
    /// A range that cannot exist.
    #[error("criu sent an impossible range of {pages} pages at {vaddr:#x}")]
    BadRange {
        /// Where.
        vaddr: u64,
        /// How many.
        pages: u64,
    },
    /// An object of an unknown kind.
    #[error("criu sent the unknown object id {0:#x}")]
    BadObject(u64),
    /// Pages before any object.
    #[error("criu sent pages before it said what they belong to")]
    NoObject,
    /// The caller's order of calls is wrong: not the time for this one.
    #[error("page stream used out of order: {0}")]
    OutOfOrder(&'static str),
}

fn record_length(version: Version) -> usize {
    if version >= Version::WIDE_PAGE_COUNTS { WIDE_RECORD } else { NARROW_RECORD }
}

/// What ends the service of CRIU when it is the page server.
pub(crate) fn close_record(version: Version) -> &'static [u8] {
    const RECORD: [u8; WIDE_RECORD] = {
        let mut record = [0; WIDE_RECORD];
        [record[0], record[1]] = CLOSE.to_ne_bytes();
        record
    };
    &RECORD[..record_length(version)]
}

/// Where in the conversation we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    BeforeFirstObject,
    /// CRIU has opened an object and waits for an answer.
    AnswerOwed,
    InObject,
    /// So many bytes of the current record have not been read.
    InPages(u64),
    StatusOwed,
    Finished,
}

/// CRIU's page stream.
#[derive(Debug)]
pub struct PageStream<S: Read + Write> {
    socket: S,
    record_length: usize,
    state: State,
}

impl<S: Read + Write> PageStream<S> {
    /// Over our end of the socketpair whose other end was given to
    /// [`DumpOptions::page_server`](crate::DumpOptions::page_server); `version` is that of the CRIU that dumps.
    pub fn new(socket: S, version: Version) -> Self {
        let record_length = record_length(version);
        Self { socket, record_length, state: State::BeforeFirstObject }
    }

    /// The next record. Blocks, and answers what CRIU asks in between.
    ///
    /// # Errors
    /// When CRIU closes its end early or sends what this side does not understand, or pages are left to be read.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Record, PageStreamError> {
        match self.state {
            State::InPages(_) => return Err(PageStreamError::OutOfOrder("pages are left to be read")),
            State::StatusOwed => return Err(PageStreamError::OutOfOrder("criu waits for a status")),
            State::AnswerOwed => {
                // No: pages of a parent are never left out.
                self.socket.write_all(&[0])?;
                self.state = State::InObject;
            }
            _ => {}
        }
        let mut buffer = [0; WIDE_RECORD];
        let record = &mut buffer[..self.record_length];
        match (self.fill(record)?, self.state) {
            (0, State::Finished) => return Ok(Record::End),
            (length, _) if length < record.len() => return Err(PageStreamError::ClosedEarly),
            _ => {}
        }
        let (command, flags, pages, vaddr, object) = split_record(record);
        match (command, self.state) {
            (_, State::Finished) => Err(PageStreamError::UnexpectedCommand { command, flags }),
            (OPEN2, _) => {
                let object = parse_object(object)?;
                self.state = State::AnswerOwed;
                Ok(Record::Open(object))
            }
            (ADD_F, State::BeforeFirstObject) => Err(PageStreamError::NoObject),
            (ADD_F, _) => self.start_pages(flags, vaddr, pages),
            (CLOSE | FORCE_CLOSE, _) => {
                self.state = State::StatusOwed;
                Ok(Record::Close)
            }
            _ => Err(PageStreamError::UnexpectedCommand { command, flags }),
        }
    }

    /// Fills `buffer` with the next bytes of the current record of pages. May be called several times for a record.
    ///
    /// # Errors
    /// When CRIU closes its end early, or `buffer` is longer than what is left of the record.
    pub fn read_pages(&mut self, buffer: &mut [u8]) -> Result<(), PageStreamError> {
        let State::InPages(left) = self.state else {
            return if buffer.is_empty() {
                Ok(())
            } else {
                Err(PageStreamError::OutOfOrder("there are no pages to be read"))
            };
        };
        let left = left
            .checked_sub(buffer.len() as u64)
            .ok_or(PageStreamError::OutOfOrder("more pages asked for than sent"))?;
        if self.fill(buffer)? < buffer.len() {
            return Err(PageStreamError::ClosedEarly);
        }
        self.state = if left == 0 { State::InObject } else { State::InPages(left) };
        Ok(())
    }

    /// Answers [`Record::Close`]. 0 lets the dump go on; with anything else it fails and the tree runs on. The next record
    /// is [`Record::End`].
    ///
    /// # Errors
    /// When CRIU does not wait for a status, or is gone.
    pub fn finish(&mut self, status: i32) -> Result<(), PageStreamError> {
        if self.state != State::StatusOwed {
            return Err(PageStreamError::OutOfOrder("criu does not wait for a status"));
        }
        self.socket.write_all(&status.to_ne_bytes())?;
        self.state = State::Finished;
        Ok(())
    }

    fn start_pages(&mut self, flags: u16, vaddr: u64, pages: u64) -> Result<Record, PageStreamError> {
        if flags & PE_PARENT != 0 || flags & PE_PRESENT == 0 {
            return Err(PageStreamError::NoContent { vaddr, flags });
        }
        if flags & !(PE_LAZY | PE_PRESENT) != 0 {
            return Err(PageStreamError::UnexpectedCommand { command: ADD_F, flags });
        }
        let bad_range = PageStreamError::BadRange { vaddr, pages };
        let Some(bytes) = pages.checked_mul(PAGE_SIZE as u64).filter(|&bytes| bytes != 0) else {
            return Err(bad_range);
        };
        let end = vaddr.checked_add(bytes);
        if !vaddr.is_multiple_of(PAGE_SIZE as u64) || end.is_none_or(|end| end > ADDRESS_LIMIT) {
            return Err(bad_range);
        }
        self.state = State::InPages(bytes);
        Ok(Record::Pages { vaddr, pages, lazy: flags & PE_LAZY != 0 })
    }

    /// Reads until `buffer` is full or the other end is closed; returns the number of bytes read.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, PageStreamError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.socket.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled)
    }
}

/// Command, flags, page count, address and object id of a record of either layout.
fn split_record(record: &[u8]) -> (u16, u16, u64, u64, u64) {
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| record[at + i]));
    let long = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| record[at + i]));
    let (command, flags) = (word(0) as u16, (word(0) >> 16) as u16);
    if record.len() == WIDE_RECORD {
        (command, flags, long(8), long(16), long(24))
    } else {
        (command, flags, word(4).into(), long(8), long(16))
    }
}

fn parse_object(id: u64) -> Result<PageObject, PageStreamError> {
    let bad = PageStreamError::BadObject(id);
    match (id & 0xff, id >> 8) {
        (TYPE_TASK, pid) => match u32::try_from(pid) {
            Ok(pid) if pid != 0 && i32::try_from(pid).is_ok() => Ok(PageObject::Task(pid)),
            _ => Err(bad),
        },
        (TYPE_SHARED, shmid) => Ok(PageObject::Shared(shmid)),
        _ => Err(bad),
    }
}
