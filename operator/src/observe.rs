//! What is seen of an application: its pods, their nodes, their agents.
//!
//! Looking has two forms. From the caches it costs the API server nothing, and is as old as a watch is late; [`Look::Fresh`] asks the
//! API server itself, and is what everything that changes something is decided by.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStatus, Node, Pod, PodSpec, PodTemplateSpec},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, runtime::reflector::ObjectRef};
use migration_proto::agent::Operation;

use crate::{
    agents::{self, Agent, AgentError},
    api::{
        APP_LABEL, MigratableApp, MigratableAppStatus, MigrationPolicy, PodOwner, Program,
        migration::{Migration, MigrationStage, Place},
    },
    context::Context,
    error::Error,
    injection,
    migration::{FailureKind, Handover, OperationSeen, PodSeen, Residency, Seen},
    placement::{self, Wanted},
    pods::{
        AGENT, INJECTED_ANNOTATION, MIGRATION_ANNOTATION, ROLE_ANNOTATION, RUN_PATH, TEMPLATE_ANNOTATION,
        container_of,
    },
    trigger::{self, CANCEL_ANNOTATION, PRESERVE_ANNOTATION},
    webhook::CONTAINER_ANNOTATION,
};

/// Exit code of a container whose workload was killed.
const KILLED: i32 = 137;
/// A launcher's exit code for a workload of which nobody knows how it ended.
const UNKNOWN: i32 = 255;

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At the caches.
    Cached,
    /// At the API server.
    Fresh,
}

/// A pod, its node and its agent.
#[derive(Debug)]
pub struct Found {
    /// The pod, if there is one.
    pub pod: Option<Pod>,
    /// What that means, as far as the API server tells: an agent that should answer counts as ready.
    pub seen: PodSeen,
    /// Whether its node is about to vanish.
    pub doomed: bool,
}

/// Whether a pod is one of an application's: it owns it or, where somebody else makes its pods, the webhook has said so.
pub fn is_of(app: &MigratableApp, pod: &Pod) -> bool {
    let owned = pod.owner_references().iter().any(|owner| Some(&owner.uid) == app.metadata.uid.as_ref());
    owned
        || (app.spec.injection.is_some()
            && pod.annotations().contains_key(INJECTED_ANNOTATION)
            && pod.labels().get(APP_LABEL) == Some(&app.name_any()))
}

/// Whether a pod is a new run of an application that somebody else's controller has made, and of another program: another version was rolled
/// out, to which no checkpoint of the one before can be given.
pub fn supersedes(app: &MigratableApp, pod: &Pod) -> bool {
    let told = pod.annotations().get(TEMPLATE_ANNOTATION);
    let template = told.and_then(|told| serde_json::from_str::<PodTemplateSpec>(told).ok());
    let anew = pod.annotations().get(ROLE_ANNOTATION).is_some_and(|role| role == "launched");
    let other = |new: PodTemplateSpec| !has_program(app, pod.annotations(), new.spec.as_ref());
    anew && is_of(app, pod) && template.is_some_and(other)
}

/// Whether what is moved in a pod, by what it says of itself, is the same program in a container of the same name as in the application's
/// template.
pub fn has_program(
    app: &MigratableApp,
    annotations: &BTreeMap<String, String>,
    pod: Option<&PodSpec>,
) -> bool {
    let first = || pod?.containers.first().map(|container| container.name.as_str());
    let moved = annotations.get(CONTAINER_ANNOTATION).map(String::as_str).or_else(first);
    let known = app.spec.container_name();
    moved == known && Program::within(pod, known) == Program::of(&app.spec.template, known)
}

/// Whether a pod is the one that is meant, and not another that has its name.
pub fn is_at(place: &Place, pod: &Pod) -> bool {
    let marked = |mark: &String| {
        pod.metadata.uid.as_ref() == Some(mark) || pod.annotations().get(MIGRATION_ANNOTATION) == Some(mark)
    };
    place.pod == pod.name_any() && place.mark.as_ref().is_none_or(marked)
}

/// How a pod is written down.
pub fn place_of(app: &MigratableApp, pod: &Pod) -> Place {
    let takes_name = app.spec.injection.as_ref().is_some_and(|one| one.owner == PodOwner::StatefulSet);
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    Place { pod: pod.name_any(), node, mark: pod.metadata.uid.clone().filter(|_| takes_name) }
}

/// Where the status says that the application runs.
pub fn current_place(status: &MigratableAppStatus) -> Option<Place> {
    let pod = status.current_pod_name.clone()?;
    let node = status.current_node.clone().unwrap_or_default();
    Some(Place { pod, node, mark: status.current_pod_mark.clone() })
}

/// The pod that is written down.
///
/// # Errors
/// When the API server does not answer.
pub async fn find(ctx: &Context, app: &MigratableApp, place: &Place, look: Look) -> Result<Found, Error> {
    let namespace = app.namespace().unwrap_or_default();
    let name = &place.pod;
    let pod = match look {
        Look::Cached => ctx.pods.get(&namespace, name).map(|pod| (*pod).clone()),
        Look::Fresh => ctx.pods_of(app).get_opt(name).await.map_err(Error::kube("read a pod"))?,
    };
    let ours = pod.filter(|pod| is_of(app, pod) && is_at(place, pod));
    let Some(pod) = ours else { return Ok(Found { pod: None, seen: PodSeen::Gone, doomed: false }) };
    let node = match pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
        Some(name) => Some(node_of(ctx, &name, look).await?),
        None => None,
    };
    let moved = container_of(app).map(|container| container.name.clone()).unwrap_or_default();
    let seen = match &node {
        // Its machine is no more: nobody deletes a node whose machine runs.
        Some(None) => PodSeen::Gone,
        Some(Some(node)) if placement::is_out_of_service(node) => PodSeen::Gone,
        _ => of_pod(&pod, &moved),
    };
    let doomed = node.is_some_and(|node| node.is_none_or(|node| placement::is_doomed(&node)));
    Ok(Found { pod: Some(pod), seen, doomed })
}

async fn node_of(ctx: &Context, name: &str, look: Look) -> Result<Option<Node>, Error> {
    match look {
        Look::Cached => Ok(ctx.nodes.get(&ObjectRef::new(name)).map(|node| (*node).clone())),
        Look::Fresh => {
            let nodes: Api<Node> = Api::all(ctx.client.clone());
            nodes.get_opt(name).await.map_err(Error::kube("read a node"))
        }
    }
}

/// What a pod's status says.
fn of_pod(pod: &Pod, moved: &str) -> PodSeen {
    let Some(status) = &pod.status else { return PodSeen::Starting };
    let restored = pod.annotations().get(ROLE_ANNOTATION).is_some_and(|role| role == "restored");
    let statuses = || status.container_statuses.iter().flatten();
    let ended = match statuses().find(|one| one.name == moved) {
        Some(container) if restored && was_killed(container) => PodSeen::Killed,
        _ => PodSeen::Ended,
    };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return ended;
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return PodSeen::Leaving;
    }
    let containers = statuses().chain(status.init_container_statuses.iter().flatten());
    let mut running = 0;
    for container in containers.filter(|one| one.name == moved || one.name == AGENT) {
        // A launcher that waits for an application is started again without one: what was restored has ended.
        if container.name == moved && container.restart_count > 0 && restored {
            return ended;
        }
        running += u32::from(matches!(&container.state, Some(ContainerState { running: Some(_), .. })));
    }
    match running {
        2 if status.pod_ip.is_some() => PodSeen::Ready,
        _ => PodSeen::Starting,
    }
}

/// Whether what ran in it was killed, or ended in a way nobody knows: by its page server or its launcher, say, because pages could
/// not be had any more. It had not done its work.
fn was_killed(container: &ContainerStatus) -> bool {
    let states = [&container.state, &container.last_state];
    let ended = states.into_iter().flatten().find_map(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| [KILLED, UNKNOWN].contains(&ended.exit_code))
}

/// What a container of a pod waits for, unless it is only being made.
fn waits_for(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    containers.find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting
            .reason
            .as_deref()
            .filter(|reason| !["ContainerCreating", "PodInitializing"].contains(reason))?;
        let message = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        Some(format!("container {}: {reason}{message}", container.name))
    })
}

/// Looks at everything that the next decision about a migration depends on.
///
/// # Errors
/// When the API server does not answer. Agents that do not answer are part of what is seen.
pub async fn see(ctx: &Context, app: &MigratableApp, written: &Migration, look: Look) -> Result<Seen, Error> {
    let source = find(ctx, app, &written.source, look).await?;
    let target = match &written.target {
        Some(place) if *place != written.source => find(ctx, app, place, look).await?,
        Some(_) => Found { pod: source.pod.clone(), seen: source.seen, doomed: source.doomed },
        None => Found { pod: None, seen: PodSeen::Gone, doomed: false },
    };
    let bound =
        target.pod.as_ref().and_then(|pod| pod.spec.as_ref()).is_some_and(|spec| spec.node_name.is_some());
    let mut seen = Seen {
        source: source.seen,
        source_doomed: source.doomed,
        target: target.seen,
        target_doomed: target.doomed,
        target_node: target.pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone()),
        target_waits: target.pod.as_ref().and_then(waits_for),
        source_released: source.pod.as_ref().is_some_and(injection::is_released),
        operation: if written.operation.is_some() { OperationSeen::Unknown } else { OperationSeen::Absent },
        // Where somebody else makes the pods, they outlive the object, and nothing may be left half done.
        cancel: trigger::is_set(app.annotations(), CANCEL_ANNOTATION)
            || app.metadata.deletion_timestamp.is_some(),
        preserve_source: trigger::is_set(app.annotations(), PRESERVE_ANNOTATION),
        on_demand: app.spec.storage.prefetch_workers() == Some(0),
        ..Seen::default()
    };
    let stage = written.stage;
    if let Some(place) =
        written.target.as_ref().filter(|place| !bound && !stage.is_over() && !place.node.is_empty())
    {
        let node = node_of(ctx, &place.node, look).await?;
        seen.target_doomed = node.is_none_or(|node| placement::is_doomed(&node));
    }
    if stage == MigrationStage::ChoosingTarget {
        seen.nodes = nodes(ctx, app, &written.source.node);
    }
    let before = !written.source_has_stopped();
    let name = ctx.full_name(app);
    let dumps = written.operation.is_some() && before;
    let returns = stage == MigrationStage::ChoosingTarget && !before;
    let mut source_has = Vec::new();
    if before && !stage.is_over() || dumps || returns {
        source_has = Box::pin(ask_source(ctx, app, &name, written, &source, &mut seen)).await;
    }
    let restores = written.operation.is_some() && !before;
    if stage == MigrationStage::Preparing || restores || stage == MigrationStage::Filling {
        let target_has = Box::pin(ask_target(ctx, app, &name, written, &target, &mut seen)).await;
        if let Some(lack) = lack(&source_has, &target_has) {
            // Nothing has been restored into it, nor will be.
            seen.target = PodSeen::Ended;
            seen.refused =
                Some(format!("the target's CPU has no {lack}, which the source's has, and programs may use"));
        }
    }
    if let Some(handover) = &written.handover_id {
        ask_handover(ctx, app, &name, handover, written, &source, &mut seen).await;
    }
    let damaged = matches!(&seen.operation, OperationSeen::Failed(failure) if failure.kind == FailureKind::Damaged || written.target_takes_name());
    if damaged || returns {
        let mut from = vec![target, source];
        if written.target_takes_name() {
            // Whichever pod has the name now knows the store.
            let any = Place { mark: None, ..written.source.clone() };
            from.push(find(ctx, app, &any, look).await?);
        }
        seen.checkpoints = checkpoints(ctx, app, &name, &from).await;
    }
    Ok(seen)
}

/// The CPU features that a target lacks; nothing where one of the two is not known.
fn lack(source: &[String], target: &[String]) -> Option<String> {
    let missing: Vec<&str> =
        source.iter().filter(|feature| !target.contains(feature)).map(String::as_str).collect();
    (!target.is_empty() && !missing.is_empty()).then(|| missing.join(", "))
}

/// Gives the features of its CPU, where it was asked for them.
async fn ask_source(
    ctx: &Context,
    app: &MigratableApp,
    name: &str,
    written: &Migration,
    source: &Found,
    seen: &mut Seen,
) -> Vec<String> {
    let Some(agent) = agent_of(ctx, app, source).await else {
        seen.source = silent(seen.source);
        return Vec::new();
    };
    match (&written.operation, written.source_has_stopped()) {
        (Some(operation), false) => match agent.operations(name).await {
            Ok(known) => seen.operation = find_operation(&known, operation),
            Err(error) => seen.source = unanswered(name, &error, seen.source),
        },
        _ => match agent.status().await {
            Ok(status) => return status.cpu_features,
            Err(error) => seen.source = unanswered(name, &error, seen.source),
        },
    }
    Vec::new()
}

async fn ask_target(
    ctx: &Context,
    app: &MigratableApp,
    name: &str,
    written: &Migration,
    target: &Found,
    seen: &mut Seen,
) -> Vec<String> {
    let Some(agent) = agent_of(ctx, app, target).await else {
        seen.target = silent(seen.target);
        return Vec::new();
    };
    if let Some(operation) = written.operation.as_ref().filter(|_| written.source_has_stopped()) {
        match agent.operations(name).await {
            Ok(known) => seen.operation = find_operation(&known, operation),
            Err(error) => seen.target = unanswered(name, &error, seen.target),
        }
        return Vec::new();
    }
    match agent.status().await {
        Ok(status) => {
            let arrives = status.arriving.iter().any(|tree| tree.app == name);
            seen.residency = if arrives { Residency::Arriving } else { Residency::Resident };
            // A machine that cannot restore is as good as none.
            if status.capabilities.iter().any(|one| one.required && !one.ok) && seen.target == PodSeen::Ready
            {
                seen.target = PodSeen::Starting;
            }
            return status.cpu_features;
        }
        Err(error) => seen.target = unanswered(name, &error, seen.target),
    }
    Vec::new()
}

/// What became of the processes that are stopped at the source. Taking them back is asking for it: it is written down that
/// they are to go on, and asking again changes nothing.
async fn ask_handover(
    ctx: &Context,
    app: &MigratableApp,
    name: &str,
    handover: &str,
    written: &Migration,
    source: &Found,
    seen: &mut Seen,
) {
    if source.seen.is_over() {
        // Pages that have not come will not come; the agent ends the processes then, and their pod tells.
        seen.handover = Handover::Over;
        return;
    }
    let Some(agent) = agent_of(ctx, app, source).await else {
        seen.residency = Residency::Unknown;
        return;
    };
    if written.takes_back() && ctx.must_lead().is_ok() {
        // What has begun to run there may be all there is, unless it is known which pod that was, and that it runs no more.
        let target_has_ended = written.target.is_some() && seen.target.is_over();
        seen.handover = match agent.take_back(name, handover, target_has_ended).await {
            Ok(()) => Handover::GoesOn,
            Err(AgentError::Refused(detail)) => match agents::failure(&detail).kind {
                FailureKind::RunsElsewhere => Handover::Claimed,
                _ => Handover::Unknown,
            },
            Err(_) => Handover::Unknown,
        };
        if seen.handover != Handover::Unknown {
            return;
        }
    }
    match agent.handovers(name).await {
        Ok(stopped) if stopped.iter().any(|one| one.handover == handover) => {
            seen.handover = Handover::Stopped;
            if seen.residency == Residency::Resident {
                seen.residency = Residency::Arriving;
            }
        }
        Ok(_) => {
            seen.handover = fate(&agent).await;
            if seen.handover != Handover::Over {
                seen.residency = Residency::Unknown;
            }
        }
        Err(_) => seen.residency = Residency::Unknown,
    }
}

/// What became of processes that are not stopped any more: they were taken back, or ended.
async fn fate(agent: &Agent) -> Handover {
    match agent.tree(RUN_PATH).await {
        Ok(Some(tree)) if tree.pid == 0 => Handover::Over,
        Ok(Some(tree)) if !tree.leaves => Handover::GoesOn,
        _ => Handover::Unknown,
    }
}

/// The committed checkpoints, newest first, from whichever agent can tell.
async fn checkpoints(ctx: &Context, app: &MigratableApp, name: &str, from: &[Found]) -> Option<Vec<String>> {
    for found in from {
        let Some(agent) = agent_of(ctx, app, found).await else { continue };
        if let Ok(list) = agent.checkpoints(name).await {
            return Some(list.checkpoints.into_iter().rev().map(|one| one.checkpoint).collect());
        }
    }
    None
}

async fn agent_of(ctx: &Context, app: &MigratableApp, found: &Found) -> Option<Agent> {
    let answers = matches!(found.seen, PodSeen::Ready | PodSeen::Leaving);
    let pod = found.pod.as_ref().filter(|_| answers)?;
    ctx.agent(app, pod).await.ok()
}

fn silent(seen: PodSeen) -> PodSeen {
    if seen == PodSeen::Ready { PodSeen::Silent } else { seen }
}

fn unanswered(app: &str, error: &AgentError, seen: PodSeen) -> PodSeen {
    tracing::debug!(app, %error, "an agent did not answer");
    silent(seen)
}

fn find_operation(known: &[Operation], id: &str) -> OperationSeen {
    known.iter().find(|one| one.id == id).map_or(OperationSeen::Absent, agents::seen)
}

/// Where the application could go, best first.
pub fn nodes(ctx: &Context, app: &MigratableApp, source: &str) -> Vec<String> {
    let Some(spec) = &app.spec.template.spec else { return Vec::new() };
    let none = MigrationPolicy::default();
    let label = ctx.settings.interruptible_label.as_ref();
    let wanted = Wanted {
        policy: app.spec.migration_policy.as_ref().unwrap_or(&none),
        spec,
        source,
        uid: app.metadata.uid.as_deref().unwrap_or_default(),
        interruptible_label: label.map(|(key, value)| (key.as_str(), value.as_str())),
    };
    let nodes = ctx.nodes.state();
    let pods = ctx.pods.all();
    placement::nodes(&wanted, nodes.iter().map(|node| &**node), pods.iter().map(|pod| &**pod))
}

/// Now, as precisely as it can be written down.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_restored_and_killed_has_not_ended_by_itself_whether_its_container_is_started_again_or_not() {
        let seen = |role: &str, phase: &str, restarts: u32, exit_code: i32| {
            let ended = json!({"terminated": {"exitCode": exit_code}});
            let (state, last) =
                if restarts == 0 { (ended, json!({})) } else { (json!({"running": {}}), ended) };
            let status = json!({"name": "main", "restartCount": restarts, "ready": false, "image": "i",
                "imageID": "i", "state": state, "lastState": last});
            let pod = json!({"metadata": {"annotations": {ROLE_ANNOTATION: role}},
                "status": {"phase": phase, "containerStatuses": [status]}});
            of_pod(&serde_json::from_value(pod).unwrap(), "main")
        };
        for (phase, restarts) in [("Running", 1), ("Failed", 0)] {
            for exit_code in [KILLED, UNKNOWN] {
                assert_eq!(seen("restored", phase, restarts, exit_code), PodSeen::Killed, "{phase}");
            }
            assert_eq!(seen("restored", phase, restarts, 3), PodSeen::Ended, "{phase}");
        }
        assert_eq!(seen("launched", "Failed", 0, KILLED), PodSeen::Ended);
    }
}
