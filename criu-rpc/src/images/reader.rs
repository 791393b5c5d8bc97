//! The frame around every image file: one or two magic numbers, then entries of a length and a protobuf message.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use prost::Message;

/// First word of an image whose second word tells its type.
const COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of files that are not images proper, such as statistics.
const SERVICE_MAGIC: u32 = 0x5510_5940;

/// Why an image file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("cannot open the image {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read the image {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write the image {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the image {} is corrupt: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It was written in a way this reader does not know.
    #[error("the image {} cannot be read: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it has.
        reason: String,
    },
}

/// Which magic numbers a file starts with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Magic {
    /// This one alone: the inventory.
    Alone(u32),
    /// The common one, then this.
    Image(u32),
    /// The one of service files, then this.
    Service(u32),
}

/// The entries of an image file, one after another.
#[derive(Debug)]
pub(crate) struct Entries<R> {
    reader: R,
    /// Bytes of the file after the current position.
    left: u64,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Entries<BufReader<File>> {
    /// Opens an image file and checks its magic.
    pub(crate) fn open(path: PathBuf, magic: Magic) -> Result<Self, ImageError> {
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, file)) if metadata.is_file() => {
                Self::new(BufReader::new(file), metadata.len(), path, magic)
            }
            Ok(_) => Err(ImageError::Corrupt { path, reason: "it is not a regular file".to_owned() }),
            Err(source) => Err(ImageError::Open { path, source }),
        }
    }
}

impl<R: Read> Entries<R> {
    /// Entries of `length` bytes from `reader`; `path` is for messages.
    pub(crate) fn new(reader: R, length: u64, path: PathBuf, magic: Magic) -> Result<Self, ImageError> {
        let mut entries = Self { reader, left: length, path, buffer: Vec::new() };
        match magic {
            Magic::Alone(magic) => entries.expect_magic(magic)?,
            Magic::Image(magic) => {
                entries.expect_magic(COMMON_MAGIC)?;
                entries.expect_magic(magic)?;
            }
            Magic::Service(magic) => {
                entries.expect_magic(SERVICE_MAGIC)?;
                entries.expect_magic(magic)?;
            }
        }
        Ok(entries)
    }

    /// The file's name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the next entry, which may have at most `limit`; `None` at the end of the file.
    pub(crate) fn next_bytes(&mut self, limit: u32) -> Result<Option<&[u8]>, ImageError> {
        if self.left == 0 {
            return Ok(None);
        }
        let length = self.word("the length of an entry")?;
        if length > limit || u64::from(length) > self.left {
            return Err(self.corrupt(format!("an entry of {length} bytes where {} are left", self.left)));
        }
        self.buffer.resize(length as usize, 0);
        self.reader
            .read_exact(&mut self.buffer)
            .map_err(|source| ImageError::Read { path: self.path.clone(), source })?;
        self.left -= u64::from(length);
        Ok(Some(&self.buffer))
    }

    /// The next entry as a message.
    pub(crate) fn next<M: Message + Default>(&mut self, limit: u32) -> Result<Option<M>, ImageError> {
        let decoded = match self.next_bytes(limit)? {
            None => return Ok(None),
            Some(bytes) => M::decode(bytes),
        };
        decoded.map(Some).map_err(|error| self.corrupt(error.to_string()))
    }

    /// The only entry of a file.
    pub(crate) fn single<M: Message + Default>(mut self, limit: u32) -> Result<(M, PathBuf), ImageError> {
        let entry = self.next(limit)?.ok_or_else(|| self.corrupt("it has no entry".to_owned()))?;
        if self.left != 0 {
            return Err(self.corrupt("it has more than one entry".to_owned()));
        }
        Ok((entry, self.path))
    }

    pub(crate) fn corrupt(&self, reason: String) -> ImageError {
        ImageError::Corrupt { path: self.path.clone(), reason }
    }

    fn expect_magic(&mut self, magic: u32) -> Result<(), ImageError> {
        let found = self.word("its magic number")?;
        if found == magic {
            Ok(())
        } else {
            Err(self.corrupt(format!("its magic number is {found:#x}, not {magic:#x}")))
        }
    }

    fn word(&mut self, what: &str) -> Result<u32, ImageError> {
        let mut word = [0; 4];
        if self.left < word.len() as u64 {
            return Err(self.corrupt(format!("it ends within {what}")));
        }
        self.reader
            .read_exact(&mut word)
            .map_err(|source| ImageError::Read { path: self.path.clone(), source })?;
        self.left -= word.len() as u64;
        Ok(u32::from_ne_bytes(word))
    }
}

/// The magic numbers at the start of an image to be written.
pub(crate) fn image_header(magic: u32) -> [u8; 8] {
    let mut header = [0; 8];
    header[..4].copy_from_slice(&COMMON_MAGIC.to_ne_bytes());
    header[4..].copy_from_slice(&magic.to_ne_bytes());
    header
}

/// A field that CRIU always writes.
pub(crate) fn required<T>(field: Option<T>, name: &str, path: &Path) -> Result<T, ImageError> {
    field.ok_or_else(|| ImageError::Corrupt { path: path.to_owned(), reason: format!("{name} is missing") })
}

/// The contents of every length-delimited field `number` at the top level of a message, in order. Unlike a repeated field
/// decoded as a whole this takes no memory for them.
pub(crate) fn each_field<'a>(
    mut message: &'a [u8],
    number: u64,
    mut take: impl FnMut(&'a [u8]) -> Result<(), String>,
) -> Result<(), String> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => drop(varint(&mut message)?),
            1 => drop(split(&mut message, 8)?),
            2 => {
                let length = varint(&mut message)?;
                let content = split(&mut message, length)?;
                if key >> 3 == number {
                    take(content)?;
                }
            }
            5 => drop(split(&mut message, 4)?),
            other => return Err(format!("a field of the unknown wire type {other}")),
        }
    }
    Ok(())
}

fn split<'a>(message: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let length = usize::try_from(length).ok().filter(|&length| length <= message.len());
    let (content, rest) = message.split_at(length.ok_or("a field longer than its message")?);
    *message = rest;
    Ok(content)
}

fn varint(message: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for (index, &byte) in message.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *message = &message[index + 1..];
            return Ok(value);
        }
    }
    Err("a number without an end".to_owned())
}
