//! `manifests`: what is applied to a cluster.

use clap::{Args, ValueEnum};
use migration_operator::{
    api::SYSTEM_NAMESPACE,
    manifests::{self, Options, rbac},
};
use serde_json::Value;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-operator manifests --allow shop --allow bank | kubectl apply -f -
  migration-operator manifests --image registry.example/migration-operator:0.1.0 \\
      --agent-image registry.example/migration-agent:0.1.0 --cluster production | kubectl apply -f -")]
pub struct Manifests {
    /// The operator's namespace
    #[arg(long, value_name = "NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    namespace: String,
    /// The operator's image
    #[arg(long, value_name = "IMAGE", default_value = concat!("migration-operator:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// The agent's image
    #[arg(long, value_name = "IMAGE", default_value = concat!("migration-agent:", env!("CARGO_PKG_VERSION")))]
    agent_image: String,
    /// The cluster's name in the names of applications
    #[arg(long, value_name = "NAME", default_value = "kubernetes")]
    cluster: String,
    /// Let this namespace have applications; can be repeated
    #[arg(long, value_name = "NAMESPACE")]
    allow: Vec<String>,
    /// Print only the rules of one role, as the chart includes them
    #[arg(long, value_enum, value_name = "ROLE")]
    rules: Option<Rules>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rules {
    /// What holds everywhere.
    Cluster,
    /// What holds in the namespaces that were allowed.
    Namespace,
    /// What holds in the operator's own namespace.
    System,
}

/// The documents that were asked for.
pub fn documents(typed: Manifests) -> Vec<Value> {
    let table = typed.rules.map(|rules| match rules {
        Rules::Cluster => rbac::CLUSTER,
        Rules::Namespace => rbac::NAMESPACE,
        Rules::System => rbac::SYSTEM,
    });
    let Manifests { namespace, image, agent_image, cluster, allow, .. } = typed;
    match table {
        Some(table) => vec![rbac::rules(table)],
        None => manifests::documents(&Options { namespace, image, agent_image, cluster, allow }),
    }
}
