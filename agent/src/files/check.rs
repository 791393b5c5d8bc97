//! Files that are not carried must be where a tree is restored. CRIU finds out, too, but late, and says less.

use std::path::Path;

use lazy_pages::format::{FileEntry, FileKind, FilePolicy, Manifest};

use super::{FilesError, View, status::Status};

/// Problems told at a time; who has more has another machine.
const TOLD: usize = 8;

/// Refuses a machine, or a container, in which files of `manifest` that are not carried are missing or others.
///
/// # Errors
/// [`FilesError::NotTheSame`].
pub fn refuse_other_files(manifest: &Manifest, view: &View) -> Result<(), FilesError> {
    let mut problems = Vec::new();
    let mut modified = Vec::new();
    for file in manifest.files.iter().filter(|file| file.policy != FilePolicy::Carry) {
        let path = file.path.display();
        match difference(file, view)? {
            None => {}
            Some(Difference::Certain(what)) => problems.push(format!("{path} {what}")),
            Some(Difference::Time) if file.policy == FilePolicy::Same => {
                problems.push(format!("{path} was modified since the checkpoint"));
            }
            Some(Difference::Time) => modified.push(path.to_string()),
        }
    }
    if !modified.is_empty() {
        // A package installed here at another time; or another one of the same size.
        tracing::info!(
            files = modified.join(", "),
            "files that the tree reads have another time of modification"
        );
    }
    if problems.len() > TOLD {
        let more = problems.len() - TOLD;
        problems.truncate(TOLD);
        problems.push(format!("and {more} more"));
    }
    if problems.is_empty() { Ok(()) } else { Err(FilesError::NotTheSame { problems }) }
}

enum Difference {
    /// It cannot be the same.
    Certain(String),
    /// It may be the same.
    Time,
}

fn difference(file: &FileEntry, view: &View) -> Result<Option<Difference>, FilesError> {
    let path: &Path = &file.path;
    let Some(status) = Status::if_there(&view.at(path)).map_err(FilesError::io("look at", path))? else {
        return Ok(Some(Difference::Certain("is missing".into())));
    };
    let is_directory = file.kind == FileKind::Directory;
    if is_directory != status.is_directory() || !is_directory && !status.is_regular() {
        return Ok(Some(Difference::Certain("is something else".into())));
    }
    if is_directory {
        return Ok(None);
    }
    if status.size != file.size {
        let what = format!("has {} bytes, not {}", status.size, file.size);
        return Ok(Some(Difference::Certain(what)));
    }
    Ok(Some(Difference::Time).filter(|_| status.modified != file.attributes.modified))
}
