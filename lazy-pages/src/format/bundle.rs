//! The bundle: CRIU's images other than pages, in one object.
//!
//! A header (magic, version, plain length), then a zstd frame over the entries: name length, name, content length,
//! content. Names are plain file names, so unpacking into a directory cannot leave it. Nothing is unpacked beyond the
//! promised length, and no promise beyond [`MAX_PLAIN`] is believed.

use std::io::Read;

use bytes::{Buf, Bytes};

/// Plain bytes of all files together, at most. Large content (ghost files, queued data) belongs elsewhere.
pub const MAX_PLAIN: u64 = 1 << 30;

/// Bytes of a packed bundle at most: zstd may add a little to what it cannot shrink.
pub const MAX_PACKED: u64 = MAX_PLAIN + MAX_PLAIN / 64;

const MAGIC: [u8; 8] = *b"LPBUNDLE";
const VERSION: u32 = 1;
const MAX_NAME: usize = 255;
/// Images are small and the tree is frozen while they are packed.
const ZSTD_LEVEL: i32 = 1;
/// What a bundle may ask of its reader before any content comes: a window of 8 MiB. [`ZSTD_LEVEL`] uses half a MiB.
const WINDOW_LOG: u32 = 23;

/// A file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name, without directories.
    pub name: String,
    /// Its content.
    pub content: Bytes,
}

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be unpacked as it is.
    #[error("the bundle is damaged: {0}")]
    Damaged(String),
    /// Made by a newer version of this software.
    #[error("the bundle has format version {found}; this program reads version {VERSION}")]
    UnknownVersion {
        /// The version found.
        found: u32,
    },
    /// A name that is not a plain file name, or is there twice.
    #[error("the bundle holds a file named {0:?}, which is not a plain new file name")]
    Name(String),
    /// More than [`MAX_PLAIN`] bytes.
    #[error("the images take more than {MAX_PLAIN} bytes")]
    TooLarge,
    /// Compression failed.
    #[error("the bundle cannot be compressed: {0}")]
    Compress(std::io::Error),
}

/// Packs files in the order given.
///
/// # Errors
/// When a name is not plain or there twice, or all is too large.
pub fn pack(files: impl IntoIterator<Item = File>) -> Result<Bytes, BundleError> {
    let mut names = Names::default();
    let mut plain = Vec::new();
    for File { name, content } in files {
        names.add(&name)?;
        plain.extend((name.len() as u16).to_le_bytes());
        plain.extend(name.as_bytes());
        plain.extend((content.len() as u64).to_le_bytes());
        plain.extend(content);
        if plain.len() as u64 > MAX_PLAIN {
            return Err(BundleError::TooLarge);
        }
    }
    let mut packed = Vec::with_capacity(plain.len() / 4 + 64);
    packed.extend(MAGIC);
    packed.extend(VERSION.to_le_bytes());
    packed.extend((plain.len() as u64).to_le_bytes());
    packed.extend(zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(BundleError::Compress)?);
    Ok(packed.into())
}

/// Unpacks a bundle. The contents share one buffer.
///
/// # Errors
/// When anything is not as [`pack`] writes it.
pub fn unpack(packed: &[u8]) -> Result<Vec<File>, BundleError> {
    let damaged = |what: &str| BundleError::Damaged(what.to_owned());
    let (magic, rest) = packed.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut short"))?;
    if *magic != MAGIC {
        return Err(damaged("it does not start like one"));
    }
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut short"))?;
    let found = u32::from_le_bytes(*version);
    if found != VERSION {
        return Err(BundleError::UnknownVersion { found });
    }
    let (length, frame) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut short"))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_PLAIN {
        return Err(BundleError::TooLarge);
    }
    // Grows as data comes, so a promise alone costs nothing; one byte more than promised shows that there is more.
    let mut plain = Vec::new();
    let unpacked = zstd::Decoder::with_buffer(frame).and_then(|mut decoder| {
        decoder.window_log_max(WINDOW_LOG)?;
        decoder.single_frame().take(length + 1).read_to_end(&mut plain)
    });
    unpacked.map_err(|error| BundleError::Damaged(error.to_string()))?;
    if plain.len() as u64 != length {
        return Err(damaged("it does not unpack to the promised length"));
    }
    entries(plain.into())
}

fn entries(mut plain: Bytes) -> Result<Vec<File>, BundleError> {
    let short = || BundleError::Damaged("an entry is cut short".to_owned());
    let mut names = Names::default();
    let mut files = Vec::new();
    while plain.has_remaining() {
        let length = usize::from(plain.try_get_u16_le().map_err(|_| short())?);
        if length > plain.len() {
            return Err(short());
        }
        let name = String::from_utf8(plain.split_to(length).into())
            .map_err(|error| BundleError::Name(error.to_string()))?;
        names.add(&name)?;
        let length = plain.try_get_u64_le().map_err(|_| short())?;
        let length =
            usize::try_from(length).ok().filter(|length| *length <= plain.len()).ok_or_else(short)?;
        files.push(File { name, content: plain.split_to(length) });
    }
    Ok(files)
}

/// Whether a file of this name is in the directory it is put into, and nowhere else.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Names seen so far, each of which must be new and plain.
#[derive(Default)]
struct Names(std::collections::HashSet<String>);

impl Names {
    fn add(&mut self, name: &str) -> Result<(), BundleError> {
        if is_plain_name(name) && self.0.insert(name.to_owned()) {
            Ok(())
        } else {
            Err(BundleError::Name(name.to_owned()))
        }
    }
}
