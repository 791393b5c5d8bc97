//! The target cannot run the application's image, or has another one: the application goes on where it is.

use std::time::Duration;

use super::steps::{expect, finish, one_pod};
use crate::{
    Failure,
    application::Application,
    cluster::kubectl,
    manifest::{Manifest, SAMPLE},
    observer::Observer,
    redis,
    timeline::Timeline,
};

/// Seconds after which a migration is given up: an image that cannot be pulled is waited for until then.
const TIMEOUT: u32 = 60;
/// An image that nobody has.
const MISSING: &str = "10.82.0.1:5000/nowhere:0.1.0";
/// An image that starts and has nothing of the application's.
const OTHER: &str = "migration-applications:0.1.0";

pub fn wrong_image(strategy: &str, mib: u64) -> Result<(), Failure> {
    let app = Application::start(&Manifest { strategy, timeout: TIMEOUT, ..Manifest::redis("image") })?;
    let digest = redis::fill(&app, mib)?;
    let observer = Observer::start(&app, false)?;
    let mut timeline = Timeline::begin("its template gets an image that cannot be pulled");
    let status = stays(&app, MISSING)?;
    expect(status.contains("Pull"), &format!("it is not told why: {status}"))?;
    timeline.note(status);
    timeline.note("its template gets another image, which has none of its files");
    let status = stays(&app, OTHER)?;
    timeline.note(status);
    timeline.note("its template gets its image back");
    image(&app, SAMPLE)?;
    let (before, source) = (app.status()?.migration("id").to_owned(), app.status()?.node().to_owned());
    app.trigger("rehearsal")?;
    let status = app.wait_until_moved(&before)?;
    expect(status.node() != source, "it has not left its node")?;
    finish(&mut timeline, &app, observer, &digest)?;
    one_pod(&app)
}

/// It is asked to move with this image and cannot: it goes on where it is, and says why.
fn stays(app: &Application, wrong: &str) -> Result<String, Failure> {
    let status = app.status()?;
    let (before, source) = (status.migration("id").to_owned(), status.node().to_owned());
    image(app, wrong)?;
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

fn image(app: &Application, image: &str) -> Result<(), Failure> {
    let path = "/spec/template/spec/containers/0/image";
    let patch = serde_json::json!([{"op": "replace", "path": path, "value": image}]);
    kubectl(&["patch", "mapp", &app.name, "--type=json", "-p", &patch.to_string()]).map(drop)
}
