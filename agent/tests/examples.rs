//! The examples do what they say.

mod common;

use std::{env, process::Command};

use common::Fixture;

#[test]
fn a_program_embeds_the_library_with_a_store_of_its_own() {
    let fixture = Fixture::local();
    // Tests are in `deps`, examples beside that.
    let tests = env::current_exe().unwrap();
    let example = tests.parent().unwrap().parent().unwrap().join("examples/embed");
    let output = Command::new(example)
        .arg(fixture.path().join("embed"))
        .env("MIGRATION_WORK_DIR", fixture.path().join("work"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("runs again") && said.contains("it has counted on from"), "{said}");
    let requests = said.rsplit("; ").next().unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(requests > 10, "its own store was used: {said}");
}
