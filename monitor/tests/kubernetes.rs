//! In a cluster, on a real API server: what happens to pods and nodes when notices come and go, and when whoever should act is
//! killed or cannot.

mod cluster;
mod support;

use std::time::{Duration, Instant};

use cluster::{APP, World, annotation};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use kube::{Api, ResourceExt, api::ListParams};
use migration_metadata::{Fault, ScheduledEvent};
use migration_monitor::{Cloud, board::Source, policy::Rebalance};
use serde_json::json;
use support::{Watched, metadata, number, sum, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_triggers_every_migratable_pod_of_the_node_and_marks_the_node() {
    let mut world = World::new(Cloud::Aws).await;
    world.settings.cordon = true;
    let apps: Vec<String> = (0..40).map(|number| format!("app-{number}")).collect();
    for app in &apps {
        world.pod(app, &world.node, &[(APP, app)]).await;
    }
    world.pod("plain", &world.node, &[]).await;
    let elsewhere = world.node("elsewhere").await;
    world.pod("other", &elsewhere, &[(APP, "other")]).await;
    let _monitor = world.monitor();
    let deadline = world.spot();

    world.triggered(&apps).await;
    let pod = world.read("app-7").await;
    let said = |name| annotation(&pod, name);
    assert_eq!(said("trigger").as_deref(), Some("requested"));
    assert_eq!(said("triggered-by").as_deref(), Some("monitor"));
    assert_eq!(said("deadline"), Some(deadline.to_string()));
    assert_eq!(said("advice"), None);
    assert!(said("reason").unwrap().contains("taken away"), "{:?}", said("reason"));
    world.marked().await;
    let node = world.read_node().await;
    let spec = node.spec.clone().unwrap();
    assert_eq!(spec.unschedulable, Some(true));
    let taints = spec.taints.unwrap();
    assert!(
        taints.iter().any(|taint| taint.key == "migration.io/interruption" && taint.effect == "NoSchedule")
    );
    assert!(taints.iter().any(|taint| taint.key == "somebody/else"), "others' taints stay: {taints:?}");
    assert!(node.annotations()["migration.io/notices"].contains(&said("notice").unwrap()));
    for untouched in ["plain", "other"] {
        assert!(world.read(untouched).await.annotations().is_empty(), "{untouched}");
    }

    let events: Api<Event> = Api::namespaced(world.client.clone(), &world.namespace);
    until("there is an event for each", async || {
        let told = events.list(&ListParams::default()).await.unwrap().items;
        told.iter().filter(|event| event.reason.as_deref() == Some("InterruptionNotice")).count()
            == apps.len()
    })
    .await;
    let metrics = &world.watched.metrics;
    for (line, value) in [
        ("actions_total{action=\"trigger\"}", apps.len() as f64),
        ("actions_total{action=\"taint\"}", 1.0),
        ("actions_total{action=\"cordon\"}", 1.0),
        ("notices_total{source=\"aws-spot\",kind=\"terminate\"}", 1.0),
        ("trigger_seconds_count{source=\"aws-spot\"}", 1.0),
        ("detection_seconds_count{source=\"aws-spot\"}", 1.0),
    ] {
        assert_eq!(number(metrics, &format!("migration_monitor_{line}")), value, "{line}");
    }
    assert_eq!(sum(metrics, "migration_monitor_failures_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_left_alone_also_by_the_next_monitor() {
    let world = World::new(Cloud::Aws).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let first = world.monitor();
    world.spot();
    world.triggered(&["a"]).await;
    world.marked().await;
    let records =
        |node: &k8s_openapi::api::core::v1::Node| node.annotations()["migration.io/notices"].clone();
    until("it is written down that it was triggered", async || {
        records(&world.read_node().await).contains("triggered")
    })
    .await;
    let before = (world.read("a").await.resource_version(), world.read_node().await.resource_version());
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(first);
    let _second = world.monitor();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = (world.read("a").await.resource_version(), world.read_node().await.resource_version());
    assert_eq!(before, after, "nothing was written again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_was_taken_up_is_not_put_back() {
    let world = World::new(Cloud::Gcp).await;
    world.application("a", "Running").await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor();
    world.watched.server.gcp_preempted(true);
    world.triggered(&["a"]).await;
    world.marked().await;
    // As the operator does once it has written it down.
    let names = ["trigger", "reason", "triggered-by", "deadline", "notice", "advice"];
    let none: serde_json::Map<_, _> =
        names.iter().map(|name| (format!("migration.io/{name}"), json!(null))).collect();
    world.annotate("a", none.into()).await;
    world.phase("a", "Migrating").await;
    world.pod("later", &world.node, &[(APP, "later")]).await;
    world.triggered(&["later"]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(world.read("a").await.annotations().is_empty(), "it was looked at again, and left alone");
    // What moves because of a notice that was withdrawn keeps the node marked, whoever has the trigger.
    world.watched.server.gcp_preempted(false);
    until("the other one is released", async || annotation(&world.read("later").await, "trigger").is_none())
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.is_tainted().await);
    world.phase("a", "Running").await;
    world.unmarked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_comes_after_the_notice_is_triggered_too() {
    let world = World::new(Cloud::Gcp).await;
    let _monitor = world.monitor();
    world.watched.server.gcp_preempted(true);
    world.marked().await;
    world.pod("late", &world.node, &[(APP, "late")]).await;
    world.triggered(&["late"]).await;
    let deadline: Timestamp = annotation(&world.read("late").await, "deadline").unwrap().parse().unwrap();
    let seen = world.watched.announced(Source::GcpPreempted)[0].seen;
    assert_eq!(deadline, seen + SignedDuration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_killed_right_after_the_cordon_loses_and_repeats_nothing() {
    let world = World::new(Cloud::Aws).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let mut program = world.program(&["--cordon"]);
    world.spot();
    until("it is cordoned", async || {
        world.read_node().await.spec.is_some_and(|spec| spec.unschedulable == Some(true))
    })
    .await;
    program.kill();
    let before = world.read("a").await;
    let notice = annotation(&before, "notice").expect("pods come first");
    world.pod("b", &world.node, &[(APP, "b")]).await;
    let _again = world.program(&["--cordon"]);
    world.triggered(&["b"]).await;
    world.marked().await;
    assert_eq!(annotation(&world.read("b").await, "notice"), Some(notice), "it is the same notice");
    assert_eq!(world.read("a").await.resource_version(), before.resource_version(), "it was triggered once");
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_that_are_killed_at_any_moment_agree_on_one_notice() {
    let world = World::new(Cloud::Aws).await;
    let apps: Vec<String> = (0..12).map(|number| format!("app-{number}")).collect();
    for app in &apps {
        world.pod(app, &world.node, &[(APP, app)]).await;
    }
    world.spot();
    world.watched.announces(Source::AwsSpot, 1).await;
    for round in 0..25 {
        let monitor = world.monitor();
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        drop(monitor);
    }
    let _last = world.monitor();
    world.triggered(&apps).await;
    world.marked().await;
    let mut notices = Vec::new();
    for app in &apps {
        notices.push(annotation(&world.read(app).await, "notice"));
    }
    notices.dedup();
    assert_eq!(notices.len(), 1, "{notices:?}");
    let triggers = number(&world.watched.metrics, "migration_monitor_actions_total{action=\"trigger\"}");
    assert!(triggers <= apps.len() as f64, "none was told of twice: {triggers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_for_twenty_seconds_delays_the_trigger_by_no_more() {
    let world = World::alone(Cloud::Aws).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.cluster.stop_api_server().unwrap();
    let deadline = world.spot();
    world.watched.announces(Source::AwsSpot, 1).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(sum(&world.watched.metrics, "migration_monitor_failures_total{part=\"kubernetes\"") > 0.0);
    world.cluster.start_api_server().await.unwrap();
    let back = Instant::now();
    world.triggered(&["a"]).await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(40), "{took:?} after it was back");
    assert!(Timestamp::now() < deadline, "in time");
    world.marked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_swallows_everything_for_twenty_seconds_delays_the_trigger_by_little_more() {
    let world = World::new(Cloud::Aws).await;
    let (network, client) = world.through_a_network().await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor_as(client);
    // It has connections that will be dead.
    world.watched.server.aws_rebalance(Some(Timestamp::now()));
    world.triggered(&["a"]).await;
    network.swallow(true);
    let deadline = world.spot();
    world.watched.announces(Source::AwsSpot, 1).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!annotation(&world.read("a").await, "notice").unwrap().starts_with("aws-spot"));
    network.swallow(false);
    let back = Instant::now();
    until("it is triggered", async || {
        annotation(&world.read("a").await, "notice").unwrap().starts_with("aws-spot")
    })
    .await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(40), "{took:?} after it was back");
    assert!(Timestamp::now() < deadline, "in time");
    world.marked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_notice_leaves_nothing_behind() {
    let mut world = World::new(Cloud::Aws).await;
    world.settings.cordon = true;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let before = world.read("a").await;
    let monitor = world.monitor();
    world.spot();
    world.triggered(&["a"]).await;
    world.marked().await;
    let first = annotation(&world.read("a").await, "notice");
    // Killed in between: the next one knows what there was.
    drop(monitor);
    world.watched.server.aws_spot(None);
    world.watched.announces(Source::AwsSpot, 0).await;
    let _monitor = world.monitor();
    world.unmarked().await;
    let node = world.read_node().await;
    let spec = node.spec.clone().unwrap();
    assert_ne!(spec.unschedulable, Some(true), "it was cordoned here, and is not any more");
    assert!(spec.taints.unwrap().iter().any(|taint| taint.key == "somebody/else"));
    assert_eq!(world.read("a").await.annotations(), before.annotations());
    world.spot();
    world.triggered(&["a"]).await;
    assert_ne!(annotation(&world.read("a").await, "notice"), first, "it is another notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_started_again_is_not_left_for_a_notice_of_its_former_life() {
    let mut world = World::new(Cloud::Aws).await;
    let monitor = world.monitor();
    world.spot();
    world.marked().await;
    drop(monitor);
    world.pod("fresh", &world.node, &[(APP, "fresh")]).await;
    world.watched = Watched::start(metadata().await, Some(Cloud::Aws));
    let _monitor = world.monitor();
    world.unmarked().await;
    assert!(world.read("fresh").await.annotations().is_empty());
    let triggers = number(&world.watched.metrics, "migration_monitor_actions_total{action=\"trigger\"}");
    assert_eq!(triggers, 0.0, "nobody was triggered");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_is_acted_on_also_while_the_cloud_is_silent() {
    let mut world = World::new(Cloud::Aws).await;
    let monitor = world.monitor();
    world.spot();
    world.marked().await;
    drop(monitor);
    world.pod("late", &world.node, &[(APP, "late")]).await;
    let server = metadata().await;
    server.fault(Fault::Silent);
    world.watched = Watched::start(server, Some(Cloud::Aws));
    let _monitor = world.monitor();
    world.triggered(&["late"]).await;
    assert!(world.is_tainted().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_others_have_cordoned_stays_cordoned() {
    let mut world = World::new(Cloud::Gcp).await;
    world.settings.cordon = true;
    world.change_node(json!({"spec": {"unschedulable": true}})).await;
    let _monitor = world.monitor();
    world.watched.server.gcp_preempted(true);
    world.marked().await;
    world.watched.server.gcp_preempted(false);
    world.unmarked().await;
    assert_eq!(world.read_node().await.spec.unwrap().unschedulable, Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_moves_already_keeps_the_node_marked_until_it_has() {
    let world = World::new(Cloud::Gcp).await;
    world.application("moving", "Migrating").await;
    world.application("staying", "Running").await;
    for app in ["moving", "staying"] {
        world.pod(app, &world.node, &[(APP, app)]).await;
    }
    let _monitor = world.monitor();
    world.watched.server.gcp_preempted(true);
    world.triggered(&["moving", "staying"]).await;
    world.marked().await;
    world.watched.server.gcp_preempted(false);
    until("the one that stays is released", async || {
        annotation(&world.read("staying").await, "trigger").is_none()
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(annotation(&world.read("moving").await, "trigger").as_deref(), Some("requested"));
    assert!(world.is_tainted().await);
    world.delete("moving").await;
    world.unmarked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_is_passed_on_and_an_interruption_takes_its_place() {
    let world = World::new(Cloud::Aws).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor();
    world.watched.server.aws_rebalance(Some(Timestamp::now()));
    world.triggered(&["a"]).await;
    let pod = world.read("a").await;
    assert_eq!(annotation(&pod, "advice").as_deref(), Some("checkpoint"));
    assert_eq!(annotation(&pod, "deadline"), None);
    assert!(!world.is_tainted().await, "pods may still come to a node that nobody takes away");
    let deadline = world.spot();
    world.marked().await;
    let pod = world.read("a").await;
    assert_eq!(annotation(&pod, "advice"), None);
    assert_eq!(annotation(&pod, "deadline"), Some(deadline.to_string()));
    assert!(annotation(&pod, "notice").unwrap().starts_with("aws-spot-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_is_ignored_or_followed_by_moving_as_was_decided() {
    let mut world = World::new(Cloud::Aws).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    world.settings.policy.rebalance = Rebalance::Ignore;
    let ignoring = world.monitor();
    world.watched.server.aws_rebalance(Some(Timestamp::now()));
    world.watched.announces(Source::AwsRebalance, 1).await;
    until("it was seen", async || {
        world
            .read_node()
            .await
            .annotations()
            .get("migration.io/notices")
            .is_some_and(|text| text.contains("rebalance"))
    })
    .await;
    assert_eq!(annotation(&world.read("a").await, "trigger"), None);
    drop(ignoring);
    world.settings.policy.rebalance = Rebalance::Migrate;
    let _moving = world.monitor();
    world.triggered(&["a"]).await;
    assert_eq!(annotation(&world.read("a").await, "advice").as_deref(), Some("migrate"));
    world.marked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sooner_of_two_notices_counts_until_it_is_withdrawn() {
    let world = World::new(Cloud::Azure).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor();
    let event = |id: &str, seconds| ScheduledEvent {
        id: id.to_owned(),
        kind: "Reboot".to_owned(),
        resources: vec!["node_0".to_owned()],
        not_before: Some(Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap()),
    };
    let (later, sooner) = (event("later", 600), event("sooner", 60));
    let says = async |event: &ScheduledEvent| {
        let deadline = event.not_before.map(|time| time.to_string());
        until("it has that deadline", async || annotation(&world.read("a").await, "deadline") == deadline)
            .await;
    };
    world.watched.server.azure_schedule(later.clone());
    says(&later).await;
    world.watched.server.azure_schedule(sooner.clone());
    says(&sooner).await;
    world.watched.server.azure_cancel("sooner");
    says(&later).await;
    assert!(world.is_tainted().await);
    world.watched.server.azure_cancel("later");
    world.unmarked().await;
    assert_eq!(annotation(&world.read("a").await, "trigger"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_is_told_once_no_migratable_pod_is_left() {
    let mut world = World::new(Cloud::Azure).await;
    world.settings.acknowledge = Some(world.watched.server.url().parse().unwrap());
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor();
    world.watched.server.azure_schedule(ScheduledEvent {
        id: "e-1".into(),
        kind: "Preempt".into(),
        resources: vec!["node_0".into()],
        not_before: Some(Timestamp::now() + SignedDuration::from_secs(300)),
    });
    world.triggered(&["a"]).await;
    world.marked().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.watched.server.azure_acknowledged().is_empty(), "its pod is still here");
    world.delete("a").await;
    until("Azure is told", async || world.watched.server.azure_acknowledged() == ["e-1"]).await;
    assert_eq!(
        number(&world.watched.metrics, "migration_monitor_actions_total{action=\"acknowledge\"}"),
        1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_trigger_stays_a_persons() {
    let world = World::new(Cloud::Gcp).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    world.annotate("a", json!({"migration.io/trigger": "requested", "migration.io/reason": "because"})).await;
    let _monitor = world.monitor();
    world.watched.server.gcp_preempted(true);
    world.triggered(&["a"]).await;
    let pod = world.read("a").await;
    assert_eq!(annotation(&pod, "triggered-by"), None);
    assert_eq!(annotation(&pod, "reason").as_deref(), Some("because"));
    assert!(annotation(&pod, "deadline").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_not_be_changed_hinders_nobody_else() {
    let world = World::new(Cloud::Gcp).await;
    let client = world.as_somebody_who_may_change_pods_here_only().await;
    let elsewhere = world.cluster.namespace("forbidden").await.unwrap();
    world.pod_in(&elsewhere, "guarded", &world.node, &[(APP, "guarded")]).await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor_as(client);
    world.watched.server.gcp_preempted(true);
    world.triggered(&["a"]).await;
    world.marked().await;
    let refused = "migration_monitor_failures_total{part=\"kubernetes\",reason=\"forbidden\"}";
    until("it is tried again", async || number(&world.watched.metrics, refused) >= 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_shipped_are_enough_and_no_more() {
    let world = World::new(Cloud::Gcp).await;
    let client = world.as_shipped().await;
    world.pod("a", &world.node, &[(APP, "a")]).await;
    let _monitor = world.monitor_as(client);
    world.watched.server.gcp_preempted(true);
    world.triggered(&["a"]).await;
    world.marked().await;
    world.watched.server.gcp_preempted(false);
    world.unmarked().await;
    assert_eq!(sum(&world.watched.metrics, "migration_monitor_failures_total"), 0.0);
    let who = "--as=system:serviceaccount:migration-system:migration-monitor";
    for refused in [
        ["get", "secrets"],
        ["create", "pods"],
        ["delete", "pods"],
        ["list", "nodes"],
        ["delete", "nodes"],
        ["patch", "deployments.apps"],
        ["get", "configmaps"],
    ] {
        let [verb, what] = refused;
        let said = world.cluster.kubectl(&["auth", "can-i", verb, what, who, "--all-namespaces"]).unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "no", "{refused:?}");
    }
}
