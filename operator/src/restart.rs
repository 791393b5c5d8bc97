//! A template that was changed, and the start by which it takes effect.
//!
//! Memory goes on only in the program that it is of. What the template says of image, command and arguments of the container that
//! moves therefore holds from the next start on, and not before: targets of migrations are made with what was started
//! ([`Program`]). Everything else in it, such as resources, labels and the other containers, holds from the next migration on.
//!
//! Nobody's processes are ended because a template was changed: somebody has to ask for it with [`RESTART_ANNOTATION`]. Then
//!
//! 1. a last checkpoint is made; if that fails, nothing is changed, and it is said why,
//! 2. the annotation names the pod that is to end, and that very one is deleted,
//! 3. once it is gone, the application is started anew in another, and the annotation is taken off.
//!
//! The annotation is all that is written down of it, and enough for whoever takes over: a pod that is named by it and still runs is
//! checkpointed and deleted, one that is gone is not restored, and where another one runs already, all is done. A pod that is lost before
//! it was named is restored from its last checkpoint as any other, and then started anew. Checkpoints from before stay in the store, and
//! are not taken for those of the new run.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{ResourceExt, runtime::events::EventType};
use migration_proto::agent::{OperationState, Reason, operation::Outcome};

use crate::{
    act::delete_exactly,
    agents::AgentError,
    api::{CheckpointPolicy, MigratableApp, MigratableAppStatus, Program},
    checkpoints,
    context::Context,
    error::Error,
    migrate::{annotate, fresh, remove_annotation},
    migration::PodSeen,
    observe::{self, Look, current_place, now},
    start,
    status::{condition, set},
    trigger::{self, RESTART_ANNOTATION},
};

/// How often the last checkpoint is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What the annotation says, before the uid of the pod that ends, once a last checkpoint was made.
const ENDING: &str = "ending-";

/// Whether somebody wants it started anew. Where others make its pods, they are who to ask.
pub fn is_wanted(app: &MigratableApp) -> bool {
    app.spec.injection.is_none()
        && (trigger::is_set(app.annotations(), RESTART_ANNOTATION) || ending(app).is_some())
}

/// Whether its pod was to end for that: it is not restored when it is gone.
pub fn is_under_way(app: &MigratableApp) -> bool {
    app.spec.injection.is_none() && ending(app).is_some()
}

/// The pod that ends for it.
fn ending(app: &MigratableApp) -> Option<&str> {
    app.annotations().get(RESTART_ANNOTATION)?.strip_prefix(ENDING)
}

/// Says whether what runs is what the template says.
pub async fn tell(ctx: &Context, app: &MigratableApp, status: &mut MigratableAppStatus) {
    let Some(started) = status.program.as_ref().filter(|_| app.spec.injection.is_none()) else { return };
    if Program::of(&app.spec.template, app.spec.container_name()).as_ref() == Some(started) {
        return set(status, condition::UP_TO_DATE, Some(true), "UpToDate", "", now());
    }
    let note = format!(
        "image, command or arguments in spec.template have changed, in which memory cannot go on: that takes effect at the next start; \
         kubectl annotate mapp {} {RESTART_ANNOTATION}=requested starts it anew, after a last checkpoint",
        app.name_any()
    );
    let told =
        status.conditions.iter().any(|one| one.type_ == condition::UP_TO_DATE && one.status == "False");
    if !told {
        ctx.event(app, EventType::Normal, "TemplateChanged", &note).await;
    }
    set(status, condition::UP_TO_DATE, Some(false), "TemplateChanged", &note, now());
}

/// Makes the last checkpoint, and ends the pod. Gives when to look again if it was asked for.
///
/// # Errors
/// When the API server or the agent does not answer.
pub async fn asked(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<Option<Duration>, Error> {
    match ending(app) {
        // Whoever was at it died in the middle. It has run on since, so that there is another last checkpoint.
        Some(ended) if pod.metadata.uid.as_deref() == Some(ended) => {}
        Some(_) => {
            remove_annotation(ctx, app, RESTART_ANNOTATION).await?;
            return Ok(Some(LOOK));
        }
        None if trigger::is_set(app.annotations(), RESTART_ANNOTATION) => {}
        None => return Ok(None),
    }
    if app.spec.injection.is_some() {
        let why =
            "its pods are made by somebody else: have them made anew there, as with kubectl rollout restart";
        return refuse(ctx, app, why).await;
    }
    ctx.must_lead()?;
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let agent = ctx.agent(app, pod).await.map_err(Error::agent("reach the agent"))?;
    let Some(id) = ctx.memory.get(&uid).restart else {
        let id = format!("{}-r{}", uid.replace('-', ""), Timestamp::now().as_millisecond());
        let none = CheckpointPolicy::default();
        let policy = app.spec.checkpoint_policy.as_ref().unwrap_or(&none);
        match agent.pre_checkpoint(checkpoints::request(ctx, app, policy, id.clone())).await {
            Ok(_) => ctx.memory.update(&uid, |remembered| remembered.restart = Some(id)),
            // One is under way; it may have begun before the last change.
            Err(AgentError::Refused(detail)) if detail.reason() == Reason::Busy => {}
            Err(AgentError::Refused(detail)) => return refuse(ctx, app, &detail.message).await,
            Err(error) => return Err(Error::agent("begin a checkpoint")(error)),
        }
        return Ok(Some(LOOK));
    };
    let operations =
        agent.operations(&ctx.full_name(app)).await.map_err(Error::agent("ask for operations"))?;
    match operations.iter().find(|one| one.id == id) {
        Some(one) if one.state() == OperationState::Running => return Ok(Some(LOOK)),
        Some(one) => {
            ctx.memory.update(&uid, |remembered| remembered.restart = None);
            if let Some(Outcome::Error(detail)) = &one.outcome {
                return refuse(ctx, app, &format!("its last checkpoint failed: {}", detail.message)).await;
            }
        }
        // The agent has lost its memory: once more.
        None => {
            ctx.memory.update(&uid, |remembered| remembered.restart = None);
            return Ok(Some(LOOK));
        }
    }
    Box::pin(end(ctx, app)).await.map(Some)
}

/// The pod is deleted, if everything is still as it was.
async fn end(ctx: &Context, app: &MigratableApp) -> Result<Duration, Error> {
    let app = fresh(ctx, app).await?;
    let status = app.status.clone().unwrap_or_default();
    let moves = status.migration.as_ref().is_some_and(|one| !one.stage.is_over());
    let Some(place) = current_place(&status).filter(|_| is_wanted(&app) && !moves) else { return Ok(LOOK) };
    let found = observe::find(ctx, &app, &place, Look::Fresh).await?;
    if let (Some(pod), PodSeen::Ready) = (found.pod, found.seen) {
        let note = "a checkpoint was made; it is started anew, as the template is now";
        ctx.event(&app, EventType::Normal, "Restarting", note).await;
        let named = format!("{ENDING}{}", pod.metadata.uid.clone().unwrap_or_default());
        annotate(ctx, &app, RESTART_ANNOTATION, Some(&named)).await?;
        delete_exactly(ctx, &app, pod).await?;
    }
    Ok(LOOK)
}

/// Starts it anew: nothing of it runs.
///
/// # Errors
/// When the API server does not answer.
pub async fn start_over(ctx: &Context, app: MigratableApp, round: u32) -> Result<Duration, Error> {
    let again = Box::pin(start::start_over(ctx, app.clone(), round)).await?;
    remove_annotation(ctx, &app, RESTART_ANNOTATION).await?;
    Ok(again)
}

async fn refuse(ctx: &Context, app: &MigratableApp, why: &str) -> Result<Option<Duration>, Error> {
    remove_annotation(ctx, app, RESTART_ANNOTATION).await?;
    ctx.event(app, EventType::Warning, "NotRestarted", &format!("it runs on as it was: {why}")).await;
    Ok(Some(LOOK))
}
