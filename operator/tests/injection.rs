//! Pods of Deployments and StatefulSets, and bare ones, that ask to be migratable: with a real API server, its controllers and its
//! scheduler, the operator and its webhook, and agents and kubelets that follow scripts.

mod support;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{ResourceExt, api::DeleteParams};
use migration_operator::api::{MigratableAppStatus, Phase, migration::MigrationStage as Stage};
use migration_proto::agent::{OperationKind, Reason};
use serde_json::json;

use tokio::time::{sleep, timeout};

use self::support::{
    PATIENCE,
    deployed::{Deployed, app_of, controller_of, ip, node_of},
    pretty,
    world::Fate,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_deployment_moves_and_its_deployment_and_service_keep_what_they_have() {
    let place = Deployed::new("deployment", json!({})).await;
    let _operator = place.operator().await;
    place.deploy("web", 2).await;
    let apps = place.until_running("web", 2).await;
    let before = place.until_pods("web", 2).await;
    place.until_served_by("web", &before).await;
    let source = before.iter().find(|pod| app_of(pod) == apps[0]).unwrap();

    place.scene.trigger(&apps[0]).await;
    let after = place.scene.until_over(&apps[0], 1).await;
    let moved = after.migration.clone().unwrap();
    assert_eq!((moved.stage, moved.attempt), (Stage::Succeeded, 1), "{}", pretty(&after));
    let pods = place.until_pods("web", 2).await;
    place.until_satisfied("web", 2).await;
    place.until_served_by("web", &pods).await;
    assert!(pods.iter().all(|pod| pod.metadata.uid != source.metadata.uid), "the source is gone");
    let target = pods.iter().find(|pod| app_of(pod) == apps[0]).unwrap();
    assert_eq!(controller_of(target), controller_of(source));
    assert_ne!(node_of(target), node_of(source));
    let record = &after.migration_history[0];
    assert_eq!(
        (record.success, &record.from_node, &record.to_node),
        (true, &node_of(source), &node_of(target))
    );
    assert_eq!((after.current_pod_name, after.generation), (Some(target.name_any()), Some(1)));
    let world = place.world(&apps[0]);
    assert_eq!((world.launches, world.dumps, world.restores, &world.runs), (1, 1, 1, &vec![ip(target)]));
    let other = place.world(&apps[1]);
    assert_eq!((other.launches, other.dumps, other.restores), (1, 0, 0));
    assert_eq!(place.apps_of("web").await.len(), 2);
    place.assert_nothing_ran_twice();

    // And on from there. While pages still come from the source, nobody asks it for anything.
    place.scene.world.lock().resident_after = Duration::from_secs(600);
    place.scene.trigger(&apps[0]).await;
    let fills = |status: &MigratableAppStatus| {
        status.migration.as_ref().is_some_and(|migration| migration.stage == Stage::Filling)
    };
    place.scene.until(&apps[0], "filling", fills).await;
    let found = async {
        loop {
            let all = place.until_pods("web", 2).await;
            if all.iter().all(|pod| pod.metadata.uid != target.metadata.uid) {
                return all;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let all = timeout(PATIENCE, found).await.expect("the source is hidden");
    place.until_served_by("web", &all).await;
    assert!(place.scene.pods().get_opt(&target.name_any()).await.unwrap().is_some());
    place.scene.world.lock().resident_after = Duration::ZERO;
    let after = place.scene.until_over(&apps[0], 2).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    place.until_pods("web", 2).await;
    place.until_satisfied("web", 2).await;
    assert_eq!(place.world(&apps[0]).launches, 1);
    place.assert_nothing_ran_twice();

    // What the pods mount is their application's, and stays when they go.
    let secrets: kube::Api<Secret> =
        kube::Api::namespaced(place.scene.client.clone(), &place.scene.namespace);
    for app in &apps {
        let secret = secrets.get(&format!("{app}-migration-tls")).await.unwrap();
        let owners: Vec<_> = secret
            .owner_references()
            .iter()
            .map(|owner| (owner.kind.as_str(), owner.name.as_str()))
            .collect();
        assert_eq!(owners, [("MigratableApp", app.as_str())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_move_at_once_get_one_target_each() {
    let place = Deployed::new("at-once", json!({})).await;
    let _operator = place.operator().await;
    place.deploy("web", 3).await;
    let apps = place.until_running("web", 3).await;
    for app in &apps {
        place.scene.trigger(app).await;
    }
    for app in &apps {
        let after = place.scene.until_over(app, 1).await;
        assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    }
    let pods = place.until_pods("web", 3).await;
    place.until_satisfied("web", 3).await;
    for app in &apps {
        let own: Vec<_> = pods.iter().filter(|pod| app_of(pod) == *app).collect();
        assert_eq!(own.len(), 1, "{app}");
        let world = place.world(app);
        assert_eq!((world.launches, world.dumps, world.restores, &world.runs), (1, 1, 1, &vec![ip(own[0])]));
    }
    assert_eq!(place.apps_of("web").await.len(), 3);
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_stateful_set_moves_under_its_own_name() {
    let place = Deployed::new("stateful", json!({"strategy": "lazy-direct"})).await;
    let _operator = place.operator().await;
    place.stateful("db", 2).await;
    assert_eq!(place.until_running("db", 2).await, ["db-0", "db-1"]);
    let source = place.scene.pods().get("db-0").await.unwrap();

    for round in 1..=2 {
        let before = place.scene.pods().get("db-0").await.unwrap();
        // Its restore fails once: the pod is made again.
        if round == 2 {
            place.scene.world.fate(OperationKind::Restore, Fate::Fails(Reason::Criu));
        }
        place.scene.trigger("db-0").await;
        let after = place.scene.until_over("db-0", round).await;
        let moved = after.migration.clone().unwrap();
        assert_eq!(moved.stage, Stage::Succeeded, "{}", pretty(&after));
        assert_eq!(moved.failures, (round == 2).then_some(1), "{}", pretty(&after));
        place.until_pods("db", 2).await;
        let target = place.scene.pods().get("db-0").await.unwrap();
        assert_ne!(target.metadata.uid, before.metadata.uid);
        assert_ne!(node_of(&target), node_of(&before));
        assert_eq!(
            (after.current_node.clone(), after.current_pod_name),
            (Some(node_of(&target)), Some("db-0".into()))
        );
        let record = after.migration_history.last().unwrap();
        assert_eq!((record.success, &record.to_node), (true, &node_of(&target)));
        let world = place.world("db-0");
        assert_eq!((world.launches, &world.runs), (1, &vec![ip(&target)]));
        assert_eq!((world.dumps, world.restores), (round as u32, round as u32));
    }
    assert_eq!(controller_of(&source), Some("db".to_owned()));
    assert!(place.scene.events("db-0").await.contains(&"StrategyReplaced".to_owned()));
    assert_eq!(place.apps_of("db").await.len(), 2);
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_pod_moves_under_another_name() {
    let place = Deployed::new("bare", json!({})).await;
    let _operator = place.operator().await;
    place.bare("cache").await;
    assert_eq!(place.until_running("cache", 1).await, ["cache"]);
    let source = place.scene.pods().get("cache").await.unwrap();
    for round in 1..=2 {
        place.scene.trigger("cache").await;
        let after = place.scene.until_over("cache", round).await;
        assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
        let pods = place.until_pods("cache", 1).await;
        assert_ne!(pods[0].name_any(), "cache");
        assert_eq!(after.current_pod_name, Some(pods[0].name_any()));
        assert_eq!((controller_of(&pods[0]), place.world("cache").runs), (None, vec![ip(&pods[0])]));
    }
    assert!(source.metadata.owner_references.is_none());
    assert_eq!(place.world("cache").launches, 1);
    place.assert_nothing_ran_twice();
    // Somebody deletes it: nobody makes another.
    let pod = place.until_pods("cache", 1).await.remove(0);
    place.scene.pods().delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    place.until_ended("cache").await;
    assert!(place.pods("cache").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_could_not_be_dumped_is_its_replica_sets_again() {
    let place = Deployed::new("put-back", json!({})).await;
    let _operator = place.operator().await;
    place.deploy("web", 2).await;
    let apps = place.until_running("web", 2).await;
    let before = place.until_pods("web", 2).await;
    for _ in 0..3 {
        place.scene.world.fate(OperationKind::FinalDump, Fate::Fails(Reason::Criu));
    }
    place.scene.trigger(&apps[0]).await;
    let after = place.scene.until_over(&apps[0], 1).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Failed, "{}", pretty(&after));
    let pods = place.until_pods("web", 2).await;
    place.until_satisfied("web", 2).await;
    place.until_served_by("web", &pods).await;
    let uids = |pods: &[k8s_openapi::api::core::v1::Pod]| {
        pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(uids(&pods), uids(&before), "both run on where they were");
    for pod in &pods {
        assert_eq!(controller_of(pod), controller_of(&before[0]));
        assert!(pod.labels().contains_key("pod-template-hash"));
        assert!(!pod.annotations().contains_key("migration.io/released"));
    }
    for app in &apps {
        let world = place.world(app);
        assert_eq!((world.launches, world.dumps, world.runs.len()), (1, 0, 1), "{app}");
    }
    // Somebody has found the cause.
    place.scene.annotate_app(&apps[0], json!({"migration.io/retry": "requested"})).await;
    let after = place.scene.until_over(&apps[0], 2).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    place.until_pods("web", 2).await;
    place.until_satisfied("web", 2).await;
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_lost_with_its_node_comes_back_and_one_that_is_deleted_does_not() {
    let place = Deployed::new("lost", json!({})).await;
    let _operator = place.operator().await;
    for (name, kind) in [("web", "a Deployment's"), ("db", "a StatefulSet's")] {
        match name {
            "web" => place.deploy(name, 1).await,
            _ => place.stateful(name, 1).await,
        }
        let app = place.until_running(name, 1).await.remove(0);
        let pod = place.until_pods(name, 1).await.remove(0);
        // Its machine is gone: so are the node and its pods, without a word.
        let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(place.scene.client.clone());
        nodes.delete(&node_of(&pod), &DeleteParams::default()).await.unwrap();
        if name == "web" {
            // The controllers would do that in a minute; for a StatefulSet's the operator does it.
            let params = DeleteParams::default().grace_period(0);
            place.scene.pods().delete(&pod.name_any(), &params).await.unwrap();
        }
        let after = place.scene.until_over(&app, 1).await;
        assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{kind} {}", pretty(&after));
        let back = place.until_pods(name, 1).await.remove(0);
        assert_eq!((app_of(&back), after.phase), (app.clone(), Some(Phase::Running)));
        let world = place.world(&app);
        assert_eq!((world.launches, world.restores, &world.runs), (1, 1, &vec![ip(&back)]), "{kind}");
        let label = json!({"scene": place.scene.namespace, "kubernetes.io/arch": "amd64"});
        support::kubelet::node(&place.scene.client, &node_of(&pod), label).await;

        // Somebody deletes it: what comes starts anew.
        place.until_running(name, 1).await;
        place.scene.pods().delete(&back.name_any(), &DeleteParams::default()).await.unwrap();
        if name == "web" {
            place.until_ended(&app).await;
        }
        let next = place.until_running(name, 1).await.remove(0);
        let anew = place.until_pods(name, 1).await.remove(0);
        assert_ne!(anew.metadata.uid, back.metadata.uid);
        assert_eq!((app_of(&anew), next == app), (next.clone(), name == "db"), "{kind}");
        let world = place.world(&next);
        let launches = if name == "db" { 2 } else { 1 };
        assert_eq!((world.launches, &world.runs), (launches, &vec![ip(&anew)]), "{kind}");
        if name == "web" {
            // The next one's node is to be its alone.
            place.deployments().delete(name, &DeleteParams::background()).await.unwrap();
            place.until_ended(&next).await;
        }
    }
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_while_the_webhook_is_away_is_noticed_and_nothing_is_lost() {
    let place = Deployed::new("away", json!({})).await;
    let operator = place.operator().await;
    place.deploy("web", 1).await;
    place.stateful("db", 1).await;
    let web = place.until_running("web", 1).await.remove(0);
    place.until_running("db", 1).await;
    let source = place.until_pods("web", 1).await.remove(0);
    operator.stop_webhook();
    for app in [web.as_str(), "db-0"] {
        place.scene.trigger(app).await;
        let after = place.scene.until_over(app, 1).await;
        let ended = after.migration.clone().unwrap();
        assert_eq!(ended.stage, Stage::Failed, "{}", pretty(&after));
        assert!(ended.message.as_ref().is_some_and(|text| text.contains("webhook")), "{}", pretty(&after));
        place.assert_nothing_ran_twice();
    }
    // The Deployment's runs on where it was, and nothing beside it.
    let left = place.until_pods("web", 1).await.remove(0);
    place.until_satisfied("web", 1).await;
    assert_eq!((&left.metadata.uid, controller_of(&left)), (&source.metadata.uid, controller_of(&source)));
    let world = place.world(&web);
    assert_eq!((world.launches, world.dumps, &world.runs), (1, 0, &vec![ip(&left)]));
    // The StatefulSet's is a checkpoint, and what was made in its stead stays until somebody says otherwise.
    let world = place.world("db-0");
    assert_eq!((world.launches, world.dumps, world.restores), (1, 1, 0));
    drop(operator);
    let _operator = place.operator().await;
    place.scene.annotate_app("db-0", json!({"migration.io/retry": "requested"})).await;
    let after = place.scene.until_over("db-0", 2).await;
    assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
    let back = place.until_pods("db", 1).await.remove(0);
    let world = place.world("db-0");
    assert_eq!((world.launches, world.restores, &world.runs), (1, 1, &vec![ip(&back)]));
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_end_with_what_makes_their_pods() {
    let place = Deployed::new("ends", json!({})).await;
    let _operator = place.operator().await;
    place.deploy("web", 2).await;
    place.stateful("db", 2).await;
    let web = place.until_running("web", 2).await;
    place.until_running("db", 2).await;
    let replicas = |number: usize| kube::api::Patch::Merge(json!({"spec": {"replicas": number}}));
    let params = Default::default();
    place.deployments().patch("web", &params, &replicas(1)).await.unwrap();
    place.stateful_sets().patch("db", &params, &replicas(1)).await.unwrap();
    place.until_ended("db-1").await;
    let left = app_of(&place.until_pods("web", 1).await[0]);
    for app in web.iter().filter(|app| **app != left) {
        place.until_ended(app).await;
    }
    assert_eq!(place.until_running("db", 1).await, ["db-0"]);
    // A rollout: each pod is another application.
    let change =
        kube::api::Patch::Merge(json!({"spec": {"template": {"metadata": {"labels": {"version": "2"}}}}}));
    place.deployments().patch("web", &params, &change).await.unwrap();
    place.until_ended(&left).await;
    place.until_satisfied("web", 1).await;
    let newer = place.until_running("web", 1).await;
    assert_ne!(newer, [left]);
    place.deployments().delete("web", &DeleteParams::background()).await.unwrap();
    place.stateful_sets().delete("db", &DeleteParams::background()).await.unwrap();
    place.until_ended("db-0").await;
    place.until_ended(&newer[0]).await;
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_at_any_stage_is_succeeded_by_another() {
    let place = Deployed::new("succeeded", json!({})).await;
    place.scene.world.lock().pace = Duration::from_millis(400);
    place.scene.world.lock().resident_after = Duration::from_millis(400);
    let mut operator = place.operator().await;
    place.deploy("web", 1).await;
    place.stateful("db", 1).await;
    let mut history = 0;
    for stage in [Stage::ChoosingTarget, Stage::Preparing, Stage::Dumping, Stage::Restoring, Stage::Filling] {
        history += 1;
        for name in ["web", "db"] {
            let app = place.until_running(name, 1).await.remove(0);
            let killed = operator.take();
            let killing = place.scene.when_next_written(&app, stage, move || drop(killed)).await;
            place.scene.trigger(&app).await;
            killing.await.unwrap();
            let next = place.operator().await;
            let after = place.scene.until_over(&app, history).await;
            let moved = after.migration.clone().unwrap();
            assert_eq!(moved.stage, Stage::Succeeded, "{stage:?} {}", pretty(&after));
            let pod = place.until_pods(name, 1).await.remove(0);
            let world = place.world(&app);
            let times = u32::try_from(history).unwrap();
            assert_eq!((world.launches, world.dumps, world.restores), (1, times, times), "{stage:?} {name}");
            assert_eq!(world.runs, [ip(&pod)]);
            operator = next;
        }
    }
    place.until_satisfied("web", 1).await;
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_deleted_leaves_its_pod_and_a_deployment_that_is_deleted_leaves_none() {
    let place = Deployed::new("deleted", json!({})).await;
    let _operator = place.operator().await;
    place.deploy("web", 1).await;
    let app = place.until_running("web", 1).await.remove(0);
    let pod = place.until_pods("web", 1).await.remove(0);
    let uid = place.scene.apps().get(&app).await.unwrap().metadata.uid;

    // In the middle of a migration: it is called off, and the pod is its ReplicaSet's again.
    place.scene.world.fate(OperationKind::FinalDump, Fate::Hangs);
    place.scene.trigger(&app).await;
    place.scene.until_stage(&app, Stage::Dumping).await;
    place.scene.apps().delete(&app, &DeleteParams::default()).await.unwrap();
    let another = async {
        while place.scene.apps().get_opt(&app).await.unwrap().is_none_or(|there| there.metadata.uid == uid) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, another).await.expect("a pod that asks has an object");
    assert_eq!(place.until_running("web", 1).await, std::slice::from_ref(&app));
    let left = place.until_pods("web", 1).await.remove(0);
    place.until_satisfied("web", 1).await;
    assert_eq!((&left.metadata.uid, controller_of(&left)), (&pod.metadata.uid, controller_of(&pod)));
    let world = place.world(&app);
    assert_eq!((world.launches, world.dumps, world.runs), (1, 0, vec![ip(&left)]));

    // And with the Deployment: what was released from it goes as well.
    place.scene.world.fate(OperationKind::FinalDump, Fate::Hangs);
    place.scene.trigger(&app).await;
    place.scene.until_stage(&app, Stage::Dumping).await;
    place.deployments().delete("web", &DeleteParams::background()).await.unwrap();
    place.until_ended(&app).await;
    let none = async {
        while !place.pods("web").await.is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, none).await.expect("no pod is left");
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_rolled_out_during_a_migration_does_not_wait_for_the_memory_of_the_one_before() {
    let place = Deployed::new("superseded", json!({})).await;
    let _operator = place.operator().await;
    place.stateful("db", 1).await;
    place.until_running("db", 1).await;
    // The pod is a checkpoint, and the StatefulSet makes the next one of another version.
    place.scene.world.lock().pace = Duration::from_millis(1500);
    place.scene.trigger("db-0").await;
    place.scene.until_stage("db-0", Stage::Dumping).await;
    let main = json!({"name": "main", "image": "redis:8", "command": ["redis-server"]});
    let change = kube::api::Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [main]}}}}));
    place.stateful_sets().patch("db", &Default::default(), &change).await.unwrap();
    let newer = async {
        loop {
            let pods = place.pods("db").await;
            let image = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
            let ready = |pod: &Pod| {
                let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
                conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
            };
            if let [pod] = &pods[..]
                && image(pod).as_deref() == Some("redis:8")
                && ready(pod)
            {
                return pod.clone();
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let newer = timeout(PATIENCE, newer).await.expect("the new version runs");
    place.scene.world.lock().pace = Duration::from_millis(50);
    let after = place.until_running("db", 1).await;
    assert_eq!(after, ["db-0"]);
    let world = place.world("db-0");
    assert_eq!(
        (world.launches, &world.runs),
        (2, &vec![ip(&newer)]),
        "{:?}",
        place.scene.events("db-0").await
    );
    let template = place.scene.apps().get("db-0").await.unwrap().spec.template;
    assert_eq!(template.spec.unwrap().containers[0].image.as_deref(), Some("redis:8"));
    // It is the new version that moves from now on.
    let history = place.scene.status("db-0").await.migration_history.len();
    place.scene.trigger("db-0").await;
    let moved = place.scene.until_over("db-0", history + 1).await;
    assert_eq!(moved.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&moved));
    place.assert_nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_version_that_moves_a_container_of_another_name_goes_on_with_the_same_object() {
    let place = Deployed::new("renamed", json!({})).await;
    let _operator = place.operator().await;
    place.stateful("db", 1).await;
    place.until_running("db", 1).await;
    let uid = place.scene.apps().get("db-0").await.unwrap().metadata.uid;
    let sets = place.stateful_sets();
    let roll = async |name: &str| {
        let main = json!({"name": name, "image": "redis", "command": ["redis-server"]});
        let containers = json!([{"$patch": "replace"}, main]);
        let asks = json!({"annotations": {"migration.io/container": name}});
        let template = json!({"metadata": asks, "spec": {"containers": containers}});
        let change = kube::api::Patch::Strategic(json!({"spec": {"template": template}}));
        sets.patch("db", &Default::default(), &change).await.unwrap();
    };
    let goes_on = async |name: &str| {
        let followed = async {
            loop {
                let app = place.scene.apps().get("db-0").await.unwrap();
                let containers = app.spec.template.spec.map(|spec| spec.containers).unwrap_or_default();
                if app.spec.container.as_deref() == Some(name) && containers[0].name == name {
                    return app.metadata.uid;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let followed = timeout(PATIENCE, followed).await.expect("the object follows the next version");
        assert_eq!(followed, uid);
        assert_eq!(place.until_running("db", 1).await, ["db-0"]);
    };

    // It is named, which it was not before; then it has another name.
    roll("main").await;
    goes_on("main").await;
    roll("store").await;
    goes_on("store").await;
    place.scene.trigger("db-0").await;
    let moved = place.scene.until_over("db-0", 1).await;
    assert_eq!(moved.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&moved));
    assert_eq!(place.world("db-0").launches, 3);

    // And while it is a checkpoint, which is not restored into a container of another name.
    place.scene.world.lock().pace = Duration::from_millis(1500);
    place.scene.trigger("db-0").await;
    place.scene.until_stage("db-0", Stage::Dumping).await;
    roll("main").await;
    goes_on("main").await;
    let world = place.world("db-0");
    assert_eq!((world.launches, world.restores), (4, 1), "{:?}", place.scene.events("db-0").await);
    place.assert_nothing_ran_twice();
}
