//! `migrate`: an application moves from one agent's machine to another's.

use std::{io::IsTerminal, time::Instant};

use clap::Args;
use lazy_pages::ids::AppId;
use migration_agent::{
    AgentError, Strategy,
    client::AgentAddress,
    migrate::{MigrateRequest, Migration, migrate},
};

use super::{
    files::FileOptions,
    output::Output,
    remote::{Certificates, SOCKET},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent migrate --app cache --pid 4711 --to https://node7:7070 \\
      --tls-cert op.pem --tls-key op.key --tls-ca ca.pem
  migration-agent migrate --app cache --pid 4711 --to https://node7:7070 --strategy lazy-direct \\
      --source-address https://node3:7070 --tls-cert op.pem --tls-key op.key --tls-ca ca.pem
  migration-agent migrate --app cache --launcher /run/migration --to https://node7:7070 \\
      --target-launcher /run/migration --tls-cert op.pem --tls-key op.key --tls-ca ca.pem

Both agents have to serve and to use the same store. With full and lazy-storage the process stands still until its memory is in
the store; with lazy-direct and lazy-hybrid only until what describes it is, and its pages come out of the stopped process. If
the target fails, the process goes on where it was.")]
pub struct Migrate {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Root of the process tree
    #[arg(long, required_unless_present = "launcher")]
    pub pid: Option<u32>,
    /// The tree in front of which the launcher with this control directory is, as the agent there sees it
    #[arg(long, value_name = "DIR", conflicts_with = "pid")]
    pub launcher: Option<String>,
    /// Restore into the container of the launcher with this control directory, as the target's agent sees it
    #[arg(long, value_name = "DIR")]
    pub target_launcher: Option<String>,
    /// The agent where it is to run: https://host:port
    #[arg(long, value_name = "ADDRESS")]
    pub to: AgentAddress,
    /// The agent where it runs [default: unix:/run/migration-agent/agent.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<AgentAddress>,
    /// Where pages come from: full, lazy-storage, lazy-direct or lazy-hybrid
    #[arg(long, default_value = "lazy-storage", value_name = "STRATEGY")]
    pub strategy: Strategy,
    /// How the target reaches the source's agent, for lazy-direct and lazy-hybrid
    #[arg(long, value_name = "ADDRESS")]
    pub source_address: Option<AgentAddress>,
    /// Take no checkpoint first, while the process runs
    #[arg(long)]
    pub cold: bool,
    /// Return as soon as it runs, and do not wait for its last page
    #[arg(long)]
    pub no_wait: bool,
    /// Leave established TCP connections behind: the process finds them closed at the target
    #[arg(long)]
    pub tcp_close: bool,
    #[command(flatten)]
    pub files: FileOptions,
    #[command(flatten)]
    pub certificates: Certificates,
}

/// Moves it, and shows how.
pub fn run(typed: Migrate, output: Output) -> Result<(), AgentError> {
    let request = MigrateRequest {
        app: typed.app,
        pid: typed.pid.unwrap_or(0),
        launcher: typed.launcher,
        target_launcher: typed.target_launcher,
        strategy: typed.strategy,
        source: typed.from.unwrap_or_else(|| AgentAddress::Unix(SOCKET.into())),
        target: typed.to,
        source_for_target: typed.source_address,
        files: typed.certificates.files(),
        rules: typed.files.rules(),
        tcp_close: typed.tcp_close,
        warm_up: !typed.cold,
        wait_resident: !typed.no_wait,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| AgentError::Io { what: "cannot start the runtime".to_owned(), source })?;
    let begun = Instant::now();
    let mut progress = |step: &'static str| {
        if std::io::stderr().is_terminal() {
            eprintln!("{:>7.2} s  {step}", begun.elapsed().as_secs_f64());
        }
    };
    let migration = runtime.block_on(migrate(&request, &mut progress))?;
    output.result(&migration, describe);
    Ok(())
}

fn describe(migration: &Migration) -> String {
    let Migration { app, strategy, checkpoint, pid, moved_ms, timeline } = migration;
    let mut lines =
        vec![format!("{app} runs as pid {pid}, moved in {moved_ms:.0} ms ({strategy}, {checkpoint})")];
    for step in timeline {
        lines.push(format!("{:>9.0} ms  {:<14} {:>7.0} ms", step.begun_ms, step.name, step.took_ms));
    }
    lines.join("\n")
}
