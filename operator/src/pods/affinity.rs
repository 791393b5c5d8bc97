//! What a pod asks of its node, beside what it asked before.

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

/// That the node is this one (`In`), or is not (`NotIn`). The API server takes one name in each.
pub fn named(operator: &str, node: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: operator.to_owned(),
        values: Some(vec![node.to_owned()]),
    }
}

/// Requires these of the node's fields and labels as well. Terms that are there are alternatives: each gets them.
pub fn require(
    affinity: &mut NodeAffinity,
    fields: &[NodeSelectorRequirement],
    labels: &[NodeSelectorRequirement],
) {
    if fields.is_empty() && labels.is_empty() {
        return;
    }
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        if !fields.is_empty() {
            term.match_fields.get_or_insert_default().extend_from_slice(fields);
        }
        if !labels.is_empty() {
            term.match_expressions.get_or_insert_default().extend_from_slice(labels);
        }
    }
}
