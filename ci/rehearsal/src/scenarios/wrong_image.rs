//! The target cannot have the application's image, or has another one of its name: the application goes on where it is.

use std::time::Duration;

use super::steps::{expect, finish, one_pod, other_node};
use crate::{
    Failure,
    application::Application,
    faults::OtherImage,
    manifest::{APPLICATIONS, Manifest, SAMPLE},
    observer::Observer,
    redis,
    timeline::Timeline,
};

/// Seconds after which a migration is given up: an image that cannot be pulled is waited for until then.
const TIMEOUT: u32 = 60;

pub fn wrong_image(strategy: &str, mib: u64) -> Result<(), Failure> {
    let app = Application::start(&Manifest { strategy, timeout: TIMEOUT, ..Manifest::redis("image") })?;
    let digest = redis::fill(&app, mib)?;
    let observer = Observer::start(&app, false)?;
    let source = app.status()?.node().to_owned();
    let target = other_node(&source)?;
    let mut timeline = Timeline::begin(&format!("{target} has not got its image, and cannot pull it"));
    let wrong = OtherImage::none(&target, SAMPLE)?;
    let status = stays(&app)?;
    expect(status.contains("Pull"), &format!("it is not told why: {status}"))?;
    timeline.note(status);
    timeline.note(format!("{target} has another image of that name, which has none of its files"));
    wrong.is(APPLICATIONS)?;
    let status = stays(&app)?;
    timeline.note(status);
    drop(wrong);
    timeline.note(format!("{target} has its image"));
    let before = app.status()?.migration("id").to_owned();
    app.trigger("rehearsal")?;
    let status = app.wait_until_moved(&before)?;
    expect(status.node() == target, "it has not left its node")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)
}

/// It is asked to move and cannot: it goes on where it is, and says why.
fn stays(app: &Application) -> Result<String, Failure> {
    let status = app.status()?;
    let (before, source) = (status.migration("id").to_owned(), status.node().to_owned());
    app.trigger("rehearsal")?;
    let status = app.wait_until_over(&before)?;
    expect(status.migration("stage") == "Failed", "it has moved, whatever its image was")?;
    expect(status.node() == source, "it does not run where it was")?;
    let message = status.migration("message").to_owned();
    let events = crate::cluster::until(Duration::from_secs(30), "an event says why", || {
        let events = app.events()?;
        Ok(events.contains(&message).then_some(events))
    })?;
    expect(events.lines().any(|line| line.starts_with("Warning")), "no event warns")?;
    app.wait_until_migratable()?;
    Ok(format!("it runs where it was: {message}"))
}
