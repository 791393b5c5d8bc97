//! What a dump or a restore is asked to do.
//!
//! Descriptors handed in here are passed on to the `swrk` process and close on this side as soon as it has been started.

use std::{
    fs::{File, Metadata},
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use criu_sys::process::Isolation;
use migration_proto::criu::rpc;

use crate::{error::CriuError, page_stream::close_record, place::Place, version::Version};

/// What to do about control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Neither record nor restore them: a restored tree stays in the group CRIU was started in. The default here, because
    /// whoever starts the restore places the tree, and a group recorded on another machine means nothing on this one.
    #[default]
    Ignore,
    /// Restore membership, and the properties of groups that had to be created. CRIU's default.
    Soft,
}

impl CgroupMode {
    fn to_wire(self) -> rpc::CriuCgMode {
        match self {
            Self::Ignore => rpc::CriuCgMode::Ignore,
            Self::Soft => rpc::CriuCgMode::Soft,
        }
    }
}

/// How packets are held back during a dump of a tree that has its own network namespace or TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkLock {
    /// With the iptables programs, CRIU's default.
    Iptables,
    /// With libnftables.
    Nftables,
    /// Not at all.
    Skip,
}

impl NetworkLock {
    fn to_wire(self) -> rpc::CriuNetworkLockMethod {
        match self {
            Self::Iptables => rpc::CriuNetworkLockMethod::Iptables,
            Self::Nftables => rpc::CriuNetworkLockMethod::Nftables,
            Self::Skip => rpc::CriuNetworkLockMethod::Skip,
        }
    }
}

macro_rules! shared_options {
    ($name:ident) => {
        impl $name {
            /// Where CRIU keeps what is not an image: statistics, and the socket of a lazy-page server. The image directory
            /// if it is not set.
            pub fn work_dir(mut self, path: &Path) -> Self {
                self.work_dir = Some(path.to_owned());
                self
            }

            /// Accepts established TCP connections. They need the same addresses on restore.
            pub fn tcp_established(mut self, yes: bool) -> Self {
                self.wire.tcp_established = Some(yes);
                self
            }

            /// Leaves established TCP connections out: a dump does not touch them, the restored tree finds them closed. A
            /// restore needs it if the dump had it, see [`Inventory::tcp_close`](crate::images::Inventory::tcp_close).
            pub fn tcp_close(mut self, yes: bool) -> Self {
                self.wire.tcp_close = Some(yes);
                self
            }

            /// Accepts file locks.
            pub fn file_locks(mut self, yes: bool) -> Self {
                self.wire.file_locks = Some(yes);
                self
            }

            /// Accepts a tree that shares a terminal or a session with its caller.
            pub fn shell_job(mut self, yes: bool) -> Self {
                self.wire.shell_job = Some(yes);
                self
            }

            /// Accepts Unix sockets connected to processes outside of the tree.
            pub fn ext_unix_sk(mut self, yes: bool) -> Self {
                self.wire.ext_unix_sk = Some(yes);
                self
            }

            /// Accepts deleted files that still have another name.
            pub fn link_remap(mut self, yes: bool) -> Self {
                self.wire.link_remap = Some(yes);
                self
            }

            /// Names a resource that is not CRIU's to recreate, as `type[id]:key`.
            pub fn external(mut self, resource: impl Into<String>) -> Self {
                self.wire.external.push(resource.into());
                self
            }

            /// What to do about control groups.
            pub fn manage_cgroups(mut self, mode: CgroupMode) -> Self {
                self.wire.manage_cgroups_mode = Some(mode.to_wire().into());
                self
            }

            /// Where CRIU runs; beside the caller if it is not set.
            pub fn place(mut self, place: Place) -> Self {
                self.place = Some(place);
                self
            }

            /// The time CRIU may take, not counting the time spent in the notification handler.
            pub fn deadline(mut self, limit: Duration) -> Self {
                self.deadline = limit;
                self
            }
        }
    };
}

/// A request, ready to be sent by a session.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) options: rpc::CriuOpts,
    pub(crate) isolation: Isolation,
    pub(crate) work_dir: Option<PathBuf>,
    pub(crate) page_client: Option<PageClient>,
    /// CRIU reaches the images through it while it works.
    pub(crate) images: Option<File>,
    pub(crate) deadline: Duration,
    /// Closed at its other end when the caller gives the request up.
    pub(crate) gives_up: Option<OwnedFd>,
}

/// The client of the page server that CRIU is at the end of a lazy dump.
#[derive(Debug)]
pub(crate) struct PageClient {
    /// Number, in the `swrk` process, of the server's end.
    pub(crate) theirs: i32,
    /// CRIU writes an answer to it.
    _ours: UnixStream,
}

/// A dump of one tree.
#[derive(Debug)]
pub struct DumpOptions {
    images_dir: PathBuf,
    place: Option<Place>,
    wire: rpc::CriuOpts,
    work_dir: Option<PathBuf>,
    page_server: Option<UnixStream>,
    memory_stays: bool,
    deadline: Duration,
}

shared_options!(DumpOptions);

impl DumpOptions {
    /// Long enough for any dump whose pages are taken at memory speed, short enough that a tree is not frozen for good.
    const DEADLINE: Duration = Duration::from_secs(1800);

    /// A dump of the tree whose root is `pid` into `images_dir`, which should be empty and must be an absolute path. The
    /// tree is killed once everything has been written and the last handler agreed.
    pub fn new(pid: u32, images_dir: &Path) -> Self {
        let wire = rpc::CriuOpts { pid: Some(pid as i32), ..common_options(images_dir) };
        Self {
            images_dir: images_dir.to_owned(),
            place: None,
            wire,
            work_dir: None,
            page_server: None,
            memory_stays: false,
            deadline: Self::DEADLINE,
        }
    }

    /// Lets the tree go on after the dump.
    pub fn leave_running(mut self, yes: bool) -> Self {
        self.wire.leave_running = Some(yes);
        self
    }

    /// Sends all memory to the other end of this socket, to be read by a [`PageStream`](crate::PageStream), instead of
    /// into image files.
    ///
    /// CRIU waits for that end with the tree frozen, so it must be read by another thread than the one that dumps.
    pub fn page_server(mut self, socket: UnixStream) -> Self {
        self.page_server = Some(socket);
        self
    }

    /// Leaves memory where it is: only what a lazy restore cannot do without at first is written, to image files, and the tree
    /// is left stopped, as by `SIGSTOP`, with CRIU gone from it. `/proc/PID/mem` of its tasks holds all of it from then on.
    /// Tasks that were stopped before cannot be told from the others afterwards but by their images.
    ///
    /// This is the one dump that does not depend on the life of this process once it is over: whoever kills it cannot make
    /// the tree go on, and nothing but `SIGCONT` or `SIGKILL` ends its rest.
    pub fn memory_stays(mut self) -> Self {
        self.memory_stays = true;
        self.wire.lazy_pages = Some(true);
        self.wire.leave_stopped = Some(true);
        self
    }

    /// Bytes up to which a deleted file becomes part of the images; CRIU's default is 1 MiB.
    pub fn ghost_limit(mut self, bytes: u32) -> Self {
        self.wire.ghost_limit = Some(bytes);
        self
    }

    /// Seconds CRIU may take to freeze the tree; CRIU's default is 10.
    pub fn freeze_timeout(mut self, seconds: u32) -> Self {
        self.wire.timeout = Some(seconds);
        self
    }

    /// How packets are held back.
    pub fn network_lock(mut self, method: NetworkLock) -> Self {
        self.wire.network_lock = Some(method.to_wire().into());
        self
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.wire.pid.and_then(|pid| u32::try_from(pid).ok())
    }

    pub(crate) fn prepare(mut self, version: Version) -> Result<Prepared, CriuError> {
        let mut isolation = Isolation::new();
        if let Some(socket) = self.page_server {
            let fd = keep(&mut isolation, socket.into())?;
            self.wire.ps = Some(rpc::CriuPageServerInfo { fd: Some(fd) });
        }
        // CRIU serves the memory of a lazy dump until somebody says that it is enough. It has been said already.
        let page_client = match self.memory_stays {
            true => {
                let system =
                    |source| CriuError::System { what: "make a socket for criu's page server", source };
                let (mut ours, theirs) = UnixStream::pair().map_err(system)?;
                ours.write_all(close_record(version)).map_err(system)?;
                Some(PageClient { theirs: keep(&mut isolation, theirs.into())?, _ours: ours })
            }
            false => None,
        };
        let images = put(self.place, &self.images_dir, &mut self.wire, &mut isolation)?;
        let Self { wire: options, work_dir, deadline, .. } = self;
        Ok(Prepared { options, isolation, work_dir, page_client, images, deadline, gives_up: None })
    }
}

/// A restore of one tree.
#[derive(Debug)]
pub struct RestoreOptions {
    pub(crate) images_dir: PathBuf,
    place: Option<Place>,
    wire: rpc::CriuOpts,
    work_dir: Option<PathBuf>,
    inherited: Vec<(String, OwnedFd)>,
    deadline: Duration,
    gives_up: Option<OwnedFd>,
}

shared_options!(RestoreOptions);

impl RestoreOptions {
    /// Long enough to read large images from a slow disk.
    const DEADLINE: Duration = Duration::from_secs(600);

    /// A restore of the tree in `images_dir`, which must be an absolute path. The tree is a child of the nearest subreaper
    /// unless [`Self::rst_sibling`] is set.
    pub fn new(images_dir: &Path) -> Self {
        Self {
            images_dir: images_dir.to_owned(),
            place: None,
            wire: common_options(images_dir),
            work_dir: None,
            inherited: Vec::new(),
            deadline: Self::DEADLINE,
            gives_up: None,
        }
    }

    /// Ends CRIU when the other end of this pipe is closed, whatever it is doing.
    pub fn give_up_with(mut self, pipe: OwnedFd) -> Self {
        self.gives_up = Some(pipe);
        self
    }

    /// Leaves pages that are marked lazy to the server listening on `lazy-pages.socket` in the work directory.
    pub fn lazy_pages(mut self, yes: bool) -> Self {
        self.wire.lazy_pages = Some(yes);
        self
    }

    /// Makes the root of the tree a child of this process, so that it can be waited for.
    pub fn rst_sibling(mut self, yes: bool) -> Self {
        self.wire.rst_sibling = Some(yes);
        self
    }

    /// Gives the tree `descriptor` where it had `key` open, see [`inherit_key`]. A key that does not occur in the images is
    /// ignored.
    pub fn inherit_fd(mut self, key: impl Into<String>, descriptor: OwnedFd) -> Self {
        self.inherited.push((key.into(), descriptor));
        self
    }

    pub(crate) fn prepare(mut self) -> Result<Prepared, CriuError> {
        let mut isolation = Isolation::new();
        for (key, descriptor) in self.inherited {
            let fd = keep(&mut isolation, descriptor)?;
            self.wire.inherit_fd.push(rpc::InheritFd { key, fd });
        }
        let images = put(self.place, &self.images_dir, &mut self.wire, &mut isolation)?;
        let Self { wire: options, work_dir, deadline, gives_up, .. } = self;
        Ok(Prepared { options, isolation, work_dir, page_client: None, images, deadline, gives_up })
    }
}

/// What CRIU calls an open pipe, socket or character device, from the metadata of `/proc/<pid>/fd/<n>`. It is the key of
/// [`RestoreOptions::inherit_fd`]; for a terminal also that of `external`, without which it is not dumped. `None` for what
/// cannot be named like this.
///
/// (CRIU's help text writes `pipe[inode]`; what its code compares with is `pipe:[inode]`.)
pub fn inherit_key(metadata: &Metadata) -> Option<String> {
    let kind = metadata.file_type();
    if kind.is_fifo() {
        Some(format!("pipe:[{}]", metadata.ino()))
    } else if kind.is_socket() {
        Some(format!("socket:[{}]", metadata.ino()))
    } else if kind.is_char_device() {
        Some(format!("tty[{:x}:{:x}]", metadata.rdev(), metadata.dev()))
    } else {
        None
    }
}

fn common_options(images_dir: &Path) -> rpc::CriuOpts {
    rpc::CriuOpts {
        images_dir_fd: -1,
        images_dir: Some(images_dir.as_os_str().as_bytes().to_vec()),
        notify_scripts: Some(true),
        // At higher levels CRIU writes a line for every run of pages.
        log_level: Some(criu_sys::criu::LOG_WARN),
        log_to_stderr: Some(true),
        manage_cgroups_mode: Some(CgroupMode::default().to_wire().into()),
        ..rpc::CriuOpts::default()
    }
}

/// Has CRIU run at `place`. If it sees other files there, it is given the images by a descriptor of this process, which is
/// returned and has to stay open.
fn put(
    place: Option<Place>,
    images_dir: &Path,
    wire: &mut rpc::CriuOpts,
    isolation: &mut Isolation,
) -> Result<Option<File>, CriuError> {
    let Some(place) = place else { return Ok(None) };
    let images = match place.sees_other_files() {
        true => {
            let images = File::open(images_dir)
                .map_err(|source| CriuError::System { what: "open the directory of the images", source })?;
            wire.images_dir_fd = images.as_raw_fd();
            wire.images_dir = None;
            Some(images)
        }
        false => None,
    };
    place.apply(isolation);
    Ok(images)
}

fn keep(isolation: &mut Isolation, descriptor: OwnedFd) -> Result<i32, CriuError> {
    isolation
        .keep(descriptor)
        .map_err(|source| CriuError::System { what: "keep a descriptor for criu", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_criu_demands_is_encoded() {
        use prost::Message;
        let options = DumpOptions::new(7, Path::new("/images")).prepare(Version::MINIMUM).unwrap().options;
        // Field 1, varint, -1.
        let demanded = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(options.encode_to_vec().starts_with(&demanded));
    }

    #[test]
    fn numbers_agree_with_libcriu() {
        assert_eq!(CgroupMode::Ignore.to_wire() as i32, criu_sys::criu::CG_MODE_IGNORE);
        assert_eq!(CgroupMode::Soft.to_wire() as i32, criu_sys::criu::CG_MODE_SOFT);
        assert_eq!(NetworkLock::Iptables.to_wire() as i32, criu_sys::criu::NETWORK_LOCK_IPTABLES);
        assert_eq!(NetworkLock::Nftables.to_wire() as i32, criu_sys::criu::NETWORK_LOCK_NFTABLES);
    }
}
