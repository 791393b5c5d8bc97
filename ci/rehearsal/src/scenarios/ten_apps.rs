//! Ten applications of one node move at once.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::{
    spot::NOTICE,
    steps::{expect, finish, nodes, one_pod},
};
use crate::{
    Failure, application::Application, faults::Notice, manifest::Manifest, observer::Observer, redis,
    timeline::Timeline,
};

pub fn ten_apps(strategy: &str, mib: u64) -> Result<(), Failure> {
    let source = nodes()?.into_iter().next().ok_or("there is no node")?;
    let names: Vec<String> = (0..10).map(|number| format!("ten-{number}")).collect();
    let apply = |name: &String| {
        Application::apply(&Manifest { strategy, node: Some(&source), ..Manifest::redis(name) })
    };
    let apps = names.iter().map(apply).collect::<Result<Vec<_>, _>>()?;
    let mut watched = Vec::new();
    for app in &apps {
        app.wait_until_migratable()?;
        expect(app.status()?.node() == source, "it has not begun where it was to begin")?;
        let digest = redis::fill(app, mib)?;
        watched.push((app, digest, Observer::start(app, false)?));
    }
    let deadline = Timestamp::now() + Duration::from_secs(NOTICE);
    let mut timeline =
        Timeline::begin(&format!("the cloud takes {source} back in {NOTICE} s, with ten applications"));
    let _notice = Notice::spot(&source, NOTICE)?;
    for (app, digest, observer) in watched {
        let status = app.wait_until_moved("")?;
        let moved: Timestamp = status.migration("finishedAt").parse()?;
        expect(moved < deadline, "it was not gone before the machine would have been")?;
        expect(status.node() != source, "it has not left its node")?;
        finish(&mut timeline, app, observer, &digest)?;
    }
    for app in &apps {
        one_pod(app)?;
    }
    Ok(())
}
