//! The `lazy-pages` daemon: serves page faults of restored processes from object storage.

use std::{
    ffi::OsString,
    io,
    os::fd::RawFd,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use lazy_pages::{
    ids::{AppId, CheckpointId},
    server::{
        Role, STORE_PATIENCE,
        daemon::{self, DaemonConfig, Restore},
        status::{self, DaemonStatus},
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
    /// Serve one restore of a checkpoint, or several at once
    #[command(after_long_help = SERVE_HELP)]
    Serve(Box<Serve>),
    /// Show the page servers of this machine and how far they are
    #[command(after_long_help = STATUS_HELP)]
    Status(Status),
    /// Start a server for processes whose own has died again and again
    #[command(after_long_help = ATTACH_HELP)]
    Attach(Attach),
    /// Guard what another process has left (started by a page server)
    #[command(hide = true)]
    Guardian {
        /// Number of the descriptor of its state
        #[arg(long)]
        state: RawFd,
    },
}

const SERVE_HELP: &str = "\
Writes the checkpoint's images into DIR, listens on DIR/lazy-pages.socket, prints one line when CRIU may restore and \
another when it is over.

While processes miss pages, SIGTERM and SIGINT are answered with a message only: ending would mean killing them. While the \
store cannot be reached, processes wait where they touch missing pages, and go on when it is back. A server that dies is \
replaced at once by its guardian, a process of its own; nothing is lost, and no process ever sees a page of zeros in place \
of its data.

Exit codes; of several restores the worst counts:
  0  every page is in memory, or the processes ended by themselves
  1  serving did not begin (store, checkpoint, directory)
  2  wrong command line
  3  CRIU did not finish the restore
  4  pages could not be had; the processes were killed
  5  stopped by a signal before a restore had begun

Examples:
  lazy-pages serve --store file:///var/lib/migration --app web --dir /run/web &
  criu restore --lazy-pages -D /run/web

  lazy-pages serve --store 's3://bucket/prefix?region=eu-central-1' --app prod/shop/web \\
      --checkpoint 01JD5M3Q8Z0000000000000000 --dir /run/web --json

  lazy-pages serve --store file:///var/lib/migration --app web --dir /run/web --app cache --dir /run/cache";

const STATUS_HELP: &str = "\
Exit codes:
  0  no page server needs anything
  3  a server cannot reach its store, and threads wait for pages
  4  a server has died again and again, and waits for `attach`

Examples:
  lazy-pages status
  lazy-pages status --json | jq '.[].restores[] | {app, missing: .stats.missing_pages}'";

const ATTACH_HELP: &str = "\
The guardian of a page server starts another one when it dies. When servers die again and again, it stops and waits for \
this command as long as --patience says; then it kills the processes. With this command it goes on as this program (as a newer \
version of it, for example) and starts a server, with the environment it had.

Examples:
  lazy-pages attach
  lazy-pages attach --guardian 4711";

#[derive(Args)]
struct Serve {
    /// Where checkpoints are: file:///dir or s3://bucket/prefix?endpoint=…&region=…&path-style=true
    #[arg(long, env = "MIGRATION_STORE", value_name = "URL")]
    store: StoreUrl,
    /// Whose checkpoint: NAME, NAMESPACE/NAME or CLUSTER/NAMESPACE/NAME. Once for each --dir
    #[arg(long = "app", value_name = "NAME", required = true)]
    apps: Vec<AppId>,
    /// Which checkpoint, if one is served [default: the newest]
    #[arg(long, value_name = "ID")]
    checkpoint: Option<CheckpointId>,
    /// Directory for the images and the socket, empty or not there yet; best on a tmpfs
    #[arg(long = "dir", value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
    /// How long processes wait for what does not come, a store that cannot be reached or a server to be attached, before
    /// they are killed
    #[arg(long, value_name = "SECONDS", default_value_t = STORE_PATIENCE.as_secs())]
    patience: u64,
    /// How many requests at a time fetch pages that nobody waits for yet [default: what suits the store]. With 0 a page comes when it is
    /// touched, and the processes need the store as long as they live
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(..=256))]
    prefetch_workers: Option<u32>,
    /// Print reports as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Attach {
    /// Which one, if several wait: the pid of its guardian, as `status` shows it
    #[arg(long, value_name = "PID")]
    guardian: Option<u32>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("MIGRATION_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(io::stderr)
        // A closed standard error must not end a process others depend on.
        .log_internal_errors(false)
        .init();
    let done = match Cli::parse().command {
        Command::Serve(typed) => serve(*typed),
        Command::Status(typed) => show_status(&typed),
        Command::Attach(typed) => attach(&typed),
        Command::Guardian { state } => daemon::revive(state, daemon::Surroundings::NONE),
    };
    done.map_or_else(
        |error| {
            eprintln!("lazy-pages: {error}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

fn serve(typed: Serve) -> io::Result<u8> {
    let Serve { store, apps, checkpoint, directories, patience, prefetch_workers, json } = typed;
    if apps.len() != directories.len() {
        return Err(io::Error::other("each --app needs a --dir of its own"));
    }
    if apps.len() > 1 && checkpoint.is_some() {
        return Err(io::Error::other("--checkpoint goes with one --app only"));
    }
    let restores = apps.into_iter().zip(directories);
    let restores = restores.map(|(app, directory)| Restore { app, checkpoint, directory }).collect();
    Ok(daemon::run(
        &DaemonConfig {
            store,
            restores,
            json,
            patience: Duration::from_secs(patience),
            prefetch: prefetch_workers,
            revival: ["guardian", "--state"].map(OsString::from).to_vec(),
            origin: None,
            anchor: None,
        },
        daemon::Surroundings::NONE,
    ))
}

/// Exit code of `status`: threads wait for a store that cannot be reached.
const STORE_AWAY: u8 = 3;
/// Exit code of `status`: a server has to be attached.
const NEEDS_ATTACH: u8 = 4;
/// A wait longer than this, with a store that has failed, is an outage.
const LONG_WAIT_US: u64 = 2_000_000;

fn show_status(typed: &Status) -> io::Result<u8> {
    let found: Vec<DaemonStatus> = status::find()?.iter().map(status::Daemon::status).collect();
    if typed.json {
        println!("{}", serde_json::to_string(&found)?);
    } else if found.is_empty() {
        println!("no page server is running");
    }
    let mut code = 0;
    for daemon in &found {
        if !typed.json {
            describe(daemon);
        }
        let waits = |stats: &lazy_pages::server::ServerStats| {
            stats.longest_wait_us > LONG_WAIT_US && stats.store_errors > 0
        };
        if daemon.restores.iter().any(|restore| waits(&restore.stats)) {
            code = code.max(STORE_AWAY);
        }
        if daemon.needs_attach {
            code = code.max(NEEDS_ATTACH);
        }
    }
    Ok(code)
}

fn describe(daemon: &DaemonStatus) {
    let pid = |pid: Option<u32>| pid.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
    println!(
        "server {}, guardian {}, standby {}{}",
        pid(daemon.server),
        pid(daemon.guardian),
        pid(daemon.standby),
        if daemon.needs_attach { "; waits for `lazy-pages attach`" } else { "" }
    );
    for restore in &daemon.restores {
        let stats = &restore.stats;
        println!(
            "  {} {} {}: {} pages missing, {} installed, {} faults, {} waited for now, longest wait {} ms",
            restore.app,
            restore.checkpoint.as_deref().unwrap_or("-"),
            restore.phase,
            stats.missing_pages,
            stats.installed_pages,
            stats.faults,
            stats.waiting,
            stats.longest_wait_us / 1000,
        );
        if let Some(error) = &stats.last_error {
            println!("    {} store errors, the last: {error}", stats.store_errors);
        }
    }
}

fn attach(typed: &Attach) -> io::Result<u8> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut waiting = status::find()?;
    waiting.retain(|daemon| daemon.status().needs_attach);
    if let Some(guardian) = typed.guardian {
        waiting.retain(|daemon| daemon.holder(Role::Guardian) == Some(guardian));
    }
    let daemon = match &waiting[..] {
        [] => return Err(io::Error::other("no page server waits for another one; see `lazy-pages status`")),
        [daemon] => daemon,
        _ => return Err(io::Error::other("several page servers wait; choose one with --guardian")),
    };
    daemon.attach(&std::env::current_exe()?)?;
    let asked = Instant::now();
    while asked.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
        let served = status::find()?.into_iter().map(|daemon| daemon.status());
        let before = daemon.status();
        let mut served = served.filter(|now| !now.needs_attach && now.server.is_some());
        if let Some(now) = served.find(|now| now.guardian == before.guardian) {
            println!("served by process {}", now.server.unwrap_or_default());
            return Ok(0);
        }
    }
    Err(io::Error::other("the guardian did not start a server; nothing has changed"))
}
