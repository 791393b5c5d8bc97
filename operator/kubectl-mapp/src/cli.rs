//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Looks at applications that can be moved, moves them, and tells how it went.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl mapp",
    bin_name = "kubectl mapp",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  kubectl mapp status -n shop
  kubectl mapp migrate cache -n shop --reason 'node is to be replaced' --wait
  kubectl mapp checkpoints cache -n shop
  kubectl mapp report cache -n shop --html report.html
  kubectl mapp restore cache -n shop --wait

Exit codes: 0 done; 1 failed (the message says what to do next); 2 not understood."
)]
pub struct Cli {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Print JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster and namespace; kubectl is told the same.
#[derive(Debug, Args)]
pub struct Cluster {
    /// The applications' namespace [default: the context's]
    #[arg(long, short, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The kubeconfig to use
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how applications are, or everything about one
    Status {
        /// Which; all of the namespace if it is not said
        name: Option<String>,
    },
    /// Have an application moved to another node
    Migrate(Migrate),
    /// Have an application that does not run restored from its last checkpoint, now
    Restore(Restore),
    /// List the checkpoints of an application
    Checkpoints {
        /// Of which
        name: String,
    },
    /// Tell what the last checkpoint and restore of an application did, and how long each part took
    Report(Report),
}

#[derive(Debug, Args)]
pub struct Migrate {
    /// Which
    pub name: String,
    /// Why; it is shown in the application's history
    #[arg(long, value_name = "TEXT", default_value = "requested")]
    pub reason: String,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// Which
    pub name: String,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
pub struct Wait {
    /// Show how it goes on, until it is over; fail if it fails
    #[arg(long)]
    pub wait: bool,
    /// For how many seconds to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 900, requires = "wait")]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct Report {
    /// Of which
    pub name: String,
    /// Of which checkpoint [default: the one restored last, else the newest]
    #[arg(long, value_name = "ID")]
    pub checkpoint: Option<String>,
    /// Write it as one file of HTML that needs nothing else
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub html: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_of_the_cluster_may_stand_anywhere() {
        Cli::command().debug_assert();
        let before =
            Cli::try_parse_from(["kubectl-mapp", "-n", "shop", "--json", "status", "cache"]).unwrap();
        let after = Cli::try_parse_from(["kubectl-mapp", "status", "cache", "-n", "shop", "--json"]).unwrap();
        for cli in [before, after] {
            assert!(cli.json);
            assert_eq!(cli.cluster.namespace.as_deref(), Some("shop"));
            assert!(matches!(cli.command, Command::Status { name: Some(name) } if name == "cache"));
        }
    }
}
