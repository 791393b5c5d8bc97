//! `kubectl mapp` against a real API server and an operator, as somebody types it.
//!
//! No kubelet is there to run commands in containers, so what agents are asked is tested up to `kubectl exec`.

mod support;

use std::{
    env,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use migration_operator::api::migration::MigrationStage as Stage;
use migration_proto::agent::{OperationKind, Reason};
use serde_json::{Value, json};

use self::support::{Scene, cluster, world::Fate};

/// Where the plugin is: `ci/test` builds all programs before the tests.
fn programs() -> PathBuf {
    let test = env::current_exe().unwrap();
    let programs = test.ancestors().nth(2).unwrap().to_owned();
    assert!(programs.join("kubectl-mapp").exists(), "build it first: cargo build -p kubectl-mapp");
    programs
}

/// Runs `kubectl mapp` with these arguments in the scene's namespace.
async fn mapp(scene: &Scene, arguments: &[&str]) -> Output {
    let kubeconfig = cluster().await.kubeconfig().to_owned();
    let paths = env::split_paths(&env::var_os("PATH").unwrap()).collect::<Vec<_>>();
    let paths = env::join_paths([programs()].into_iter().chain(paths)).unwrap();
    let mut command = Command::new("kubectl");
    command.arg("mapp").args(arguments).args(["--namespace", &scene.namespace]);
    command.env("PATH", paths).env("KUBECONFIG", &kubeconfig);
    command.env("KUBECACHEDIR", kubeconfig.with_file_name("kubectl-cache"));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn printed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// What it said that was wrong, and what it said to do.
fn refused(output: &Output) -> (String, String) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |part: &str| answer["error"][part].as_str().unwrap_or_default().to_owned();
    assert!(said(output).contains("error: "), "{}", said(output));
    (text("message"), text("hint"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_looked_at_and_moved_and_a_failure_is_told() {
    let scene = Scene::new("plugin").await;
    let _operator = scene.operator();
    assert!(said(&mapp(&scene, &["status"]).await).contains("no application here"));
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    let table = said(&mapp(&scene, &["status"]).await);
    assert!(table.contains(&scene.node("a")) && table.contains("Running"), "{table}");
    assert_eq!(printed(&mapp(&scene, &["status", "--json"]).await)[0]["name"], "app");

    let moved = mapp(&scene, &["migrate", "app", "--reason", "to try it", "--wait", "--json"]).await;
    let status = printed(&moved);
    assert_eq!(status["migration"]["stage"], "Succeeded", "{status}");
    assert_ne!(status["currentNode"], json!(scene.node("a")));
    assert_eq!(status["migration"]["reason"], "to try it");
    assert!(String::from_utf8_lossy(&moved.stderr).contains("s  Succeeded to"), "{}", said(&moved));
    scene.assert_runs_once("app").await;
    let shown = said(&mapp(&scene, &["status", "app"]).await);
    assert!(shown.contains("to try it") && shown.contains("Succeeded"), "{shown}");

    scene.until_running("app").await;
    for _ in 0..3 {
        scene.world.fate(OperationKind::FinalDump, Fate::Fails(Reason::Criu));
    }
    let (message, hint) = refused(&mapp(&scene, &["migrate", "app", "--wait", "--json"]).await);
    assert!(message.contains("app was not moved") && hint.contains("kubectl mapp status app"), "{message}");
    assert_eq!(scene.status("app").await.migration.unwrap().stage, Stage::Failed);
    scene.assert_runs_once("app").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_before_anything_is_asked_for() {
    let scene = Scene::new("plugin-refusals").await;
    let _operator = scene.operator();
    let (message, hint) = refused(&mapp(&scene, &["migrate", "nobody", "--json"]).await);
    assert!(message.contains("NotFound") && hint.contains("-n NAMESPACE"), "{message}, {hint}");
    scene.create("app", json!({})).await;
    scene.until_running("app").await;
    let (message, hint) = refused(&mapp(&scene, &["restore", "app", "--json"]).await);
    assert!(
        message.contains("runs in pod") && hint.contains("kubectl mapp migrate app"),
        "{message}, {hint}"
    );
    // The pod is asked, and nobody is there to run a command in it.
    for command in [&["checkpoints", "app"][..], &["report", "app"]] {
        let (message, _) = refused(&mapp(&scene, &[command, &["--json"]].concat()).await);
        assert!(!message.contains("launcher") && !message.contains("NotFound"), "{command:?}: {message}");
    }
    scene.world.lock().resident_after = Duration::from_secs(600);
    let asked = printed(&mapp(&scene, &["migrate", "app", "--json"]).await);
    assert_eq!(asked, json!({"name": "app", "asked": true}));
    scene.until_stage("app", Stage::Filling).await;
    let (message, hint) = refused(&mapp(&scene, &["migrate", "app", "--json"]).await);
    assert!(message.contains("moving already (Filling)") && hint.contains("--watch"), "{message}, {hint}");
}
