//! What this machine can do for us, what is missing, and what that costs.

use std::{fs, path::Path};

use lazy_pages::kernel;
use serde::Serialize;

use crate::{agent::Agent, workdir};

/// Bit of `CAP_SYS_RESOURCE` in `/proc/self/status`; capability.h.
const CAP_SYS_RESOURCE: u32 = 24;

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Capability {
    /// Its name; stable across versions.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What its absence costs; only when it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<&'static str>,
}

fn capability(
    name: &'static str,
    required: bool,
    found: Result<String, String>,
    cost: &'static str,
) -> Capability {
    let ok = found.is_ok();
    let (Ok(detail) | Err(detail)) = found;
    Capability { name, ok, required, detail, cost: (!ok).then_some(cost) }
}

impl Agent {
    /// Looks at everything the pipelines depend on. Talks to CRIU and to the store; changes nothing that stays.
    pub fn capabilities(&self) -> Vec<Capability> {
        let root = match rustix::process::geteuid().is_root() {
            true => Ok("running as root".to_owned()),
            false => Err("not running as root".to_owned()),
        };
        let mut found = vec![capability("root", true, root, "processes can be neither frozen nor rebuilt")];
        let criu = self.criu().map_err(|error| error.to_string());
        let version = criu.as_ref().map_err(Clone::clone).and_then(|criu| {
            let version = criu.version().map_err(|error| error.to_string())?;
            Ok(format!("{} {version}", criu.path().display()))
        });
        found.push(capability("criu", true, version, "nothing can be checkpointed or restored"));
        if let Ok(criu) = &criu {
            let works = criu.check().map(|()| "its own check passes".to_owned());
            let works = works.map_err(|error| match error.hint() {
                Some(hint) => format!("{error}; {hint}"),
                None => error.to_string(),
            });
            found.push(capability(
                "criu-check",
                true,
                works,
                "checkpoints or restores will fail on this kernel",
            ));
            let features = criu.features().map_err(|error| error.to_string());
            let lazy =
                features.as_ref().map_err(Clone::clone).and_then(|features| match features.lazy_pages {
                    true => Ok("CRIU can restore with userfaultfd".to_owned()),
                    false => Err("CRIU cannot use userfaultfd on this kernel".to_owned()),
                });
            found.push(capability(
                "lazy-restore",
                false,
                lazy,
                "only `--strategy full`: a process waits for all of its memory",
            ));
            let soft_dirty = features.and_then(|features| match features.mem_track {
                true => Ok("the kernel keeps soft-dirty bits".to_owned()),
                false => Err("the kernel keeps no soft-dirty bits".to_owned()),
            });
            found.push(capability(
                "soft-dirty",
                false,
                soft_dirty,
                "no CRIU pre-dump; pages are compared by hash instead, so only the freeze is longer",
            ));
        }
        found.push(capability(
            "write-tracking",
            false,
            write_tracking(),
            "written pages are found by reading and hashing all memory while the tree is frozen",
        ));
        found.push(capability(
            "sys-resource",
            false,
            sys_resource(),
            "processes of users other than root cannot be checkpointed",
        ));
        let memory = ["/run", "/dev/shm"].into_iter().find(|path| workdir::is_tmpfs(Path::new(path)));
        let memory = memory
            .map(|path| format!("{path} is a tmpfs"))
            .ok_or("neither /run nor /dev/shm is a tmpfs".into());
        found.push(capability(
            "tmpfs",
            false,
            memory,
            "metadata images are written to a disk during an operation",
        ));
        let store = self.block_on(self.store.probe());
        let store = store.map(|()| self.store.describe()).map_err(|error| error.to_string());
        found.push(capability("store", true, store, "checkpoints cannot be kept safely"));
        found
    }
}

fn write_tracking() -> Result<String, String> {
    match kernel::tracks_writes() {
        Ok(()) => Ok("the kernel can report written pages (asynchronous write-protect)".to_owned()),
        Err(error) => {
            Err(format!("the kernel has no asynchronous write-protect, 6.7 and newer have it ({error})"))
        }
    }
}

fn sys_resource() -> Result<String, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    match effective >> CAP_SYS_RESOURCE & 1 {
        1 => Ok("CAP_SYS_RESOURCE is there".to_owned()),
        _ => Err("CAP_SYS_RESOURCE is missing".to_owned()),
    }
}
