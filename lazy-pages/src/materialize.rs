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
    let pages = eager_pages(checkpoint, directory).await?;
    written.files += pages.files;
    written.bytes += pages.bytes;
    Ok(written)
}

/// Writes `pages-<n>.img` of every memory object; those of all objects come with few requests.
async fn eager_pages(checkpoint: &Checkpoint, directory: &Path) -> Result<Materialized, MaterializeError> {
    let mut written = Materialized::default();
    let is_memory = |id: &ObjectId| !matches!(id, ObjectId::File(_));
    let objects = checkpoint.manifest().objects.iter().filter(|object| is_memory(&object.id));
    let paths: HashMap<ObjectId, PathBuf> =
        objects.map(|object| (object.id, directory.join(format!("pages-{}.img", object.pages_id)))).collect();
    for path in paths.values() {
        create(path).map_err(|source| MaterializeError::Write { path: path.clone(), source })?;
        written.files += 1;
    }
    let objects: Vec<ObjectId> = paths.keys().copied().collect();
    // One is written after another, so one is open at a time.
    let mut open: Option<(ObjectId, BufWriter<File>)> = None;
    let mut failed = directory;
    let sink = |object: ObjectId, _: Run, bytes: &[u8]| {
        let Some(path) = paths.get(&object) else { return Ok(()) };
        failed = path;
        let file = match &mut open {
            Some((known, file)) if *known == object => file,
            other => {
                if let Some((_, done)) = other {
                    done.flush()?;
                }
                let file = File::options().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
                &mut other.insert((object, BufWriter::with_capacity(256 << 10, file))).1
            }
        };
        written.bytes += bytes.len() as u64;
        file.write_all(bytes)
    };
    let read = checkpoint.read_objects(&objects, Pages::Eager, sink).await;
    let flushed = open.as_mut().map_or(Ok(()), |(_, file)| file.flush());
    match read.and(flushed.map_err(ReadError::Sink)) {
        Err(ReadError::Sink(source)) => Err(MaterializeError::Write { path: failed.to_owned(), source }),
        other => Ok(other.map(|()| written)?),
    }
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
