//! The checkpoint format from end to end: what a writer was given is what a reader gets, whatever happens in between.

mod damage;
mod deletion;
mod failures;
mod files;
mod inherit;
mod retention;
mod roundtrip;
mod sparse;
mod support;
