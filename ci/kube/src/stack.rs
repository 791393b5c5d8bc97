//! A stack of servers: etcd, the API server, behind it the one that knows CEL, and if asked for, the controllers and the
//! scheduler.
//!
//! What always holds: the servers listen on 127.0.0.1 only (the API server elsewhere too if [`Nodes`] are to reach it), everything
//! they write is in one temporary directory, and both are gone when the [`Stack`] is dropped or the process that has it ends, in
//! whatever way.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Namespace, Service},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    cluster, credentials,
    definitions::{self, Follower},
    error::Error,
    programs::{self, Ports},
    supervisor::Supervisor,
};

/// How long anything may take to come up. Seconds are usual; a machine that also compiles takes its time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// How long one question may take. A server that has only just begun leaves some without an answer for ever.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// How long to wait between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// What runs beside the API server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The controller manager and the scheduler: Deployments get pods, pods get nodes, what is owned goes with its owner. Without
    /// [`Options::nodes`] a pod runs when the test says so.
    pub controllers: bool,
    /// Kubelets that somebody else starts.
    pub nodes: Option<Nodes>,
}

/// Real nodes of a stack, in a network of their own.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// Where they reach the API server, at port 443; pods reach it at 10.96.0.1, the first address of Services, which this machine has
    /// to have as well.
    pub address: Ipv4Addr,
    /// Their names. `NAME.kubeconfig` beside the stack's own is what the kubelet of each needs.
    pub names: Vec<String>,
}

/// A running stack.
pub struct Stack {
    // Dropped in this order: nothing follows definitions of a server that is about to go.
    _follower: Follower,
    supervisor: Supervisor,
    directory: PathBuf,
    ports: Ports,
}

impl Stack {
    /// Starts one and waits until it can be used.
    ///
    /// # Errors
    /// When programs are missing or do not come up.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let programs = programs::directory()?;
        let directory = tempfile::Builder::new()
            .prefix("migration-kube-")
            .tempdir()
            .map_err(Error::io("make a temporary directory"))?;
        let mut ports = Ports::choose();
        let (mut address, mut addresses, mut names) = (Ipv4Addr::LOCALHOST, Vec::new(), &[][..]);
        if let Some(nodes) = &options.nodes {
            ports.api_server = programs::API_PORT;
            address = nodes.address;
            addresses = vec![IpAddr::V4(address), IpAddr::V4(programs::SERVICE_ADDRESS)];
            names = &nodes.names;
        }
        let tokens = credentials::create(directory.path(), &addresses, names)?;
        programs::write(directory.path(), &programs, ports, options.nodes.as_ref())?;
        let server = SocketAddr::from((address, ports.api_server));
        let authority = directory.path().join("ca.crt");
        let write = |name: &str, token: &str| {
            let path = directory.path().join(name);
            fs::write(&path, kubeconfig(server, &authority, token))
                .map_err(Error::io("write a kubeconfig"))?;
            Ok::<_, Error>(path)
        };
        for (node, token) in &tokens.nodes {
            write(&format!("{node}.kubeconfig"), token)?;
        }
        let path = write("kubeconfig", &tokens.admin)?;

        let supervisor = Supervisor::new(directory.path()).map_err(Error::io("start a shell"))?;
        // From here on it is the supervisor that removes it.
        let directory = directory.keep();
        let start = |name| supervisor.start(name).map_err(Error::io(format!("start {name}")));
        start(programs::ETCD)?;
        start(programs::API_SERVER)?;
        let client = cluster::client(&path).await?;
        wait_until_ready(&supervisor, &directory, &client, ports.api_server).await?;
        start(programs::DEFINITIONS)?;
        if options.controllers {
            start(programs::CONTROLLERS)?;
            start(programs::SCHEDULER)?;
        }
        hand_definitions_over(&client, ports.definitions).await?;
        let follower = Follower::start(&path, ports.definitions)?;
        Ok(Self { _follower: follower, supervisor, directory, ports })
    }

    /// The kubeconfig of somebody who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The end of a server's log.
    pub fn log(&self, name: &str) -> String {
        tail(&self.directory, name)
    }

    /// Kills the API server. What clients were doing fails, and connections are refused from now on.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub fn stop_api_server(&self) -> Result<(), Error> {
        self.supervisor.kill(programs::API_SERVER).map_err(Error::io("kill the API server"))
    }

    /// Starts the API server after [`Stack::stop_api_server`], with the same address and data, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_api_server(&self) -> Result<(), Error> {
        self.supervisor.start(programs::API_SERVER).map_err(Error::io("start the API server"))?;
        let client = cluster::client(&self.kubeconfig()).await?;
        wait_until_ready(&self.supervisor, &self.directory, &client, self.ports.api_server).await?;
        definitions::wait_until_served(&client, definitions::GROUP).await
    }
}

async fn wait_until_ready(
    supervisor: &Supervisor,
    directory: &Path,
    client: &Client,
    port: u16,
) -> Result<(), Error> {
    let begun = Instant::now();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut seen = String::from("it does not listen");
    loop {
        // A client that meets a closed port waits longer and longer; a look at the port does not.
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            match timeout(ANSWER, ready(client)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => seen = error.to_string(),
                Err(_) => seen = "it does not answer".to_owned(),
            }
        }
        for name in [programs::ETCD, programs::API_SERVER] {
            if !supervisor.alive(name).map_err(Error::io("ask the supervisor"))? {
                return Err(Error::Timeout {
                    what: format!("readiness of the API server ({name} has ended)"),
                    seconds: begun.elapsed().as_secs(),
                    detail: tail(directory, name),
                });
            }
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Timeout {
                what: "readiness of the API server".to_owned(),
                seconds: PATIENCE.as_secs(),
                detail: format!("{seen}\n{}", tail(directory, programs::API_SERVER)),
            });
        }
        sleep(PAUSE).await;
    }
}

/// Whether it says so, and has made the namespaces that every cluster has: it says so a moment before.
async fn ready(client: &Client) -> Result<(), Error> {
    let about = "ask whether the API server is ready";
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError);
    let request = request.map_err(Error::kube(about))?;
    client.request_text(request).await.map_err(Error::kube(about))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in ["default", "kube-system"] {
        namespaces.get(name).await.map_err(Error::kube(about))?;
    }
    Ok(())
}

/// Lets the server that knows CEL answer for definitions. Their group is left to it also when the server in front is started
/// again, because the label that says otherwise is taken off.
async fn hand_definitions_over(client: &Client, port: u16) -> Result<(), Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), definitions::SERVICE_NAMESPACE);
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": definitions::SERVICE},
        "spec": {"type": "ExternalName", "externalName": "127.0.0.1", "ports": [{"port": port}]},
    }))
    .map_err(|error| Error::kube("describe a Service")(kube::Error::SerdeError(error)))?;
    services.create(&PostParams::default(), &service).await.map_err(Error::kube("create a Service"))?;

    let handed_over = json!({
        "metadata": {"labels": {"kube-aggregator.kubernetes.io/automanaged": null}},
        "spec": definitions::behind(port),
    });
    let registered: Api<APIService> = Api::all(client.clone());
    let begun = Instant::now();
    loop {
        let patch = Patch::Merge(&handed_over);
        match registered.patch("v1.apiextensions.k8s.io", &PatchParams::default(), &patch).await {
            Ok(_) => break,
            // It appears a moment after the server is ready.
            Err(kube::Error::Api(status)) if status.is_not_found() && begun.elapsed() < PATIENCE => {
                sleep(PAUSE).await
            }
            Err(error) => return Err(Error::kube("hand definitions over")(error)),
        }
    }
    definitions::wait_until_served(client, definitions::GROUP).await
}

fn kubeconfig(server: SocketAddr, authority: &Path, token: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority": authority,
        }}],
        "users": [{"name": "admin", "user": {"token": token}}],
    })
    .to_string()
}

fn tail(directory: &Path, name: &str) -> String {
    let text = fs::read_to_string(directory.join(format!("{name}.log"))).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("the end of its log:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
}
