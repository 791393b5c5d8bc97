//! `kube-stack up`: an API server to try things by hand.

use std::{net::Ipv4Addr, process::ExitCode};

use clap::{Parser, Subcommand};
use migration_kube::{Nodes, Options, Stack};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

/// A Kubernetes API server for tests, by hand
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start one, print its KUBECONFIG, and run until Enter, the end of standard input, or a signal
    Up {
        /// With the controller manager and the scheduler
        #[arg(long)]
        controllers: bool,
        /// Serve at this address of this machine too, for kubelets
        #[arg(long, requires = "node")]
        address: Option<Ipv4Addr>,
        /// A node whose kubelet may come; NAME.kubeconfig beside the KUBECONFIG is for it
        #[arg(long, value_name = "NAME", requires = "address")]
        node: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Up { controllers, address, node } = Cli::parse().command;
    let nodes = address.map(|address| Nodes { address, names: node });
    match up(Options { controllers, nodes }).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn up(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let mut terminated = signal(SignalKind::terminate())?;
    let stack = Stack::start(options).await?;
    println!("export KUBECONFIG={}", stack.kubeconfig().display());
    let (mut input, mut key) = (tokio::io::stdin(), [0]);
    tokio::select! {
        read = input.read(&mut key) => drop(read?),
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    drop(stack);
    // A read of standard input that was given up would otherwise be waited for.
    std::process::exit(0)
}
