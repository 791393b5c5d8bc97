//! Pages of a lazily restored tree that are still on their way when the tree is checkpointed again.
//!
//! CRIU dumps the pages that are present. It takes missing ones for memory that was never touched, reports success, and
//! they would be zeros after the next restore. So the new checkpoint takes them over from the checkpoint the tree is being
//! restored from: they are there, unread and unchanged, and nothing waits for them to arrive. That checkpoint must be
//! the parent of the new one, also when there are newer ones.
//!
//! The tree is looked at twice:
//! 1. [`Look::at`], while it runs: which page server serves it, if any.
//! 2. [`Look::pending`], when CRIU opens the first object of its page stream: every task is frozen, and CRIU waits for an
//!    answer before it looks at any private page. Which image pages has a task not given up, and where do they belong?
//!
//! **Why no page is lost, if the tree was being restored at the first look.** Every page that CRIU will find missing was
//! missing at the second look too, since a frozen task gives nothing up and the page server only adds pages. Its area was
//! registered then, because a page server closes a descriptor only when nothing is missing any more; and the
//! journal named it. So it is among the pages taken over. The page server goes on meanwhile and may make any of
//! them present before CRIU comes to it. Then CRIU sends it, and what was sent wins. If the page server ended as resident
//! before the second look, nothing is registered and nothing was missing; if it ended otherwise,
//! [`LazyTree::pending`] fails.
//!
//! **Why no page is taken over that is not the task's.** The journal may be late where nobody tells the page server: a task
//! that executed another program still has its old pages there. Only areas that are registered count, and those of the
//! new program are not.
//!
//! **Why no page is lost, if the tree was not being restored at the first look.** Memory becomes registered only by CRIU's
//! restorer or by the process's own userfaultfd(2). The restorer registers first and then gives the task its final
//! layout, and before that the task has the layout of CRIU; so a task that is still who it was (see
//! [`Identity`](crate::tree::Identity)) has not been restored in between. Any other is looked at again, frozen; if its
//! memory is registered, the checkpoint is given up and can be repeated at once. A program that serves itself holds the
//! descriptor, and CRIU refuses to dump that. What would go unnoticed is a program that registers its memory between the
//! looks and has handed its only descriptor to a process outside the tree; to look at every task again would notice,
//! and cost every checkpoint 12 ms of freeze for each GiB.
//!
//! A failure of either look leaves the tree running and no checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use lazy_pages::{
    ids::{AppId, CheckpointId},
    server::{LazyTree, Pending},
    units::VirtAddr,
};

use crate::{
    error::AgentError,
    tree::Tree,
    userfault::{armed_areas, is_armed},
};

/// What was seen of a tree while it ran.
pub struct Look<'t> {
    tree: &'t Tree,
    served: Option<LazyTree>,
}

impl<'t> Look<'t> {
    /// Finds out whether the tree, which is to be checkpointed as `app`, is still being restored.
    ///
    /// # Errors
    /// [`AgentError::StillLazy`] when pages are missing that no page server of this program will bring,
    /// [`AgentError::OtherApplication`] when they are another application's.
    pub fn at(tree: &'t Tree, app: &AppId) -> Result<Self, AgentError> {
        while let Some(pid) = first_armed(tree)? {
            match LazyTree::find(&tree.tasks().keys().copied().collect())? {
                Some(served) if served.app() == app => return Ok(Self { tree, served: Some(served) }),
                Some(served) => {
                    let (served, asked) = (served.app().clone(), app.clone());
                    return Err(AgentError::OtherApplication { pid: tree.root(), served, asked });
                }
                None if is_armed(pid)? => return Err(AgentError::StillLazy { pid }),
                // Its last page has arrived in between. Others may wait for theirs.
                None => {}
            }
        }
        Ok(Self { tree, served: None })
    }

    /// The checkpoint the tree is being restored from.
    pub fn served(&self) -> Option<CheckpointId> {
        self.served.as_ref().map(LazyTree::checkpoint)
    }

    /// The pages to take over, unless CRIU sends them. Called when every task is frozen and no private page was looked at.
    ///
    /// # Errors
    /// When that cannot be known for certain.
    pub fn pending(&self) -> Result<Vec<Pending>, AgentError> {
        let frozen = Tree::of(self.tree.root())?;
        let Some(served) = &self.served else {
            let known = self.tree.tasks();
            let others = frozen.tasks().iter().filter(|(pid, identity)| known.get(pid) != Some(identity));
            for (&pid, _) in others {
                if is_armed(pid)? {
                    return Err(AgentError::RestoredMeanwhile { pid });
                }
            }
            return Ok(Vec::new());
        };
        let mut armed = BTreeMap::new();
        for &pid in frozen.tasks().keys() {
            let areas = armed_areas(pid)?;
            if !areas.is_empty() {
                armed.insert(pid, areas);
            }
        }
        // Also asked if nothing is registered any more: it knows whether that is because all pages are there.
        let waiting: BTreeSet<u32> = armed.keys().copied().collect();
        let pending = served.pending(&waiting)?;
        Ok(pending.iter().flat_map(|pending| inside(pending, &armed)).collect())
    }
}

/// A task of the tree that has registered memory.
fn first_armed(tree: &Tree) -> Result<Option<u32>, AgentError> {
    for &pid in tree.tasks().keys() {
        if is_armed(pid)? {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// What of `pending` lies in registered areas of its task.
fn inside(pending: &Pending, armed: &BTreeMap<u32, Vec<Range<u64>>>) -> Vec<Pending> {
    let (start, end) = (pending.start, pending.start.add(pending.pages));
    let areas = armed.get(&pending.pid).map_or(&[][..], Vec::as_slice);
    let first = areas.partition_point(|area| area.end <= start.get());
    let areas = areas[first..].iter().take_while(|area| area.start < end.get());
    areas
        .map(|area| {
            let from = start.max(VirtAddr::containing(area.start));
            let to = end.min(VirtAddr::containing(area.end));
            let image = pending.image.add(from.pages_from(start));
            Pending { start: from, image, pages: to.pages_from(from), ..*pending }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        process::{Child, Command, Stdio},
    };

    use lazy_pages::{format::ObjectId, units::PAGE_SIZE};
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    fn pages(pid: u32, start: u64, image: u64, pages: u64) -> Pending {
        let (start, image) = (VirtAddr::of_page(start), VirtAddr::of_page(image));
        Pending { pid, start, object: ObjectId::Task(1), image, pages }
    }

    #[test]
    fn only_pages_in_registered_areas_of_their_own_task_are_pending() {
        let area = |start: u64, end: u64| start * PAGE_SIZE as u64..end * PAGE_SIZE as u64;
        let armed = BTreeMap::from([(1, vec![area(10, 20), area(30, 40)]), (2, vec![area(0, 100)])]);
        let inside = |pending: Pending| inside(&pending, &armed);
        assert_eq!(inside(pages(1, 5, 105, 50)), [pages(1, 10, 110, 10), pages(1, 30, 130, 10)]);
        assert_eq!(inside(pages(1, 12, 500, 3)), [pages(1, 12, 500, 3)]);
        assert_eq!(inside(pages(1, 18, 500, 13)), [pages(1, 18, 500, 2), pages(1, 30, 512, 1)]);
        assert_eq!(inside(pages(1, 20, 500, 10)), []);
        assert_eq!(inside(pages(1, 40, 500, 10)), []);
        assert_eq!(inside(pages(2, 15, 500, 20)), [pages(2, 15, 500, 20)]);
        assert_eq!(inside(pages(3, 15, 500, 20)), [], "a task that executed another program");
    }

    /// A shell that waits for a line before it does what it is told, and dies with this value.
    struct Shell(Child);

    impl Shell {
        fn start(then: &str) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("read line; {then}")]);
            Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
        }

        /// Lets it go on, and waits until it, or what it starts, says something.
        fn go_on(&mut self) {
            self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
            let mut word = [0; 6];
            self.0.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
            assert_eq!(&word, b"ready\n");
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let tree = Tree::of(self.0.id()).unwrap();
            for &pid in tree.tasks().keys() {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            self.0.wait().unwrap();
        }
    }

    /// A program that serves memory of its own through userfaultfd.
    const ARMED: &str = "python3 -c \"
import ctypes, fcntl, mmap, struct, time
fd = ctypes.CDLL(None).syscall(323, 0)
fcntl.ioctl(fd, 0xc018aa3f, struct.pack('QQQ', 0xaa, 0, 0))
area = mmap.mmap(-1, 65536, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
fcntl.ioctl(fd, 0xc020aa00, struct.pack('QQQQ', address, 65536, 1, 0))
print('ready', flush=True)
time.sleep(1000)\"";

    fn app() -> AppId {
        "app".parse().unwrap()
    }

    #[test]
    fn what_was_not_being_restored_has_nothing_pending_whoever_joins_it() {
        for then in ["(echo ready; sleep 1000); :", "exec sh -c 'echo ready; sleep 1000; :'"] {
            let mut shell = Shell::start(then);
            let tree = Tree::of(shell.0.id()).unwrap();
            let look = Look::at(&tree, &app()).unwrap();
            assert_eq!(look.served(), None);
            assert_eq!(look.pending().unwrap(), []);
            shell.go_on();
            assert_eq!(look.pending().unwrap(), [], "{then}");
        }
    }

    #[test]
    fn a_task_that_is_not_who_it_was_is_looked_at_again() {
        for then in [format!("{ARMED}; :"), format!("exec {ARMED}")] {
            let mut shell = Shell::start(&then);
            let tree = Tree::of(shell.0.id()).unwrap();
            let look = Look::at(&tree, &app()).unwrap();
            shell.go_on();
            let refused = look.pending();
            assert!(matches!(refused, Err(AgentError::RestoredMeanwhile { .. })), "{refused:?}");
        }
    }

    #[test]
    fn memory_nobody_here_serves_is_refused_and_named() {
        let mut shell = Shell::start(&format!("exec {ARMED}"));
        shell.go_on();
        let tree = Tree::of(shell.0.id()).unwrap();
        let refused = Look::at(&tree, &app()).map(|look| look.served());
        assert!(matches!(refused, Err(AgentError::StillLazy { pid }) if pid == shell.0.id()), "{refused:?}");
        let areas = armed_areas(shell.0.id()).unwrap();
        assert_eq!(areas.iter().map(|area| area.end - area.start).sum::<u64>(), 65536);
    }
}
