//! The Secrets of a pod that begins to be an application: they are made with it, and its application owns them as soon as there is
//! one.

use std::{collections::BTreeMap, sync::PoisonError, time::SystemTime};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};

use crate::{
    api::MigratableApp,
    certificates::{Identity, agent_data},
    context::{Context, FIELD_MANAGER},
    error::Error,
    pods::mirrored_secret_name,
    secrets::{Missing, credentials},
};

/// Makes the Secrets of an application whose object is not there yet.
///
/// # Errors
/// When there are no credentials, or the namespace was not allowed.
pub async fn ensure(context: &Context, app: &MigratableApp) -> Result<(), Missing> {
    if let Some(data) = credentials(context, app).await? {
        apply(context, app, &mirrored_secret_name(&app.name_any()), data).await?;
    }
    let authorities = context.authorities.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let authorities = authorities.ok_or_else(|| {
        Missing::Because("NoCertificate", "the operator has only just begun; make the pod again".to_owned())
    })?;
    let identity = Identity::Agent {
        cluster: context.settings.cluster.clone(),
        namespace: app.namespace().unwrap_or_default(),
        app: app.name_any(),
    };
    let (data, _) = agent_data(&authorities, &identity, SystemTime::now())
        .map_err(|error| Missing::Because("NoCertificate", error.to_string()))?;
    apply(context, app, &(context.settings.agent.tls_secret)(&app.name_any()), data).await
}

async fn apply(
    context: &Context,
    app: &MigratableApp,
    name: &str,
    data: BTreeMap<String, ByteString>,
) -> Result<(), Missing> {
    let namespace = app.namespace().unwrap_or_default();
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret.data = Some(data);
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    match secrets.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&secret)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_forbidden() => Err(Missing::Because(
            "NamespaceNotAllowed",
            format!(
                "the operator may not write Secrets in namespace {namespace}; an administrator has to allow this namespace"
            ),
        )),
        Err(error) => Err(Missing::Error(Error::kube("write a Secret")(error))),
    }
}
