//! Applications that are pods of Deployments, of StatefulSets, or of whoever made them, with the annotation
//! `migration.io/enabled: "true"`: the webhook treats the pods, and here is what stands behind them.
//!
//! Each such pod has a `MigratableApp` of the name in its label `migration.io/app`, made from the defaults and from the pod as it was
//! before it was treated, which the webhook leaves in an annotation: that is what its maker asked for, whoever that is, and needs no
//! right to read makers. `spec.injection` says who makes the pods; no first pod is ever made for such an object.
//!
//! | the pod's maker | a migration's target | the pod is gone |
//! |---|---|---|
//! | ReplicaSet | the source is released from it (its label `pod-template-hash` goes, so that Services keep it), and it makes a replacement | the application ends |
//! | StatefulSet | the checkpoint is committed, the source is deleted, and it makes a pod of the same name | the next pod of that name goes on with the object |
//! | nobody | the operator makes it, under another name | the application ends |
//!
//! The webhook recognises the pod that is to be a target when it is created ([`awaited`]): it asks the API server itself, and gives
//! the pod the name, or for a StatefulSet the mark, that the migration's id and the number of the try lead to. That name is the
//! claim: no two pods can have it, so that each migration gets one target however many are created at once, and a pod that is
//! refused after all leaves nothing behind. Nothing is written while a pod is admitted.
//!
//! What always holds:
//! - A pod whose node is gone, or does not answer, and that has a checkpoint, is replaced by one that waits for that checkpoint. It is
//!   restored when nothing can run in the pod that was lost, and not before. A pod that was deleted on a node that is well, or with
//!   its controller's next version, is replaced by one that starts anew.
//! - What waits for an application that does not come any more is deleted, so that its controller makes one that starts anew.
//! - An application that did not move is its ReplicaSet's again.
//! - Services find an application where it runs: as long as it may run on at the source that is there, and once it runs at the
//!   target that is, though the source be kept until its last page is there.
//! - A replacement that did not become a target, because the webhook was away, is noticed by the next look at its migration and counts
//!   as a failed try. Beside a ReplicaSet's source it stays one more replica until the source is put back; a StatefulSet's is
//!   deleted and made again, as many times as anything is tried.
//! - When the object goes, so does every pod that nothing runs in; the one that the application runs in stays its maker's.

mod apps;
mod life;
mod owner;
mod replacement;
mod target;

pub use self::{
    apps::keep,
    owner::{NoOwner, owner_of},
    replacement::{Replacement, awaited, of_owner},
};
pub(crate) use self::{
    life::{gone, leaving, release_pods, settled, without_pod},
    target::{hide_source, is_released, make_way, put_back},
};

/// Label on a MigratableApp: the uid of what makes its pods.
pub const OWNER_LABEL: &str = "migration.io/owner";
/// Annotation on a pod that was released from its ReplicaSet: its label [`HASH_LABEL`] before.
pub const RELEASED_ANNOTATION: &str = "migration.io/released";
/// The label by which a ReplicaSet of a Deployment knows its pods, and Services do not.
pub const HASH_LABEL: &str = "pod-template-hash";

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{
    act::is_told,
    api::{MigratableApp, PodOwner, migration::TargetMadeBy},
    pods::ROLE_ANNOTATION,
};

/// Who makes the targets of an application; `None` if the operator does.
pub(crate) fn maker(app: &MigratableApp) -> Option<TargetMadeBy> {
    app.spec.injection.as_ref()?.owner.makes_target()
}

/// Who makes an application's pods, if its object does not.
pub(crate) fn owner(app: &MigratableApp) -> Option<PodOwner> {
    app.spec.injection.as_ref().map(|injection| injection.owner)
}

/// Whether a pod waits for an application that has not been restored into it, as far as anybody has said.
pub(crate) fn waits(pod: &Pod) -> bool {
    pod.annotations().get(ROLE_ANNOTATION).is_some_and(|role| role == "restored") && !is_told(pod)
}
