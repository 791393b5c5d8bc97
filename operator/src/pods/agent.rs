//! The agent's containers and volumes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, ResourceRequirements,
        SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    AGENT, RUN, RUN_PATH, TOOLS, TOOLS_PATH,
    storage::{compression, store_url},
};
use crate::{agents::PORT, api::Storage, certificates::OPERATOR_NAME};

/// The port of the agent's numbers.
const METRICS_PORT: u16 = 9464;

/// What CRIU and the page server need: to stop and rebuild processes of any user (`SYS_PTRACE`, `KILL`,
/// `SETUID`, `SETGID`, `SETPCAP`, `SYS_RESOURCE`, `CHECKPOINT_RESTORE`), in other namespaces and with their mounts (`SYS_ADMIN`,
/// `SYS_CHROOT`, `NET_ADMIN`), with clocks that go on from where they were (`SYS_TIME`), and to put files back as they were (`DAC_OVERRIDE`, `DAC_READ_SEARCH`, `CHOWN`, `FOWNER`, `FSETID`,
/// `MKNOD`, `SETFCAP`).
const CAPABILITIES: [&str; 18] = [
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_ADMIN",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_RESOURCE",
    "SYS_TIME",
];

/// What runtimes give a container that asks for nothing, beside those above.
const USUAL: [&str; 3] = ["AUDIT_WRITE", "NET_BIND_SERVICE", "NET_RAW"];

/// How agents are run in this cluster.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Image of the agent, which also holds the launcher and CRIU, below `/opt/migration`.
    pub image: String,
    /// Whether the cluster has native sidecars.
    pub native_sidecar: bool,
    /// The name in the operator's certificate.
    pub operator_name: String,
    /// Name of the Secret with an application's certificate, for its name.
    pub tls_secret: fn(&str) -> String,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            image: "migration-agent".to_owned(),
            native_sidecar: true,
            operator_name: OPERATOR_NAME.to_owned(),
            tls_secret: |app| format!("{app}-migration-tls"),
        }
    }
}

/// The container that puts the tools where the application's container finds them.
pub(super) fn tools_container(settings: &AgentSettings) -> Container {
    Container {
        name: TOOLS.to_owned(),
        image: Some(settings.image.clone()),
        command: Some(words(&["cp", "-a", "/opt/migration/.", TOOLS_PATH])),
        volume_mounts: Some(vec![mount(TOOLS, TOOLS_PATH, false)]),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { add: None, drop: Some(words(&["ALL"])) }),
            read_only_root_filesystem: Some(true),
            run_as_user: Some(0),
            run_as_non_root: Some(false),
            ..Default::default()
        }),
        resources: Some(requests("10m", "16Mi")),
        ..Default::default()
    }
}

/// The capabilities of an agent beside this container. Nobody gives a process back what he does not have himself: without one of the
/// container's own, a restore comes to nothing.
fn capabilities(workload: &Container) -> Vec<String> {
    let context = workload.security_context.as_ref();
    if context.and_then(|context| context.privileged) == Some(true) {
        return words(&["ALL"]);
    }
    let wanted = context.and_then(|context| context.capabilities.as_ref());
    let (added, dropped) = wanted.map(|one| (one.add.as_deref(), one.drop.as_deref())).unwrap_or_default();
    let is_dropped = |name: &str| dropped.into_iter().flatten().any(|one| one == "ALL" || one == name);
    let mut all = words(&CAPABILITIES);
    all.extend(USUAL.iter().filter(|name| !is_dropped(name)).map(|&name| name.to_owned()));
    for name in added.into_iter().flatten() {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    all
}

/// The agent, beside the container that can be moved.
pub(super) fn agent_container(
    settings: &AgentSettings,
    storage: &Storage,
    workload: &Container,
) -> Container {
    let listen = format!("0.0.0.0:{PORT}");
    let metrics = format!("0.0.0.0:{METRICS_PORT}");
    // A crash of the agent must not end the container: page servers live there.
    let mut args = vec!["serve", "--respawn", "--listen", &listen, "--metrics", &metrics];
    args.extend(["--tls-cert", "/migration/tls/tls.crt", "--tls-key", "/migration/tls/tls.key"]);
    args.extend(["--tls-ca", "/migration/tls/ca.crt", "--allow-client", &settings.operator_name]);
    // The source's agent is asked for pages by the target's, which is the same application.
    args.extend(["--allow-client", "migration://*", "--state-dir", "/migration/state"]);
    args.extend(["--socket", "/migration/state/agent.sock", "--work-dir", "/migration/work"]);
    let criu = format!("{TOOLS_PATH}/criu");
    args.extend(["--criu", &criu, "--log-format", "json"]);
    let compression = compression(storage);
    if let Some(compression) = &compression {
        args.extend(["--compression", compression]);
    }
    let mut mounts = vec![
        mount(TOOLS, TOOLS_PATH, true),
        mount(RUN, RUN_PATH, false),
        mount("migration-state", "/migration/state", false),
        mount("migration-work", "/migration/work", false),
        mount("migration-tls", "/migration/tls", true),
        // The root is read-only. CRIU makes directories here while it looks at what the kernel can do, and remembers there what it found.
        within("migration-scratch", "tmp", "/tmp"),
        within("migration-scratch", "run", "/run"),
    ];
    let variable =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
    // Not an argument: whoever runs `migration-agent check` in this container means the same store.
    let mut env = vec![variable("MIGRATION_STORE", store_url(storage))];
    if storage.credentials_secret.is_some() {
        mounts.push(mount("migration-store", "/migration/store", true));
        let file = format!("/migration/store/{}", super::CREDENTIALS_KEY);
        env.push(variable("AWS_SHARED_CREDENTIALS_FILE", file));
    }
    let port = |name: &str, port: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        ..Default::default()
    };
    Container {
        name: AGENT.to_owned(),
        image: Some(settings.image.clone()),
        command: Some(words(&["migration-agent"])),
        args: Some(words(&args)),
        env: Some(env),
        ports: Some(vec![port("migration", PORT), port("migration-num", METRICS_PORT)]),
        restart_policy: settings.native_sidecar.then(|| "Always".to_owned()),
        resources: Some(requests("50m", "64Mi")),
        security_context: Some(SecurityContext {
            capabilities: Some(Capabilities {
                add: Some(capabilities(workload)),
                drop: Some(words(&["ALL"])),
            }),
            read_only_root_filesystem: Some(true),
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            // userfaultfd, ptrace and clone with a chosen pid are none of the runtime's default calls.
            seccomp_profile: Some(SeccompProfile { type_: "Unconfined".to_owned(), localhost_profile: None }),
            ..Default::default()
        }),
        volume_mounts: Some(mounts),
        ..Default::default()
    }
}

/// The volumes of both.
pub(super) fn volumes(tls_secret: String, credentials: Option<String>) -> Vec<Volume> {
    let empty = |name: &str, memory: bool| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: memory.then(|| "Memory".to_owned()),
            size_limit: None,
        }),
        ..Default::default()
    };
    let secret = |name: &str, secret: String| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            default_mode: Some(0o400),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut volumes = vec![
        empty(TOOLS, false),
        // The launcher writes down there that its workload was moved: that has to outlive the machine's next start.
        empty(RUN, false),
        // The agent's journal outlives its container.
        empty("migration-state", false),
        empty("migration-work", true),
        empty("migration-scratch", true),
        secret("migration-tls", tls_secret),
    ];
    volumes.extend(credentials.map(|name| secret("migration-store", name)));
    volumes
}

pub(super) fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

fn within(name: &str, directory: &str, path: &str) -> VolumeMount {
    VolumeMount { sub_path: Some(directory.to_owned()), ..mount(name, path, false) }
}

fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    let quantity = |text: &str| Quantity(text.to_owned());
    let requests =
        BTreeMap::from([("cpu".to_owned(), quantity(cpu)), ("memory".to_owned(), quantity(memory))]);
    ResourceRequirements { requests: Some(requests), ..Default::default() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
