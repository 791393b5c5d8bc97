//! A target under libFuzzer, built and called by `ci/fuzz-run`: `FUZZ_TARGET` names the target, `FUZZ_SEEDS` a directory
//! that gets its valid inputs; the arguments are libFuzzer's.

#![no_main]

use std::{env, fs, path::Path, sync::OnceLock};

use migration_fuzz::Target;
use migration_harness::sys::MeteredAllocator;

#[global_allocator]
static ALLOCATOR: MeteredAllocator = MeteredAllocator;

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: prepare(), |input: &[u8]| {
    TARGET.get().expect("a target").check(input);
});

fn prepare() {
    let name = env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    let target = Target::named(&name).unwrap_or_else(|| panic!("there is no target {name}"));
    if let Some(directory) = env::var_os("FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(Path::new(&directory).join(format!("seed-{number}")), seed).expect("a seed is written");
        }
    }
    TARGET.get_or_init(|| target);
}
