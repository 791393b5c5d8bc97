//! `migration-monitor`: know before the machine is gone.

mod cli;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use migration_monitor::{
    board::Board,
    health::{self, Health, Heartbeat},
    kubernetes,
    metrics::Metrics,
    sources, standalone,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

use self::cli::{Cli, Command, LogFormat};

/// How long an answer of the API server may take in all; the monitor asks again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection to it may take.
const CONNECT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(format!("cannot start the runtime: {error}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "ended");
            ExitCode::FAILURE
        }
    }
}

/// Watches until a signal ends it. Whatever is done half then is done again by the next one.
async fn run(cli: Cli) -> Result<(), String> {
    let watch = |kind| signal(kind).map_err(|error| format!("cannot watch for signals: {error}"));
    let (mut terminated, mut interrupted) =
        (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    let metrics = Arc::new(Metrics::default());
    let board = Board::new(Arc::clone(&metrics));
    let (found, cloud) = watch::channel(None);
    let heartbeat = Heartbeat::default();
    if let Some(address) = &cli.listen {
        let failed = |error| format!("cannot listen on {address}: {error}");
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "serving /livez, /readyz and /metrics");
        let (metrics, heartbeat) = (Arc::clone(&metrics), heartbeat.clone());
        tokio::spawn(health::serve(listener, Health { metrics, cloud, heartbeat }));
    }
    let view = board.watch();
    let settings = cli.sources.settings();
    let acknowledge = cli.sources.acknowledged().then(|| settings.endpoint.clone());
    let policy = cli.policy.policy();
    let watching = sources::run(settings, board, found);
    let acting = async {
        match cli.command {
            Command::Kubernetes(typed) => {
                let mut config = kube::Config::infer()
                    .await
                    .map_err(|error| format!("no way to the API server: {error}"))?;
                config.connect_timeout = Some(CONNECT);
                config.read_timeout = Some(PATIENCE);
                config.write_timeout = Some(PATIENCE);
                let client = kube::Client::try_from(config)
                    .map_err(|error| format!("the way to the API server is not understood: {error}"))?;
                let settings = typed.settings(policy, acknowledge);
                match kubernetes::run(client, settings, view, heartbeat, metrics).await {}
            }
            Command::Standalone(typed) => {
                let settings = typed.settings(policy, acknowledge)?;
                match standalone::run(settings, view, heartbeat, metrics).await {}
            }
        }
    };
    let ended = tokio::select! {
        never = watching => match never {},
        failed = acting => failed,
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    };
    if ended.is_ok() {
        tracing::info!("asked to end");
    }
    ended
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("MIGRATION_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
