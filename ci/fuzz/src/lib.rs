//! Everything that reads bytes from elsewhere, given bytes that nobody meant.
//!
//! A [`Target`] is a reader with an oracle: it takes any bytes, and panics when the reader does, when what was read does
//! not survive being written and read again, or when the reader believed what it should have refused. [`Target::check`]
//! adds a bound on memory, which a reader may take only in proportion to what it was given.
//!
//! The same targets run in three ways:
//! - `cargo test`: the regressions in `corpus/`, valid inputs, damaged valid inputs and random bytes, for seconds;
//! - `ci/fuzz-run TARGET SECONDS`: guided by coverage, for as long as one likes;
//! - `ci/fuzz-run TARGET FILE`: one input, to look into what was found.
//!
//! To add one: a file in `targets/`, a line in [`TARGETS`].

mod memory_store;
pub mod targets;

use migration_harness::sys::peak_memory;

/// A reader to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line, and of its directory below `corpus/`.
    pub name: &'static str,
    /// Gives it any bytes; whether they were taken for valid. Panics when something is wrong.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs, made by the real encoders, to be mutated.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Bytes of memory it may take in any case, and for each byte of its input.
    pub memory: (usize, usize),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    targets::manifest::TARGET,
    targets::frame::TARGET,
    targets::bundle::TARGET,
    targets::images::TARGET,
    targets::page_stream::TARGET,
    targets::registration::TARGET,
    targets::leases::TARGET,
    targets::names::TARGET,
];

impl Target {
    /// The target of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Runs it, which tells whether the input was taken for valid, and holds it to its bound on memory, as far as this thread took it. The bound is not checked when
    /// [`MeteredAllocator`](migration_harness::sys::MeteredAllocator) is not the program's allocator.
    ///
    /// # Panics
    /// When the target does, or took more memory than its bound.
    pub fn check(&self, input: &[u8]) -> bool {
        let (valid, peak) = peak_memory(|| (self.run)(input));
        let bound = self.memory.0 + self.memory.1 * input.len();
        assert!(
            peak <= bound,
            "{} took {peak} bytes for an input of {}, more than {bound}",
            self.name,
            input.len()
        );
        valid
    }
}
