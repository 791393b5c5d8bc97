//! What labels tell of a node's CPU.
//!
//! Programs choose code by the CPU's features when they start and never look again: on a CPU that lacks one of them they end with an
//! illegal instruction, if they can be rebuilt there at all. Labels of node-feature-discovery tell the features, and the type of a cloud's machine
//! tells that two are of one kind. Where there are neither, nothing is known here, and the agents compare their CPUs before anything is frozen.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

/// Labels of node-feature-discovery begin like that.
const FEATURE: &str = "feature.node.kubernetes.io/cpu-cpuid.";
/// The type of a cloud's machine.
const TYPE: &str = "node.kubernetes.io/instance-type";

/// Instruction sets that a program may have chosen to use. Other features are of the kernel's or the hypervisor's view, and differ between
/// machines on which the same program runs equally well.
const INSTRUCTION_SETS: [&str; 14] = [
    "ADX", "AES", "AMX", "AVX", "BMI", "F16C", "FMA", "GFNI", "LZCNT", "MOVBE", "SHA", "SSE", "VAES",
    "VPCLMUL",
];

/// How much a node's CPU is like the source's, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likeness {
    /// The same features, or machines of the same type.
    Same,
    /// It has more.
    More,
    /// Labels do not tell.
    Unknown,
}

/// How much a node's CPU is like the source's; `None` if it lacks something.
pub(super) fn likeness(source: &Node, node: &Node) -> Option<Likeness> {
    let (needs, has) = (features(source), features(node));
    if needs.is_empty() || has.is_empty() {
        let type_of = |node: &Node| node.labels().get(TYPE).cloned();
        let same = type_of(source).is_some() && type_of(source) == type_of(node);
        return Some(if same { Likeness::Same } else { Likeness::Unknown });
    }
    if needs == has {
        return Some(Likeness::Same);
    }
    needs.is_subset(&has).then_some(Likeness::More)
}

/// Whether labels tell that a node's CPU lacks something that the source's has.
pub fn lacks_features(source: &Node, node: &Node) -> bool {
    likeness(source, node).is_none()
}

fn features(node: &Node) -> BTreeSet<String> {
    let labels = node.labels().iter().filter(|(_, value)| *value == "true");
    let features = labels.filter_map(|(key, _)| key.strip_prefix(FEATURE));
    features
        .filter(|feature| INSTRUCTION_SETS.iter().any(|one| feature.starts_with(one)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(features: &[&str], type_: Option<&str>) -> Node {
        let mut node = Node::default();
        let labels = node.labels_mut();
        labels.extend(features.iter().map(|feature| (format!("{FEATURE}{feature}"), "true".to_owned())));
        labels.extend(type_.map(|type_| (TYPE.to_owned(), type_.to_owned())));
        node
    }

    #[test]
    fn a_cpu_that_is_known_to_lack_something_is_none() {
        let source = node(&["AVX2", "SSE42", "HYPERVISOR"], None);
        let like = |features: &[&str]| likeness(&source, &node(features, None));
        assert_eq!(like(&["AVX2", "SSE42"]), Some(Likeness::Same), "what no program uses does not count");
        assert_eq!(like(&["AVX2", "SSE42", "AVX512F"]), Some(Likeness::More));
        assert_eq!(like(&["SSE42", "AVX512F"]), None);
        assert!(lacks_features(&source, &node(&["SSE42"], None)));
        assert_eq!(like(&[]), Some(Likeness::Unknown));
        let not_so = likeness(&source, &{
            let mut other = node(&["SSE42"], None);
            other.labels_mut().insert(format!("{FEATURE}AVX2"), "false".to_owned());
            other
        });
        assert_eq!(not_so, None);
    }

    #[test]
    fn machines_of_one_type_are_alike_where_features_are_not_told() {
        let source = node(&[], Some("m7i.large"));
        assert_eq!(likeness(&source, &node(&[], Some("m7i.large"))), Some(Likeness::Same));
        assert_eq!(likeness(&source, &node(&[], Some("m5.large"))), Some(Likeness::Unknown));
        assert_eq!(likeness(&node(&[], None), &node(&[], None)), Some(Likeness::Unknown));
    }
}
