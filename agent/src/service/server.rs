//! A running service: its listeners, and its end.
//!
//! SIGTERM and SIGINT end an agent that does nothing at once. One that works begins nothing more and gives up checkpoints of
//! trees that were to go on; it finishes final dumps and restores, and gives those up too, as far as that is possible,
//! when its grace is over or a second signal comes. Whatever happens to it, trees are left as every operation leaves them.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use migration_proto::agent::{DESCRIPTION, agent_server::AgentServer, handovers_server::HandoversServer};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::{
    api::Api,
    caller::Rules,
    handovers::{Handovers, HandoversApi},
    listen,
    metrics::{self, Metrics},
    operations::{Hooks, Operations},
    tls::{Files, Tls},
};
use crate::{Agent, AgentError};

/// How long answers may take to reach their callers when all work is done.
const FAREWELL: Duration = Duration::from_secs(2);

/// A TCP address, and how callers are known.
#[derive(Debug)]
pub struct Listen {
    /// HOST:PORT
    pub address: String,
    /// Certificates and who is let in; `None` for plaintext, where every caller is an operator.
    pub tls: Option<(Files, Rules)>,
}

/// How to serve.
#[derive(Debug)]
pub struct Config {
    /// A Unix socket.
    pub unix: Option<PathBuf>,
    /// TCP.
    pub tcp: Option<Listen>,
    /// Where the journal is, and logs of what was restored.
    pub state: PathBuf,
    /// The program whose `page-server` command serves pages.
    pub program: PathBuf,
    /// How long a stopped tree waits for somebody to run it, before it is taken back.
    pub claim_timeout: Duration,
    /// What is called when a request names nothing else.
    pub hooks: Hooks,
    /// Where numbers are served, HOST:PORT.
    pub metrics: Option<String>,
    /// How long operations may go on after SIGTERM.
    pub grace: Duration,
}

/// Where the service can be reached.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Reached {
    /// The Unix socket.
    pub unix: Option<PathBuf>,
    /// The TCP address.
    pub tcp: Option<SocketAddr>,
    /// Where numbers are.
    pub metrics: Option<SocketAddr>,
}

/// Serves until a signal ends it. `ready` is called when it can be reached.
///
/// # Errors
/// When it cannot begin.
pub fn serve(agent: Agent, config: Config, ready: impl FnOnce(&Reached)) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("service")
        .enable_all()
        .build()
        .map_err(AgentError::io("cannot start the runtime"))?;
    let agent = Arc::new(agent);
    let result = runtime.block_on(run(Arc::clone(&agent), config, ready));
    // Threads that accompany restored trees go on for as long as pages arrive; the trees do not need them.
    runtime.shutdown_background();
    // Its runtime must not end within the other one.
    drop(agent);
    result
}

async fn run(agent: Arc<Agent>, config: Config, ready: impl FnOnce(&Reached)) -> Result<(), AgentError> {
    let watch = |kind| signal(kind).map_err(AgentError::io("cannot watch for signals"));
    let mut signals = [watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?];
    let (accepted, connections) = mpsc::channel(16);
    let mut reached = Reached { unix: None, tcp: None, metrics: None };
    // Whoever waits for the socket finds the journal taken up.
    let metrics = Arc::new(Metrics::default());
    let files = config.tcp.as_ref().and_then(|tcp| tcp.tls.as_ref()).map(|(files, _)| files.clone());
    let (taking_up, state, program) = (Arc::clone(&agent), config.state, config.program);
    let (hooks, counted) = (config.hooks, Arc::clone(&metrics));
    let taken_up = tokio::task::spawn_blocking(move || {
        let handovers = Handovers::open(Arc::clone(&taking_up), config.claim_timeout, Arc::clone(&counted))?;
        let kept = Arc::clone(&handovers);
        let operations = Operations::open(taking_up, kept, &state, program, files, hooks, counted)?;
        Ok((handovers, operations))
    });
    let (handovers, operations) = taken_up.await.map_err(|_| AgentError::NoCommit).flatten()?;
    if let Some(address) = &config.metrics {
        let failed = |source| AgentError::Io { what: format!("cannot serve numbers on {address}"), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        reached.metrics = Some(listener.local_addr().map_err(failed)?);
        tokio::spawn(metrics::serve(listener, metrics));
    }
    if let Some(path) = &config.unix {
        tokio::spawn(listen::accept_unix(listen::unix(path)?, accepted.clone()));
        reached.unix = Some(path.clone());
    }
    if let Some(Listen { address, tls }) = config.tcp {
        let failed = |source| AgentError::Io { what: format!("cannot listen on {address}"), source };
        let tls = match tls {
            Some((files, rules)) => Some((Arc::new(Tls::new(files)?), rules)),
            None => {
                tracing::warn!(
                    address,
                    "plaintext: whoever reaches this address may take every process's memory"
                );
                None
            }
        };
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        reached.tcp = Some(listener.local_addr().map_err(failed)?);
        tokio::spawn(listen::accept_tcp(listener, tls, accepted));
    }

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServer<Api>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTION)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| AgentError::Usage(format!("the API's description cannot be read: {error}")))?;
    let stop = async {
        let grace = config.grace;
        next(&mut signals).await;
        tracing::info!(running = operations.running(), "asked to end");
        health.set_not_serving::<AgentServer<Api>>().await;
        operations.stop();
        tokio::select! {
            () = operations.idle() => return,
            () = tokio::time::sleep(grace) => {}
            () = next(&mut signals) => {}
        }
        operations.give_up_all();
        operations.idle().await;
    };
    let (stopped, mut stopping) = tokio::sync::watch::channel(false);
    let serving = Server::builder()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(AgentServer::new(Api { agent, operations: Arc::clone(&operations) }))
        .add_service(HandoversServer::new(HandoversApi { handovers }))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
            // The sender outlives this.
            let _ = stopping.wait_for(|stopped| *stopped).await;
        });
    ready(&reached);
    tokio::pin!(serving);
    let served = |result: Result<(), tonic::transport::Error>| {
        result.map_err(|error| AgentError::Io {
            what: "the service failed".to_owned(),
            source: std::io::Error::other(error),
        })
    };
    tokio::select! {
        result = &mut serving => return served(result),
        () = stop => {}
    }
    stopped.send_replace(true);
    // Idle connections are not waited for any longer than that.
    match tokio::time::timeout(FAREWELL, serving).await {
        Ok(result) => served(result),
        Err(_) => Ok(()),
    }
}

async fn next(signals: &mut [Signal; 2]) {
    let [one, other] = signals;
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
