//! What an application's processes were started from.

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the processes of the container that moves were started from. Their memory goes on only in the same: another image has other
/// files below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// The image that its container ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The command, as in the template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
    /// The command's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
}

impl Program {
    /// Of the container with this name, or of the first one.
    pub fn of(template: &PodTemplateSpec, container: Option<&str>) -> Option<Self> {
        Self::within(template.spec.as_ref(), container)
    }

    /// As [`Self::of`], of a pod.
    pub fn within(spec: Option<&PodSpec>, container: Option<&str>) -> Option<Self> {
        let named = |one: &&Container| container.is_none_or(|name| one.name == name);
        spec?.containers.iter().find(named).map(|one| Self {
            image: one.image.clone(),
            command: one.command.clone().unwrap_or_default(),
            args: one.args.clone().unwrap_or_default(),
        })
    }

    /// Has a container run this.
    pub fn put_into(&self, container: &mut Container) {
        container.image = self.image.clone();
        container.command = Some(self.command.clone());
        container.args = Some(self.args.clone()).filter(|args| !args.is_empty());
    }
}
