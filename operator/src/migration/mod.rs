//! How an application moves: what is to be done next, decided from what is written down and what is seen.
//!
//! [`decide`] is a function of its arguments: no I/O, no clock. It gives either a new [`Migration`](crate::api::migration::Migration) to write down, or
//! something to do that is covered by what is written down already, so that whoever takes over after a crash does the same
//! again under the same name.
//!
//! | stage | what happens | if it fails |
//! |---|---|---|
//! | `ChoosingTarget` | a node is chosen | the application runs on; another try, then `Failed` |
//! | `Preparing` | the target's pod is created and becomes ready | the same |
//! | `Dumping` | final dump, once the target is ready, or when the notice's deadline leaves no time to wait for that | the same |
//! | `Restoring` | the target restores the checkpoint, or takes over the stopped processes | another node; then the source, if it lasts; then an older checkpoint |
//! | `TakingBack` | processes that were stopped for a handover go on at the source | the last checkpoint is restored elsewhere |
//! | `Filling` | it runs at the target; pages arrive | if the target is lost, as with `Restoring` |
//! | `RemovingSource` | the source's pod is deleted | tried again |
//!
//! Where a controller makes the application's pods, it makes the target's too ([`TargetMadeBy`](crate::api::migration::TargetMadeBy)):
//!
//! - A ReplicaSet makes it when the source is released from it. The stages are the same, and `CreateTarget` releases the source; when
//!   the application has not moved in the end, `PutBack` takes that back.
//! - A StatefulSet's pods keep their name, so that the source goes before there can be a target: `Dumping` comes before
//!   `Preparing`, and the source is deleted between them. Its processes are never handed over, and nothing can come back to it: a
//!   restore that fails is tried again in a new pod of the same name, and then with an older checkpoint.
//!
//! What always holds:
//! - **Never two runners.** A restore is asked for only when it is known that nothing runs at the source (its final dump
//!   succeeded, its processes are stopped, its pod is gone) and nothing came of any restore before (it failed, or its pod is
//!   gone). Not knowing means waiting.
//! - **The source's pod is deleted only when the target has confirmed** that the application runs there and, for a handover,
//!   that it needs the source no longer; where the target takes its name, only when its checkpoint is committed, and nothing runs
//!   in it.
//! - **It ends.** After [`Migration::timeout_at`](crate::api::migration::Migration::timeout_at) nothing new is begun; what is under way is cancelled, and after
//!   [`Limits::grace`] the migration is over whatever became of it. An operation whose outcome is not known then stays
//!   written down and is settled when its agent can be asked ([`settle`](decide)).
//!   A handover that has succeeded keeps its source until the last page has come; if the target is lost before, it is written down
//!   as `Failed` after all, and what is stopped at the source goes on.
//! - **No committed checkpoint is forgotten.** Until the application runs again, the migration names its checkpoint, or the
//!   operation that may have made one.

mod after;
mod before;
mod decide;
mod owned;
mod seen;

pub(crate) use self::decide::{since, spread};
pub use self::{
    decide::{Decision, Effect, Limits, decide, operation_id, pod_name},
    owned::{next_targets, owner_made},
    seen::{Done, Failure, FailureKind, Handover, OperationSeen, PodSeen, Residency, Seen},
};
