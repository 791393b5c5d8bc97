//! Memory that two tasks share: an anonymous shared mapping and a memfd.
//!
//! Even pages are written by `main`, odd ones by `child`; the generation each has reached is in a shared page of its own.
//! So each task can check all pages, and sees at once whether what the other writes still arrives.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering::SeqCst;

use migration_harness::control::MAIN_TASK;
use migration_harness::pattern::{Mix, fill};
use migration_harness::region::Report;
use migration_harness::sys::{Access, Mapping, PAGE_SIZE, Sharing, fork};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::Memory;
use crate::task::{Control, Duty, Outcome, unknown};

struct Member {
    /// 0 for the one that writes even pages, 1 for the other.
    parity: usize,
    seed: u64,
    anonymous: Mapping,
    memfd: Mapping,
    /// Word 0 and 1: generations of even and odd pages. Shared as well.
    generations: Mapping,
    /// A second way to the memfd's pages, which has to be the same file after a restore.
    file: File,
}

pub fn run(control: &Control, memory: Memory) -> io::Result<()> {
    let pages = (memory.pages() / 2).max(2);
    let file = File::from(memfd_create(c"workload", MFdFlags::MFD_CLOEXEC)?);
    file.set_len((pages * PAGE_SIZE) as u64)?;
    let member = |parity| -> io::Result<Member> {
        Ok(Member {
            parity,
            seed: memory.seed,
            anonymous: Mapping::anonymous(pages, Access::Write, Sharing::Shared)?,
            memfd: Mapping::of_file(&file, pages, Sharing::Shared)?,
            generations: Mapping::anonymous(1, Access::Write, Sharing::Shared)?,
            file: file.try_clone()?,
        })
    };
    let mut main = member(0)?;
    drop(file);
    main.write();
    if fork()?.is_none() {
        main.parity = 1;
        main.write();
        control.ready("child")?;
        return control.serve("child", &mut main);
    }
    control.all_ready(&["child"])?;
    control.serve(MAIN_TASK, &mut main)
}

impl Member {
    fn generation(&self, parity: usize) -> u32 {
        self.generations.words(0)[parity].load(SeqCst) as u32
    }

    fn write(&mut self) -> Report {
        let generation = self.generation(self.parity) + 1;
        let mut contents = [0; PAGE_SIZE];
        let mut report = Report::default();
        for page in (self.parity..self.anonymous.pages()).step_by(2) {
            for (mapping, seed) in [(&self.anonymous, self.seed), (&self.memfd, !self.seed)] {
                fill(&mut contents, Mix::Mixed, seed, page as u64, generation);
                mapping.write(page, &contents);
                report.good();
            }
        }
        self.generations.words(0)[self.parity].store(generation.into(), SeqCst);
        report
    }

    fn check(&self) -> Result<Report, String> {
        use std::os::unix::fs::FileExt;
        let mut report = Report::default();
        let (mut found, mut wanted) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        for page in 0..self.anonymous.pages() {
            let generation = self.generation(page % 2);
            report.expect(generation > 0, || {
                format!("generation of {} pages is lost", ["even", "odd"][page % 2])
            });

            fill(&mut wanted, Mix::Mixed, self.seed, page as u64, generation);
            self.anonymous.read(page, &mut found);
            report
                .expect(found == wanted, || format!("shared anonymous page {page}, generation {generation}"));

            fill(&mut wanted, Mix::Mixed, !self.seed, page as u64, generation);
            self.memfd.read(page, &mut found);
            report.expect(found == wanted, || format!("memfd page {page}, generation {generation}"));
            let at = (page * PAGE_SIZE) as u64;
            self.file.read_exact_at(&mut found, at).map_err(|error| format!("memfd: {error}"))?;
            report.expect(found == wanted, || format!("memfd page {page} read through its descriptor"));
        }
        Ok(report)
    }
}

impl Duty for Member {
    fn request(&mut self, verb: &str) -> Outcome {
        match verb {
            "check" => self.check(),
            "write" => Ok(self.write()),
            _ => unknown(verb),
        }
    }
}
