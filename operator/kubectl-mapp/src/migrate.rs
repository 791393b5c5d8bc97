//! `migrate` and `restore`: asking the operator, and watching what it does.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    app::{App, Migration},
    cli::{Migrate, Restore, Wait},
    error::Error,
    kubectl::{KIND, Kubectl},
    status,
};

const TRIGGER: &str = "migration.io/trigger";
const REASON: &str = "migration.io/reason";
const RETRY: &str = "migration.io/retry";
const REQUESTED: &str = "requested";

/// How often the application is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A request that was taken away without anything having begun since is taken for refused.
const SETTLES: Duration = Duration::from_secs(20);

/// Has an application moved.
///
/// # Errors
/// When it cannot be moved, or, if that was waited for, was not.
pub fn migrate(kubectl: &Kubectl, typed: &Migrate, json: bool) -> Result<(), Error> {
    let app = App::get(kubectl, &typed.name)?;
    let name = typed.name.clone();
    refuse_while_moving(&app)?;
    let pod = app.pod()?;
    if let Some(no) = app.condition("Migratable").filter(|condition| condition.status == "False") {
        return Err(Error::NotMigratable { name, why: format!("{} ({})", no.message, no.reason) });
    }
    kubectl.annotate("pod", pod, &[(TRIGGER, REQUESTED), (REASON, &typed.reason)])?;
    eprintln!(
        "asked for {name} to be moved away from {}",
        app.status.current_node.as_deref().unwrap_or("its node")
    );
    let asked = Asked { kind: "pod", name: pod.to_owned(), annotation: TRIGGER };
    wait(kubectl, &app, &asked, &typed.wait, json)
}

/// Has an application that does not run restored.
///
/// # Errors
/// When it runs, has nothing to be restored from, or, if that was waited for, was not restored.
pub fn restore(kubectl: &Kubectl, typed: &Restore, json: bool) -> Result<(), Error> {
    let app = App::get(kubectl, &typed.name)?;
    let name = typed.name.clone();
    refuse_while_moving(&app)?;
    if let Some(pod) = app.status.current_pod_name.clone() {
        return Err(Error::Runs { name, pod });
    }
    let last = app.status.migration.as_ref().and_then(|migration| migration.checkpoint_id.as_ref());
    if app.status.checkpoint_status.is_none() && last.is_none() {
        return Err(Error::NoCheckpoint { name });
    }
    kubectl.annotate(KIND, &name, &[(RETRY, REQUESTED)])?;
    eprintln!("asked for the last checkpoint of {name} to be restored now");
    let asked = Asked { kind: KIND, name, annotation: RETRY };
    wait(kubectl, &app, &asked, &typed.wait, json)
}

fn refuse_while_moving(app: &App) -> Result<(), Error> {
    match app.status.migration.as_ref().filter(|migration| !migration.is_over()) {
        Some(moving) => Err(Error::Moving { name: app.name().to_owned(), stage: moving.stage.clone() }),
        None => Ok(()),
    }
}

/// What was written, and the operator takes away once it has it.
struct Asked {
    kind: &'static str,
    name: String,
    annotation: &'static str,
}

impl Asked {
    /// Whether it is still written there.
    fn stands(&self, kubectl: &Kubectl) -> bool {
        let object = kubectl.get(self.kind, Some(&self.name));
        object.is_ok_and(|object| !object["metadata"]["annotations"][self.annotation].is_null())
    }
}

/// Shows how it goes on until it is over, if that was asked for.
fn wait(kubectl: &Kubectl, before: &App, asked: &Asked, typed: &Wait, json: bool) -> Result<(), Error> {
    let name = before.name().to_owned();
    if !typed.wait {
        if json {
            println!("{}", serde_json::json!({"name": name, "asked": true}));
        }
        return Ok(());
    }
    let known = before.status.migration.as_ref().map(|migration| migration.id.clone());
    let begun = Instant::now();
    let mut shown = String::new();
    let mut taken_away: Option<Instant> = None;
    loop {
        let app = App::get(kubectl, &name)?;
        let new = app.status.migration.as_ref().filter(|migration| Some(&migration.id) != known.as_ref());
        if let Some(migration) = new {
            show(migration, begun, &mut shown);
            if migration.is_over() {
                return over(&app, migration, json);
            }
        } else if asked.stands(kubectl) {
            taken_away = None;
        } else if taken_away.get_or_insert_with(Instant::now).elapsed() > SETTLES {
            return Err(Error::Refused { name });
        }
        if begun.elapsed() > Duration::from_secs(typed.timeout) {
            let stage = new.map_or("the operator has not begun", |migration| migration.stage.as_str());
            return Err(Error::TimedOut { name, seconds: typed.timeout, stage: stage.to_owned() });
        }
        thread::sleep(LOOK);
    }
}

/// Says what has changed.
fn show(migration: &Migration, begun: Instant, shown: &mut String) {
    let target = migration.target.as_ref().map(|target| target.node.as_str()).filter(|node| !node.is_empty());
    let target = target.map_or(String::new(), |node| format!(" to {node}"));
    let message = migration.message.as_ref().map_or(String::new(), |message| format!(": {message}"));
    let now = format!("{}{target}{message}", migration.stage);
    if *shown != now {
        eprintln!("{:>6.1} s  {now}", begun.elapsed().as_secs_f64());
        *shown = now;
    }
}

fn over(app: &App, migration: &Migration, json: bool) -> Result<(), Error> {
    if migration.stage != "Succeeded" {
        let why = migration.message.clone().unwrap_or_else(|| migration.stage.clone());
        return Err(Error::Failed { name: app.name().to_owned(), why });
    }
    match json {
        true => println!("{}", status::object(app)?),
        false => {
            let blackout =
                migration.blackout_ms.map_or(String::new(), |ms| format!("; it stood still for {ms} ms"));
            let node = app.status.current_node.as_deref().unwrap_or("another node");
            println!("{} runs on {node}{blackout}", app.name());
        }
    }
    Ok(())
}
