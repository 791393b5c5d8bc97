//! The programs of a stack and their command lines.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

use crate::{credentials::FRONT_PROXY, error::Error, stack::Nodes};

pub const ETCD: &str = "etcd";
pub const API_SERVER: &str = "apiserver";
pub const DEFINITIONS: &str = "definitions";
pub const CONTROLLERS: &str = "controllers";
pub const SCHEDULER: &str = "scheduler";

/// The API server's port where there are nodes: that of its Service.
pub const API_PORT: u16 = 443;
/// The address of its Service, the first one of their range.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Where the servers listen, all on 127.0.0.1; the API server everywhere if there are nodes.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    etcd: u16,
    etcd_peers: u16,
    pub api_server: u16,
    pub definitions: u16,
}

impl Ports {
    /// Ports that nobody has now. They lie below those the kernel gives to connections, so that a server that is started again
    /// finds its port free.
    pub fn choose() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = process::id() as u16;
        let port = || {
            loop {
                let offset = start.wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
                let port = 20_000 + offset % 12_000;
                if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                    return port;
                }
            }
        };
        Self { etcd: port(), etcd_peers: port(), api_server: port(), definitions: port() }
    }
}

/// The directory with the programs, all of them there.
///
/// # Errors
/// When one is not.
pub fn directory() -> Result<PathBuf, Error> {
    let root = env::var_os("MIGRATION_KUBE").map_or_else(|| PathBuf::from("/opt/kube"), PathBuf::from);
    let programs = root.join("bin");
    for name in
        ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "apiextensions-apiserver"]
    {
        let path = programs.join(name);
        if !path.is_file() {
            return Err(Error::Missing(path));
        }
    }
    Ok(programs)
}

/// Writes a `NAME.run` for every program. They expect a `kubeconfig` and the credentials in the same directory.
///
/// # Errors
/// When a file cannot be written.
pub fn write(directory: &Path, programs: &Path, ports: Ports, nodes: Option<&Nodes>) -> Result<(), Error> {
    let at = |name: &str| directory.join(name).display().to_string();
    let etcd = format!("http://127.0.0.1:{}", ports.etcd);
    let peers = format!("http://127.0.0.1:{}", ports.etcd_peers);
    let command = |name: &str, program: &str, arguments: &[String]| {
        let mut line = format!("exec {}", quoted(&programs.join(program).display().to_string()));
        for argument in arguments {
            line.push(' ');
            line.push_str(&quoted(argument));
        }
        let path = directory.join(format!("{name}.run"));
        fs::write(&path, line + "\n").map_err(Error::io(format!("write {}", path.display())))
    };

    command(
        ETCD,
        "etcd",
        &[
            format!("--data-dir={}", at("etcd-data")),
            format!("--listen-client-urls={etcd}"),
            format!("--advertise-client-urls={etcd}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
            // Nobody misses this data after a power loss.
            "--unsafe-no-fsync".to_owned(),
        ],
    )?;
    let listens = |address: Ipv4Addr, port: u16| {
        [
            format!("--bind-address={address}"),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--etcd-servers={etcd}"),
            format!("--requestheader-client-ca-file={}", at("proxy-ca.crt")),
            format!("--requestheader-allowed-names={FRONT_PROXY}"),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        ]
    };
    let everywhere = nodes.map_or(Ipv4Addr::LOCALHOST, |_| Ipv4Addr::UNSPECIFIED);
    let mut arguments = listens(everywhere, ports.api_server).to_vec();
    arguments.extend([
        format!("--token-auth-file={}", at("tokens.csv")),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--service-account-key-file={}", at("tokens.pub")),
        format!("--service-account-signing-key-file={}", at("tokens.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        format!("--proxy-client-cert-file={}", at("proxy.crt")),
        format!("--proxy-client-key-file={}", at("proxy.key")),
        "--allow-privileged=true".to_owned(),
    ]);
    match nodes {
        Some(nodes) => arguments.extend([
            format!("--advertise-address={}", nodes.address),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            // Nobody resolves their names.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ]),
        None => arguments.extend([
            // It would insist on an address that is not the loopback's.
            "--endpoint-reconciler-type=none".to_owned(),
            // The first would refuse pods where no controller has made a service account; what the second says of new nodes,
            // nobody would take back.
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".to_owned(),
        ]),
    }
    command(API_SERVER, "kube-apiserver", &arguments)?;

    let kubeconfig = at("kubeconfig");
    let mut arguments = listens(Ipv4Addr::LOCALHOST, ports.definitions).to_vec();
    arguments.extend([
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--authentication-skip-lookup=true".to_owned(),
        // What these two want to watch, the server in front does not have.
        "--enable-priority-and-fairness=false".to_owned(),
        "--disable-admission-plugins=MutatingAdmissionPolicy,ValidatingAdmissionPolicy".to_owned(),
    ]);
    command(DEFINITIONS, "apiextensions-apiserver", &arguments)?;

    command(
        CONTROLLERS,
        "kube-controller-manager",
        &[
            format!("--kubeconfig={kubeconfig}"),
            format!("--service-account-private-key-file={}", at("tokens.key")),
            format!("--root-ca-file={}", at("ca.crt")),
            match nodes {
                Some(_) => "--controllers=*,-nodeipam,-route,-service,-cloud-node-lifecycle".to_owned(),
                // There are no kubelets: nodes would be given up.
                None => "--controllers=*,-nodelifecycle,-nodeipam,-route,-service,-cloud-node-lifecycle"
                    .to_owned(),
            },
            "--leader-elect=false".to_owned(),
            "--port=0".to_owned(),
            "--secure-port=0".to_owned(),
        ],
    )?;
    command(
        SCHEDULER,
        "kube-scheduler",
        &[
            format!("--kubeconfig={kubeconfig}"),
            "--leader-elect=false".to_owned(),
            "--port=0".to_owned(),
            "--secure-port=0".to_owned(),
        ],
    )
}

fn quoted(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', r"'\''"))
}
