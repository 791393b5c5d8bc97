//! Whether an application could be moved now, and if not, why: known before anybody asks.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use migration_proto::agent::AgentStatus;

use crate::{
    api::{MigratableApp, MigratableAppStatus},
    context::Context,
    error::Error,
    migration::since,
    observe::now,
    pods::container_of,
    secrets,
    status::{condition, set},
};

/// How often it is found out anew while nothing is in the way, and while something is.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Sets the condition. Gives when to look again.
///
/// # Errors
/// When the API server does not answer.
pub async fn look(
    ctx: &Context,
    app: &MigratableApp,
    pod: &Pod,
    status: &mut MigratableAppStatus,
) -> Result<Duration, Error> {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let now = now();
    let known = ctx.memory.get(&uid).migratable;
    let pause = |why: &Option<_>| if why.is_none() { LOOK } else { LOOK_AGAIN };
    let (at, why) = match known {
        Some((at, why)) if since(at, now) < pause(&why) => (at, why),
        _ => {
            let why = in_the_way(ctx, app, pod).await?;
            ctx.memory.update(&uid, |remembered| remembered.migratable = Some((now, why.clone())));
            (now, why)
        }
    };
    match &why {
        None => set(status, condition::MIGRATABLE, Some(true), "Migratable", "", now),
        Some((reason, message)) => set(status, condition::MIGRATABLE, Some(false), reason, message, now),
    }
    Ok(pause(&why).saturating_sub(since(at, now)).max(Duration::from_secs(1)))
}

/// What is in the way.
async fn in_the_way(
    ctx: &Context,
    app: &MigratableApp,
    pod: &Pod,
) -> Result<Option<(&'static str, String)>, Error> {
    if let Err(error) = container_of(app) {
        return Ok(Some(("EntrypointUnknown", error.to_string())));
    }
    if let Some(wrong) = secrets::wrong(ctx, app).await? {
        return Ok(Some(wrong));
    }
    let asked = async { ctx.agent(app, pod).await?.status().await }.await;
    Ok(match asked {
        Ok(status) => incapable(&status),
        Err(error) => {
            Some(("AgentUnreachable", format!("{error}; look at the log of container migration-agent")))
        }
    })
}

/// What an agent says it cannot do.
fn incapable(status: &AgentStatus) -> Option<(&'static str, String)> {
    let missing = status.capabilities.iter().find(|one| one.required && !one.ok)?;
    let reason = if missing.name == "store" { "StoreUnreachable" } else { "Unsupported" };
    Some((reason, format!("{}: {}", missing.name, missing.detail)))
}

#[cfg(test)]
mod tests {
    use migration_proto::agent::Capability;

    use super::*;

    #[test]
    fn only_what_is_required_is_in_the_way() {
        let one =
            |name: &str, ok, required| Capability { name: name.into(), ok, required, detail: "d".into() };
        let status = |capabilities| AgentStatus { capabilities, ..Default::default() };
        assert_eq!(incapable(&status(vec![one("criu", true, true), one("tmpfs", false, false)])), None);
        assert_eq!(incapable(&status(vec![one("store", false, true)])).unwrap().0, "StoreUnreachable");
        assert_eq!(incapable(&status(vec![one("criu", false, true)])).unwrap().0, "Unsupported");
    }
}
