//! The pod that an application's command is started in: written down, then created.
//!
//! What always holds: its name follows from the application and a number, so that creating it again creates nothing.

use std::time::Duration;

use kube::{ResourceExt, runtime::events::EventType};

use crate::{
    act::{NotMade, create_pod},
    api::{MigratableApp, MigratableAppStatus, Phase, Program},
    context::Context,
    error::Error,
    migrate::persist,
    migration::spread,
    observe::now,
    pods::Role,
    status::{condition, set},
};

/// Writes down the pod that the application is started in, then creates it.
///
/// # Errors
/// When the API server does not answer.
pub async fn start(ctx: &Context, app: MigratableApp, round: u32) -> Result<Duration, Error> {
    let status = app.status.clone().unwrap_or_default();
    Box::pin(started(ctx, app, round, status)).await
}

/// As [`start`], when somebody wants it although there are checkpoints: they are of another run.
///
/// # Errors
/// As [`start`].
pub async fn start_over(ctx: &Context, app: MigratableApp, round: u32) -> Result<Duration, Error> {
    let mut status = app.status.clone().unwrap_or_default();
    status.checkpoint_status = None;
    status.restarted = Some(true);
    Box::pin(started(ctx, app, round, status)).await
}

async fn started(
    ctx: &Context,
    app: MigratableApp,
    round: u32,
    mut status: MigratableAppStatus,
) -> Result<Duration, Error> {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let name = pod_name(&app, round);
    if app.spec.injection.is_none() {
        status.program = Program::of(&app.spec.template, app.spec.container_name());
    }
    status.observed_generation = app.metadata.generation;
    status.current_pod_name = Some(name.clone());
    status.current_pod_mark = None;
    status.current_node = None;
    status.phase = Some(Phase::Pending);
    set(&mut status, condition::READY, Some(false), "Starting", "its pod does not run yet", now());
    set(&mut status, condition::MIGRATING, Some(false), "Idle", "", now());
    ctx.memory.update(&uid, |remembered| *remembered = crate::context::Remembered::default());
    let app = if app.status.as_ref() == Some(&status) { app } else { persist(ctx, &app, status).await? };
    created(ctx, app, &name).await
}

/// Creates the pod that is written down.
///
/// # Errors
/// When the API server does not answer.
pub async fn created(ctx: &Context, app: MigratableApp, name: &str) -> Result<Duration, Error> {
    match create_pod(ctx, &app, name, None, Role::Launch).await {
        Ok(()) => {
            ctx.event(&app, EventType::Normal, "Started", &format!("started in pod {name}")).await;
            Ok(ctx.settings.limits.look)
        }
        Err(NotMade::Error(error)) => Err(error),
        Err(NotMade::Because(reason, message)) => {
            let mut status = app.status.clone().unwrap_or_default();
            status.phase = Some(Phase::Pending);
            status.observed_generation = app.metadata.generation;
            set(&mut status, condition::READY, Some(false), reason, &message, now());
            set(&mut status, condition::MIGRATABLE, Some(false), reason, &message, now());
            if app.status.as_ref() != Some(&status) {
                ctx.event(&app, EventType::Warning, reason, &message).await;
                persist(ctx, &app, status).await?;
            }
            // Somebody has to do something first.
            Ok(Duration::from_secs(10))
        }
    }
}

/// The name of a pod that an application is started in.
fn pod_name(app: &MigratableApp, round: u32) -> String {
    const LONGEST: usize = 52;
    let uid = app.metadata.uid.as_deref().unwrap_or_default();
    let hash = spread(&format!("{uid}-{round}"), 1 << 32);
    let app = app.name_any();
    format!("{}-{hash:08x}", app[..app.floor_char_boundary(LONGEST)].trim_end_matches(['-', '.']))
}

/// Rounds after which names begin anew.
const ROUNDS: u32 = 1024;

/// The round after that of a pod, or of the one it was restored from, whose name it continues.
pub fn next_round(app: &MigratableApp, name: &str) -> u32 {
    let round = (0..ROUNDS).find(|round| name.starts_with(&pod_name(app, *round)));
    round.map_or(1, |round| round + 1) % ROUNDS
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_application_that_was_moved_is_started_again_under_the_next_name() {
        let app: MigratableApp = serde_json::from_value(json!({
            "apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp",
            "metadata": {"name": "cache", "namespace": "shop", "uid": "u"},
            "spec": {"template": {}, "storage": {"type": "s3", "bucket": "b"}}
        }))
        .unwrap();
        for round in [0, 1, 7] {
            let started = pod_name(&app, round);
            assert_eq!(next_round(&app, &started), round + 1);
            assert_eq!(next_round(&app, &format!("{started}-m6818c77d-2")), round + 1);
        }
        assert_eq!(next_round(&app, "a-pod-of-nobody-s"), 1);
    }
}
