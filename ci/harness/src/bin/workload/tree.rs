//! Four tasks that share memory copy-on-write, and a zombie.
//!
//! All start from the same pages; each then rewrites a part with a generation of its own. Restoring must give every task
//! its own view back, whatever was shared before.

use std::io;

use migration_harness::control::MAIN_TASK;
use migration_harness::pattern::Mix;
use migration_harness::region::{Region, Report};
use migration_harness::sys::fork;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::Memory;
use crate::heap::mutate;
use crate::task::{Control, Duty, Outcome, unknown};

/// Exit code of the child that stays a zombie.
const ZOMBIE_CODE: i32 = 7;

struct Member {
    region: Region,
    zombie: Option<Pid>,
}

pub fn run(control: &Control, memory: Memory) -> io::Result<()> {
    let mut region = Region::anonymous("shared by fork", memory.pages(), Mix::Mixed, memory.seed)?.filled(0);
    let quarter = region.pages() / 4;

    if fork()?.is_none() {
        region.fill(0..quarter, 100);
        if fork()?.is_none() {
            region.fill(quarter / 2..2 * quarter, 200);
            return member(control, "grandchild", region);
        }
        return member(control, "child", region);
    }
    if fork()?.is_none() {
        region.fill(3 * quarter..4 * quarter, 300);
        return member(control, "sibling", region);
    }
    let Some(zombie) = fork()? else { std::process::exit(ZOMBIE_CODE) };
    // Waits until it is one, and leaves it.
    waitid(Id::Pid(zombie), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    region.fill(2 * quarter..2 * quarter + quarter / 2, 400);
    control.all_ready(&["child", "grandchild", "sibling"])?;
    control.serve(MAIN_TASK, &mut Member { region, zombie: Some(zombie) })
}

fn member(control: &Control, name: &str, region: Region) -> io::Result<()> {
    control.ready(name)?;
    control.serve(name, &mut Member { region, zombie: None })
}

impl Member {
    fn zombie_status(&self, zombie: Pid, keep: WaitPidFlag) -> Result<bool, nix::Error> {
        let status = waitid(Id::Pid(zombie), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | keep)?;
        Ok(status == WaitStatus::Exited(zombie, ZOMBIE_CODE))
    }
}

impl Duty for Member {
    fn request(&mut self, verb: &str) -> Outcome {
        let mut report = Report::default();
        match verb {
            "check" => {
                self.region.check_all(&mut report);
                if let Some(zombie) = self.zombie {
                    let status = self.zombie_status(zombie, WaitPidFlag::WNOWAIT);
                    report.expect(status == Ok(true), || format!("zombie {zombie}: {status:?}"));
                }
            }
            "mutate" => report.pages = mutate(&mut self.region, 0.1),
            "reap" => {
                let zombie = self.zombie.take().ok_or("there is no zombie")?;
                let status = self.zombie_status(zombie, WaitPidFlag::empty());
                report.expect(status == Ok(true), || format!("zombie {zombie}: {status:?}"));
            }
            _ => return unknown(verb),
        }
        Ok(report)
    }
}
