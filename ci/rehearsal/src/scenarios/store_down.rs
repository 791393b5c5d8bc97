//! Nobody reaches the store for a minute, from the moment the application stands still.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::steps::{expect, finish, one_pod, started};
use crate::{
    Failure,
    application::PATIENCE,
    cluster::until,
    faults::{Slow, StoreDown},
    observer::Observer,
    timeline::Timeline,
};

/// How long.
const DOWN: Duration = Duration::from_secs(60);
/// A client that got no answer for so long talks to something that stands still.
const STILL: Duration = Duration::from_millis(400);
/// So slow that the last data is not in the store before that shows.
const RATE: &str = "50mbit";

pub fn store_down(strategy: &str, mib: u64) -> Result<(), Failure> {
    let (app, digest) = started("down", strategy, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let mut timeline = Timeline::begin(&format!("annotated on {source}, whose link has {RATE}"));
    let slow = Slow::link(&source, RATE)?;
    app.trigger("rehearsal")?;
    app.wait_for_stage("", "Dumping")?;
    timeline.note("its final dump begins");
    let mut answered = (observer.seen().writes, Instant::now());
    until(PATIENCE, "it stands still", || {
        let writes = observer.seen().writes;
        if writes != answered.0 {
            answered = (writes, Instant::now());
        }
        Ok((answered.1.elapsed() > STILL).then_some(()))
    })?;
    let down = StoreDown::now("silent")?;
    timeline.note(format!("it stands still, and the store answers nobody for {} s", DOWN.as_secs()));
    drop(slow);
    expect(app.status()?.migration("committedAt").is_empty(), "its checkpoint was committed before")?;
    thread::sleep(DOWN);
    drop(down);
    timeline.note("the store answers");
    let status = app.wait_until_over("")?;
    timeline.note(format!("{}: {}", status.migration("stage"), status.migration("message")));
    app.wait_until_migratable()?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)
}
