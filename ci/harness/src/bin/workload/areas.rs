//! One task with one area of every unusual kind, each with its own contents.

use std::fs::OpenOptions;
use std::io::{self, IoSliceMut, Write};

use migration_harness::control::MAIN_TASK;
use migration_harness::pattern::{Mix, fill};
use migration_harness::region::{Expected, Region, Report};
use migration_harness::sys::{Access, Advice, Mapping, PAGE_SIZE, Page, Sharing, fork};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Memory;
use crate::task::{Control, Duty, Outcome, failed, unknown};

/// Depth of the stack that is checked, in frames of one page.
const FRAMES: usize = 128;
/// One page in so many is a guard page.
const GUARD_EVERY: usize = 8;
/// The area that is locked, in pages: the limit for locked memory may be as low as 64 KiB.
const LOCKED_PAGES: usize = 16;

struct Areas<'a> {
    plain: Region,
    locked: Region,
    no_access: Region,
    read_only: Region,
    file: Region,
    wiped: Region,
    not_forked: Region,
    huge: Region,
    guarded: Region,
    deepest: &'a Frame<'a>,
    seed: u64,
}

/// A page on the stack, and the frame it was called from.
struct Frame<'a> {
    contents: Page,
    number: usize,
    outer: Option<&'a Frame<'a>>,
}

pub fn run(control: &Control, memory: Memory) -> io::Result<()> {
    descend(control, memory, None, 0)
}

/// Fills a frame of the stack, calls itself for the next, and serves requests in the deepest.
fn descend(control: &Control, memory: Memory, outer: Option<&Frame>, number: usize) -> io::Result<()> {
    let mut frame = Frame { contents: [0; PAGE_SIZE], number, outer };
    fill(&mut frame.contents, Mix::Half, memory.seed, number as u64, 0);
    if number + 1 < FRAMES {
        descend(control, memory, Some(&frame), number + 1)
    } else {
        serve(control, memory, &frame)
    }
}

fn serve(control: &Control, memory: Memory, deepest: &Frame) -> io::Result<()> {
    let pages = memory.pages() / 8;
    let area = |name, kind: u64| Region::anonymous(name, pages, Mix::Mixed, memory.seed + kind);

    let locked = Mapping::anonymous(LOCKED_PAGES, Access::Write, Sharing::Private)?;
    let locked = Region::over(locked, "locked", Mix::Mixed, memory.seed).filled(0);
    locked.mapping.lock()?;

    let no_access = area("no access", 1)?.filled(0);
    no_access.mapping.protect(0..pages, Access::None)?;
    let read_only = area("read only", 2)?.filled(0);
    read_only.mapping.protect(0..pages, Access::Read)?;

    let wiped = area("wiped on fork", 3)?.filled(0);
    wiped.mapping.advise(0..pages, Advice::WipeOnFork)?;
    let not_forked = area("not forked", 4)?.filled(0);
    not_forked.mapping.advise(0..pages, Advice::DontFork)?;
    let huge = area("huge pages", 5)?;
    huge.mapping.advise(0..pages, Advice::HugePage)?;
    let huge = huge.filled(0);

    let guarded = area("guarded", 6)?.filled(0);
    for page in (0..pages).step_by(GUARD_EVERY) {
        guarded.mapping.renew(page..page + 1)?;
        guarded.mapping.protect(page..page + 1, Access::None)?;
    }

    let mut areas = Areas {
        plain: area("plain", 7)?.filled(0),
        locked,
        no_access,
        read_only,
        file: private_file(control, pages, memory.seed)?,
        wiped,
        not_forked,
        huge,
        guarded,
        deepest,
        seed: memory.seed,
    };
    control.all_ready(&[])?;
    control.serve(MAIN_TASK, &mut areas)
}

/// A private mapping of a file, every second page of which was written to and so belongs to this process alone.
fn private_file(control: &Control, pages: usize, seed: u64) -> io::Result<Region> {
    let path = control.directory().join("mapped-file");
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(path)?;
    let mut contents = [0; PAGE_SIZE];
    for page in 0..pages {
        fill(&mut contents, Mix::Mixed, seed, page as u64, 50);
        file.write_all(&contents)?;
    }
    let mut region =
        Region::over(Mapping::of_file(&file, pages, Sharing::Private)?, "private file", Mix::Mixed, seed);
    region.expect(0..pages, Expected::Pattern(50));
    for page in (0..pages).step_by(2) {
        region.fill_page(page, 51);
    }
    Ok(region)
}

/// Whether the kernel refuses to read a page even on behalf of this process.
fn is_guarded(mapping: &Mapping, page: usize) -> bool {
    let mut byte = [0_u8; 1];
    let from = [RemoteIoVec { base: mapping.address(page), len: 1 }];
    process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut byte)], &from) == Err(Errno::EFAULT)
}

impl Areas<'_> {
    fn check(&self) -> Outcome {
        let mut report = Report::default();
        for region in [
            &self.plain,
            &self.locked,
            &self.read_only,
            &self.file,
            &self.wiped,
            &self.not_forked,
            &self.huge,
        ] {
            region.check_all(&mut report);
        }

        let pages = self.no_access.pages();
        report
            .expect(is_guarded(&self.no_access.mapping, 0), || "the area without access is readable".into());
        self.no_access.mapping.protect(0..pages, Access::Read).map_err(failed("mprotect"))?;
        self.no_access.check_all(&mut report);
        self.no_access.mapping.protect(0..pages, Access::None).map_err(failed("mprotect"))?;

        for page in 0..self.guarded.pages() {
            if page % GUARD_EVERY == 0 {
                report.expect(is_guarded(&self.guarded.mapping, page), || {
                    format!("guard page {page} is readable")
                });
            } else {
                self.guarded.check(page..page + 1, &mut report);
            }
        }

        let mut frame = Some(self.deepest);
        while let Some(Frame { contents, number, outer }) = frame {
            let mut wanted = [0; PAGE_SIZE];
            fill(&mut wanted, Mix::Half, self.seed, *number as u64, 0);
            report.expect(*contents == wanted, || format!("stack frame {number}"));
            frame = *outer;
        }
        Ok(report)
    }

    /// What a forked child sees: the wiped area as zeros, the unforked one not at all, the rest as it is.
    fn check_in_child(&mut self) -> Outcome {
        let Some(child) = fork().map_err(failed("fork"))? else {
            let pages = self.wiped.pages();
            self.wiped.expect(0..pages, Expected::Zero);
            let mut report = Report::default();
            for region in [&self.wiped, &self.plain, &self.read_only, &self.file] {
                region.check_all(&mut report);
            }
            let inherited = (0..pages).any(|page| self.not_forked.mapping.is_mapped(page));
            report.expect(!inherited, || "the area that must not be forked is mapped".into());
            std::process::exit(report.bad.min(100) as i32);
        };
        let mut report = Report::default();
        let status = waitpid(child, None);
        report.expect(status == Ok(WaitStatus::Exited(child, 0)), || format!("forked child: {status:?}"));
        Ok(report)
    }
}

impl Duty for Areas<'_> {
    fn request(&mut self, verb: &str) -> Outcome {
        match verb {
            "check" => self.check(),
            "fork" => self.check_in_child(),
            _ => unknown(verb),
        }
    }
}

struct Guards {
    region: Region,
}

/// Pages guarded without a mapping of their own, between pages with contents.
pub fn run_guards(control: &Control, memory: Memory) -> io::Result<()> {
    let region = Region::anonymous("guarded", memory.pages(), Mix::Mixed, memory.seed)?.filled(0);
    for page in (0..region.pages()).step_by(GUARD_EVERY) {
        region.mapping.advise(page..page + 1, Advice::Guard)?;
    }
    control.all_ready(&[])?;
    control.serve(MAIN_TASK, &mut Guards { region })
}

impl Duty for Guards {
    fn request(&mut self, verb: &str) -> Outcome {
        if verb != "check" {
            return unknown(verb);
        }
        let mut report = Report::default();
        for page in 0..self.region.pages() {
            if page % GUARD_EVERY == 0 {
                report.expect(is_guarded(&self.region.mapping, page), || {
                    format!("guard page {page} is readable")
                });
            } else {
                self.region.check(page..page + 1, &mut report);
            }
        }
        Ok(report)
    }
}
