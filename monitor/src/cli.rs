//! The command line.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use migration_monitor::{
    Cloud,
    http::Endpoint,
    kubernetes,
    policy::{Policy, Rebalance},
    sources::{self, ENDPOINT},
    standalone::{self, Application, OnNotice},
};

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Watches a cloud for interruption notices and has what runs on the machine moved in time
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  migration-monitor kubernetes --node-name node7 --cordon --listen 0.0.0.0:9101 --log-format json
  migration-monitor standalone --app cache=launcher:/run/migration --app web=pidfile:/run/web.pid
  migration-monitor standalone --cloud gcp --rebalance ignore --registrations /etc/migration/apps.d

Rehearsing, with metadata-server:
  migration-monitor standalone --metadata http://127.0.0.1:1338 --app cache=4711"
)]
pub struct Cli {
    /// How to log, to standard error; MIGRATION_LOG sets the level
    #[arg(long, global = true, value_enum, default_value = "text", env = "MIGRATION_MONITOR_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Serve /livez, /readyz and /metrics
    #[arg(long, global = true, value_name = "HOST:PORT", env = "MIGRATION_MONITOR_LISTEN")]
    pub listen: Option<SocketAddr>,
    #[command(flatten)]
    pub sources: Sources,
    #[command(flatten)]
    pub policy: Policies,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WhichCloud {
    /// Find out
    Auto,
    Aws,
    Gcp,
    Azure,
}

/// Where notices come from.
#[derive(Debug, Args)]
pub struct Sources {
    /// Which cloud this is
    #[arg(long, global = true, value_enum, default_value = "auto", env = "MIGRATION_MONITOR_CLOUD")]
    cloud: WhichCloud,
    /// Where its metadata service is
    #[arg(long, global = true, value_name = "URL", default_value = ENDPOINT, env = "MIGRATION_MONITOR_METADATA")]
    metadata: Endpoint,
    /// How often to ask where a request cannot wait for a change: 100 to 1000
    #[arg(long, global = true, value_name = "MS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(100..=1000), env = "MIGRATION_MONITOR_INTERVAL_MS")]
    interval_ms: u64,
    /// Azure: this machine's name in Scheduled Events [default: what the metadata service says]
    #[arg(long, global = true, value_name = "NAME", env = "MIGRATION_MONITOR_AZURE_MACHINE")]
    azure_machine: Option<String>,
    /// Azure: say that an event may begin once nothing is left that it would hurt, in place of waiting until it does
    #[arg(long, global = true, env = "MIGRATION_MONITOR_AZURE_ACKNOWLEDGE")]
    azure_acknowledge: bool,
}

/// What calls for what.
#[derive(Debug, Args)]
pub struct Policies {
    /// What to do about a recommendation to rebalance: ignore, checkpoint or migrate
    #[arg(long, global = true, value_name = "WHAT", default_value_t = Rebalance::Checkpoint,
        env = "MIGRATION_MONITOR_REBALANCE")]
    rebalance: Rebalance,
    /// How long before it happens an interruption is acted on; maintenance is announced days ahead
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = 900,
        env = "MIGRATION_MONITOR_LEAD"
    )]
    lead: u64,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trigger the migratable pods of this node, and mark it
    Kubernetes(Kubernetes),
    /// Have the local agent take checkpoints
    Standalone(Standalone),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-monitor kubernetes --node-name node7
  migration-monitor kubernetes --node-name node7 --cordon --cloud azure --azure-acknowledge

The API server is found as kubectl does (KUBECONFIG), or by the pod's service account.")]
pub struct Kubernetes {
    /// The Node object this runs on
    #[arg(long, value_name = "NAME", env = "MIGRATION_MONITOR_NODE_NAME")]
    node_name: String,
    /// Cordon the node too; the taint keeps new pods away already
    #[arg(long, env = "MIGRATION_MONITOR_CORDON")]
    cordon: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-monitor standalone --app cache=launcher:/run/migration --app web=pidfile:/run/web.pid
  migration-monitor standalone --registrations /etc/migration/apps.d --on-notice pre-checkpoint

A registration is a JSON file, NAME.json, and is read again at every notice:
  {\"app\": \"cache\", \"launcher\": \"/run/migration\"}
  {\"app\": \"prod/web\", \"pidFile\": \"/run/web.pid\", \"tcpEstablished\": true, \"paths\": [\"/var/lib/web\"]}

`migration-agent serve` has to run here, and this has to be root. After the machine is gone, elsewhere:
  migration-agent restore --app cache")]
pub struct Standalone {
    /// An application: NAME=PID, NAME=pidfile:PATH or NAME=launcher:DIR
    #[arg(long = "app", value_name = "NAME=WHERE", required_unless_present = "registrations")]
    apps: Vec<Application>,
    /// A directory where applications are registered
    #[arg(long, value_name = "DIR", env = "MIGRATION_MONITOR_REGISTRATIONS")]
    registrations: Option<PathBuf>,
    /// The agent's Unix socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/migration-agent/agent.sock",
        env = "MIGRATION_MONITOR_AGENT"
    )]
    agent: PathBuf,
    /// When the machine is taken away: end every process once its checkpoint is durable, or let it run on until then
    #[arg(long, value_enum, default_value = "final-dump", env = "MIGRATION_MONITOR_ON_NOTICE")]
    on_notice: WhatOnNotice,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhatOnNotice {
    FinalDump,
    PreCheckpoint,
}

impl Sources {
    /// What to ask.
    pub fn settings(&self) -> sources::Settings {
        sources::Settings {
            endpoint: self.metadata.clone(),
            cloud: match self.cloud {
                WhichCloud::Auto => None,
                WhichCloud::Aws => Some(Cloud::Aws),
                WhichCloud::Gcp => Some(Cloud::Gcp),
                WhichCloud::Azure => Some(Cloud::Azure),
            },
            interval: Duration::from_millis(self.interval_ms),
            machine: self.azure_machine.clone(),
        }
    }

    /// Whether events may begin early.
    pub fn acknowledged(&self) -> bool {
        self.azure_acknowledge
    }
}

impl Policies {
    /// What calls for what.
    pub fn policy(&self) -> Policy {
        Policy { rebalance: self.rebalance, lead: Duration::from_secs(self.lead) }
    }
}

impl Kubernetes {
    /// What to do in the cluster.
    pub fn settings(self, policy: Policy, acknowledge: Option<Endpoint>) -> kubernetes::Settings {
        kubernetes::Settings { node: self.node_name, cordon: self.cordon, policy, acknowledge }
    }
}

impl Standalone {
    /// What to do without one.
    pub fn settings(
        self,
        policy: Policy,
        acknowledge: Option<Endpoint>,
    ) -> Result<standalone::Settings, String> {
        let origin =
            fs::read_to_string(BOOT_ID).map_err(|error| format!("cannot read {BOOT_ID}: {error}"))?;
        Ok(standalone::Settings {
            agent: self.agent,
            applications: self.apps,
            registrations: self.registrations,
            on_notice: match self.on_notice {
                WhatOnNotice::FinalDump => OnNotice::FinalDump,
                WhatOnNotice::PreCheckpoint => OnNotice::PreCheckpoint,
            },
            policy,
            origin: origin.trim_ascii().to_owned(),
            acknowledge,
        })
    }
}
