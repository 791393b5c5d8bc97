//! Without Kubernetes: what the agent is asked for when a notice comes.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent::{Journal, Script, Scripted};
use jiff::{SignedDuration, Timestamp};
use migration_metadata::ScheduledEvent;
use migration_monitor::{
    Cloud,
    board::Source,
    health::Heartbeat,
    policy::{Policy, Rebalance},
    standalone::{self, OnNotice, Settings},
};
use support::{Watched, number, until};
use tokio::task::JoinHandle;

const SLOW: Script = Script { takes: Duration::from_secs(3600), failures: 0, busy: 0 };

/// An agent, a cloud, and what to do.
struct World {
    directory: tempfile::TempDir,
    agent: Scripted,
    watched: Watched,
    settings: Settings,
}

impl World {
    async fn new(cloud: Cloud, apps: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let agent =
            Scripted::start(&directory.path().join("agent.sock"), Arc::new(Mutex::new(Journal::default())));
        let settings = Settings {
            agent: agent.socket.clone(),
            applications: apps.iter().map(|app| app.parse().unwrap()).collect(),
            registrations: None,
            on_notice: OnNotice::FinalDump,
            policy: Policy { rebalance: Rebalance::Checkpoint, lead: Duration::from_secs(900) },
            origin: "this boot".to_owned(),
            acknowledge: None,
        };
        Self { directory, agent, watched: Watched::of(cloud).await, settings }
    }

    fn monitor(&self) -> Monitor {
        let (settings, view) = (self.settings.clone(), self.watched.view.clone());
        let metrics = Arc::clone(&self.watched.metrics);
        Monitor(tokio::spawn(async move {
            match standalone::run(settings, view, Heartbeat::default(), metrics).await {}
        }))
    }

    fn spot(&self) -> Timestamp {
        let deadline = Timestamp::now() + SignedDuration::from_secs(120);
        self.watched.server.aws_spot(Some(("terminate", deadline)));
        deadline
    }

    async fn done(&self, expected: &[(&str, bool)]) {
        let expected: BTreeMap<String, bool> =
            expected.iter().map(|(app, end)| (app.to_string(), *end)).collect();
        until(&format!("there are {expected:?}"), async || self.agent.done() == expected).await;
    }
}

/// A monitor that can be killed.
struct Monitor(JoinHandle<()>);

impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_application_has_a_durable_checkpoint_before_the_deadline() {
    let apps = ["cache=4711", "prod/web=launcher:/run/web", "a=5000", "b=5001", "c=5002", "d=5003"];
    let world = World::new(Cloud::Aws, &apps).await;
    for app in ["cache", "prod/web", "a", "b", "c", "d"] {
        world.agent.script(app, Script { takes: Duration::from_secs(2), failures: 0, busy: 0 });
    }
    let _monitor = world.monitor();
    let deadline = world.spot();
    world
        .done(&[("cache", true), ("prod/web", true), ("a", true), ("b", true), ("c", true), ("d", true)])
        .await;
    assert!(Timestamp::now() < deadline - SignedDuration::from_secs(60), "two seconds each, and all at once");
    let calls = world.agent.begun();
    assert_eq!(calls.len(), apps.len(), "each was asked for once: {calls:?}");
    let web = calls.iter().find(|call| call.app == "prod/web").unwrap();
    assert_eq!((web.pid, web.launcher.as_str()), (0, "/run/web"));
    assert_eq!(calls.iter().find(|call| call.app == "cache").unwrap().pid, 4711);
    let metrics = &world.watched.metrics;
    let counted = || number(metrics, "migration_monitor_actions_total{action=\"checkpoint\"}");
    until("they are counted", async || counted() == apps.len() as f64).await;
    assert_eq!(number(metrics, "migration_monitor_trigger_seconds_count{source=\"aws-spot\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_killed_joins_what_it_began() {
    let world = World::new(Cloud::Aws, &["a=100", "b=101"]).await;
    world.agent.script("a", Script { takes: Duration::from_secs(4), failures: 0, busy: 0 });
    let first = world.monitor();
    world.spot();
    until("both are begun", async || world.agent.begun().len() == 2).await;
    drop(first);
    for _ in 0..3 {
        let next = world.monitor();
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(next);
    }
    let _last = world.monitor();
    world.done(&[("a", true), ("b", true)]).await;
    let metrics = &world.watched.metrics;
    until("the last one has heard of both", async || {
        number(metrics, "migration_monitor_actions_total{action=\"checkpoint\"}") >= 2.0
    })
    .await;
    assert_eq!(world.agent.begun().len(), 2, "nothing was asked for twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_away_is_asked_when_it_is_back() {
    let mut world = World::new(Cloud::Aws, &["a=100"]).await;
    let (socket, journal) = (world.agent.socket.clone(), Arc::clone(&world.agent.journal));
    drop(std::mem::replace(
        &mut world.agent,
        Scripted::start(&world.directory.path().join("other.sock"), Arc::clone(&journal)),
    ));
    fs::remove_file(&socket).unwrap();
    let _monitor = world.monitor();
    world.spot();
    let failures = "migration_monitor_failures_total{part=\"agent\",reason=\"unreachable\"}";
    until("it is not reached", async || number(&world.watched.metrics, failures) >= 2.0).await;
    world.agent = Scripted::start(&socket, journal);
    world.done(&[("a", true)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_under_another_id() {
    let world = World::new(Cloud::Aws, &["a=100", "b=101"]).await;
    world.agent.script("a", Script { takes: Duration::from_millis(50), failures: 3, busy: 0 });
    let _monitor = world.monitor();
    world.spot();
    world.done(&[("a", true), ("b", true)]).await;
    let mut ids: Vec<String> = world.agent.begun().into_iter().map(|call| call.operation).collect();
    assert_eq!(ids.len(), 5);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{ids:?}");
    let failures = "migration_monitor_failures_total{part=\"agent\",reason=\"refused\"}";
    until("they are counted", async || number(&world.watched.metrics, failures) == 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_something_else_is_waited_for() {
    let world = World::new(Cloud::Aws, &["a=100"]).await;
    world.agent.script("a", Script { takes: Duration::ZERO, failures: 0, busy: 10 });
    let _monitor = world.monitor();
    world.spot();
    world.done(&[("a", true)]).await;
    let busy = "migration_monitor_failures_total{part=\"agent\",reason=\"busy\"}";
    until("they are counted", async || number(&world.watched.metrics, busy) == 10.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_notices_are_one_final_dump() {
    let mut world = World::new(Cloud::Azure, &["a=100"]).await;
    world.settings.acknowledge = Some(world.watched.server.url().parse().unwrap());
    world.agent.script("a", Script { takes: Duration::from_secs(3), failures: 0, busy: 0 });
    let _monitor = world.monitor();
    let event = |id: &str, seconds| ScheduledEvent {
        id: id.into(),
        kind: "Preempt".into(),
        resources: vec!["node_0".into()],
        not_before: Some(Timestamp::now() + SignedDuration::from_secs(seconds)),
    };
    world.watched.server.azure_schedule(event("later", 600));
    until("it is begun", async || world.agent.begun().len() == 1).await;
    world.watched.server.azure_schedule(event("sooner", 60));
    until("both are acted on", async || {
        number(
            &world.watched.metrics,
            "migration_monitor_trigger_seconds_count{source=\"azure-scheduled-events\"}",
        ) == 2.0
    })
    .await;
    assert!(world.watched.server.azure_acknowledged().is_empty(), "nothing is durable yet");
    world.done(&[("a", true)]).await;
    until("Azure is told", async || world.watched.server.azure_acknowledged() == ["sooner"]).await;
    assert_eq!(world.agent.begun().len(), 1, "{:?}", world.agent.begun());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_notice_leaves_the_processes_running() {
    let world = World::new(Cloud::Aws, &["a=100", "b=101"]).await;
    world.agent.script("a", SLOW);
    let _monitor = world.monitor();
    world.spot();
    world.done(&[("b", true)]).await;
    world.watched.server.aws_spot(None);
    until("the one under way is cancelled", async || world.agent.cancelled() == ["a"]).await;
    // It comes again, and is another notice.
    world.agent.script("a", Script::default());
    world.watched.announces(Source::AwsSpot, 0).await;
    world.spot();
    world.done(&[("a", true), ("b", true)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_that_is_withdrawn_while_advice_stands_leaves_the_process_running() {
    let world = World::new(Cloud::Aws, &["a=100"]).await;
    let _monitor = world.monitor();
    world.watched.server.aws_rebalance(Some(Timestamp::now()));
    world.done(&[("a", false)]).await;
    world.agent.script("a", SLOW);
    world.spot();
    until("the final dump is begun", async || world.agent.begun().len() == 2).await;
    world.watched.server.aws_spot(None);
    until("it is cancelled", async || world.agent.cancelled() == ["a"]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.agent.begun().len(), 2, "the advice was followed before");
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_takes_a_checkpoint_and_the_interruption_after_it_a_final_dump() {
    let world = World::new(Cloud::Aws, &["a=100"]).await;
    let _monitor = world.monitor();
    world.watched.server.aws_rebalance(Some(Timestamp::now()));
    world.done(&[("a", false)]).await;
    world.spot();
    until("it was ended", async || world.agent.begun().last().is_some_and(|call| call.end)).await;
    assert_eq!(world.agent.begun().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_that_is_ignored_does_nothing_and_a_policy_can_let_processes_run() {
    let mut world = World::new(Cloud::Aws, &["a=100"]).await;
    world.settings.policy.rebalance = Rebalance::Ignore;
    world.settings.on_notice = OnNotice::PreCheckpoint;
    let _monitor = world.monitor();
    world.watched.server.aws_rebalance(Some(Timestamp::now()));
    world.watched.announces(Source::AwsRebalance, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.agent.begun(), []);
    world.spot();
    world.done(&[("a", false)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_are_registered_with_files_also_after_the_notice() {
    let mut world = World::new(Cloud::Gcp, &[]).await;
    let directory = world.directory.path().join("apps.d");
    fs::create_dir(&directory).unwrap();
    let pid_file = world.directory.path().join("b.pid");
    fs::write(&pid_file, "4242\n").unwrap();
    fs::write(directory.join("broken.json"), "{").unwrap();
    fs::write(
        directory.join("a.json"),
        r#"{"app": "a", "launcher": "/run/a", "tcpEstablished": true, "paths": ["/var/lib/a"]}"#,
    )
    .unwrap();
    world.settings.registrations = Some(directory.clone());
    let _monitor = world.monitor();
    world.watched.server.gcp_preempted(true);
    world.done(&[("a", true)]).await;
    let registration = format!(r#"{{"app": "b", "pidFile": "{}"}}"#, pid_file.display());
    fs::write(directory.join("b.json"), registration).unwrap();
    world.done(&[("a", true), ("b", true)]).await;
    let calls = world.agent.begun();
    let call = |app: &str| calls.iter().find(|call| call.app == app).unwrap();
    assert!(call("a").tcp_established);
    assert_eq!(
        (call("a").launcher.as_str(), &call("a").paths[..]),
        ("/run/a", &["/var/lib/a".to_owned()][..])
    );
    assert_eq!(call("b").pid, 4242);
    let complaints = "migration_monitor_failures_total{part=\"registrations\",reason=\"unreadable\"}";
    assert_eq!(number(&world.watched.metrics, complaints), 1.0, "it is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_is_told_when_everything_is_safe_and_not_before() {
    let mut world = World::new(Cloud::Azure, &["a=100"]).await;
    world.agent.script("a", Script { takes: Duration::from_secs(3), failures: 0, busy: 0 });
    world.settings.acknowledge = Some(world.watched.server.url().parse().unwrap());
    let _monitor = world.monitor();
    world.watched.server.azure_schedule(ScheduledEvent {
        id: "e-1".into(),
        kind: "Preempt".into(),
        resources: vec!["node_0".into()],
        not_before: Some(Timestamp::now() + SignedDuration::from_secs(300)),
    });
    until("it is begun", async || world.agent.begun().len() == 1).await;
    until("Azure is told", async || {
        let told = !world.watched.server.azure_acknowledged().is_empty();
        assert!(!told || !world.agent.done().is_empty(), "told before the checkpoint was durable");
        told
    })
    .await;
    assert_eq!(world.watched.server.azure_acknowledged(), ["e-1"]);
}
