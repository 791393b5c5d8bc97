//! `run`: the operator at work.

use std::{
    env, io,
    process::ExitCode,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};
use kube::Client;
use migration_operator::{
    agents::{Mtls, PORT},
    api::SYSTEM_NAMESPACE,
    certificates::{self, Identity},
    context::{Context, Settings},
    controller,
    leader::Candidate,
    manifests::NAME,
    migration::Limits,
    pods::AgentSettings,
    server::{self, Health},
    webhook::{self, Serving},
};
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};
use tracing_subscriber::EnvFilter;

/// Its own certificate holds that long, and is issued anew three times as often.
const OWN_CERTIFICATE: Duration = Duration::from_secs(24 * 3600);

/// The first minor version of Kubernetes in which an init container can be a sidecar without being asked for it.
const NATIVE_SIDECARS: u32 = 29;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-operator run --cluster production --agent-image registry.example/migration-agent:0.1.0
  migration-operator run --interruptible-label pool=spot --health 0.0.0.0:8080

Inside a cluster it uses its service account, else KUBECONFIG. Of several operators the one that holds the Lease
migration-operator works, the others wait. SIGTERM ends it; migrations go on with the next one, at the agents they go on meanwhile.")]
pub struct Run {
    /// The cluster's name in the names of applications; clusters that share a bucket need different ones
    #[arg(long, env = "MIGRATION_CLUSTER", value_name = "NAME", default_value = "kubernetes")]
    cluster: String,
    /// The operator's own namespace, with the Secrets it mirrors [default: its pod's, else migration-system]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The agent's image
    #[arg(long, env = "MIGRATION_AGENT_IMAGE", value_name = "IMAGE", default_value = "migration-agent")]
    agent_image: String,
    /// A label of nodes that can be taken away at any time, beside those of EKS, Karpenter, GKE and AKS
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    interruptible_label: Option<(String, String)>,
    /// Keep the agents' port to the operator and to agents of the same application, by a NetworkPolicy for each application. Only where
    /// the network plugin knows ranges of ports (endPort): one that does not would cut the applications off
    #[arg(long)]
    network_policies: bool,
    /// Look after the applications of this namespace only
    #[arg(long, value_name = "NAMESPACE")]
    only_namespace: Option<String>,
    /// Serve /livez, /readyz and /metrics here
    #[arg(long, value_name = "HOST:PORT", default_value = "0.0.0.0:8080")]
    health: String,
    /// Serve the webhook that makes pods migratable here, over HTTPS; not at all when absent
    #[arg(long, value_name = "HOST:PORT")]
    webhook: Option<String>,
    /// Work without holding the Lease: only if no other operator runs
    #[arg(long)]
    no_leader_election: bool,
    /// How messages on standard error look
    #[arg(long, value_enum, value_name = "text|json", default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Works until a signal comes.
pub fn run(typed: &Run) -> ExitCode {
    let filter =
        EnvFilter::try_from_env("MIGRATION_LOG").unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match typed.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work(typed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the operator ends");
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(typed: &Run) -> Result<(), String> {
    let client =
        Client::try_default().await.map_err(|error| format!("the API server is not known: {error}"))?;
    let namespace = typed.namespace.clone().unwrap_or_else(|| SYSTEM_NAMESPACE.to_owned());
    let version = client
        .apiserver_version()
        .await
        .map_err(|error| format!("the API server does not answer: {error}"))?;
    let minor: u32 = version.minor.trim_end_matches('+').parse().unwrap_or(0);
    let settings = Settings {
        cluster: typed.cluster.clone(),
        namespace: namespace.clone(),
        agent: AgentSettings {
            image: typed.agent_image.clone(),
            native_sidecar: minor >= NATIVE_SIDECARS,
            ..AgentSettings::default()
        },
        limits: Limits::default(),
        network_policies: typed.network_policies,
        only: typed.only_namespace.clone(),
        interruptible_label: typed.interruptible_label.clone(),
        resync: Duration::from_secs(30),
    };
    let agents = Arc::new(Mtls::new(PORT));
    let health = Health::default();
    let leading = Arc::new(AtomicBool::new(typed.no_leader_election));
    let webhook = match &typed.webhook {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let (stop, stopped) = watch::channel(false);

    let serving = {
        let (address, health) = (typed.health.clone(), health.clone());
        tokio::spawn(async move {
            if let Err(error) = server::serve(&address, health).await {
                tracing::error!(address, %error, "nobody can ask for health and numbers");
            }
        })
    };
    let stopping = async move {
        let mut stopped = stopped;
        // The sender is dropped only after it has said so.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let controlling = {
        let (client, agents, leading, health) =
            (client.clone(), agents.clone(), leading.clone(), health.clone());
        let certified = agents.clone();
        let for_certificates = (client.clone(), namespace.clone());
        let webhook = webhook.clone();
        tokio::spawn(controller::run(
            client,
            agents,
            settings,
            leading,
            move |context| {
                let (client, namespace) = for_certificates;
                if let Some(webhook) = &webhook {
                    let _ = webhook.context.set(context.clone());
                }
                let ready = health.ready.clone();
                tokio::spawn(renew_certificates(
                    client,
                    namespace,
                    context.clone(),
                    certified,
                    webhook,
                    ready,
                ));
                let _ = health.context.set(context);
            },
            stopping,
        ))
    };
    let mut candidate = (!typed.no_leader_election).then(|| {
        let name =
            env::var("POD_NAME").or_else(|_| env::var("HOSTNAME")).unwrap_or_else(|_| "operator".to_owned());
        Candidate::new(client, &namespace, format!("{name}-{}", std::process::id()), leading)
    });
    let context = health.context.clone();
    let told = move |leads: bool| {
        if let Some(context) = context.get() {
            context.metrics.leading.set(leads.into());
        }
    };
    let leads = async {
        match &mut candidate {
            Some(candidate) => candidate.run(told).await,
            None => {
                told(true);
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        () = leads => {}
        signal = ended() => tracing::info!(signal = signal?, "ends"),
    }
    let _ = stop.send(true);
    // Reconciles are short; one that is not is done again by the next operator.
    let _ = tokio::time::timeout(Duration::from_secs(15), controlling).await;
    if let Some(candidate) = candidate {
        candidate.release().await;
    }
    serving.abort();
    Ok(())
}

/// Takes the webhook's address and answers there from now on.
async fn listen(address: &str) -> Result<Serving, String> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| format!("the webhook cannot listen at {address}: {error}"))?;
    let serving = Serving::default();
    let served = serving.clone();
    tokio::spawn(webhook::serve(listener, served));
    Ok(serving)
}

/// Which signal has come to end it.
async fn ended() -> Result<&'static str, String> {
    let listen = |kind| signal(kind).map_err(|error| format!("signals cannot be heard: {error}"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Keeps the authorities and the operator's own certificate current.
async fn renew_certificates(
    client: Client,
    namespace: String,
    context: Arc<Context>,
    agents: Arc<Mtls>,
    webhook: Option<Serving>,
    ready: Arc<AtomicBool>,
) {
    loop {
        let pause = match renewed(&client, &namespace, &context, &agents, webhook.as_ref()).await {
            Ok(()) => {
                ready.store(true, Ordering::SeqCst);
                OWN_CERTIFICATE / 4
            }
            Err(error) => {
                tracing::error!(error, "certificates cannot be renewed");
                Duration::from_secs(10)
            }
        };
        sleep(pause).await;
    }
}

async fn renewed(
    client: &Client,
    namespace: &str,
    context: &Context,
    agents: &Mtls,
    webhook: Option<&Serving>,
) -> Result<(), String> {
    let now = SystemTime::now();
    let authorities = certificates::renew(client, namespace, now).await.map_err(|error| error.to_string())?;
    let own =
        authorities.issue(&Identity::Operator, OWN_CERTIFICATE, now).map_err(|error| error.to_string())?;
    agents.use_certificate(&own, &authorities.bundle()).map_err(|error| error.to_string())?;
    if let Some(webhook) = webhook {
        let names = vec![format!("{NAME}.{namespace}.svc"), format!("{NAME}.{namespace}.svc.cluster.local")];
        let server = authorities.issue(&Identity::Server { names }, OWN_CERTIFICATE, now);
        webhook.use_certificate(&server.map_err(|error| error.to_string())?)?;
        // Applications move without it.
        if let Err(error) = webhook::announce(client, &authorities.bundle()).await {
            tracing::warn!(%error, "the API server could not be told whom to trust as the webhook");
        }
    }
    *context.authorities.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorities);
    Ok(())
}
