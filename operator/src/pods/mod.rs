//! The pods of an application, built from its template.
//!
//! What always holds:
//! - What the template says about the application's containers stays as it is: image, environment, user, resources, volumes,
//!   probes. Only the command of the container that can be moved gets the launcher in front, and two volumes are added to it.
//! - No credential is in a pod's specification: they are files of a Secret that only the agent's container has.
//! - The same plan gives the same pod.
//! - A pod that waits for its application is not ready, whatever its probes say: Services send it nothing, and controllers know that
//!   it does not count yet. The operator tells when the application runs ([`RESTORED_CONDITION`]).
//!
//! | container | what it is |
//! |---|---|
//! | `migration-tools` (init) | copies the launcher and CRIU from the agent's image into a volume, see [`TOOLS`] |
//! | the application's | as in the template; its command is started by the launcher |
//! | `migration-agent` | the agent: a native sidecar where the cluster has those (1.29), else one container more |

pub(crate) mod affinity;
mod agent;
mod build;
mod storage;

pub use self::{
    agent::AgentSettings,
    build::{Plan, Role, Unsupported, build, container_of},
    storage::{CREDENTIALS_KEY, credentials_file, mirrored_secret_name, store_url},
};

/// Annotation on a pod: `launched` or `restored`.
pub const ROLE_ANNOTATION: &str = "migration.io/role";
/// Annotation on a pod that was made for a migration: its id; with the number of the try where pods of several tries have one name.
pub const MIGRATION_ANNOTATION: &str = "migration.io/migration";
/// Annotation on a pod that the webhook has treated, and on those that are made in its stead.
pub const INJECTED_ANNOTATION: &str = "migration.io/injected";
/// Annotation on such a pod: the pod as it was before, as a template.
pub const TEMPLATE_ANNOTATION: &str = "migration.io/template";
/// The condition of a target's pod that keeps it from being ready before the application runs in it.
pub const RESTORED_CONDITION: &str = "migration.io/restored";
/// Name of the agent's container.
pub const AGENT: &str = "migration-agent";
/// Name of the init container and of the volume with the launcher and CRIU.
pub const TOOLS: &str = "migration-tools";
/// Name of the volume on which agent and launcher meet.
pub const RUN: &str = "migration-run";
/// Where that volume is, in both containers.
pub const RUN_PATH: &str = "/migration/run";
/// Where the tools are, in both containers.
pub const TOOLS_PATH: &str = "/migration/bin";
