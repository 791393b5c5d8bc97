//! A mapping together with what each of its pages should hold.

use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::pattern::{Mix, fill};
use crate::sys::{Access, Mapping, PAGE_SIZE, Page, Sharing};

/// What a check of memory found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Pages (or, where a scenario says so, other things) that were looked at.
    pub pages: u64,
    /// Those that were not as they should be.
    pub bad: u64,
    /// The first few bad ones, in words.
    pub examples: Vec<String>,
}

impl Report {
    const MAX_EXAMPLES: usize = 8;

    /// Counts something that was as it should be.
    pub fn good(&mut self) {
        self.pages += 1;
    }

    /// Counts something that was not.
    pub fn bad(&mut self, what: impl FnOnce() -> String) {
        self.pages += 1;
        self.bad += 1;
        if self.examples.len() < Self::MAX_EXAMPLES {
            self.examples.push(what());
        }
    }

    /// Counts a thing that should be true.
    pub fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if holds { self.good() } else { self.bad(what) }
    }

    /// Adds another report to this one.
    pub fn add(&mut self, other: Report) {
        self.pages += other.pages;
        self.bad += other.bad;
        let room = Self::MAX_EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }
}

/// What a page should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Zeros.
    Zero,
    /// The pattern of this generation.
    Pattern(u32),
    /// The pattern of this generation or zeros, as the kernel likes (after `MADV_FREE`).
    PatternOrZero(u32),
}

/// A mapping and what each of its pages should hold.
pub struct Region {
    /// The pages.
    pub mapping: Mapping,
    name: &'static str,
    mix: Mix,
    seed: u64,
    expected: Vec<Expected>,
}

impl Region {
    /// A private anonymous region whose pages are all zero and untouched.
    pub fn anonymous(name: &'static str, pages: usize, mix: Mix, seed: u64) -> io::Result<Self> {
        Ok(Self::over(Mapping::anonymous(pages, Access::Write, Sharing::Private)?, name, mix, seed))
    }

    /// A region over a mapping whose pages are all zero.
    pub fn over(mapping: Mapping, name: &'static str, mix: Mix, seed: u64) -> Self {
        let expected = vec![Expected::Zero; mapping.pages()];
        Region { mapping, name, mix, seed, expected }
    }

    /// Writes the pattern of a generation into a range.
    pub fn fill(&mut self, range: Range<usize>, generation: u32) {
        for page in range {
            self.fill_page(page, generation);
        }
    }

    /// Writes the pattern of a generation into all of it, and returns it.
    pub fn filled(mut self, generation: u32) -> Self {
        self.fill(0..self.pages(), generation);
        self
    }

    /// Writes the pattern of a generation into one page.
    pub fn fill_page(&mut self, page: usize, generation: u32) {
        let mut contents = [0; PAGE_SIZE];
        fill(&mut contents, self.mix, self.seed, page as u64, generation);
        self.mapping.write(page, &contents);
        self.expected[page] = Expected::Pattern(generation);
    }

    /// Changes one byte of a page behind the region's back, so that a check must find it.
    pub fn corrupt(&mut self, page: usize) {
        let mut contents = [0; PAGE_SIZE];
        self.mapping.read(page, &mut contents);
        contents[page % PAGE_SIZE] ^= 0x40;
        self.mapping.write(page, &contents);
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.mapping.pages()
    }

    /// What a page should hold.
    pub fn expected(&self, page: usize) -> Expected {
        self.expected[page]
    }

    /// Says what a range holds from now on; the caller has done something to it.
    pub fn expect(&mut self, range: Range<usize>, expected: Expected) {
        self.expected[range].fill(expected);
    }

    /// Moves it somewhere else and makes it longer; what is added is zero.
    pub fn move_and_grow(self, pages: usize) -> io::Result<Self> {
        let Region { mapping, name, mix, seed, mut expected } = self;
        expected.resize(pages, Expected::Zero);
        Ok(Region { mapping: mapping.move_and_grow(pages)?, name, mix, seed, expected })
    }

    /// Compares every byte of a range with what it should be.
    pub fn check(&self, range: Range<usize>, report: &mut Report) {
        let (mut found, mut wanted) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        for page in range {
            self.mapping.read(page, &mut found);
            let good = match self.expected[page] {
                Expected::Zero => found == [0; PAGE_SIZE],
                Expected::Pattern(generation) => {
                    fill(&mut wanted, self.mix, self.seed, page as u64, generation);
                    found == wanted
                }
                Expected::PatternOrZero(generation) => {
                    fill(&mut wanted, self.mix, self.seed, page as u64, generation);
                    found == wanted || found == [0; PAGE_SIZE]
                }
            };
            report.expect(good, || self.describe(page, &found));
        }
    }

    /// Compares every byte of it with what it should be.
    pub fn check_all(&self, report: &mut Report) {
        self.check(0..self.pages(), report);
    }

    fn describe(&self, page: usize, found: &Page) -> String {
        let looks = if found.iter().all(|&byte| byte == 0) { "zeros" } else { "other bytes" };
        let address = self.mapping.address(page);
        format!("{} page {page} at {address:#x}: {looks} instead of {:?}", self.name, self.expected[page])
    }
}
