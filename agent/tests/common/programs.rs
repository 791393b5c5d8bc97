//! The programs of `tests/programs`, compiled.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// The program, compiled once for each version of it.
pub fn executable(name: &str) -> PathBuf {
    const FLAGS: [&str; 5] = ["-std=gnu17", "-Wall", "-Wextra", "-O1", "-pthread"];
    let source = programs().join(name).with_extension("c");
    let mut version = DefaultHasher::new();
    FLAGS.hash(&mut version);
    for part in [&source, &programs().join("program.h")] {
        fs::read(part).unwrap().hash(&mut version);
    }
    let file = format!("state-{}-{:016x}", name.replace('/', "-"), version.finish());
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    if !built.exists() {
        let mine = built.with_extension(format!("{}-{:?}", std::process::id(), thread::current().id()));
        let compiler = std::env::var_os("CC").unwrap_or("cc".into());
        let compiled = Command::new(compiler).args(FLAGS).arg("-o").args([&mine, &source]).status().unwrap();
        assert!(compiled.success(), "{name}.c does not compile");
        fs::rename(mine, &built).unwrap();
    }
    built
}

/// Where their sources are.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}
