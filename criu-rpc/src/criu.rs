//! A CRIU binary and the requests that can be made to it. Each request is a process of its own; none is kept.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use criu_sys::process::Isolation;
use migration_proto::criu::rpc::{CriuFeatures, CriuReq, CriuReqType, CriuResp};

use crate::{
    error::{CriuError, HandlerError, RequestKind},
    images::ImageDir,
    notification::Notification,
    options::{DumpOptions, Prepared, RestoreOptions},
    session::Session,
    version::Version,
};

/// Names the binary where the caller did not.
const ENVIRONMENT: &str = "MIGRATION_CRIU";
/// The time for requests that touch no process. They take 0.1 s, most of it probing the kernel.
const SHORT: Duration = Duration::from_secs(30);

/// A CRIU binary.
#[derive(Debug)]
pub struct Criu {
    path: PathBuf,
    /// The file that was found.
    file: Option<FileIdentity>,
    version: OnceLock<Version>,
    features: OnceLock<Features>,
}

/// Device, inode, size and time of the last change: what another file under the same name differs in.
type FileIdentity = (u64, u64, u64, (i64, i64));

/// What this kernel, as CRIU sees it, can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Soft-dirty tracking: CRIU's own pre-dump works.
    pub mem_track: bool,
    /// userfaultfd with events: lazy restore works.
    pub lazy_pages: bool,
    /// pidfds can be kept in a socket between pre-dumps.
    pub pidfd_store: bool,
}

/// A restored tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Process id of its root, as CRIU sees it.
    pub pid: u32,
}

impl Criu {
    /// Finds the binary: `explicit` if given, else the one named by `MIGRATION_CRIU`, else the first `criu` in `PATH`. It
    /// is not run; [`Self::check`] tells whether it works.
    ///
    /// # Errors
    /// [`CriuError::NotFound`], or [`CriuError::NotExecutable`] when the file that was named cannot be run: another one is
    /// never taken instead.
    pub fn locate(explicit: Option<&Path>) -> Result<Self, CriuError> {
        let named = explicit
            .map(Path::to_owned)
            .or_else(|| env::var_os(ENVIRONMENT).filter(|v| !v.is_empty()).map(PathBuf::from));
        let path = match named {
            Some(path) if !path.exists() => {
                return Err(CriuError::NotFound { looked: format!("{} does not exist", path.display()) });
            }
            Some(path) if !is_executable(&path) => return Err(CriuError::NotExecutable { path }),
            Some(path) => path,
            None => {
                let directories = env::var_os("PATH").unwrap_or_default();
                env::split_paths(&directories)
                    .map(|directory| directory.join("criu"))
                    .find(|path| is_executable(path))
                    .ok_or_else(|| CriuError::NotFound {
                        looked: format!("no `criu` in PATH, and {ENVIRONMENT} is not set"),
                    })?
            }
        };
        let path = std::path::absolute(path)
            .map_err(|source| CriuError::System { what: "find the current directory", source })?;
        let file = identity(&path);
        Ok(Self { path, file, version: OnceLock::new(), features: OnceLock::new() })
    }

    /// Whether the file is the one that was found, so that what was asked of it still holds.
    pub fn is_unchanged(&self) -> bool {
        self.file.is_some() && self.file == identity(&self.path)
    }

    /// The binary.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version. The binary is asked once.
    ///
    /// # Errors
    /// When it cannot be run or does not answer.
    pub fn version(&self) -> Result<Version, CriuError> {
        if let Some(version) = self.version.get() {
            return Ok(*version);
        }
        let answer = self.short_request(RequestKind::Version, CriuReqType::Version, None)?;
        let wire = answer.version.unwrap_or_default();
        let number = |field: Option<i32>| field.and_then(|value| u32::try_from(value).ok());
        let (Some(major), Some(minor)) = (number(wire.major_number), number(wire.minor_number)) else {
            return Err(CriuError::Protocol {
                request: RequestKind::Version,
                what: "no version numbers".to_owned(),
            });
        };
        let version = Version { major, minor, sublevel: number(wire.sublevel).unwrap_or(0) };
        Ok(*self.version.get_or_init(|| version))
    }

    /// What the kernel can do. Once it can do lazy restores, nobody is asked again.
    ///
    /// # Errors
    /// When CRIU is too old, cannot be run, or does not answer.
    pub fn features(&self) -> Result<Features, CriuError> {
        if let Some(features) = self.features.get() {
            return Ok(*features);
        }
        self.require_supported()?;
        let all = CriuFeatures { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) };
        let answer = self.short_request(RequestKind::Features, CriuReqType::FeatureCheck, Some(all))?;
        let features = answer.features.ok_or_else(|| CriuError::Protocol {
            request: RequestKind::Features,
            what: "no features".to_owned(),
        })?;
        let features = Features {
            mem_track: features.mem_track.unwrap_or(false),
            lazy_pages: features.lazy_pages.unwrap_or(false),
            pidfd_store: features.pidfd_store.unwrap_or(false),
        };
        Ok(if features.lazy_pages { *self.features.get_or_init(|| features) } else { features })
    }

    /// Has CRIU check that it works on this kernel, with the privileges it is given.
    ///
    /// # Errors
    /// When it is too old or does not work.
    pub fn check(&self) -> Result<(), CriuError> {
        self.require_supported()?;
        self.short_request(RequestKind::Check, CriuReqType::Check, None).map(drop)
    }

    /// Writes the images of a tree, and kills it unless it is to be left running. Blocks until CRIU has answered; `handler`
    /// is called for each notification while CRIU waits.
    ///
    /// When this fails the tree goes on running, with one exception: an error that says that CRIU crashed or had to be
    /// ended leaves that to the kernel, which detaches from the tree and lets it run, possibly with memory mappings of
    /// CRIU's left in it. If the handler panics, or this process dies, CRIU undoes the dump as well.
    ///
    /// # Errors
    /// What the handler failed with, as [`CriuError::Handler`]; [`CriuError::Refused`] with CRIU's reasons; the others as
    /// documented there.
    pub fn dump(
        &self,
        options: DumpOptions,
        handler: &mut dyn FnMut(&Notification) -> Result<(), HandlerError>,
    ) -> Result<(), CriuError> {
        self.require_supported()?;
        let pid = options.pid();
        let prepared = options.prepare(self.version()?)?;
        self.long_request(RequestKind::Dump, CriuReqType::Dump, pid, prepared, handler).map(drop)
    }

    /// Rebuilds a tree. Blocks until it runs; `handler` is called for each notification while CRIU waits.
    ///
    /// When this fails CRIU kills what it has built. There are three exceptions, in which tasks can remain, running or
    /// blocked, under the ids that [`ImageDir::tasks`](crate::ImageDir::tasks) tells; the caller has to kill them:
    /// [`CriuError::Crashed`], [`CriuError::Deadline`] and [`CriuError::GivenUp`]. After [`CriuError::HandlerIgnored`] the tree is complete and
    /// runs. A killed root may have to be reaped before its id is free for another attempt.
    ///
    /// # Errors
    /// [`CriuError::Images`] if the images are not complete; what the handler failed with, as [`CriuError::Handler`];
    /// [`CriuError::Refused`] with CRIU's reasons; the others as documented there.
    pub fn restore(
        &self,
        options: RestoreOptions,
        handler: &mut dyn FnMut(&Notification) -> Result<(), HandlerError>,
    ) -> Result<Restored, CriuError> {
        self.require_supported()?;
        ImageDir::open(&options.images_dir)?.check_pages()?;
        let answer =
            self.long_request(RequestKind::Restore, CriuReqType::Restore, None, options.prepare()?, handler)?;
        let pid = answer.restore.and_then(|restored| restored.pid).and_then(|pid| u32::try_from(pid).ok());
        match pid {
            Some(pid) if pid != 0 => Ok(Restored { pid }),
            _ => Err(CriuError::Protocol { request: RequestKind::Restore, what: "no process id".to_owned() }),
        }
    }

    fn require_supported(&self) -> Result<(), CriuError> {
        let (found, minimum) = (self.version()?, Version::MINIMUM);
        if found < minimum {
            return Err(CriuError::TooOld { path: self.path.clone(), found, minimum });
        }
        Ok(())
    }

    fn short_request(
        &self,
        kind: RequestKind,
        wire_kind: CriuReqType,
        features: Option<CriuFeatures>,
    ) -> Result<CriuResp, CriuError> {
        let request = CriuReq { r#type: wire_kind.into(), features, ..CriuReq::default() };
        let session = Session::start(&self.path, kind, None, None, Isolation::new())?;
        session.run(&request, None, SHORT, &mut |_| Ok(()))
    }

    fn long_request(
        &self,
        kind: RequestKind,
        wire_kind: CriuReqType,
        pid: Option<u32>,
        prepared: Prepared,
        handler: &mut dyn FnMut(&Notification) -> Result<(), HandlerError>,
    ) -> Result<CriuResp, CriuError> {
        let Prepared { options, isolation, work_dir, page_client, images: _images, deadline, gives_up } =
            prepared;
        let request = CriuReq { r#type: wire_kind.into(), opts: Some(options), ..CriuReq::default() };
        let page_socket = page_client.as_ref().map(|client| client.theirs);
        let mut session = Session::start(&self.path, kind, work_dir.as_deref(), page_socket, isolation)?;
        session.gives_up = gives_up;
        session.run(&request, pid, deadline, handler)
    }
}

fn identity(path: &Path) -> Option<FileIdentity> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), (file.mtime(), file.mtime_nsec())))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
