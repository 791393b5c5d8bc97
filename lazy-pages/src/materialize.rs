//! Writing the image directory from which stock CRIU restores a checkpoint lazily: all images, and for each
//! memory object a `pages-<n>.img` with only the pages that must be there before a process runs. The bundle's pagemap
//! images describe exactly these; every other page comes from the page server.
//!
//! What always holds: the directory was empty before and no file is overwritten. On an error, what was written stays
//! there, and the directory is of no use. It is meant to be a tmpfs; nothing is synced to a disk. Files that travel with
//! the checkpoint are not images, and not put anywhere here.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{
    format::{LargeImage, ObjectId, Run, Source},
    reader::{Checkpoint, Pages, ReadError},
};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Materialized {
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why the directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MaterializeError {
    /// There are files in it already, which CRIU could take for images.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The operating system refused to write.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Writes the images of `checkpoint` for a lazy restore into `directory`, which is made if it is missing. Only the user
/// of this process may read them: they hold memory.
///
/// # Errors
/// When the directory is not empty or cannot be written, or the checkpoint cannot be read.
pub async fn materialize_lazy(
    checkpoint: &Checkpoint,
    directory: &Path,
) -> Result<Materialized, MaterializeError> {
    prepare(directory)?;
    let mut written = Materialized::default();
    for file in checkpoint.bundle().await? {
        let path = directory.join(&file.name);
        let save = || create(&path)?.write_all(&file.content);
        save().map_err(|source| MaterializeError::Write { path: path.clone(), source })?;
        written.files += 1;
        written.bytes += file.content.len() as u64;
    }
    let images = large_images(checkpoint, directory).await?;
    written.files += images.files;
    written.bytes += images.bytes;
    for object in &checkpoint.manifest().objects {
        if matches!(object.id, ObjectId::File(_)) {
            continue;
        }
        let path = directory.join(format!("pages-{}.img", object.pages_id));
        let failed = |source| MaterializeError::Write { path: path.clone(), source };
        let mut file = BufWriter::with_capacity(256 << 10, create(&path).map_err(failed)?);
        let mut bytes = 0;
        let read = checkpoint.read_object(object.id, Pages::Eager, |_, pages| {
            bytes += pages.len() as u64;
            file.write_all(pages)
        });
        match read.await {
            Err(ReadError::Sink(source)) => return Err(failed(source)),
            other => other?,
        }
        file.flush().map_err(failed)?;
        written.files += 1;
        written.bytes += bytes;
    }
    Ok(written)
}

/// Writes the images that are too large for the bundle into `directory`, which is there already.
///
/// # Errors
/// When a file is there already or cannot be written, or the checkpoint cannot be read.
pub async fn large_images(
    checkpoint: &Checkpoint,
    directory: &Path,
) -> Result<Materialized, MaterializeError> {
    let mut written = Materialized::default();
    for LargeImage { name, size, content } in &checkpoint.manifest().large_images {
        let path = directory.join(name);
        write_contents(checkpoint, &[(*content, *size, path)]).await?;
        written.files += 1;
        written.bytes += size;
    }
    Ok(written)
}

/// Writes contents of files, given by number, size and where they go. Only the user of this process may read what is
/// made. Zero pages become holes.
///
/// # Errors
/// When a file is there already or cannot be written, or the checkpoint cannot be read.
pub async fn write_contents(
    checkpoint: &Checkpoint,
    contents: &[(u32, u64, PathBuf)],
) -> Result<(), MaterializeError> {
    for (_, size, path) in contents {
        let make = create(path).and_then(|file| file.set_len(*size));
        make.map_err(|source| MaterializeError::Write { path: path.clone(), source })?;
    }
    let places: HashMap<u32, (u64, &Path)> =
        contents.iter().map(|(content, size, path)| (*content, (*size, path.as_path()))).collect();
    let objects: Vec<ObjectId> = places.keys().map(|content| ObjectId::File(*content)).collect();
    // One is written after another, so one is open at a time.
    let mut open: Option<(ObjectId, File)> = None;
    let mut failed = None;
    let sink = |object: ObjectId, run: Run, bytes: &[u8]| {
        let (ObjectId::File(content), Source::Stored { .. }) = (object, run.source) else { return Ok(()) };
        let Some((size, path)) = places.get(&content) else { return Ok(()) };
        let start = run.start.get();
        let inside = (bytes.len() as u64).min(size.saturating_sub(start)) as usize;
        let mut write = || {
            let file = match &mut open {
                Some((known, file)) if *known == object => file,
                other => {
                    let again = File::options().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
                    &mut other.insert((object, again)).1
                }
            };
            file.write_all_at(&bytes[..inside], start)
        };
        write().inspect_err(|_| failed = Some(path.to_path_buf()))
    };
    match (checkpoint.read_objects(&objects, Pages::All, sink).await, failed) {
        (Err(ReadError::Sink(source)), Some(path)) => Err(MaterializeError::Write { path, source }),
        (result, _) => Ok(result?),
    }
}

fn prepare(directory: &Path) -> Result<(), MaterializeError> {
    let failed = |source| MaterializeError::Write { path: directory.to_owned(), source };
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(MaterializeError::NotEmpty(directory.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
