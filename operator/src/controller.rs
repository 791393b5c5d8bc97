//! The loop: looks at an application whenever something about it changes, and from time to time.
//!
//! What always holds:
//! - A reconcile never waits for work: that is an operation of an agent, which later reconciles look at. All applications are
//!   looked at at the same time, each look in a task of its own.
//! - What a look costs does not depend on how many applications there are.
//! - Everything a reconcile needs to go on is in the application's status. It can be broken off anywhere, and another operator
//!   can take over anywhere.
//! - It changes something only while this operator leads.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, future::ready};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        Controller, WatchStreamExt,
        controller::Action,
        reflector::{self, ObjectRef, store},
        watcher,
    },
};

use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use crate::{
    agents::Agents,
    api::{APP_LABEL, MigratableApp},
    cache,
    context::{Context, Settings},
    error::Error,
    finalize, idle, injection, migrate,
    migration::{since, spread},
    observe::now,
    pods::INJECTED_ANNOTATION,
};

/// How long a look may take: agents are asked a few times, each with a limit of its own.
const LONGEST: Duration = Duration::from_secs(60);

/// The longest pause after an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks at one application, in a task: the controller polls all looks that are under way whenever one of them can go on, which for
/// thousands at a time, as when an operator begins, would be most of what it does.
async fn reconcile_apart(app: Arc<MigratableApp>, ctx: Arc<Context>) -> Result<Action, Error> {
    let mut task = Task(tokio::spawn(reconcile(app, ctx)));
    match (&mut task.0).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => Err(Error::NotLeading),
        },
    }
}

/// Looks at one application.
///
/// # Errors
/// When the API server or an agent does not answer; nothing is lost, and it is tried again.
pub async fn reconcile(app: Arc<MigratableApp>, ctx: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let uid = app.metadata.uid.clone().unwrap_or_default();
    // Whatever it is broken off at is done again. What it holds meanwhile is not small: it is kept off the stack.
    let result = timeout(LONGEST, Box::pin(look((*app).clone(), &ctx))).await.unwrap_or(Err(Error::TooLong));
    ctx.metrics.reconciled(begun.elapsed(), result.as_ref().err().map(Error::word));
    if result.is_ok() {
        ctx.memory.update(&uid, |remembered| remembered.errors = 0);
    }
    result
}

async fn look(app: MigratableApp, ctx: &Context) -> Result<Action, Error> {
    ctx.must_lead()?;
    if let Some(left) = ctx.memory.behind(&app.metadata) {
        return Ok(Action::requeue(left));
    }
    let moves = |app: &MigratableApp| {
        let written = app.status.as_ref().and_then(|status| status.migration.as_ref());
        written.is_some_and(|one| !one.stage.is_over())
    };
    if app.metadata.deletion_timestamp.is_some() {
        let open = moves(&app) || unsettled(&app, ctx.settings.limits.grace);
        if app.spec.injection.is_some() && finalize::has_finalizer(&app) && open {
            let (_, again) = Box::pin(migrate::migrate(ctx, app)).await?;
            return Ok(Action::requeue(again.unwrap_or(ctx.settings.limits.look)));
        }
        return Box::pin(finalize::finalize(ctx, app)).await;
    }
    if !finalize::has_finalizer(&app) {
        finalize::add(ctx, &app).await?;
        return Ok(Action::await_change());
    }
    let under_way = app.status.as_ref().and_then(|status| status.migration.as_ref());
    let next = if under_way.is_some() { Box::pin(migrate::migrate(ctx, app)).await? } else { (app, None) };
    let (app, again) = next;
    let rest = if moves(&app) { None } else { Some(Box::pin(idle::idle(ctx, app)).await?) };
    let soonest = again.into_iter().chain(rest).min().unwrap_or(ctx.settings.resync);
    Ok(Action::requeue(soonest.max(Duration::from_millis(10))))
}

/// Whether a migration that is over has left an operation that may still come to something, while that is worth waiting for.
fn unsettled(app: &MigratableApp, grace: Duration) -> bool {
    let last = app.status.as_ref().and_then(|status| status.migration.as_ref());
    let ended = last.filter(|last| last.operation.is_some()).and_then(|last| last.finished_at.as_ref());
    ended.is_some_and(|ended| since(ended.0, now()) < grace * 2)
}

/// When to try again: soon after the first error, then less and less often, and each application at another moment.
pub fn error_policy(app: Arc<MigratableApp>, error: &Error, ctx: Arc<Context>) -> Action {
    if matches!(error, Error::NotLeading) {
        return Action::requeue(Duration::from_secs(5));
    }
    // The cache is behind; what was written comes in a moment.
    if error.is_conflict() {
        return Action::requeue(Duration::from_millis(50 + spread(&app.name_any(), 50)));
    }
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let errors = ctx.memory.update(&uid, |remembered| {
        remembered.errors = remembered.errors.saturating_add(1);
        remembered.errors
    });
    let pause = Duration::from_millis(250 << errors.min(8)).min(LONGEST_PAUSE);
    tracing::warn!(app = ctx.full_name(&app), %error, errors, "a reconcile failed");
    Action::requeue(
        pause + Duration::from_millis(spread(&format!("{uid}-{errors}"), pause.as_millis() as u64 / 4)),
    )
}

/// Runs until `stop` is ready. Nothing is cut off: reconciles that are under way end first.
pub async fn run(
    client: Client,
    agents: Arc<dyn Agents>,
    settings: Settings,
    leading: Arc<AtomicBool>,
    with: impl FnOnce(Arc<Context>),
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let (pods, pods_writer) = store::<Pod>();
    let (nodes, nodes_writer) = store::<Node>();
    let (apps, apps_writer) = store::<MigratableApp>();
    let labelled = watcher::Config::default().labels(APP_LABEL);
    let (pods_api, apps_api) = match &settings.only {
        Some(namespace) => {
            (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), namespace))
        }
        None => (Api::<Pod>::all(client.clone()), Api::<MigratableApp>::all(client.clone())),
    };
    let nodes_api = Api::<Node>::all(client.clone());
    let ctx = Arc::new(Context::new(client, agents, settings, pods, nodes.clone(), leading));
    let pod_events = watcher(pods_api, labelled).default_backoff().modify(cache::prune_pod);
    let pods_changed = Arc::new(Notify::new());
    let (changed, indexed) = (Arc::clone(&pods_changed), ctx.pods.clone());
    let pod_events = reflector::reflector(pods_writer, pod_events)
        .inspect_ok(move |event| indexed.heard(event))
        .touched_objects()
        .inspect_ok(move |pod| {
            if pod.annotations().contains_key(INJECTED_ANNOTATION) {
                changed.notify_one();
            }
        });
    let node_events =
        watcher(nodes_api, watcher::Config::default()).default_backoff().modify(cache::prune_node);
    let node_events = reflector::reflector(nodes_writer, node_events).touched_objects();
    let app_events = watcher(apps_api, watcher::Config::default()).default_backoff().modify(cache::prune_app);
    let app_events = reflector::reflector(apps_writer, app_events).applied_objects();
    with(Arc::clone(&ctx));

    let nodes_watched = tokio::spawn(node_events.for_each(|event| {
        if let Err(error) = event {
            tracing::warn!(%error, "nodes cannot be watched");
        }
        ready(())
    }));
    let controller = Controller::for_stream(app_events, apps)
        .watches_stream(pod_events, |pod: Pod| {
            let app = pod.labels().get(APP_LABEL).map(String::as_str)?;
            Some(ObjectRef::new(app).within(&pod.namespace()?))
        })
        .graceful_shutdown_on(stop);
    let making = tokio::spawn(Box::pin(injection::keep(Arc::clone(&ctx), controller.store(), pods_changed)));
    // What is not in a cache yet would be taken for gone, if only until it is looked at again.
    let _ = timeout(Duration::from_secs(10), nodes.wait_until_ready()).await;
    controller
        .run(reconcile_apart, error_policy, ctx)
        .for_each(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "controller");
            }
            ready(())
        })
        .await;
    nodes_watched.abort();
    making.abort();
}
