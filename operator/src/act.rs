//! What changes the world: pods, and operations of agents. Each is done only when it is written down, and can be done again.

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::events::EventType,
};
use migration_proto::agent::{
    Command, FileRules, FinalDumpRequest, Hook, OperationKind, OperationState, Reason, RestoreRequest,
    Source, hook::Call,
};

use crate::{
    agents::{self, Agent, AgentError, wire_strategy},
    api::{
        MigratableApp,
        migration::{Migration, Place},
    },
    context::Context,
    error::{Error, is},
    injection,
    migration::{Effect, Failure, FailureKind, since},
    network,
    observe::{self, Look},
    pods::{Plan, RESTORED_CONDITION, ROLE_ANNOTATION, RUN_PATH, Role, Unsupported, build},
    secrets::{self, Missing},
};
use serde_json::json;

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// It is done, or will be.
    Done,
    /// It cannot be done, for a reason that trying again at once does not remove. The operation, or the pod, does not exist.
    Refused(Failure),
}

/// Why a pod could not be made.
#[derive(Debug)]
pub enum NotMade {
    /// A word and a sentence for the condition.
    Because(&'static str, String),
    /// It is tried again.
    Error(Error),
}

/// Does what was decided.
///
/// # Errors
/// When the API server or an agent does not answer; it is not known then whether it was done.
pub async fn act(
    ctx: &Context,
    app: &MigratableApp,
    written: &Migration,
    effect: Effect,
) -> Result<Outcome, Error> {
    ctx.must_lead()?;
    tracing::info!(app = ctx.full_name(app), migration = written.id, ?effect, "acts");
    match effect {
        Effect::CreateTarget => create_target(ctx, app, written).await,
        Effect::DeleteTarget => match &written.target {
            Some(target) => delete_pod(ctx, app, target).await.map(|()| Outcome::Done),
            None => Ok(Outcome::Done),
        },
        Effect::DeleteSource => delete_pod(ctx, app, &written.source).await.map(|()| Outcome::Done),
        Effect::PutBack => injection::put_back(ctx, app, &written.source).await.map(|()| Outcome::Done),
        Effect::Dump => dump(ctx, app, written).await,
        Effect::Restore => restore(ctx, app, written).await,
        Effect::Cancel => cancel(ctx, app, written).await,
    }
}

async fn create_target(ctx: &Context, app: &MigratableApp, written: &Migration) -> Result<Outcome, Error> {
    let Some(target) = &written.target else { return Ok(Outcome::Done) };
    if let Some(maker) = written.target_made_by {
        return Box::pin(injection::make_way(ctx, app, written, target, maker)).await;
    }
    match create_pod(ctx, app, &target.pod, Some(&target.node), Role::Restore(&written.id)).await {
        Ok(()) => Ok(Outcome::Done),
        Err(NotMade::Error(error)) => Err(error),
        Err(NotMade::Because(reason, message)) => {
            ctx.event(
                app,
                EventType::Warning,
                reason,
                &format!("the target's pod cannot be made: {message}"),
            )
            .await;
            Ok(Outcome::Refused(Failure { kind: FailureKind::Passing, message, checkpoint: None }))
        }
    }
}

/// Creates a pod; one that is there already is the one.
///
/// # Errors
/// When there can be none, or the API server refuses it.
pub async fn create_pod(
    ctx: &Context,
    app: &MigratableApp,
    name: &str,
    node: Option<&str>,
    role: Role<'_>,
) -> Result<(), NotMade> {
    ctx.must_lead().map_err(NotMade::Error)?;
    secrets::ensure(ctx, app).await.map_err(|missing| match missing {
        Missing::Because(reason, message) => NotMade::Because(reason, message),
        Missing::Error(error) => NotMade::Error(error),
    })?;
    Box::pin(network::keep(ctx, app)).await;
    let plan = Plan { app, agent: &ctx.settings.agent, cluster: &ctx.settings.cluster, name, node, role };
    let pod = build(&plan).map_err(|error| {
        let reason = match &error {
            Unsupported::EntrypointUnknown { .. } => "EntrypointUnknown",
            _ => "Unsupported",
        };
        NotMade::Because(reason, error.to_string())
    })?;
    match ctx.pods_of(app).create(&PostParams::default(), &pod).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 409) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => {
            Err(NotMade::Because("PodRefused", format!("the API server refuses the pod: {}", status.message)))
        }
        Err(error) => Err(NotMade::Error(Error::kube("create a pod")(error))),
    }
}

/// Deletes a pod of this application, that very one.
///
/// # Errors
/// When the API server does not answer.
pub async fn delete_pod(ctx: &Context, app: &MigratableApp, place: &Place) -> Result<(), Error> {
    match observe::find(ctx, app, place, Look::Fresh).await?.pod {
        Some(pod) => delete_exactly(ctx, app, pod).await,
        None => Ok(()),
    }
}

/// Deletes the pod that was read, and no other that has its name by now.
///
/// # Errors
/// When the API server does not answer.
pub async fn delete_exactly(ctx: &Context, app: &MigratableApp, pod: Pod) -> Result<(), Error> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    delete_with(ctx, app, pod, DeleteParams::default()).await
}

/// Removes the pod that was read, whose machine is known to be no more, so that nobody waits for its end.
///
/// # Errors
/// When the API server does not answer.
pub async fn remove_exactly(ctx: &Context, app: &MigratableApp, pod: Pod) -> Result<(), Error> {
    delete_with(ctx, app, pod, DeleteParams::default().grace_period(0)).await
}

async fn delete_with(
    ctx: &Context,
    app: &MigratableApp,
    pod: Pod,
    params: DeleteParams,
) -> Result<(), Error> {
    ctx.must_lead()?;
    let name = pod.name_any();
    let preconditions = Preconditions { uid: pod.metadata.uid, resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..params };
    match ctx.pods_of(app).delete(&name, &params).await {
        Ok(_) => Ok(()),
        // It is gone, or another one has its name.
        Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
        Err(error) => Err(Error::kube("delete a pod")(error)),
    }
}

/// Says of a pod that waited for its application that this runs there now, which makes it ready if its containers are.
///
/// # Errors
/// When the API server does not answer.
pub async fn tell_restored(ctx: &Context, app: &MigratableApp, pod: &Pod) -> Result<(), Error> {
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    let waits = gates.into_iter().flatten().any(|gate| gate.condition_type == RESTORED_CONDITION);
    if !waits || is_told(pod) {
        return Ok(());
    }
    ctx.must_lead()?;
    let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({"type": RESTORED_CONDITION, "status": "True", "lastTransitionTime": at});
    // A pod of that name that is another one refuses it.
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
    let done = ctx
        .pods_of(app)
        .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    match done {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 404) || is(&error, 409) => Ok(()),
        Err(error) => Err(Error::kube("say that a pod is restored")(error)),
    }
}

/// Whether that was said.
pub fn is_told(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == RESTORED_CONDITION && one.status == "True")
}

async fn dump(ctx: &Context, app: &MigratableApp, written: &Migration) -> Result<Outcome, Error> {
    let agent = agent_in(ctx, app, &written.source).await?;
    let Some(operation_id) = written.operation.clone() else { return Ok(Outcome::Done) };
    let until = written
        .deadline
        .as_ref()
        .map_or(written.timeout_at.0, |deadline| deadline.0.min(written.timeout_at.0));
    let request = FinalDumpRequest {
        operation_id,
        app: ctx.full_name(app),
        before_freeze: quiesce(app),
        detach: true,
        deadline_ms: left_ms(until),
        strategy: wire_strategy(written.strategy).into(),
        launcher: RUN_PATH.to_owned(),
        files: file_rules(app),
        // The next pod has another address.
        tcp_close: true,
        ..Default::default()
    };
    match agent.final_dump(request).await {
        Ok(_) => Ok(Outcome::Done),
        Err(AgentError::Refused(detail)) if detail.reason() == Reason::Busy => {
            make_way(ctx, app, written, &agent).await;
            Ok(Outcome::Done)
        }
        Err(error) => refused(error, "begin the final dump"),
    }
}

/// A periodic checkpoint is under way. When there is little time, it does not get it.
async fn make_way(ctx: &Context, app: &MigratableApp, written: &Migration, agent: &Agent) {
    if written.deadline.is_none() {
        return;
    }
    let running = agent.operations(&ctx.full_name(app)).await.unwrap_or_default();
    let in_the_way = |kind, state| kind == OperationKind::PreCheckpoint && state == OperationState::Running;
    for operation in running.iter().filter(|one| in_the_way(one.kind(), one.state())) {
        if let Err(error) = agent.cancel(&operation.id).await {
            tracing::warn!(operation = operation.id, %error, "a checkpoint is in the way");
        }
    }
}

async fn restore(ctx: &Context, app: &MigratableApp, written: &Migration) -> Result<Outcome, Error> {
    let Some(target) = &written.target else { return Ok(Outcome::Done) };
    let Some(operation_id) = written.operation.clone() else { return Ok(Outcome::Done) };
    let agent = agent_in(ctx, app, target).await?;
    let source = match &written.handover_id {
        Some(_) => Some(Source {
            address: address_of(ctx, app, &written.source).await?,
            generation: written.handover_generation.unwrap_or_default(),
        }),
        None => None,
    };
    let checkpoint =
        written.handover_id.clone().or_else(|| written.checkpoint_id.clone()).unwrap_or_default();
    let request = RestoreRequest {
        operation_id,
        app: ctx.full_name(app),
        checkpoint,
        strategy: wire_strategy(written.strategy).into(),
        detach: true,
        deadline_ms: left_ms(written.timeout_at.0),
        source,
        launcher: RUN_PATH.to_owned(),
        prefetch_workers: app.spec.storage.prefetch_workers(),
        ..Default::default()
    };
    match agent.restore(request).await {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => refused(error, "begin the restore"),
    }
}

async fn cancel(ctx: &Context, app: &MigratableApp, written: &Migration) -> Result<Outcome, Error> {
    let Some(operation) = &written.operation else { return Ok(Outcome::Done) };
    let place = if written.source_has_stopped() { written.target.as_ref() } else { Some(&written.source) };
    let Some(place) = place else { return Ok(Outcome::Done) };
    let agent = agent_in(ctx, app, place).await?;
    match agent.cancel(operation).await {
        // What became of it is seen next time.
        Ok(()) | Err(AgentError::Refused(_)) => Ok(Outcome::Done),
        Err(error) => Err(Error::agent("cancel an operation")(error)),
    }
}

/// Whether an agent's answer is one that trying again would change.
fn refused(error: AgentError, what: &'static str) -> Result<Outcome, Error> {
    match &error {
        AgentError::Refused(detail) => match detail.reason() {
            Reason::Busy | Reason::Stopping => Ok(Outcome::Done),
            _ => Ok(Outcome::Refused(agents::failure(detail))),
        },
        _ => Err(Error::agent(what)(error)),
    }
}

async fn agent_in(ctx: &Context, app: &MigratableApp, pod: &Place) -> Result<Agent, Error> {
    let pod = pod_of(ctx, app, pod).await?;
    ctx.agent(app, &pod).await.map_err(Error::agent("reach an agent"))
}

async fn address_of(ctx: &Context, app: &MigratableApp, pod: &Place) -> Result<String, Error> {
    let pod = pod_of(ctx, app, pod).await?;
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
    Ok(ctx.agents.address(&ctx.at(app, &ip)))
}

/// The pod as the API server has it: an address in a cache may be another pod's by now.
async fn pod_of(ctx: &Context, app: &MigratableApp, place: &Place) -> Result<Pod, Error> {
    let found = observe::find(ctx, app, place, Look::Fresh).await?;
    found
        .pod
        .filter(|pod| pod.annotations().contains_key(ROLE_ANNOTATION))
        .ok_or(Error::Incomplete("a pod of ours"))
}

fn left_ms(until: Timestamp) -> u64 {
    const LEAST_MS: u64 = 1000;
    u64::try_from(since(Timestamp::now(), until).as_millis()).unwrap_or(u64::MAX).max(LEAST_MS)
}

/// What the policy wants called before the final dump.
fn quiesce(app: &MigratableApp) -> Option<Hook> {
    let quiesce = app.spec.migration_policy.as_ref()?.pre_dump_quiesce.as_ref()?;
    let call = match &quiesce.url {
        Some(url) => Call::Url(url.clone()),
        None => Call::Command(Command { argv: quiesce.command.clone() }),
    };
    let timeout_ms = u64::try_from(quiesce.timeout().as_millis()).unwrap_or(u64::MAX);
    Some(Hook { call: Some(call), timeout_ms, ignore_failure: false })
}

/// The files that travel with a checkpoint.
pub fn file_rules(app: &MigratableApp) -> Option<FileRules> {
    let paths = &app.spec.checkpoint_policy.as_ref()?.paths;
    (!paths.is_empty()).then(|| FileRules { paths: paths.clone(), ..Default::default() })
}
