//! Checking that a checkpoint can be restored, without restoring it.
//!
//! The manifest's rules were checked when the checkpoint was opened. The quick check reads the bundle and the page
//! hashes, and looks whether every pack is there in its full length. With `read_data` every frame is fetched, unpacked
//! and hashed, and every page's hash is compared with the one in the hashes object, so that a bit changed anywhere is
//! found.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use serde::Serialize;

use crate::{
    format::{FilePolicy, Manifest, PageHash, Source, keys},
    ids::PackId,
    reader::{Checkpoint, ReadError},
    store::StoreError,
};

/// What was checked and found good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Packs that are there in full length.
    pub packs: u64,
    /// Bytes in them.
    pub pack_bytes: u64,
    /// Frames it refers to.
    pub frames: u64,
    /// Frames of these that were read and compared with their hashes.
    pub frames_read: u64,
    /// Files in the bundle.
    pub bundle_files: u64,
    /// Files that travel with it; their content is in the frames.
    pub files: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packs, frames, frames_read, bundle_files, files, .. } = self;
        write!(
            f,
            "{packs} packs, {frames} frames ({frames_read} of them read), {bundle_files} images, {files} files"
        )
    }
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Frames read.
    pub frames: u64,
    /// Frames to read.
    pub of: u64,
}

/// Checks `checkpoint`. Everything that is wrong is found, not only the first thing.
///
/// # Errors
/// [`VerifyError::Damaged`] when anything is missing or was changed; [`VerifyError::Read`] when the store fails
/// otherwise, which says nothing about the checkpoint.
pub async fn verify(
    checkpoint: &Checkpoint,
    read_data: bool,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, VerifyError> {
    let manifest = checkpoint.manifest();
    let carried = manifest.files.iter().filter(|file| file.policy == FilePolicy::Carry).count() as u64;
    let mut report = Report { frames: manifest.frames.len() as u64, files: carried, ..Report::default() };
    let mut problems = Vec::new();

    match checkpoint.bundle().await {
        Ok(files) => report.bundle_files = files.len() as u64,
        Err(error) => problems.push(damage(error)?),
    }
    let hashes = match checkpoint.page_hashes().await {
        Ok(hashes) => hashes,
        Err(error) => {
            problems.push(damage(error)?);
            Vec::new()
        }
    };

    let prefix = keys::packs(&manifest.app);
    let objects = checkpoint.store().list(&prefix).await.map_err(ReadError::from)?;
    // Compared by hand rather than by asking for each: one request for a thousand packs.
    let there: HashMap<PackId, u64> = objects
        .iter()
        .filter_map(|object| Some((object.key.strip_prefix(&prefix)?.parse().ok()?, object.length)))
        .collect();
    let mut whole = HashSet::new();
    for pack in &manifest.packs {
        match there.get(&pack.id) {
            Some(length) if *length == pack.length => {
                whole.insert(pack.id);
                report.packs += 1;
                report.pack_bytes += pack.length;
            }
            Some(length) => {
                problems.push(format!("pack {} has {length} bytes, not {}", pack.id, pack.length));
            }
            None => problems.push(format!("pack {} is missing", pack.id)),
        }
    }
    if read_data {
        let readable = manifest.frames.iter().enumerate().filter(|(_, frame)| whole.contains(&frame.pack));
        let numbers: Vec<u32> = readable.map(|(number, _)| number as u32).collect();
        let of = numbers.len() as u64;
        let expected = Expected::new(manifest, &hashes);
        let mut ahead = checkpoint.fetch_in_order(numbers);
        while let Some(batch) = ahead.next().await? {
            for arrived in batch {
                report.frames_read += 1;
                match arrived.frame {
                    Ok(_) => problems.extend(expected.compare(arrived.number, &arrived.hashes)),
                    Err(damage) => problems.push(damage.to_string()),
                }
            }
            progress(Progress { frames: report.frames_read, of });
        }
    }
    if problems.is_empty() { Ok(report) } else { Err(VerifyError::Damaged { problems }) }
}

/// What is wrong with the checkpoint, or the error again if it is not about the checkpoint.
fn damage(error: ReadError) -> Result<String, ReadError> {
    match error {
        ReadError::Store(
            StoreError::NotFound { .. } | StoreError::Truncated { .. } | StoreError::TooLarge { .. },
        )
        | ReadError::BundleChanged
        | ReadError::Bundle(_)
        | ReadError::HashesChanged => Ok(error.to_string()),
        other => Err(other),
    }
}

/// Which hashes the hashes object gives for the pages of a frame.
struct Expected<'h> {
    /// Of each stored run, ascending by frame: frame, first page in it, hashes.
    runs: Vec<(u32, u32, &'h [PageHash])>,
}

impl<'h> Expected<'h> {
    /// `hashes` may be empty if there are none to compare with.
    fn new(manifest: &Manifest, mut hashes: &'h [PageHash]) -> Self {
        let mut runs = Vec::new();
        for run in manifest.objects.iter().flat_map(|object| &object.runs) {
            if let Source::Stored { frame, first, .. } = run.source
                && let Some((of_run, rest)) = hashes.split_at_checked(run.pages as usize)
            {
                hashes = rest;
                runs.push((frame.0, first, of_run));
            }
        }
        runs.sort_unstable_by_key(|(frame, first, _)| (*frame, *first));
        Self { runs }
    }

    fn compare(&self, frame: u32, found: &[PageHash]) -> Option<String> {
        let from = self.runs.partition_point(|(of, ..)| *of < frame);
        let differs = |(_, first, expected): &&(u32, u32, &[PageHash])| {
            let first = *first as usize;
            found.get(first..first + expected.len()) != Some(*expected)
        };
        let mut runs = self.runs[from..].iter().take_while(|(of, ..)| *of == frame);
        runs.find(differs)
            .map(|(_, first, _)| format!("the hashes object disagrees with page {first} of frame {frame}"))
    }
}

/// Why a checkpoint was not found good.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Something is missing, or not what was stored.
    #[error("the checkpoint is damaged: {}", problems.join("; "))]
    Damaged {
        /// Everything that was found, in words.
        problems: Vec<String>,
    },
    /// It could not be checked.
    #[error(transparent)]
    Read(#[from] ReadError),
}
