//! From a template to a pod.

use k8s_openapi::api::core::v1::{Affinity, Container, NodeAffinity, Pod, PodReadinessGate, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt, api::ObjectMeta};

use super::{
    AGENT, INJECTED_ANNOTATION, MIGRATION_ANNOTATION, RESTORED_CONDITION, ROLE_ANNOTATION, RUN, RUN_PATH,
    TEMPLATE_ANNOTATION, TOOLS, TOOLS_PATH,
    affinity::{named, require},
    agent::{AgentSettings, agent_container, mount, tools_container, volumes},
    storage::mirrored_secret_name,
};
use crate::api::{APP_LABEL, MigratableApp, Program};

/// Pids of workloads are above this, so that they are free in the next pod too.
const PID_BASE: &str = "10000";

/// The API server takes 256 KiB, and others annotate pods too.
const ANNOTATIONS_LIMIT: usize = 192 << 10;

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Whose.
    pub app: &'a MigratableApp,
    /// How agents are run here.
    pub agent: &'a AgentSettings,
    /// The cluster's name in the names of applications.
    pub cluster: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its node, if that is decided.
    pub node: Option<&'a str>,
    /// What becomes of its command.
    pub role: Role<'a>,
}

/// What a pod is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// The command is started.
    Launch,
    /// It waits for the application to be restored into it, by this migration.
    Restore(&'a str),
}

/// Why there can be no pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// An image's own entry point is not known to the API server.
    #[error(
        "container {container} has no command: what its image starts is not known here. Write it into \
         spec.template.spec.containers (name: {container}, command: [...]); `docker inspect` or `crane config` show it"
    )]
    EntrypointUnknown {
        /// Which.
        container: String,
    },
    /// There is none.
    #[error("spec.container is {container}, and spec.template has no container of that name")]
    NoSuchContainer {
        /// The name.
        container: String,
    },
    /// The template is empty.
    #[error("spec.template.spec.containers is empty: there is nothing to run")]
    NoContainer,
    /// Two containers of one name.
    #[error(
        "a container or volume of spec.template is called {name}, which is the operator's own name for one; rename it"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Something that cannot be carried from node to node.
    #[error("spec.template uses {what}, with which processes cannot be moved")]
    CannotMove {
        /// What.
        what: &'static str,
    },
}

/// The container that can be moved.
///
/// # Errors
/// When there is none, or its command is not known.
pub fn container_of(app: &MigratableApp) -> Result<&Container, Unsupported> {
    let containers = app.spec.template.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let container = match &app.spec.container {
        Some(name) => containers
            .iter()
            .find(|container| container.name == *name)
            .ok_or_else(|| Unsupported::NoSuchContainer { container: name.clone() })?,
        None => containers.first().ok_or(Unsupported::NoContainer)?,
    };
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        return Err(Unsupported::EntrypointUnknown { container: container.name.clone() });
    }
    Ok(container)
}

/// Builds the pod.
///
/// # Errors
/// When an application like that cannot be moved.
pub fn build(plan: &Plan<'_>) -> Result<Pod, Unsupported> {
    let workload = container_of(plan.app)?;
    let moved = workload.name.clone();
    let template = &plan.app.spec.template;
    let mut spec = template.spec.clone().unwrap_or_default();
    check(&spec)?;
    let app = plan.app.name_any();
    let full_name = format!("{}/{}/{app}", plan.cluster, plan.app.namespace().unwrap_or_default());
    let tools = tools_container(plan.agent);
    let credentials = plan.app.spec.storage.credentials_secret.is_some();
    let agent = agent_container(plan.agent, &plan.app.spec.storage, workload);
    for container in &mut spec.containers {
        if container.name == moved {
            // What is restored is what was started, whatever the template says by now.
            if let Some(program) = program(plan) {
                program.put_into(container);
            }
            launch(container, &full_name, plan.role);
        }
    }
    let init = spec.init_containers.get_or_insert_default();
    init.insert(0, tools);
    if plan.agent.native_sidecar {
        init.insert(1, agent);
    } else {
        spec.containers.push(agent);
    }
    let credentials = credentials.then(|| mirrored_secret_name(&app));
    spec.volumes.get_or_insert_default().extend(volumes((plan.agent.tls_secret)(&app), credentials));
    spec.share_process_namespace = Some(true);
    if let Some(node) = plan.node {
        pin(&mut spec, node);
    }

    let mut metadata = ObjectMeta {
        name: Some(plan.name.to_owned()),
        namespace: plan.app.namespace(),
        owner_references: owner(plan.app).map(|owner| vec![owner]),
        ..Default::default()
    };
    let given = template.metadata.clone().unwrap_or_default();
    metadata.labels.get_or_insert(given.labels.unwrap_or_default()).insert(APP_LABEL.to_owned(), app);
    let annotations = metadata.annotations.get_or_insert(given.annotations.unwrap_or_default());
    let role = match plan.role {
        Role::Launch => "launched",
        Role::Restore(migration) => {
            annotations.insert(MIGRATION_ANNOTATION.to_owned(), migration.to_owned());
            let gate = PodReadinessGate { condition_type: RESTORED_CONDITION.to_owned() };
            spec.readiness_gates.get_or_insert_default().push(gate);
            "restored"
        }
    };
    annotations.insert(ROLE_ANNOTATION.to_owned(), role.to_owned());
    if plan.app.spec.injection.is_some() {
        annotations.insert(INJECTED_ANNOTATION.to_owned(), "true".to_owned());
        let template = serde_json::to_string(template)
            .map_err(|_| Unsupported::CannotMove { what: "a template that is not JSON" })?;
        annotations.insert(TEMPLATE_ANNOTATION.to_owned(), template);
        let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size > ANNOTATIONS_LIMIT {
            return Err(Unsupported::CannotMove { what: "more than its annotations have room for" });
        }
    }
    Ok(Pod { metadata, spec: Some(spec), status: None })
}

fn program<'a>(plan: &Plan<'a>) -> Option<&'a Program> {
    let restores = matches!(plan.role, Role::Restore(_));
    plan.app.status.as_ref().filter(|_| restores)?.program.as_ref()
}

/// A pod that was made by itself, or by its controller, stays when the application's object goes.
fn owner(app: &MigratableApp) -> Option<OwnerReference> {
    app.controller_owner_ref(&()).filter(|_| app.spec.injection.is_none())
}

fn check(spec: &PodSpec) -> Result<(), Unsupported> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let volumes = spec.volumes.iter().flatten().map(|volume| &volume.name);
    let mut names = containers.map(|container| &container.name).chain(volumes);
    if let Some(name) =
        names.find(|name| [AGENT, TOOLS, RUN].contains(&name.as_str()) || name.starts_with("migration-"))
    {
        return Err(Unsupported::NameTaken { name: name.clone() });
    }
    if spec.host_pid == Some(true) {
        return Err(Unsupported::CannotMove { what: "hostPID" });
    }
    if spec.share_process_namespace == Some(false) {
        return Err(Unsupported::CannotMove { what: "shareProcessNamespace: false" });
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Unsupported::CannotMove { what: "an operating system other than Linux" });
    }
    Ok(())
}

/// Puts the launcher in front of the command.
fn launch(container: &mut Container, app: &str, role: Role<'_>) {
    let launcher = format!("{TOOLS_PATH}/migration-launch");
    let mut command: Vec<String> =
        [&launcher, "--app", app, "--control", RUN_PATH].into_iter().map(str::to_owned).collect();
    match role {
        Role::Launch => {
            command.extend(["--pid-base", PID_BASE, "--"].map(str::to_owned));
            command.extend(container.command.take().unwrap_or_default());
        }
        Role::Restore(_) => {
            command.push("--restore".to_owned());
            // Its arguments are the launcher's now, and stay for whoever looks at the pod.
            command.push("--".to_owned());
            command.extend(container.command.take().unwrap_or_default());
            hold_back_liveness(container);
        }
    }
    container.command = Some(command);
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.push(mount(TOOLS, TOOLS_PATH, true));
    mounts.push(mount(RUN, RUN_PATH, false));
}

/// A container that waits for its application would fail its liveness probe and be started again. Until that probe has
/// succeeded once, it decides nothing: it is made the startup probe as well, with an hour's patience.
fn hold_back_liveness(container: &mut Container) {
    const PATIENCE_S: i32 = 3600;
    let Some(probe) = container.startup_probe.clone().or_else(|| container.liveness_probe.clone()) else {
        return;
    };
    container.startup_probe = Some(Probe {
        failure_threshold: Some(PATIENCE_S),
        initial_delay_seconds: None,
        period_seconds: Some(1),
        success_threshold: None,
        termination_grace_period_seconds: None,
        ..probe
    });
}

/// Has the scheduler put it there and nowhere else, if there is room.
fn pin(spec: &mut PodSpec, node: &str) {
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let affinity = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    require(affinity, &[named("In", node)], &[]);
}
