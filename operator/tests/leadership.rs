//! Operators that take over from one another, and an API server that goes away in between.

mod support;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use migration_kube::{Cluster, Options};
use migration_operator::{api::migration::MigrationStage as Stage, leader::Candidate};
use serde_json::json;
use tokio::time::sleep;

use self::support::{Operator, Scene, pretty};

/// An operator that works while it holds the Lease, and what asks for that.
struct Led {
    operator: Operator,
    candidate: tokio::task::JoinHandle<()>,
}

impl Drop for Led {
    fn drop(&mut self) {
        self.candidate.abort();
    }
}

fn candidate(scene: &Scene, name: &str) -> Led {
    let leading = Arc::new(AtomicBool::new(false));
    let operator = scene.led(scene.settings(), Arc::clone(&leading));
    let mut candidate =
        Candidate::new(scene.client.clone(), &scene.namespace, name.to_owned(), leading).hurried();
    Led { operator, candidate: tokio::spawn(async move { candidate.run(|_| {}).await }) }
}

impl Led {
    fn leads(&self) -> bool {
        self.operator.leading.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_in_a_migration_is_succeeded_by_another() {
    let scene = Scene::new("leaders").await;
    scene.world.lock().pace = Duration::from_millis(1000);
    let mut operators: Vec<Led> = ["one", "two", "three"].map(|name| candidate(&scene, name)).into();
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    for stage in [Stage::Dumping, Stage::Restoring] {
        scene
            .until("app", "at rest", |status| {
                status.migration.as_ref().is_none_or(|migration| migration.stage.is_over())
            })
            .await;
        let history = scene.status("app").await.migration_history.len();
        scene.trigger("app").await;
        scene.until_stage("app", stage).await;
        assert!(operators.iter().filter(|one| one.leads()).count() <= 1);
        let leader = operators.iter().position(Led::leads).expect("somebody leads");
        drop(operators.remove(leader));
        let after = scene.until_over("app", history + 1).await;
        assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{}", pretty(&after));
        scene.assert_runs_once("app").await;
        operators.push(candidate(&scene, &format!("after-{stage:?}")));
    }
    let app = scene.world.app(&scene.full_name("app"));
    assert_eq!((app.launches, app.dumps, app.restores), (1, 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_for_a_while_delays_a_migration() {
    let cluster = Cluster::start(Options::default()).await.expect("an API server of its own");
    cluster.install(&migration_operator::api::definition().expect("a definition")).await.expect("definition");
    let scene = Scene::within(&cluster, "away").await;
    scene.world.lock().pace = Duration::from_millis(1000);
    let _operator = scene.operator();
    scene.create("app", json!({"migrationPolicy": {"migrationTimeoutSeconds": 300}})).await;
    scene.until_running("app").await;
    for stage in [Stage::Dumping, Stage::Restoring] {
        let history = scene.status("app").await.migration_history.len();
        scene.trigger("app").await;
        scene.until_stage("app", stage).await;
        cluster.stop_api_server().expect("stopped");
        sleep(Duration::from_secs(2)).await;
        cluster.start_api_server().await.expect("started");
        let after = scene.until_over("app", history + 1).await;
        assert_eq!(after.migration.as_ref().unwrap().stage, Stage::Succeeded, "{stage:?} {}", pretty(&after));
        scene.assert_runs_once("app").await;
    }
    let app = scene.world.app(&scene.full_name("app"));
    assert_eq!((app.launches, app.dumps, app.restores), (1, 2, 2));
}
