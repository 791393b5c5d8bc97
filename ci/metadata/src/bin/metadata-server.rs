//! `metadata-server`: rehearse an interruption.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Parser, ValueEnum};
use migration_metadata::{Cloud, MetadataServer};

/// A metadata service like those of the clouds
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  metadata-server --cloud aws &
  migration-monitor standalone --metadata http://127.0.0.1:1338 --app cache=4711 &

  curl -X POST 'http://127.0.0.1:1338/control/aws/spot?action=terminate&in=120'
  curl -X DELETE 'http://127.0.0.1:1338/control/aws/spot'
  curl -X POST 'http://127.0.0.1:1338/control/aws/rebalance'
  curl -X POST 'http://127.0.0.1:1338/control/aws/maintenance?code=system-reboot&in=600'
  curl -X POST 'http://127.0.0.1:1338/control/gcp/preempted'
  curl -X POST 'http://127.0.0.1:1338/control/azure/event?type=Preempt&in=30'
  curl -X POST 'http://127.0.0.1:1338/control/fault?kind=unauthorized&for=20'
  curl 'http://127.0.0.1:1338/control/requests'

POST announces, DELETE withdraws. Faults last for so many seconds: down, slow (&ms=3000),
garbage, unauthorized, unavailable, drop, silent."
)]
struct Options {
    /// Where to serve; anybody who can reach it may say what it announces
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1338")]
    listen: SocketAddr,
    /// Be this cloud only; otherwise all of them at once
    #[arg(long)]
    cloud: Option<Which>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Aws,
    Gcp,
    Azure,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let server = match MetadataServer::start(options.listen).await {
        Ok(server) => server,
        Err(error) => {
            eprintln!("metadata-server: cannot serve at {}: {error}", options.listen);
            return ExitCode::FAILURE;
        }
    };
    match options.cloud {
        None => {}
        Some(Which::Aws) => server.serve_only(Cloud::Aws),
        Some(Which::Gcp) => server.serve_only(Cloud::Gcp),
        Some(Which::Azure) => server.serve_only(Cloud::Azure),
    }
    println!("{}", server.url());
    match tokio::signal::ctrl_c().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metadata-server: cannot wait for a signal: {error}");
            ExitCode::FAILURE
        }
    }
}
