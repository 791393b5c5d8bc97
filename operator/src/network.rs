//! Who reaches the agents of an application: a NetworkPolicy for its pods, where the operator was started with `--network-policies`.
//!
//! What always holds:
//! - **The application is not cut off by it.** A policy that selects a pod closes all that it does not open, so that this one opens every port
//!   but the agent's to everybody. That takes ranges of ports (`endPort`, Kubernetes 1.22): an API server that does not keep them is
//!   found out by asking it first, and gets no policy at all. A network plugin that does not know them cannot be found out, which is why
//!   nothing of this happens unless somebody who knows the cluster asks for it.
//! - **Nothing that somebody else has closed is opened.** Policies add up. Where another one already isolates the pods, this one opens
//!   the agent's port to those who need it, and nothing else. Whether one does is looked at every five minutes: for so long after that one
//!   was taken away, this one keeps the other ports closed.
//! - The agent's port is open to the operator, and to pods of the same application: a target's agent asks the source's for pages.
//! - It belongs to the application's object, and goes with it.
//!
//! What fails here is reported and holds nothing up: whoever reaches the port still has to show a certificate.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::{Selector, SelectorExt},
    runtime::events::EventType,
};

use crate::{
    agents::PORT,
    api::{APP_LABEL, MigratableApp},
    context::{Context, FIELD_MANAGER},
    error::Error,
    manifests::NAME,
    migration::since,
    observe::now,
};

/// How often it is seen whether others isolate the pods.
const LOOK: Duration = Duration::from_secs(300);

/// Keeps the policy of an application as it should be, if there are to be any.
pub async fn keep(ctx: &Context, app: &MigratableApp) {
    let uid = app.metadata.uid.clone().unwrap_or_default();
    let at = now();
    let fresh = ctx.memory.get(&uid).network.is_some_and(|last| since(last, at) < LOOK);
    if !ctx.settings.network_policies || fresh || ctx.must_lead().is_err() {
        return;
    }
    match Box::pin(applied(ctx, app)).await {
        Ok(true) => {}
        Ok(false) => {
            let note = "this API server does not know ranges of ports in NetworkPolicies (Kubernetes 1.22 does): the agents' port stays \
                        open to everybody who has a certificate; start the operator without --network-policies";
            ctx.event(app, EventType::Warning, "NetworkPolicyUnsupported", note).await;
        }
        Err(error) => {
            let note = format!(
                "the agents' NetworkPolicy cannot be written, and nothing else is held up by it: {error}"
            );
            ctx.event(app, EventType::Warning, "NetworkPolicyNotMade", &note).await;
        }
    }
    ctx.memory.update(&uid, |remembered| remembered.network = Some(at));
}

/// Writes it. `false` if the API server would not have kept what it says.
async fn applied(ctx: &Context, app: &MigratableApp) -> Result<bool, Error> {
    let policies: Api<NetworkPolicy> =
        Api::namespaced(ctx.client.clone(), &app.namespace().unwrap_or_default());
    // Those of other applications, of which there are as many, select other pods.
    let of_others = ListParams::default().labels(&format!("app.kubernetes.io/managed-by!={NAME}"));
    let all = policies.list(&of_others).await.map_err(Error::kube("list NetworkPolicies"))?;
    let policy = policy(app, &ctx.settings.namespace, isolated(app, &all.items));
    let name = policy.name_any();
    let params = PatchParams::apply(FIELD_MANAGER).force();
    if has_ranges(&policy) {
        match policies.patch(&name, &params.clone().dry_run(), &Patch::Apply(&policy)).await {
            Ok(kept) if has_ranges(&kept) => {}
            Ok(_) => return Ok(false),
            // What it says of a field that its schema does not have depends on its version; the field's name is in it.
            Err(kube::Error::Api(status)) if status.message.contains("endPort") => return Ok(false),
            Err(error) => return Err(Error::kube("try a NetworkPolicy")(error)),
        }
    }
    policies
        .patch(&name, &params, &Patch::Apply(&policy))
        .await
        .map_err(Error::kube("write a NetworkPolicy"))?;
    Ok(true)
}

/// The policy's name.
pub fn policy_name(app: &str) -> String {
    format!("{app}-migration-agent")
}

/// Whether policies of others already close what they do not open, for the pods of this application.
pub fn isolated(app: &MigratableApp, policies: &[NetworkPolicy]) -> bool {
    let labels = labels(app);
    let own = policy_name(&app.name_any());
    policies.iter().filter(|one| one.name_any() != own).filter_map(|one| one.spec.as_ref()).any(|spec| {
        // Without types, a policy is one for what comes in.
        let comes_in =
            spec.policy_types.as_ref().is_none_or(|types| types.iter().any(|one| one == "Ingress"));
        let selector = spec.pod_selector.clone().unwrap_or_default();
        // A selector that cannot be read is the API server's to refuse; taking it for one that selects opens nothing.
        comes_in && Selector::try_from(selector).map_or(true, |selector| selector.matches(&labels))
    })
}

fn labels(app: &MigratableApp) -> BTreeMap<String, String> {
    let given = app.spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.clone());
    let mut labels = given.unwrap_or_default();
    labels.insert(APP_LABEL.to_owned(), app.name_any());
    labels
}

/// The policy of an application whose pods are isolated by others, or not.
pub fn policy(app: &MigratableApp, operator_namespace: &str, isolated: bool) -> NetworkPolicy {
    let pods = selector(APP_LABEL, &app.name_any());
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(selector("kubernetes.io/metadata.name", operator_namespace)),
        pod_selector: Some(selector("app.kubernetes.io/name", NAME)),
        ..Default::default()
    };
    let agents = NetworkPolicyPeer { pod_selector: Some(pods.clone()), ..Default::default() };
    let mut ingress = vec![NetworkPolicyIngressRule {
        from: Some(vec![operator, agents]),
        ports: Some(vec![ports("TCP", PORT, PORT)]),
    }];
    if !isolated {
        let others = vec![
            ports("TCP", 1, PORT - 1),
            ports("TCP", PORT + 1, u16::MAX),
            ports("UDP", 1, u16::MAX),
            ports("SCTP", 1, u16::MAX),
        ];
        ingress.push(NetworkPolicyIngressRule { from: None, ports: Some(others) });
    }
    let mut policy = NetworkPolicy::default();
    policy.metadata.name = Some(policy_name(&app.name_any()));
    policy.metadata.labels = Some(BTreeMap::from([
        (APP_LABEL.to_owned(), app.name_any()),
        ("app.kubernetes.io/managed-by".to_owned(), NAME.to_owned()),
    ]));
    policy.metadata.owner_references = app.controller_owner_ref(&()).map(|owner| vec![owner]);
    policy.spec = Some(NetworkPolicySpec {
        pod_selector: Some(pods),
        policy_types: Some(vec!["Ingress".to_owned()]),
        ingress: Some(ingress),
        egress: None,
    });
    policy
}

fn selector(key: &str, value: &str) -> LabelSelector {
    let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}

fn ports(protocol: &str, first: u16, last: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(first.into())),
        end_port: (last > first).then(|| last.into()),
    }
}

fn has_ranges(policy: &NetworkPolicy) -> bool {
    let rules = policy.spec.iter().flat_map(|spec| spec.ingress.iter().flatten());
    rules.flat_map(|rule| rule.ports.iter().flatten()).any(|port| port.end_port.is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn app() -> MigratableApp {
        serde_json::from_value(json!({
            "apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp",
            "metadata": {"name": "cache", "namespace": "shop", "uid": "u"},
            "spec": {
                "template": {"metadata": {"labels": {"tier": "db"}}, "spec": {"containers": []}},
                "storage": {"type": "s3", "bucket": "b"}
            }
        }))
        .unwrap()
    }

    /// Whether a rule lets this port in, and whether from everybody.
    fn opens(policy: &NetworkPolicy, protocol: &str, port: i32) -> Vec<bool> {
        let rules = policy.spec.as_ref().unwrap().ingress.as_ref().unwrap();
        let has = |rule: &&NetworkPolicyIngressRule| {
            rule.ports.iter().flatten().any(|one| {
                let Some(IntOrString::Int(first)) = one.port else { panic!("a port without a number") };
                one.protocol.as_deref() == Some(protocol)
                    && (first..=one.end_port.unwrap_or(first)).contains(&port)
            })
        };
        rules.iter().filter(has).map(|rule| rule.from.is_none()).collect()
    }

    #[test]
    fn every_port_but_the_agents_stays_open_to_everybody() {
        let policy = policy(&app(), "migration-system", false);
        let agent = i32::from(PORT);
        for port in [1, 80, 6379, agent - 1, agent + 1, 9464, 65535] {
            assert_eq!(opens(&policy, "TCP", port), [true], "{port}");
        }
        for protocol in ["UDP", "SCTP"] {
            for port in [1, 53, agent, 65535] {
                assert_eq!(opens(&policy, protocol, port), [true], "{protocol} {port}");
            }
        }
        assert_eq!(opens(&policy, "TCP", agent), [false], "the agent's is for those that are named");
    }

    #[test]
    fn the_agents_port_is_for_the_operator_and_for_agents_of_the_same_application() {
        let policy = serde_json::to_value(policy(&app(), "system", true)).unwrap();
        let operator = json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "system"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "migration-operator"}}
        });
        let agents = json!({"podSelector": {"matchLabels": {"migration.io/app": "cache"}}});
        let rule = json!({"from": [operator, agents], "ports": [{"protocol": "TCP", "port": PORT}]});
        // Where others isolate the pods, nothing else is opened.
        assert_eq!(policy["spec"]["ingress"], json!([rule]));
        assert_eq!(policy["spec"]["podSelector"], json!({"matchLabels": {"migration.io/app": "cache"}}));
        assert_eq!(policy["metadata"]["ownerReferences"][0]["uid"], "u");
    }

    #[test]
    fn only_policies_of_others_that_select_its_pods_for_what_comes_in_isolate_it() {
        let isolates = |spec: serde_json::Value| {
            let other = json!({"metadata": {"name": "other"}, "spec": spec});
            isolated(&app(), &[serde_json::from_value(other).unwrap()])
        };
        assert!(isolates(json!({"podSelector": {}})));
        assert!(isolates(
            json!({"podSelector": {"matchLabels": {"tier": "db"}}, "policyTypes": ["Ingress"]})
        ));
        let expression = json!([{"key": "migration.io/app", "operator": "Exists"}]);
        assert!(isolates(json!({"podSelector": {"matchExpressions": expression}})));
        assert!(!isolates(json!({"podSelector": {"matchLabels": {"tier": "web"}}})));
        assert!(!isolates(json!({"podSelector": {}, "policyTypes": ["Egress"]})));
        assert!(!isolated(&app(), &[policy(&app(), "system", false)]), "its own does not count");
    }
}
