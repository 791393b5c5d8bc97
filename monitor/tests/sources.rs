//! Each cloud's metadata service, in order and in trouble.

mod support;

use std::time::{Duration, Instant};

use hyper::StatusCode;
use jiff::{SignedDuration, Timestamp};
use migration_metadata::{Fault, ScheduledEvent};
use migration_monitor::{
    Cloud, NoticeKind,
    board::Source,
    sources::{LONGEST_PAUSE, acknowledge},
};
use support::{CLOUDS, Watched, metadata, sum, until};

fn soon() -> Timestamp {
    let time = Timestamp::now() + SignedDuration::from_secs(120);
    Timestamp::from_second(time.as_second()).unwrap()
}

fn preempt(id: &str, machine: &str, not_before: Option<Timestamp>) -> ScheduledEvent {
    let (id, kind) = (id.to_owned(), "Preempt".to_owned());
    ScheduledEvent { id, kind, resources: vec![machine.to_owned()], not_before }
}

/// The source that tells of interruptions, and one announced.
fn announce(watched: &Watched, cloud: Cloud) -> Source {
    let server = &watched.server;
    match cloud {
        Cloud::Aws => {
            server.aws_spot(Some(("terminate", soon())));
            Source::AwsSpot
        }
        Cloud::Gcp => {
            server.gcp_preempted(true);
            Source::GcpPreempted
        }
        Cloud::Azure => {
            server.azure_schedule(preempt("e-1", "node_0", Some(soon())));
            Source::AzureScheduledEvents
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_is_found_out_by_what_only_its_service_does() {
    for (mock, cloud) in CLOUDS {
        let server = metadata().await;
        server.serve_only(mock);
        let watched = Watched::start(server, None);
        watched.heard(cloud).await;
        assert_eq!(*watched.found.borrow(), Some(cloud));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cloud_is_concluded_from_garbage_or_silence() {
    let server = metadata().await;
    server.serve_only(migration_metadata::Cloud::Azure);
    let watched = Watched::start(server, None);
    for fault in [Fault::Garbage, Fault::Down, Fault::Status(StatusCode::UNAUTHORIZED), Fault::Drop] {
        let failures = || sum(&watched.metrics, "migration_monitor_failures_total{part=\"metadata\"");
        watched.server.fault(fault);
        let before = failures();
        until("it has failed twice", async || failures() >= before + 2.0).await;
        assert_eq!(*watched.found.borrow(), None, "{fault:?}");
    }
    watched.server.fault(None);
    watched.heard(Cloud::Azure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_of_aws_have_their_deadlines() {
    let watched = Watched::of(Cloud::Aws).await;
    let time = soon();
    watched.server.aws_spot(Some(("hibernate", time)));
    watched.server.aws_rebalance(Some(Timestamp::now()));
    watched.server.aws_maintenance("m-1", Some(("system-reboot", time)));
    for source in Source::of(Cloud::Aws) {
        watched.announces(*source, 1).await;
    }
    let spot = &watched.announced(Source::AwsSpot)[0];
    assert_eq!((&spot.notice.kind, spot.deadline(Source::AwsSpot)), (&NoticeKind::Hibernate, Some(time)));
    let advice = &watched.announced(Source::AwsRebalance)[0];
    assert_eq!((&advice.notice.kind, advice.notice.deadline), (&NoticeKind::RebalanceRecommended, None));
    let reboot = &watched.announced(Source::AwsMaintenance)[0];
    assert_eq!((&reboot.notice.kind, reboot.notice.deadline), (&NoticeKind::Reboot, Some(time)));
    for (source, kind) in
        [("aws-spot", "hibernate"), ("aws-rebalance", "rebalance"), ("aws-maintenance", "reboot")]
    {
        let line = format!("migration_monitor_notices_total{{source=\"{source}\",kind=\"{kind}\"}}");
        assert_eq!(watched.number(&line), 1.0);
        let line = format!("migration_monitor_detection_seconds_count{{source=\"{source}\"}}");
        assert_eq!(watched.number(&line), 1.0);
        assert_eq!(watched.number(&format!("migration_monitor_announced{{source=\"{source}\"}}")), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_replaced_before_its_end_and_shared_by_all_paths() {
    let server = metadata().await;
    server.aws_token_limit(Duration::from_secs(5));
    let watched = Watched::start(server, Some(Cloud::Aws));
    watched.heard(Cloud::Aws).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let server = &watched.server;
    assert_eq!(server.count("", |status| status == 401), 0, "{:?}", server.seen());
    let tokens = server.count("/latest/api/token", |status| status == 200);
    assert!((2..=6).contains(&tokens), "{tokens} tokens in 12 seconds, each good for 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_costs_one_refused_request_and_no_answer() {
    let watched = Watched::of(Cloud::Aws).await;
    let failures = || sum(&watched.metrics, "migration_monitor_failures_total");
    let refused = || watched.server.count("", |status| status == 401);
    for round in 1..=3 {
        watched.server.aws_revoke_tokens();
        until("a new token is there", async || {
            watched.server.count("/latest/api/token", |status| status == 200) > round
        })
        .await;
        let source = announce(&watched, Cloud::Aws);
        watched.announces(source, 1).await;
        watched.server.aws_spot(None);
        watched.announces(source, 0).await;
    }
    assert_eq!(failures(), 0.0, "no look failed");
    assert!(refused() <= 9, "{} refused: at most one a path and revocation", refused());
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_of_any_kind_delays_a_notice_and_loses_none() {
    let faults = [
        Fault::Down,
        Fault::Slow(Duration::from_millis(1500)),
        Fault::Garbage,
        Fault::Status(StatusCode::UNAUTHORIZED),
        Fault::Status(StatusCode::SERVICE_UNAVAILABLE),
        Fault::Drop,
        Fault::Silent,
    ];
    let mut runs = tokio::task::JoinSet::new();
    for (_, cloud) in CLOUDS {
        for fault in faults {
            runs.spawn(async move {
                let watched = Watched::of(cloud).await;
                let slow = matches!(fault, Fault::Slow(_));
                watched.server.fault(fault);
                // Requests that wait for a change are let go, so that the next one meets the fault.
                watched.server.gcp_preempted(false);
                let failures = || sum(&watched.metrics, "migration_monitor_failures_total");
                if !slow {
                    until("it has failed often", async || failures() >= 2.0).await;
                }
                let source = announce(&watched, cloud);
                if !slow {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    assert_eq!(watched.announced(source), [], "nobody could have said so");
                    watched.server.fault(None);
                }
                let took = watched.announces(source, 1).await;
                // A request that is under way may still have to run out of patience; the rest is for a busy machine.
                let silent = if fault == Fault::Silent { Duration::from_secs(8) } else { Duration::ZERO };
                let allowed = LONGEST_PAUSE + silent + Duration::from_secs(15);
                assert!(took < allowed, "{cloud:?} {fault:?}: {took:?} after it was over");
            });
        }
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_trouble_does_not_make_the_pauses_longer() {
    let mut runs = tokio::task::JoinSet::new();
    for (_, cloud) in CLOUDS {
        runs.spawn(async move {
            let watched = Watched::of(cloud).await;
            watched.server.fault(Fault::Status(StatusCode::SERVICE_UNAVAILABLE));
            watched.server.gcp_preempted(false);
            tokio::time::sleep(Duration::from_secs(10)).await;
            let asked = || watched.server.count("", |status| status == 503);
            let before = asked();
            let begun = Instant::now();
            until("it is asked again", async || asked() >= before + 2).await;
            assert!(begun.elapsed() < 2 * LONGEST_PAUSE + Duration::from_secs(15), "{cloud:?}");
            assert!(before < 100, "{cloud:?}: {before} requests in 10 seconds are no pause at all");
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_notices_are_two_and_one_can_be_withdrawn() {
    let watched = Watched::of(Cloud::Azure).await;
    let source = Source::AzureScheduledEvents;
    watched.server.azure_schedule(preempt("e-1", "node_0", Some(soon())));
    watched.announces(source, 1).await;
    watched.server.azure_schedule(preempt("e-2", "NODE_0", None));
    watched.announces(source, 2).await;
    watched.server.azure_cancel("e-1");
    watched.announces(source, 1).await;
    let left = &watched.announced(source)[0];
    assert_eq!(left.notice.event_id.as_deref(), Some("e-2"));
    assert_eq!(left.deadline(source), Some(left.seen), "it has begun");
    assert_eq!(watched.number("migration_monitor_withdrawn_total{source=\"azure-scheduled-events\"}"), 1.0);
    assert_eq!(watched.number("migration_monitor_announced{source=\"azure-scheduled-events\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_about_another_machine_is_none_of_ours() {
    let watched = Watched::of(Cloud::Azure).await;
    watched.server.azure_schedule(preempt("e-1", "node_1", Some(soon())));
    let path = "/metadata/scheduledevents";
    let before = watched.server.count(path, |status| status == 200);
    until("it was read", async || watched.server.count(path, |status| status == 200) >= before + 3).await;
    assert_eq!(watched.announced(Source::AzureScheduledEvents), []);
    watched.server.azure_schedule(preempt("e-2", "node_0", Some(soon())));
    watched.announces(Source::AzureScheduledEvents, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_event_begins() {
    let watched = Watched::of(Cloud::Azure).await;
    let source = announce(&watched, Cloud::Azure);
    watched.announces(source, 1).await;
    let endpoint = watched.server.url().parse().unwrap();
    acknowledge(&endpoint, "e-1").await.unwrap();
    assert_eq!(watched.server.azure_acknowledged(), ["e-1"]);
    until("it has begun", async || watched.announced(source)[0].notice.deadline.is_none()).await;
    assert!(acknowledge(&endpoint, "e-9").await.is_err(), "there is no such event");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_the_change_and_is_answered_by_it() {
    let watched = Watched::of(Cloud::Gcp).await;
    let path = "/computeMetadata/v1/instance/preempted";
    let asked = || watched.server.count(path, |_| true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(asked() <= 2, "{} answers in 3 seconds: it does not wait", asked());
    let mut times = Vec::new();
    for _ in 0..5 {
        watched.server.gcp_preempted(true);
        times.push(watched.announces(Source::GcpPreempted, 1).await);
        watched.server.gcp_preempted(false);
        watched.announces(Source::GcpPreempted, 0).await;
    }
    times.sort();
    assert!(times[2] < Duration::from_millis(700), "{times:?}: it is not asked from time to time");
    watched.server.gcp_maintenance("TERMINATE_ON_HOST_MAINTENANCE");
    watched.announces(Source::GcpMaintenance, 1).await;
    let sighting = &watched.announced(Source::GcpMaintenance)[0];
    let deadline = sighting.deadline(Source::GcpMaintenance).unwrap();
    assert_eq!(deadline, sighting.seen + SignedDuration::from_secs(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_without_a_notice_withdraws_nothing_where_there_is_asked_again_and_again() {
    let watched = Watched::of(Cloud::Aws).await;
    let source = announce(&watched, Cloud::Aws);
    watched.announces(source, 1).await;
    let first = watched.announced(source);
    // A service that has lost everything answers 404 to what it does not know.
    for _ in 0..3 {
        let path = "/latest/meta-data/spot/instance-action";
        let told = watched.server.count(path, |status| status == 404);
        watched.server.aws_spot(None);
        until("it was missing once", async || watched.server.count(path, |status| status == 404) > told)
            .await;
        watched.server.aws_spot(Some(("terminate", first[0].notice.deadline.unwrap())));
        let read = watched.server.count(path, |status| status == 200);
        until("it is there again", async || watched.server.count(path, |status| status == 200) > read).await;
    }
    assert_eq!(watched.announced(source), first);
}
