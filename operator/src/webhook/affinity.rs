//! Where a pod is to be that takes an application over: on a node with the labels that were asked for, not on those it must not be
//! on, and if possible on one that placement would have chosen. What the pod says itself holds as well.

use k8s_openapi::api::core::v1::{
    NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm,
};

use crate::{
    injection::Replacement,
    pods::affinity::{named, require},
};

/// What the best node weighs; each one after it a little less.
const HEAVIEST: i32 = 100;
const LIGHTER: i32 = 10;

/// The affinity that a pod gets; `None` if there is nothing to say.
pub fn node_affinity(before: Option<NodeAffinity>, replacement: &Replacement) -> Option<NodeAffinity> {
    let mut affinity = before.unwrap_or_default();
    let fields: Vec<_> = replacement.excluded.iter().map(|node| named("NotIn", node)).collect();
    let labels: Vec<_> = replacement
        .selector
        .iter()
        .map(|(key, value)| NodeSelectorRequirement {
            key: key.clone(),
            operator: "In".to_owned(),
            values: Some(vec![value.clone()]),
        })
        .collect();
    require(&mut affinity, &fields, &labels);
    let weights = (0..).map(|place: i32| (HEAVIEST - place * LIGHTER).max(1));
    let preferred: Vec<_> = replacement
        .preferred
        .iter()
        .zip(weights)
        .map(|(node, weight)| PreferredSchedulingTerm {
            weight,
            preference: NodeSelectorTerm {
                match_fields: Some(vec![named("In", node)]),
                match_expressions: None,
            },
        })
        .collect();
    if !preferred.is_empty() {
        affinity
            .preferred_during_scheduling_ignored_during_execution
            .get_or_insert_default()
            .extend(preferred);
    }
    (affinity != NodeAffinity::default()).then_some(affinity)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replacement() -> Replacement {
        Replacement {
            app: "app".to_owned(),
            mark: "m".to_owned(),
            name: None,
            excluded: vec!["source".to_owned(), "doomed".to_owned()],
            preferred: vec!["best".to_owned(), "good".to_owned()],
            selector: [("pool".to_owned(), "a".to_owned())].into(),
        }
    }

    #[test]
    fn every_alternative_of_the_pod_excludes_the_same_nodes() {
        let before: NodeAffinity = serde_json::from_value(json!({
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]},
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["y"]}]},
            ]},
        }))
        .unwrap();
        let affinity = node_affinity(Some(before), &replacement()).unwrap();
        let terms = affinity.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
        assert_eq!(terms.len(), 2);
        for (term, zone) in terms.iter().zip(["x", "y"]) {
            let fields = serde_json::to_value(&term.match_fields).unwrap();
            let not = |node: &str| json!({"key": "metadata.name", "operator": "NotIn", "values": [node]});
            assert_eq!(fields, json!([not("source"), not("doomed")]));
            let labels = term.match_expressions.as_ref().unwrap();
            assert_eq!(labels[0].values.as_ref().unwrap(), &[zone.to_owned()]);
            assert_eq!((labels[1].key.as_str(), labels.len()), ("pool", 2));
        }
    }

    #[test]
    fn better_nodes_weigh_more_and_none_weighs_nothing() {
        let many = Replacement { preferred: (0..12).map(|n| format!("n{n}")).collect(), ..replacement() };
        let affinity = node_affinity(None, &many).unwrap();
        let weights: Vec<i32> = affinity
            .preferred_during_scheduling_ignored_during_execution
            .unwrap()
            .iter()
            .map(|term| term.weight)
            .collect();
        assert_eq!(&weights[..3], [100, 90, 80]);
        assert!(
            weights.is_sorted_by(|a, b| a >= b) && weights.iter().all(|weight| (1..=100).contains(weight))
        );
    }

    #[test]
    fn where_nothing_is_asked_for_nothing_is_said() {
        let nothing = Replacement {
            excluded: Vec::new(),
            preferred: Vec::new(),
            selector: Default::default(),
            ..replacement()
        };
        assert_eq!(node_affinity(None, &nothing), None);
    }
}
