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

/// What CRIU and the page server need, and nothing more: to stop and rebuild processes of any user (`SYS_PTRACE`, `KILL`,
/// `SETUID`, `SETGID`, `SETPCAP`, `SYS_RESOURCE`, `CHECKPOINT_RESTORE`), in other namespaces and with their mounts (`SYS_ADMIN`,
/// `SYS_CHROOT`, `NET_ADMIN`), and to put files back as they were (`DAC_OVERRIDE`, `DAC_READ_SEARCH`, `CHOWN`, `FOWNER`, `FSETID`,
/// `MKNOD`, `SETFCAP`).
const CAPABILITIES: [&str; 17] = [
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
];

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

/// The agent.
pub(super) fn agent_container(settings: &AgentSettings, storage: &Storage) -> Container {
    let listen = format!("0.0.0.0:{PORT}");
    let metrics = format!("0.0.0.0:{METRICS_PORT}");
    let mut args = vec!["serve", "--listen", &listen, "--metrics", &metrics];
    args.extend(["--tls-cert", "/migration/tls/tls.crt", "--tls-key", "/migration/tls/tls.key"]);
    args.extend(["--tls-ca", "/migration/tls/ca.crt", "--allow-client", &settings.operator_name]);
    // The source's agent is asked for pages by the target's, which is the same application.
    args.extend(["--allow-client", "migration://*", "--state-dir", "/migration/state"]);
    args.extend(["--socket", "/migration/state/agent.sock", "--work-dir", "/migration/work"]);
    let criu = format!("{TOOLS_PATH}/criu");
    let store = store_url(storage);
    args.extend(["--store", &store, "--criu", &criu, "--log-format", "json"]);
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
    ];
    let mut env = Vec::new();
    if storage.credentials_secret.is_some() {
        mounts.push(mount("migration-store", "/migration/store", true));
        env.push(EnvVar {
            name: "AWS_SHARED_CREDENTIALS_FILE".to_owned(),
            value: Some(format!("/migration/store/{}", super::CREDENTIALS_KEY)),
            value_from: None,
        });
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
        env: Some(env).filter(|env| !env.is_empty()),
        ports: Some(vec![port("migration", PORT), port("migration-num", METRICS_PORT)]),
        restart_policy: settings.native_sidecar.then(|| "Always".to_owned()),
        resources: Some(requests("50m", "64Mi")),
        security_context: Some(SecurityContext {
            capabilities: Some(Capabilities { add: Some(words(&CAPABILITIES)), drop: Some(words(&["ALL"])) }),
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

fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    let quantity = |text: &str| Quantity(text.to_owned());
    let requests =
        BTreeMap::from([("cpu".to_owned(), quantity(cpu)), ("memory".to_owned(), quantity(memory))]);
    ResourceRequirements { requests: Some(requests), ..Default::default() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
