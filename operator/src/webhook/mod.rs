//! Pods that ask to be migratable: those of Deployments, StatefulSets and whoever makes them, with the annotation
//! `migration.io/enabled: "true"`.
//!
//! What always holds:
//!
//! - No pod is kept from running. One that cannot be moved runs as it is, and whoever made it is warned; so does every pod while no
//!   operator answers (`failurePolicy: Ignore`): an application that cannot move is better than none, and the operator's own
//!   pods could otherwise wait for the operator.
//! - A pod without the annotation, one of a MigratableApp, and one that was treated before are left alone; so is one whose maker could
//!   not be given a copy in its place, such as a DaemonSet or a Job, and whoever made it is warned.
//! - A pod that is to take an application over waits for it ([`injection`](crate::injection) says which one that is), away from
//!   the application's node.
//! - The pod stays its controller's: what is added is two containers, volumes, a label and annotations; nothing that a controller
//!   compares with its template or selects by is changed or taken away, fields this crate does not know included. Its
//!   controller replaces it as it would any other.
//! - What the pod mounts is there before the pod is: its Secrets are made while it is admitted (not in a dry run). Its application
//!   owns and renews them once there is one.
//!
//! Where checkpoints go is told by the ConfigMap [`DEFAULTS`] in the operator's namespace: the spec of a MigratableApp without
//! `template`, under the key `defaults.yaml`. The annotation `migration.io/container` names the container that can be moved, if it is not
//! the first.

mod affinity;
mod defaults;
mod inject;
mod registration;
mod review;
mod secrets;
mod server;

pub use defaults::{Defaults, defaults};
pub use inject::{As, Injected, NotInjected, inject};
pub use registration::announce;
pub use server::{Serving, serve};

/// Annotation that asks for it, with the value `true`.
pub const ENABLED_ANNOTATION: &str = "migration.io/enabled";
/// Annotation that names the container that can be moved.
pub const CONTAINER_ANNOTATION: &str = "migration.io/container";
/// The ConfigMap with the defaults.
pub const DEFAULTS: &str = "migration-injection";
/// Where the API server asks.
pub const PATH: &str = "/mutate-pods";
