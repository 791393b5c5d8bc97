//! `status`: how applications are.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{app::App, error::Error, kubectl::Kubectl};

/// Shows all applications of the namespace, or everything about one.
///
/// # Errors
/// When kubectl fails.
pub fn status(kubectl: &Kubectl, name: Option<&str>, json: bool) -> Result<(), Error> {
    match name {
        Some(name) => {
            let app = App::get(kubectl, name)?;
            match json {
                true => println!("{}", object(&app)?),
                false => print!("{}", described(&app)),
            }
        }
        None => {
            let apps = App::list(kubectl)?;
            match json {
                true => println!("{}", Value::Array(apps.iter().map(object).collect::<Result<_, _>>()?)),
                false => print!("{}", table(&apps)),
            }
        }
    }
    Ok(())
}

/// As JSON: its status, named.
///
/// # Errors
/// Never; the type is serde's.
pub fn object(app: &App) -> Result<Value, Error> {
    let mut object = serde_json::to_value(&app.status)?;
    object["name"] = json!(app.name());
    object["namespace"] = json!(app.namespace());
    Ok(object)
}

fn or_dash(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("-")
}

fn table(apps: &[App]) -> String {
    let header = ["NAME", "PHASE", "NODE", "POD", "CHECKPOINT", "MOVES", "CAN BE MOVED"];
    let mut rows = vec![header.map(str::to_owned)];
    for app in apps {
        let status = &app.status;
        let checkpoint = status.checkpoint_status.as_ref();
        let migratable = app.condition("Migratable");
        rows.push(
            [
                app.name(),
                or_dash(status.phase.as_deref()),
                or_dash(status.current_node.as_deref()),
                or_dash(status.current_pod_name.as_deref()),
                or_dash(checkpoint.and_then(|checkpoint| checkpoint.last_checkpoint_time.as_deref())),
                &status.generation.unwrap_or(0).to_string(),
                &match migratable {
                    Some(yes) if yes.status == "True" => "yes".to_owned(),
                    Some(no) => format!("no: {}", no.reason),
                    None => "-".to_owned(),
                },
            ]
            .map(str::to_owned),
        );
    }
    if apps.is_empty() {
        return "There is no application here; -n NAMESPACE looks elsewhere.\n".to_owned();
    }
    let widths: Vec<usize> = (0..header.len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("   ").trim_end());
    }
    text
}

/// Everything about one.
pub fn described(app: &App) -> String {
    let status = &app.status;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| _ = writeln!(text, "{name:<14}{value}");
    line("Name", &format!("{}/{}", app.namespace(), app.name()));
    line("Phase", or_dash(status.phase.as_deref()));
    line("Node", or_dash(status.current_node.as_deref()));
    line("Pod", or_dash(status.current_pod_name.as_deref()));
    if let Some(checkpoint) = &status.checkpoint_status {
        line("Checkpoint", or_dash(checkpoint.last_checkpoint_id.as_deref()));
        line("", &format!("committed {}", or_dash(checkpoint.last_checkpoint_time.as_deref())));
    }
    if let Some(migration) = &status.migration {
        let node = |place: &Option<crate::app::Place>| {
            or_dash(place.as_ref().map(|place| place.node.as_str())).to_owned()
        };
        let blackout = migration.blackout_ms.map_or(String::new(), |ms| format!(", stood still for {ms} ms"));
        let route = format!("{} → {}", node(&migration.source), node(&migration.target));
        line("Last move", &format!("{}: {route} ({}){blackout}", migration.stage, migration.reason));
        if let Some(message) = &migration.message {
            line("", message);
        }
    }
    for condition in &status.conditions {
        line(&condition.type_, &format!("{}, {}: {}", condition.status, condition.reason, condition.message));
    }
    for past in status.migration_history.iter().rev() {
        let went = if past.success { "moved" } else { "failed" };
        let blackout =
            past.blackout.as_ref().map_or(String::new(), |took| format!(", stood still for {took}"));
        let message = past.message.as_ref().map_or(String::new(), |message| format!(": {message}"));
        let (from, to) = (or_dash(Some(&past.from_node)), or_dash(Some(&past.to_node)));
        line(
            "History",
            &format!(
                "{} {went} {from} → {to} in {}{blackout} ({}){message}",
                past.timestamp, past.duration, past.reason
            ),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        serde_json::from_value(json!({
            "metadata": {"name": "cache", "namespace": "shop"},
            "status": {
                "phase": "Running", "currentNode": "b", "currentPodName": "cache-1", "generation": 1,
                "somethingNew": {"is": "ignored"},
                "checkpointStatus": {"lastCheckpointID": "01J", "lastCheckpointTime": "2026-11-23T04:00:00Z"},
                "migration": {"id": "m", "stage": "Succeeded", "reason": "try", "blackoutMs": 350,
                    "source": {"pod": "cache", "node": "a"}, "target": {"pod": "cache-1", "node": "b"}},
                "migrationHistory": [{"fromNode": "a", "toNode": "b", "timestamp": "2026-11-23T04:00:00Z",
                    "reason": "try", "duration": "4.2s", "blackout": "350ms", "success": true}],
                "conditions": [{"type": "Migratable", "status": "False", "reason": "NoNode", "message": "no other node"}],
            }
        }))
        .unwrap()
    }

    #[test]
    fn all_that_is_known_of_an_application_is_shown() {
        let text = described(&app());
        for part in
            ["shop/cache", "Running", "cache-1", "01J", "a → b", "350 ms", "4.2s", "NoNode: no other node"]
        {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        let table = table(&[app()]);
        assert!(table.contains("cache") && table.contains("no: NoNode"), "{table}");
        assert_eq!(object(&app()).unwrap()["migration"]["blackoutMs"], 350);
    }

    #[test]
    fn an_application_nobody_has_told_of_yet_is_shown_too() {
        let app: App = serde_json::from_value(json!({"metadata": {"name": "new"}})).unwrap();
        assert!(described(&app).contains("Phase         -"));
        assert!(table(&[app]).contains("new"));
    }
}
