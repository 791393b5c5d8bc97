//! Control groups that nothing mounted here shows.
//!
//! A container sees the file system of control groups from its own group downwards, and read-only; those of the containers beside
//! it are above or next to that. Whoever may mount can have the hierarchy anyway: as a mount that is attached nowhere, which
//! nobody else sees and which is gone with its descriptor.
//!
//! Under cgroup v2 runtimes also give each container a namespace of control groups, out of which no path leads. A pod's first
//! process, which holds what the pod's containers share, has the machine's own; a thread enters that to look from there.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
        fsmount, fsopen,
    },
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// The group of `pid` in the hierarchy of `line`, a line of cgroups(7)'s `/proc/PID/cgroup` as it is seen from here: its
/// `cgroup.procs`, open for writing.
///
/// # Errors
/// When the hierarchy cannot be mounted, or the group is not to be seen from the pod's first process either.
pub fn open(pid: u32, line: &str) -> io::Result<OwnedFd> {
    if !leads_out(line) {
        return open_here(line);
    }
    let hierarchy = line.split(':').next().unwrap_or_default().to_owned();
    // A namespace that was entered is not left again: it is the thread's.
    let looked = thread::Builder::new().name("groups".to_owned()).spawn(move || {
        let first = fs::File::open("/proc/1/ns/cgroup")?;
        move_into_link_name_space(first.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let line = lines.lines().find(|line| line.split(':').next() == Some(&hierarchy));
        let line = line.filter(|line| !leads_out(line));
        open_here(line.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "it is outside the control group namespace of the pod's first process",
            )
        })?)
    })?;
    looked.join().unwrap_or_else(|_| Err(io::Error::other("the thread that looked has panicked")))
}

/// Whether its path begins outside of the namespace it is seen from.
fn leads_out(line: &str) -> bool {
    line.splitn(3, ':').nth(2).is_none_or(|path| path == "/.." || path.starts_with("/../"))
}

fn open_here(line: &str) -> io::Result<OwnedFd> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a line of /proc/PID/cgroup"));
    };
    let kind = if controllers.is_empty() { "cgroup2" } else { "cgroup" };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for controller in controllers.split(',').filter(|name| !name.is_empty()) {
        match controller.strip_prefix("name=") {
            Some(name) => {
                fsconfig_set_flag(&context, "none")?;
                fsconfig_set_string(&context, "name", name)?;
            }
            None => fsconfig_set_flag(&context, controller)?,
        }
    }
    fsconfig_create(&context)?;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let processes = format!("{}/cgroup.procs", path.trim_start_matches('/'));
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(openat(&root, processes.trim_start_matches('/'), flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{env, io::Write, os::fd::AsRawFd, path::Path, process::Command};

    use super::*;

    #[test]
    fn paths_out_of_a_namespace_are_recognised() {
        for line in ["0::/..", "0::/../other", "4:memory:/../../a"] {
            assert!(leads_out(line), "{line}");
        }
        for line in ["0::/", "0::/..a", "4:memory:/a/b", "9:name=systemd:/"] {
            assert!(!leads_out(line), "{line}");
        }
    }

    #[test]
    fn a_group_is_found_in_every_hierarchy_without_a_mount_of_it() {
        let lines = fs::read_to_string("/proc/self/cgroup").unwrap();
        for line in lines.lines() {
            let opened = open(std::process::id(), line).unwrap();
            let target = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap();
            let path = line.splitn(3, ':').nth(2).unwrap();
            assert!(target.ends_with(Path::new(path.trim_start_matches('/')).join("cgroup.procs")), "{line}");
            // It is the real thing: the process that is there already may be put there.
            let mut group = fs::File::from(opened);
            group.write_all(std::process::id().to_string().as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_group_outside_of_the_own_namespace_is_reached_through_the_first_process() {
        const INSIDE: &str = "MIGRATION_TEST_INSIDE";
        if env::var_os(INSIDE).is_some() {
            let line = fs::read_to_string("/proc/self/cgroup").unwrap().lines().next().unwrap().to_owned();
            assert!(line.ends_with(":/"), "a namespace begins where its first process is: {line}");
            let hidden = format!("{}:/../elsewhere", line.rsplit_once(':').unwrap().0);
            let opened = open(std::process::id(), &hidden).unwrap();
            fs::File::from(opened).write_all(std::process::id().to_string().as_bytes()).unwrap();
            return;
        }
        // As in a pod: a first process, and beside it one with a namespace of control groups of its own.
        let name = thread::current().name().unwrap().to_owned();
        let pod = ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "\"$@\"; exit $?", "sh"];
        let output = Command::new("unshare")
            .args(pod)
            .args(["unshare", "--cgroup"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", &name])
            .env(INSIDE, "")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
