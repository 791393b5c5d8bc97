//! The Secrets that an application's pods mount: the store's credentials, mirrored from the operator's namespace, and the
//! agents' certificate.
//!
//! Both belong to the application and go with it. Nothing of them is logged or reported.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};

use crate::{
    api::MigratableApp,
    certificates::{Identity, agent_data},
    context::{Context, FIELD_MANAGER},
    error::Error,
    pods::{CREDENTIALS_KEY, credentials_file, mirrored_secret_name},
};

/// Why an application cannot have its Secrets.
#[derive(Debug)]
pub enum Missing {
    /// For the condition: a word and a sentence.
    Because(&'static str, String),
    /// The API server did not answer.
    Error(Error),
}

/// Why credentials cannot be used: a word and a sentence.
pub type Wrong = (&'static str, String);

/// How long what was found out about a Secret is taken for true. Nothing is made by it.
const KNOWN: Duration = Duration::from_secs(10);

/// Makes them what they should be.
///
/// # Errors
/// When credentials are missing, or the API server refuses.
pub async fn ensure(ctx: &Context, app: &MigratableApp) -> Result<(), Missing> {
    if let Some(credentials) = credentials(ctx, app).await? {
        apply(ctx, app, &mirrored_secret_name(&app.name_any()), credentials).await?;
    }
    ensure_certificate(ctx, app).await
}

/// The credentials an application is to get; `None` if it needs none.
///
/// # Errors
/// When there are none where it says.
pub async fn credentials(
    ctx: &Context,
    app: &MigratableApp,
) -> Result<Option<BTreeMap<String, ByteString>>, Missing> {
    let Some(name) = &app.spec.storage.credentials_secret else { return Ok(None) };
    let namespace = &ctx.settings.namespace;
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    let read =
        secrets.get_opt(name).await.map_err(|error| Missing::Error(Error::kube("read a Secret")(error)))?;
    let Some(secret) = read else {
        let message = format!(
            "there is no Secret {name} in namespace {namespace}; create it: kubectl create secret generic {name} \
             -n {namespace} --from-literal=AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=..."
        );
        return Err(Missing::Because("SecretMissing", message));
    };
    let file = credentials_file(&secret.data.unwrap_or_default()).ok_or_else(|| {
        let message = format!(
            "the Secret {name} in namespace {namespace} has no credentials: it needs AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or {CREDENTIALS_KEY}"
        );
        Missing::Because("SecretUnusable", message)
    })?;
    Ok(Some(BTreeMap::from([(CREDENTIALS_KEY.to_owned(), ByteString(file.into_bytes()))])))
}

/// What is wrong with the credentials that an application is to get: a word and a sentence. Many applications have the same ones, which
/// are read again only after [`KNOWN`].
///
/// # Errors
/// When the API server does not answer.
pub async fn wrong(ctx: &Context, app: &MigratableApp) -> Result<Option<Wrong>, Error> {
    let Some(name) = &app.spec.storage.credentials_secret else { return Ok(None) };
    let known = {
        let verdicts = ctx.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.get(name).filter(|(at, _)| at.elapsed() < KNOWN).cloned()
    };
    if let Some((_, verdict)) = known {
        return Ok(verdict);
    }
    let verdict = match credentials(ctx, app).await {
        Ok(_) => None,
        Err(Missing::Because(reason, message)) => Some((reason, message)),
        Err(Missing::Error(error)) => return Err(error),
    };
    let mut verdicts = ctx.credentials.lock().unwrap_or_else(PoisonError::into_inner);
    verdicts.retain(|_, (at, _)| at.elapsed() < KNOWN);
    verdicts.insert(name.clone(), (Instant::now(), verdict.clone()));
    Ok(verdict)
}

/// A certificate for the application's agents, made anew when it is time.
///
/// # Errors
/// When the API server refuses.
pub async fn ensure_certificate(ctx: &Context, app: &MigratableApp) -> Result<(), Missing> {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let now = SystemTime::now();
    if ctx.memory.get(&uid).certificate.is_some_and(|renew| now < renew) {
        return Ok(());
    }
    let authorities = ctx.authorities.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // An operator that reaches agents in another way issues none.
    let Some(authorities) = authorities else { return Ok(()) };
    let identity = Identity::Agent {
        cluster: ctx.settings.cluster.clone(),
        namespace: app.namespace().unwrap_or_default(),
        app: app.name_any(),
    };
    let (data, renew_at) = agent_data(&authorities, &identity, now)
        .map_err(|error| Missing::Because("NoCertificate", error.to_string()))?;
    apply(ctx, app, &(ctx.settings.agent.tls_secret)(&app.name_any()), data).await?;
    // A certificate that another operator has replaced meanwhile is as good.
    let renew_at = renew_at.min(now + Duration::from_secs(12 * 3600));
    ctx.memory.update(&uid, |remembered| remembered.certificate = Some(renew_at));
    Ok(())
}

async fn apply(
    ctx: &Context,
    app: &MigratableApp,
    name: &str,
    data: BTreeMap<String, ByteString>,
) -> Result<(), Missing> {
    let namespace = app.namespace().unwrap_or_default();
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.owner_references = app.controller_owner_ref(&()).map(|owner| vec![owner]);
    secret.data = Some(data);
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match secrets.patch(name, &params, &Patch::Apply(&secret)).await {
        Ok(_) => Ok(()),
        Err(error) if crate::error::is(&error, 403) => {
            let message = format!(
                "the operator may not write Secrets in namespace {namespace}; an administrator has to allow this namespace"
            );
            Err(Missing::Because("NamespaceNotAllowed", message))
        }
        Err(error) => Err(Missing::Error(Error::kube("write a Secret")(error))),
    }
}
