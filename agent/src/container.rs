//! The container a tree runs in, or is to run in: its namespaces and its control groups.
//!
//! The agent may be in a container of its own, beside the workload's, in the same pid namespace. CRIU has to work inside the
//! workload's, see [`Place`]. Control groups belong to it: a tree that is restored outside of its group has nobody's
//! limits, and whoever ends the container misses it.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use criu_rpc::Place;

use crate::{error::AgentError, foreign_group};

/// Where CRIU has to be to dump a tree, or to leave its groups out of account.
///
/// # Errors
/// When there is no such process.
pub fn place_of(pid: u32) -> Result<Place, AgentError> {
    Ok(Place::of(pid)?)
}

/// Where CRIU has to be for what it restores to end up where `pid` is, control groups included.
///
/// # Errors
/// When there is no such process, or one of its groups cannot be found or joined from here.
pub fn place_in_groups_of(pid: u32) -> Result<Place, AgentError> {
    let read = |path: String| fs::read_to_string(&path).map_err(AgentError::path("read", path));
    let (theirs, ours) = (read(format!("/proc/{pid}/cgroup"))?, read("/proc/self/cgroup".to_owned())?);
    let mounts = read("/proc/self/mountinfo".to_owned())?;
    let mut place = Place::of(pid)?;
    for group in theirs.lines().filter(|group| !ours.lines().any(|line| &line == group)) {
        // What is mounted in a container shows its own groups only, and cannot be written.
        let mounted = directory_of(group, &mounts).and_then(|directory| open_group(&directory).ok());
        let opened = match mounted {
            Some(opened) => opened,
            None => foreign_group::open(pid, group).map_err(|error| AgentError::ForeignGroup {
                pid,
                group: group.to_owned(),
                reason: error.to_string(),
            })?,
        };
        place = place.in_group(opened);
    }
    Ok(place)
}

fn open_group(directory: &Path) -> std::io::Result<OwnedFd> {
    Ok(fs::OpenOptions::new().write(true).open(directory.join("cgroup.procs"))?.into())
}

/// The directory of a group, from its line in cgroups(7)'s `/proc/PID/cgroup` and this process's mounts.
fn directory_of(group: &str, mounts: &str) -> Option<PathBuf> {
    let mut fields = group.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    mounts.lines().find_map(|mount| {
        // proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, `-`, type, source, options.
        let (head, tail) = mount.split_once(" - ")?;
        let mut head = head.split(' ').skip(3);
        let (root, point) = (head.next()?, head.next()?);
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1)?);
        let right = match controllers {
            "" => kind == "cgroup2",
            _ => {
                kind == "cgroup"
                    && controllers.split(',').all(|name| options.split(',').any(|option| option == name))
            }
        };
        let below = if root == "/" { path } else { path.strip_prefix(root)? };
        // Seen from inside another group's namespace, a path can lead out of what is mounted.
        let reachable = below.is_empty() || below.starts_with('/') && !below.starts_with("/..");
        (right && reachable).then(|| Path::new(point).join(below.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
37 31 0:34 /pod /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    fn found(group: &str) -> Option<String> {
        directory_of(group, MOUNTS).map(|path| path.display().to_string())
    }

    #[test]
    fn groups_are_found_in_both_versions_and_below_a_mounts_root() {
        assert_eq!(found("9:name=systemd:/a").as_deref(), Some("/sys/fs/cgroup/systemd/a"));
        assert_eq!(found("2:cpu,cpuacct:/a/b").as_deref(), Some("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(found("4:memory:/pod/c").as_deref(), Some("/sys/fs/cgroup/memory/c"));
        assert_eq!(found("4:memory:/pod").as_deref(), Some("/sys/fs/cgroup/memory/"));
        assert_eq!(found("0::/").as_deref(), Some("/sys/fs/cgroup/unified/"));
    }

    #[test]
    fn a_group_that_is_not_mounted_here_is_not_guessed() {
        assert_eq!(found("4:memory:/podium"), None);
        assert_eq!(found("4:memory:/elsewhere"), None);
        assert_eq!(found("0::/../other"), None);
        assert_eq!(found("7:pids:/"), None);
    }
}
