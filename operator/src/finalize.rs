//! The end of an application: its checkpoints are kept, or deleted, as its policy says.
//!
//! Deletion is done by an agent, which has the store's credentials: the one of the application's last pod, as long as it answers.
//! What was deleted is reported by an event. When no agent can be asked for [`PATIENCE`], the checkpoints stay, an event says
//! so and where they are, and the application goes: an object that cannot be deleted would hold up its whole namespace.

use std::time::Duration;

use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    runtime::{controller::Action, events::EventType},
};
use migration_proto::agent::CollectRequest;
use serde_json::json;

use crate::{
    agents::Agent,
    api::{DeletionPolicy, MigratableApp},
    context::Context,
    error::{Error, is},
    injection,
    migration::since,
    observe::now,
    pods::store_url,
};

/// The operator's finalizer.
pub const FINALIZER: &str = "migration.io/checkpoints";

/// How long it is tried to delete checkpoints. An agent whose pod is going answers until its grace period is over.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the operator has a say in the end of this application.
pub fn has_finalizer(app: &MigratableApp) -> bool {
    app.finalizers().iter().any(|name| name == FINALIZER)
}

/// Takes part in the end of an application.
///
/// # Errors
/// When the API server does not answer.
pub async fn add(ctx: &Context, app: &MigratableApp) -> Result<(), Error> {
    let mut finalizers = app.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    set(ctx, app, &finalizers).await
}

async fn set(ctx: &Context, app: &MigratableApp, finalizers: &[String]) -> Result<(), Error> {
    ctx.must_lead()?;
    let metadata = json!({"finalizers": finalizers, "resourceVersion": app.metadata.resource_version});
    let apps = ctx.apps(&app.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": metadata}));
    match apps.patch_metadata(&app.name_any(), &PatchParams::default(), &patch).await {
        Ok(written) => {
            ctx.memory.wrote(&written.metadata);
            Ok(())
        }
        Err(error) if is(&error, 404) => Ok(()),
        Err(error) => Err(Error::kube("write finalizers")(error)),
    }
}

/// Ends an application that is being deleted.
///
/// # Errors
/// When the API server does not answer.
pub async fn finalize(ctx: &Context, app: MigratableApp) -> Result<Action, Error> {
    if !has_finalizer(&app) {
        return Ok(Action::await_change());
    }
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let place = format!("{} of {}", ctx.full_name(&app), store_url(&app.spec.storage));
    if app.spec.deletion_policy() == DeletionPolicy::Delete {
        let begun = ctx.memory.update(&uid, |remembered| *remembered.deleting.get_or_insert_with(now));
        match collect(ctx, &app).await {
            Ok(report) => ctx.event(&app, EventType::Normal, "CheckpointsDeleted", &report).await,
            Err(_) if since(begun, now()) < PATIENCE => return Ok(Action::requeue(Duration::from_secs(2))),
            Err(why) => {
                let note = format!(
                    "the checkpoints {place} stay: {why}; delete them with `migration-agent delete`, or the bucket's own tools"
                );
                ctx.event(&app, EventType::Warning, "CheckpointsKept", &note).await;
            }
        }
    } else if app.status.as_ref().is_some_and(|status| status.checkpoint_status.is_some()) {
        let note = format!("the checkpoints {place} stay, by its deletionPolicy");
        ctx.event(&app, EventType::Normal, "CheckpointsKept", &note).await;
    }
    if app.spec.injection.is_some() {
        injection::release_pods(ctx, &app).await?;
    }
    let rest: Vec<String> = app.finalizers().iter().filter(|name| *name != FINALIZER).cloned().collect();
    set(ctx, &app, &rest).await?;
    ctx.memory.forget(&uid);
    Ok(Action::await_change())
}

/// Has any agent of the application delete its checkpoints.
async fn collect(ctx: &Context, app: &MigratableApp) -> Result<String, String> {
    let mut why = "none of its pods is left".to_owned();
    for pod in ctx.pods.of(app) {
        let asked: Result<Agent, _> = ctx.agent(app, &pod).await;
        let request = CollectRequest { app: ctx.full_name(app), all: true, ..Default::default() };
        let answer = match asked {
            Ok(agent) => agent.collect(request).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(done) => {
                let kept = match done.kept.len() {
                    0 => String::new(),
                    kept => format!("; {kept} that are pinned or in use stay"),
                };
                return Ok(format!(
                    "{} checkpoints deleted, {} bytes freed{kept}",
                    done.deleted.len(),
                    done.freed_bytes
                ));
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}
