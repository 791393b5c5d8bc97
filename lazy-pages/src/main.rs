//! The `lazy-pages` daemon: serves page faults of restored processes from object storage.

use std::{ffi::OsString, os::fd::AsFd, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use lazy_pages::{
    ids::{AppId, CheckpointId},
    server::{
        GuardianCommand,
        daemon::{self, DaemonConfig},
        guardian,
    },
    store::StoreUrl,
};
use tracing_subscriber::EnvFilter;

/// Serves the memory of restored processes from object storage, page by page.
///
/// A replacement for `criu lazy-pages`: processes restored with `criu restore --lazy-pages` run at once, and their pages
/// come from a checkpoint in a store when they are touched, or before.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one restore of a checkpoint
    #[command(after_long_help = SERVE_HELP)]
    Serve(Box<Serve>),
    /// Hold descriptors for a page server (started by it)
    #[command(hide = true)]
    Guardian,
}

const SERVE_HELP: &str = "\
Writes the checkpoint's images into DIR, listens on DIR/lazy-pages.socket, prints one line when CRIU may restore and \
another when it is over.

While processes miss pages, SIGTERM and SIGINT are answered with a message only: ending would mean killing them. If the \
daemon is killed, its guardian kills them, so that no process ever sees a page of zeros in place of its data.

Exit codes:
  0  every page is in memory, or the processes ended by themselves
  1  serving did not begin (store, checkpoint, directory, guardian)
  2  wrong command line
  3  CRIU did not finish the restore
  4  pages could not be had; the processes were killed
  5  stopped by a signal before a restore had begun

Examples:
  lazy-pages serve --store file:///var/lib/migration --app web --dir /run/web &
  criu restore --lazy-pages -D /run/web

  lazy-pages serve --store 's3://bucket/prefix?region=eu-central-1' --app prod/shop/web \\
      --checkpoint 01JD5M3Q8Z0000000000000000 --dir /run/web --json";

#[derive(Args)]
struct Serve {
    /// Where checkpoints are: file:///dir or s3://bucket/prefix?endpoint=…&region=…&path-style=true
    #[arg(long, env = "MIGRATION_STORE", value_name = "URL")]
    store: StoreUrl,
    /// Whose checkpoint: NAME, NAMESPACE/NAME or CLUSTER/NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    app: AppId,
    /// Which checkpoint [default: the newest]
    #[arg(long, value_name = "ID")]
    checkpoint: Option<CheckpointId>,
    /// Directory for the images and the socket, empty or not there yet; best on a tmpfs
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print reports as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("MIGRATION_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        // A closed standard error must not end a process others depend on.
        .log_internal_errors(false)
        .init();
    match Cli::parse().command {
        Command::Serve(serve) => ExitCode::from(daemon::run(&DaemonConfig {
            store: serve.store,
            app: serve.app,
            checkpoint: serve.checkpoint,
            directory: serve.dir,
            json: serve.json,
            // This very program, even if its file has been replaced since.
            guardian: GuardianCommand {
                program: PathBuf::from("/proc/self/exe"),
                args: vec![OsString::from("guardian")],
            },
        })),
        Command::Guardian => guard(),
    }
}

fn guard() -> ExitCode {
    let served = std::io::stdin().as_fd().try_clone_to_owned().and_then(guardian::run);
    match served {
        Ok(guardian::Service::Dismissed) => ExitCode::SUCCESS,
        Ok(guardian::Service::TreeKilled) => ExitCode::from(daemon::EXIT_KILLED),
        Err(error) => {
            tracing::error!("this is for page servers only: {error}");
            ExitCode::FAILURE
        }
    }
}
