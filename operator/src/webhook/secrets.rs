//! The Secrets of pods that were treated: made with the pod, renewed while it lives, gone with it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::PoisonError,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, PodTemplateSpec, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};

use super::{INJECTED_ANNOTATION, defaults::defaults};
use crate::{
    api::{APP_LABEL, MigratableApp, MigratableAppSpec},
    certificates::{Identity, agent_data},
    context::{Context, FIELD_MANAGER},
    error::Error,
    pods::mirrored_secret_name,
    secrets::{Missing, credentials},
};

/// How often pods are looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Secrets are renewed at least that often.
const AT_LEAST: Duration = Duration::from_secs(12 * 3600);

/// Makes the Secrets of an application that is a pod, and says when its certificate has to be renewed.
///
/// # Errors
/// When there are no credentials, or the namespace was not allowed.
pub async fn ensure(
    context: &Context,
    app: &MigratableApp,
    owner: Option<OwnerReference>,
) -> Result<SystemTime, Missing> {
    if let Some(data) = credentials(context, app).await? {
        apply(context, app, &mirrored_secret_name(&app.name_any()), data, owner.clone()).await?;
    }
    certify(context, app, owner).await
}

async fn certify(
    context: &Context,
    app: &MigratableApp,
    owner: Option<OwnerReference>,
) -> Result<SystemTime, Missing> {
    let authorities = context.authorities.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let authorities = authorities.ok_or_else(|| {
        Missing::Because("NoCertificate", "the operator has only just begun; make the pod again".to_owned())
    })?;
    let identity = Identity::Agent {
        cluster: context.settings.cluster.clone(),
        namespace: app.namespace().unwrap_or_default(),
        app: app.name_any(),
    };
    let now = SystemTime::now();
    let (data, renew_at) = agent_data(&authorities, &identity, now)
        .map_err(|error| Missing::Because("NoCertificate", error.to_string()))?;
    apply(context, app, &(context.settings.agent.tls_secret)(&app.name_any()), data, owner).await?;
    Ok(renew_at.min(now + AT_LEAST))
}

async fn apply(
    context: &Context,
    app: &MigratableApp,
    name: &str,
    data: BTreeMap<String, ByteString>,
    owner: Option<OwnerReference>,
) -> Result<(), Missing> {
    let namespace = app.namespace().unwrap_or_default();
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.owner_references = owner.map(|owner| vec![owner]);
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

/// Renews the Secrets of treated pods while this operator leads, and has the pods own them. Never ends.
pub async fn keep(context: &Context) {
    let mut renew_at: HashMap<String, SystemTime> = HashMap::new();
    loop {
        if context.must_lead().is_ok() {
            let pods: Vec<_> = context.pods.state().into_iter().filter(|pod| is_treated(pod)).collect();
            renew_at.retain(|uid, _| pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
            for pod in pods {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                if renew_at.get(&uid).is_none_or(|at| *at <= SystemTime::now()) {
                    match renew(context, &pod, &uid).await {
                        Ok(at) => drop(renew_at.insert(uid, at)),
                        Err(missing) => {
                            tracing::warn!(pod = pod.name_any(), ?missing, "its Secrets were not renewed")
                        }
                    }
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_treated(pod: &Pod) -> bool {
    pod.annotations().contains_key(INJECTED_ANNOTATION) && pod.metadata.deletion_timestamp.is_none()
}

async fn renew(context: &Context, pod: &Pod, uid: &str) -> Result<SystemTime, Missing> {
    let defaults = defaults(context).await.map_err(|why| Missing::Because("NoDefaults", why))?;
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.name_any(),
        uid: uid.to_owned(),
        ..Default::default()
    };
    let spec = MigratableAppSpec {
        template: PodTemplateSpec::default(),
        container: None,
        checkpoint_policy: None,
        migration_policy: None,
        storage: defaults.storage,
        deletion_policy: None,
    };
    let mut app = MigratableApp::new(&pod.labels().get(APP_LABEL).cloned().unwrap_or_default(), spec);
    app.metadata.namespace = pod.namespace();
    ensure(context, &app, Some(owner)).await
}
