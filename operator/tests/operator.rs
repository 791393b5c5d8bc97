//! The operator against a real API server, with agents and kubelets that follow scripts.

mod support;

use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use migration_operator::{
    api::{
        MigratableAppStatus, Phase,
        migration::{MigrationStage as Stage, TriggeredBy},
    },
    context::Settings,
};
use migration_proto::agent::{OperationKind, Reason};
use serde_json::json;
use tokio::time::sleep;

use self::support::{Scene, holds, pretty, reason, world::Fate};

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_started_and_moves_with_every_strategy() {
    let scene = Scene::new("strategies").await;
    let _operator = scene.operator();
    for strategy in ["full", "lazy-storage", "lazy-direct", "lazy-hybrid"] {
        scene.world.lock().resident_after = Duration::from_millis(500);
        scene.create(strategy, json!({"migrationPolicy": {"strategy": strategy}})).await;
        let before = scene.until_running(strategy).await;
        assert_eq!((before.phase, before.current_node), (Some(Phase::Running), Some(scene.node("a"))));
        scene.trigger(strategy).await;
        let after = scene.until_over(strategy, 1).await;
        let moved = after.migration.clone().unwrap();
        assert_eq!(moved.stage, Stage::Succeeded, "{}", pretty(&after));
        assert_eq!((after.generation, moved.attempt), (Some(1), 1), "{}", pretty(&after));
        assert!(moved.resident_at.is_some() && moved.blackout_ms.is_some());
        let record = &after.migration_history[0];
        assert_eq!((record.from_node.as_str(), record.reason.as_str()), (scene.node("a").as_str(), "test"));
        assert_eq!((record.success, Some(&record.to_node)), (true, after.current_node.as_ref()));
        assert_ne!(record.to_node, record.from_node);
        scene.assert_runs_once(strategy).await;
        let app = scene.world.app(&scene.full_name(strategy));
        assert_eq!((app.launches, app.dumps, app.restores, &app.stopped), (1, 1, 1, &None));
        let status = scene.until(strategy, "running again", |status| holds(status, "Ready")).await;
        assert_eq!((status.phase, reason(&status, "Migrating")), (Some(Phase::Running), "Succeeded"));
    }
    let events = scene.events("full").await;
    for reason in ["Started", "TargetChosen", "FinalDump", "Restoring", "Restored", "Migrated"] {
        assert!(events.iter().any(|event| event == reason), "{reason}: {events:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_leaves_the_source_running_and_is_tried_again() {
    let scene = Scene::new("dump-fails").await;
    let _operator = scene.operator();
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    scene.world.fate(OperationKind::FinalDump, Fate::Fails(Reason::Criu));
    scene.trigger("app").await;
    let after = scene.until_over("app", 1).await;
    let moved = after.migration.clone().unwrap();
    assert_eq!((moved.stage, moved.attempt), (Stage::Succeeded, 2), "{}", pretty(&after));
    scene.assert_runs_once("app").await;

    for _ in 0..3 {
        scene.world.fate(OperationKind::FinalDump, Fate::Fails(Reason::Criu));
    }
    scene.trigger("app").await;
    let after = scene.until_over("app", 2).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Failed, "{}", pretty(&after));
    assert_eq!((after.generation, after.phase), (Some(1), Some(Phase::Running)));
    // The pods of the tries that failed are gone.
    scene.assert_runs_once("app").await;

    // Somebody has found the cause.
    scene.annotate_app("app", json!({"migration.io/retry": "requested"})).await;
    let after = scene.until_over("app", 3).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    scene.assert_runs_once("app").await;
    let app = scene.apps().get("app").await.unwrap();
    assert!(!app.metadata.annotations.unwrap_or_default().contains_key("migration.io/retry"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_is_done_elsewhere() {
    let scene = Scene::new("restore-fails").await;
    let _operator = scene.operator();
    for strategy in ["full", "lazy-direct"] {
        scene.create(strategy, json!({"migrationPolicy": {"strategy": strategy}})).await;
        scene.until_running(strategy).await;
        scene.world.fate(OperationKind::Restore, Fate::Fails(Reason::Criu));
        scene.trigger(strategy).await;
        let after = scene.until_over(strategy, 1).await;
        let moved = after.migration.clone().unwrap();
        assert_eq!(moved.stage, Stage::Succeeded, "{}", pretty(&after));
        assert_eq!(moved.failed_nodes.len(), 1);
        assert!(!moved.failed_nodes.contains(&moved.target.unwrap().node));
        scene.assert_runs_once(strategy).await;
    }
    // A handover that could not be restored went back before it was handed over again.
    assert_eq!(scene.world.app(&scene.full_name("lazy-direct")).dumps, 2);
    assert_eq!(scene.world.app(&scene.full_name("full")).dumps, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_anywhere_else_comes_back() {
    let scene = Scene::new("comes-back").await;
    let _operator = scene.operator();
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    for _ in 0..3 {
        scene.world.fate(OperationKind::Restore, Fate::Fails(Reason::Criu));
    }
    scene.trigger("app").await;
    let after = scene.until_over("app", 1).await;
    let moved = after.migration.clone().unwrap();
    assert_eq!((moved.stage, moved.returns()), (Stage::Failed, true), "{}", pretty(&after));
    assert_eq!((after.phase, after.current_node), (Some(Phase::Running), Some(scene.node("a"))));
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_at_any_stage_is_succeeded_by_another() {
    let scene = Scene::new("killed").await;
    let stages = [
        Stage::ChoosingTarget,
        Stage::Preparing,
        Stage::Dumping,
        Stage::Restoring,
        Stage::Filling,
        Stage::RemovingSource,
    ];
    scene.world.lock().pace = Duration::from_millis(400);
    scene.world.lock().resident_after = Duration::from_millis(400);
    for (number, stage) in stages.into_iter().enumerate() {
        for strategy in ["lazy-storage", "lazy-direct"] {
            let name = format!("{strategy}-{number}");
            let operator = scene.operator();
            scene.create(&name, json!({"migrationPolicy": {"strategy": strategy}})).await;
            scene.until_running(&name).await;
            let killed = scene.when_written(&name, stage, move || drop(operator));
            scene.trigger(&name).await;
            killed.await.unwrap();
            let _next = scene.operator();
            let after = scene.until_over(&name, 1).await;
            let moved = after.migration.clone().unwrap();
            assert_eq!((moved.stage, moved.attempt), (Stage::Succeeded, 1), "{stage:?} {}", pretty(&after));
            scene.assert_runs_once(&name).await;
            let app = scene.world.app(&scene.full_name(&name));
            assert_eq!((app.dumps, app.restores), (1, 1), "{stage:?}: nothing is done twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_without_notice_is_restored_from_its_last_checkpoint() {
    let scene = Scene::new("vanishes").await;
    let _operator = scene.operator();
    scene.create("app", json!({"checkpointPolicy": {"interval": "1s", "autoAdjust": false}})).await;
    let status = scene.until("app", "checkpointed", |status| holds(status, "Checkpointed")).await;
    assert!(status.checkpoint_status.unwrap().last_checkpoint_id.is_some());
    let pod = scene.status("app").await.current_pod_name.unwrap();
    scene.pods().delete(&pod, &Default::default()).await.unwrap();
    let after = scene.until_over("app", 1).await;
    let moved = after.migration.clone().unwrap();
    assert_eq!(
        (moved.stage, moved.triggered_by),
        (Stage::Succeeded, TriggeredBy::Recovery),
        "{}",
        pretty(&after)
    );
    scene.assert_runs_once("app").await;
    assert_eq!(scene.world.app(&scene.full_name("app")).launches, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_is_obeyed_once_a_notice_and_not_where_the_policy_says_no() {
    let scene = Scene::new("monitor").await;
    let _operator = scene.operator();
    scene.create("moves", json!({})).await;
    scene.create("stays", json!({"migrationPolicy": {"autoMigrate": false}})).await;
    let notice = json!({
        "migration.io/trigger": "requested", "migration.io/reason": "spot-interruption",
        "migration.io/triggered-by": "monitor", "migration.io/notice": "n1"
    });
    for app in ["moves", "stays"] {
        scene.until_running(app).await;
        scene.annotate_pod(app, notice.clone()).await;
    }
    let after = scene.until_over("moves", 1).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    scene.annotate_pod("moves", notice).await;
    let stays = scene.until("stays", "checkpointed instead", |status| holds(status, "Checkpointed")).await;
    assert_eq!((stays.migration, stays.current_node), (None, Some(scene.node("a"))));
    assert_eq!(scene.world.app(&scene.full_name("stays")).checkpoints.len(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        scene.status("moves").await.migration_history.len(),
        1,
        "the same notice again is no other trigger"
    );
    // A person is obeyed whatever the policy says about machines.
    scene.trigger("stays").await;
    let after = scene.until_over("stays", 1).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_can_be_cancelled_until_the_application_is_a_checkpoint() {
    let scene = Scene::new("cancel").await;
    let _operator = scene.operator();
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    scene.world.fate(OperationKind::FinalDump, Fate::Hangs);
    scene.trigger("app").await;
    scene.until_stage("app", Stage::Dumping).await;
    scene.annotate_app("app", json!({"migration.io/cancel": "requested"})).await;
    let after = scene.until_over("app", 1).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Cancelled, "{}", pretty(&after));
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_known_before_anybody_asks() {
    let scene = Scene::new("missing").await;
    let _operator = scene.operator();
    scene.create("secret", json!({"storage": {"credentialsSecret": "nowhere"}})).await;
    let command = json!([{"name": "main", "image": "redis"}]);
    scene.create("entrypoint", json!({"template": {"spec": {"containers": command}}})).await;
    for (app, expected) in [("secret", "SecretMissing"), ("entrypoint", "EntrypointUnknown")] {
        let status = scene.until(app, expected, |status| reason(status, "Migratable") == expected).await;
        assert_eq!((holds(&status, "Migratable"), status.phase), (false, Some(Phase::Pending)));
    }
    scene.create("store", json!({})).await;
    scene.until_running("store").await;
    scene.world.lock().missing.push("store".to_owned());
    // It is looked at once a minute; a new application is looked at first.
    scene.create("other", json!({})).await;
    scene
        .until("other", "StoreUnreachable", |status| reason(status, "Migratable") == "StoreUnreachable")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_go_with_the_application_only_if_that_was_said() {
    let scene = Scene::new("deletion").await;
    let _operator = scene.operator();
    for (app, policy, collected) in [("keeps", "Retain", false), ("deletes", "Delete", true)] {
        scene.create(app, json!({"deletionPolicy": policy, "checkpointPolicy": {"interval": "1s"}})).await;
        scene.until(app, "checkpointed", |status| holds(status, "Checkpointed")).await;
        scene.apps().delete(app, &Default::default()).await.unwrap();
        let begun = std::time::Instant::now();
        while scene.apps().get_opt(app).await.unwrap().is_some() {
            assert!(begun.elapsed() < support::PATIENCE, "{app} stays");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(scene.world.app(&scene.full_name(app)).collected, collected, "{app}");
    }
    assert!(scene.events("deletes").await.contains(&"CheckpointsDeleted".to_owned()));
    assert!(scene.events("keeps").await.contains(&"CheckpointsKept".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_dies_is_replaced_before_and_after_the_dump() {
    let scene = Scene::new("target-dies").await;
    let _operator = scene.operator();
    scene.world.lock().pace = Duration::from_millis(1500);
    for (app, stage) in [("before", Stage::Dumping), ("after", Stage::Restoring)] {
        scene.create(app, json!({})).await;
        scene.until_running(app).await;
        scene.trigger(app).await;
        let moving = scene.until_stage(app, stage).await;
        let target = moving.migration.unwrap().target.unwrap();
        // Its machine is gone: so are the node and its pods, without a word.
        let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(scene.client.clone());
        nodes.delete(&target.node, &Default::default()).await.unwrap();
        scene.pods().delete(&target.pod, &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
        let after = scene.until_over(app, 1).await;
        let moved = after.migration.clone().unwrap();
        assert_eq!(moved.stage, Stage::Succeeded, "{}", pretty(&after));
        assert_ne!(moved.target.unwrap(), target);
        scene.assert_runs_once(app).await;
        support::kubelet::node(
            &scene.client,
            &target.node,
            json!({"scene": scene.namespace, "kubernetes.io/arch": "amd64"}),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_notice_sends_it_on_to_a_node_that_stays() {
    let scene = Scene::new("second-notice").await;
    let _operator = scene.operator();
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    // Neither node starts pods until it is known which one is doomed.
    scene.slow.lock().unwrap().extend([scene.node("b"), scene.node("c")]);
    scene.trigger("app").await;
    let preparing = scene.until_stage("app", Stage::Preparing).await;
    let doomed = preparing.migration.unwrap().target.unwrap().node;
    scene.slow.lock().unwrap().clear();
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(scene.client.clone());
    let taint = json!({"spec": {"taints": [{"key": "migration.io/interruption", "effect": "NoSchedule"}]}});
    nodes.patch(&doomed, &Default::default(), &kube::api::Patch::Merge(&taint)).await.unwrap();
    let after = scene.until_over("app", 1).await;
    let moved = after.migration.clone().unwrap();
    assert_eq!((moved.stage, moved.failures), (Stage::Succeeded, None), "{}", pretty(&after));
    assert_ne!(after.current_node, Some(doomed));
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_leaves_no_time_for_a_target_is_met_all_the_same() {
    let scene = Scene::new("deadline").await;
    let _operator = scene.operator();
    scene.create("app", json!({"migrationPolicy": {"strategy": "lazy-direct"}})).await;
    scene.until_running("app").await;
    scene.slow.lock().unwrap().extend([scene.node("b"), scene.node("c")]);
    let deadline = k8s_openapi::jiff::Timestamp::now() + Duration::from_secs(25);
    scene
        .annotate_pod(
            "app",
            json!({
                "migration.io/trigger": "requested", "migration.io/triggered-by": "monitor",
                "migration.io/notice": "n", "migration.io/deadline": deadline.to_string()
            }),
        )
        .await;
    let dumped = scene.until("app", "dumped", |status| {
        status.migration.as_ref().is_some_and(|migration| migration.committed_at.is_some())
    });
    let status = dumped.await;
    assert!(status.migration.as_ref().unwrap().committed_at.as_ref().unwrap().0 < deadline);
    assert_eq!((status.phase, status.current_pod_name), (Some(Phase::Migrating), None));
    // There is a machine at last; the pods that wait for the others are given up first.
    let label = json!({"scene": scene.namespace, "kubernetes.io/arch": "amd64"});
    support::kubelet::node(&scene.client, &scene.node("d"), label).await;
    scene.slow.lock().unwrap().clear();
    let stuck = scene.pods().list(&Default::default()).await.unwrap();
    for pod in
        stuck.items.iter().filter(|pod| pod.status.as_ref().is_some_and(|status| status.pod_ip.is_none()))
    {
        let name = pod.metadata.name.as_deref().unwrap();
        scene.pods().delete(name, &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    }
    let after = scene.until_over("app", 1).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_who_write_at_the_same_time_do_no_harm() {
    let scene = Scene::new("writers").await;
    // Two operators that both believe to lead, and a person who is never done.
    let _operators = (scene.operator(), scene.operator());
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    scene.trigger("app").await;
    let apps = scene.apps();
    let person = tokio::spawn(async move {
        for number in 0.. {
            let patch = json!({"metadata": {"annotations": {"note": format!("{number}")}}});
            let _ = apps.patch("app", &Default::default(), &kube::api::Patch::Merge(&patch)).await;
            sleep(Duration::from_millis(20)).await;
        }
    });
    let after = scene.until_over("app", 1).await;
    person.abort();
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    assert_eq!((after.migration_history.len(), after.generation), (1, Some(1)), "{}", pretty(&after));
    scene.assert_runs_once("app").await;
    let app = scene.world.app(&scene.full_name("app"));
    assert_eq!((app.launches, app.dumps, app.restores), (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_applications_move_at_once_within_one_deadline() {
    const APPS: usize = 100;
    const DEADLINE: Duration = Duration::from_secs(120);
    let scene = Scene::new("hundred").await;
    let requests = std::sync::Arc::clone(&scene.requests);
    let _operator = scene.operator();
    let names: Vec<String> = (0..APPS).map(|number| format!("app-{number}")).collect();
    for name in &names {
        scene.create(name, json!({"migrationPolicy": {"migrationTimeoutSeconds": 300}})).await;
    }
    for name in &names {
        scene.until_running(name).await;
    }
    let before = requests.load(std::sync::atomic::Ordering::SeqCst);
    let begun = std::time::Instant::now();
    let deadline = k8s_openapi::jiff::Timestamp::now() + DEADLINE;
    for name in &names {
        let notice = json!({
            "migration.io/trigger": "requested", "migration.io/triggered-by": "monitor",
            "migration.io/notice": "all", "migration.io/deadline": deadline.to_string()
        });
        scene.annotate_pod(name, notice).await;
    }
    for name in &names {
        let after = scene.until_over(name, 1).await;
        let moved = after.migration.clone().unwrap();
        assert_eq!(moved.stage, Stage::Succeeded, "{}", pretty(&after));
        assert!(moved.finished_at.unwrap().0 < deadline, "{name} was late");
    }
    let took = begun.elapsed();
    let each = (requests.load(std::sync::atomic::Ordering::SeqCst) - before) / APPS;
    println!("{APPS} applications moved in {took:?}; {each} requests to the API server each");
    assert!(each <= 100, "{each} requests each");
    let world = scene.world.lock();
    assert_eq!(world.violations, Vec::<String>::new());
    assert!(world.apps.values().all(|app| app.runs.len() == 1 && app.dumps == 1 && app.restores == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_stays_as_long_as_somebody_wants_to_look_at_it() {
    let scene = Scene::new("preserved").await;
    let _operator = scene.operator();
    scene.create("app", json!({"template": {"metadata": {"labels": {"tier": "db"}}}})).await;
    let source = scene.until_running("app").await.current_pod_name.unwrap();
    assert_eq!(scene.pods().get(&source).await.unwrap().labels()["tier"], "db");
    scene.annotate_app("app", json!({"migration.io/debug-preserve-source-pod": "true"})).await;
    scene.trigger("app").await;
    let after = scene.until_over("app", 1).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    sleep(Duration::from_secs(2)).await;
    let kept = scene.pods().get(&source).await.unwrap();
    assert!(kept.metadata.deletion_timestamp.is_none());
    // Services find the application where it runs, and not where it was.
    let target = scene.pods().get(&after.current_pod_name.unwrap()).await.unwrap();
    assert_eq!((kept.labels().get("tier"), target.labels()["tier"].as_str()), (None, "db"));
    assert_eq!(scene.world.app(&scene.full_name("app")).runs.len(), 1);
    scene.annotate_app("app", json!({"migration.io/debug-preserve-source-pod": null})).await;
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_without_ranges_of_ports_gets_no_policy_that_would_cut_an_application_off() {
    let scene = Scene::new("ranges").await;
    let version = scene.client.apiserver_version().await.unwrap();
    let knows_ranges = version.minor.trim_end_matches('+').parse::<u32>().unwrap() >= 22;
    let _operator = scene.operator_with(Settings { network_policies: true, ..scene.settings() });
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    let policies: kube::Api<NetworkPolicy> = kube::Api::namespaced(scene.client.clone(), &scene.namespace);
    let made = policies.list(&Default::default()).await.unwrap().items;
    let told = scene.events("app").await.contains(&"NetworkPolicyUnsupported".to_owned());
    assert_eq!((made.len(), told), (usize::from(knows_ranges), !knows_ranges), "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_whose_cpu_lacks_something_is_refused_before_anything_is_frozen() {
    let scene = Scene::new("cpu").await;
    let _operator = scene.operator();
    scene.world.lock().only_there = Some("avx512f".to_owned());
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    scene.trigger("app").await;
    let after = scene.until_over("app", 1).await;
    let migration = after.migration.clone().unwrap();
    assert_eq!(migration.stage, Stage::Failed, "{}", pretty(&after));
    assert!(migration.message.unwrap().contains("avx512f"), "{}", pretty(&after));
    let world = scene.world.app(&scene.full_name("app"));
    assert_eq!((world.dumps, world.restores, world.runs.len()), (0, 0, 1));
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_whose_pages_come_only_on_demand_has_moved_when_it_runs() {
    let scene = Scene::new("on-demand").await;
    let _operator = scene.operator();
    // Longer than a migration may take.
    scene.world.lock().resident_after = Duration::from_secs(3600);
    scene.create("app", json!({"storage": {"asyncPrefetch": false}})).await;
    scene.until_running("app").await;
    scene.trigger("app").await;
    let after = scene.until_over("app", 1).await;
    let migration = after.migration.clone().unwrap();
    assert_eq!((migration.stage, migration.resident_at), (Stage::Succeeded, None), "{}", pretty(&after));
    assert_eq!(scene.world.lock().prefetch, Some(0));
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_template_takes_effect_when_somebody_asks_for_it_and_not_before() {
    let scene = Scene::new("template").await;
    let _operator = scene.operator();
    scene.create("app", json!({})).await;
    let first = scene.until_running("app").await.current_pod_name.unwrap();
    let up_to_date = |status: &MigratableAppStatus| holds(status, "UpToDate");
    scene.until("app", "up to date", up_to_date).await;
    let container = json!({
        "name": "main", "image": "redis:8", "command": ["redis-server"], "args": ["--save", ""],
        "resources": {"requests": {"cpu": "10m"}}
    });
    let change = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    scene.apps().patch("app", &Default::default(), &kube::api::Patch::Merge(&change)).await.unwrap();
    scene.until("app", "told", |status| reason(status, "UpToDate") == "TemplateChanged").await;
    assert!(scene.events("app").await.contains(&"TemplateChanged".to_owned()));

    // It moves as what it is; what memory does not depend on is new.
    scene.trigger("app").await;
    let moved = scene.until_over("app", 1).await;
    assert_eq!(moved.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&moved));
    let second = moved.current_pod_name.clone().unwrap();
    let main = scene.pods().get(&second).await.unwrap().spec.unwrap().containers.remove(0);
    let asked = main.resources.as_ref().and_then(|one| one.requests.as_ref()).map(|one| one["cpu"].0.clone());
    assert_eq!((main.image.as_deref(), asked.as_deref()), (Some("redis"), Some("10m")));
    assert!(!holds(&moved, "UpToDate") && first != second);

    // A checkpoint that fails changes nothing.
    scene.world.fate(OperationKind::PreCheckpoint, Fate::Fails(Reason::Criu));
    scene.annotate_app("app", json!({"migration.io/restart": "requested"})).await;
    let begun = std::time::Instant::now();
    while !scene.events("app").await.contains(&"NotRestarted".to_owned()) {
        assert!(begun.elapsed() < support::PATIENCE, "{:?}", scene.events("app").await);
        sleep(Duration::from_millis(100)).await;
    }
    let status = scene.status("app").await;
    assert_eq!(status.current_pod_name.as_ref(), Some(&second), "{}", pretty(&status));
    assert!(!scene.apps().get("app").await.unwrap().annotations().contains_key("migration.io/restart"));

    let saved = scene.world.app(&scene.full_name("app")).checkpoints.len();
    scene.annotate_app("app", json!({"migration.io/restart": "requested"})).await;
    let anew = |status: &MigratableAppStatus| {
        status.current_pod_name.as_ref() != Some(&second) && holds(status, "Ready") && up_to_date(status)
    };
    let status = scene.until("app", "started anew", anew).await;
    let third = scene.pods().get(&status.current_pod_name.unwrap()).await.unwrap();
    assert_eq!(third.spec.unwrap().containers[0].image.as_deref(), Some("redis:8"));
    let world = scene.world.app(&scene.full_name("app"));
    assert_eq!((world.launches, world.restores), (2, 1));
    assert!(world.checkpoints.len() > saved, "a last checkpoint was made");
    assert!(!scene.apps().get("app").await.unwrap().annotations().contains_key("migration.io/restart"));
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_died_while_it_started_an_application_anew_has_it_done_once() {
    let scene = Scene::new("restart-crash").await;
    let _operator = scene.operator();
    scene.create("app", json!({})).await;
    let pod = scene.until_running("app").await.current_pod_name.unwrap();
    let uid = || async { scene.pods().get(&pod).await.unwrap().metadata.uid.unwrap() };
    let first = uid().await;
    let still_asked = || async {
        scene.apps().get("app").await.unwrap().annotations().contains_key("migration.io/restart")
    };

    // It had started another pod, and not said yet that all is done.
    scene.annotate_app("app", json!({"migration.io/restart": "ending-another"})).await;
    let begun = std::time::Instant::now();
    while still_asked().await {
        assert!(begun.elapsed() < support::PATIENCE, "the annotation stays");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((uid().await, scene.world.app(&scene.full_name("app")).launches), (first.clone(), 1));

    // It had named the pod, and not deleted it.
    let saved = scene.world.app(&scene.full_name("app")).checkpoints.len();
    scene.annotate_app("app", json!({"migration.io/restart": format!("ending-{first}")})).await;
    let anew = |status: &MigratableAppStatus| status.current_pod_name.as_ref() != Some(&pod);
    scene.until("app", "started anew", |status| anew(status) && holds(status, "Ready")).await;
    let world = scene.world.app(&scene.full_name("app"));
    assert_eq!((world.launches, world.restores), (2, 0));
    assert!(world.checkpoints.len() > saved, "what ran on had another last checkpoint");
    assert!(!still_asked().await);
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_lost_before_its_last_checkpoint_is_restored_and_then_started_anew() {
    let scene = Scene::new("restart-lost").await;
    let _operator = scene.operator();
    scene.create("app", json!({"checkpointPolicy": {"interval": "1s", "autoAdjust": false}})).await;
    scene.until("app", "checkpointed", |status| holds(status, "Checkpointed")).await;
    let pod = scene.status("app").await.current_pod_name.unwrap();
    // No checkpoint ends any more in this pod.
    scene.world.fate(OperationKind::PreCheckpoint, Fate::Hangs);
    scene.annotate_app("app", json!({"migration.io/restart": "requested"})).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.status("app").await.current_pod_name.as_ref(), Some(&pod));
    scene.pods().delete(&pod, &Default::default()).await.unwrap();
    let recovered = scene.until_over("app", 1).await;
    assert_eq!(recovered.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&recovered));
    let full_name = scene.full_name("app");
    let anew = |_: &MigratableAppStatus| scene.world.app(&full_name).launches == 2;
    scene.until("app", "started anew", |status| anew(status) && holds(status, "Ready")).await;
    assert_eq!(scene.world.app(&full_name).restores, 1, "what was lost went on first");
    scene.assert_runs_once("app").await;
}

/// What was restored into a pod ends, and its container is started again.
async fn ends(scene: &Scene, app: &str, pod: &str, exit_code: i32) {
    let address = scene.pods().get(pod).await.unwrap().status.unwrap().pod_ip.unwrap();
    scene.world.lock().entry(&scene.full_name(app)).runs.retain(|place| *place != address);
    support::kubelet::restarted(&scene.pods(), pod, "main", exit_code).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_processes_that_are_killed_before_their_last_page_came_go_on_at_the_source() {
    let scene = Scene::new("killed-filling").await;
    let _operator = scene.operator();
    // The source's agent may have heard of it first, and let them go on by itself.
    for (app, told) in [("asked", false), ("told", true)] {
        scene.world.lock().resident_after = Duration::from_secs(600);
        scene.create(app, json!({"migrationPolicy": {"strategy": "lazy-direct"}})).await;
        scene.until_running(app).await;
        scene.trigger(app).await;
        let filling = scene.until_stage(app, Stage::Filling).await.migration.unwrap();
        scene.world.lock().resident_after = Duration::ZERO;
        let target = filling.target.unwrap().pod;
        {
            let mut world = scene.world.lock();
            let entry = world.entry(&scene.full_name(app));
            entry.runs.clear();
            if told {
                let (source, ..) = entry.stopped.take().unwrap();
                world.run(&scene.full_name(app), &source);
            }
        }
        ends(&scene, app, &target, 137).await;
        // It moves all the same, from where it went on.
        let after = scene.until_over(app, 1).await;
        let migration = after.migration.clone().unwrap();
        assert_eq!(migration.stage, Stage::Succeeded, "{}", pretty(&after));
        assert_ne!(migration.target.unwrap().pod, target);
        let known = scene.world.app(&scene.full_name(app));
        assert_eq!((known.launches, known.restores), (1, 2), "{known:?}");
        scene.assert_runs_once(app).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_killed_is_restored_and_what_has_ended_is_started_anew() {
    let scene = Scene::new("killed-later").await;
    let _operator = scene.operator();
    // The last is a launcher's, which does not know.
    for (app, exit_code, launches) in [("killed", 137, 1), ("ended", 3, 2), ("unknown", 255, 1)] {
        scene.create(app, json!({})).await;
        scene.until_running(app).await;
        scene.trigger(app).await;
        let moved = scene.until_over(app, 1).await;
        ends(&scene, app, moved.current_pod_name.as_deref().unwrap(), exit_code).await;
        let again = |status: &MigratableAppStatus| {
            status.phase == Some(Phase::Running) && status.current_pod_name != moved.current_pod_name
        };
        scene.until(app, "runs in another pod", again).await;
        assert_eq!(scene.world.app(&scene.full_name(app)).launches, launches, "{app}");
        scene.assert_runs_once(app).await;
    }
}
