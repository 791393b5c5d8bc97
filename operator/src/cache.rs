//! What is kept in memory of the cluster's objects: pods with an index by application, and of all objects only what is used.
//!
//! What always holds: what a look at one application costs does not depend on how many others there are. A look that needs an
//! application's pods gets those, and does not go through all of them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Event,
    },
};

use crate::api::{APP_LABEL, MigratableApp};

/// Names of pods, by the namespace and the name of their application.
type Names = HashMap<(String, String), BTreeSet<String>>;

/// Pods of applications, as they were a moment ago.
#[derive(Clone, Debug)]
pub struct Pods {
    store: Store<Pod>,
    index: Arc<Mutex<Index>>,
}

#[derive(Debug, Default)]
struct Index {
    names: Names,
    /// What a listing that has begun has brought so far.
    listed: Names,
}

impl Pods {
    /// Those of a store, which has to be given every event ([`Pods::heard`]) that the store has been given before.
    pub fn new(store: Store<Pod>) -> Self {
        Self { store, index: Arc::default() }
    }

    /// Keeps the index.
    pub fn heard(&self, event: &Event<Pod>) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => index.listed = Names::new(),
            Event::InitApply(pod) => add(&mut index.listed, pod),
            Event::InitDone => index.names = std::mem::take(&mut index.listed),
            Event::Apply(pod) => add(&mut index.names, pod),
            Event::Delete(pod) => remove(&mut index.names, pod),
        }
    }

    /// The pod of this name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// Those that have an application's label.
    pub fn of(&self, app: &MigratableApp) -> Vec<Arc<Pod>> {
        let key = (app.namespace().unwrap_or_default(), app.name_any());
        let names = {
            let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.names.get(&key).cloned().unwrap_or_default()
        };
        let pods = names.iter().filter_map(|name| self.get(&key.0, name));
        // A label that was changed leaves a name behind until the next listing.
        pods.filter(|pod| pod.labels().get(APP_LABEL) == Some(&key.1)).collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.store.state()
    }
}

fn key(pod: &Pod) -> Option<(String, String)> {
    Some((pod.namespace().unwrap_or_default(), pod.labels().get(APP_LABEL)?.clone()))
}

fn add(names: &mut Names, pod: &Pod) {
    if let Some(key) = key(pod) {
        names.entry(key).or_default().insert(pod.name_any());
    }
}

fn remove(names: &mut Names, pod: &Pod) {
    let Some(key) = key(pod) else { return };
    if let Some(of_app) = names.get_mut(&key) {
        of_app.remove(&pod.name_any());
        if of_app.is_empty() {
            names.remove(&key);
        }
    }
}

/// Leaves out what nobody looks at: who has written which field is half of an object.
pub fn prune_app(app: &mut MigratableApp) {
    app.metadata.managed_fields = None;
}

/// As [`prune_app`].
pub fn prune_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
}

/// As [`prune_app`]; the images on a node are more than all the rest of it.
pub fn prune_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use serde_json::json;

    use super::*;

    fn app(name: &str) -> MigratableApp {
        serde_json::from_value(json!({
            "apiVersion": "migration.io/v1alpha1", "kind": "MigratableApp",
            "metadata": {"name": name, "namespace": "shop", "uid": "u"},
            "spec": {"template": {}, "storage": {"type": "s3", "bucket": "b"}}
        }))
        .unwrap()
    }

    fn pod(name: &str, namespace: &str, app: &str) -> Pod {
        let metadata = json!({"name": name, "namespace": namespace, "labels": {APP_LABEL: app}});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    /// What the index says after these events, and what going through all pods says.
    fn both(events: &[Event<Pod>], of: &str) -> (Vec<String>, Vec<String>) {
        let (store, mut writer) = reflector::store::<Pod>();
        let pods = Pods::new(store);
        for event in events {
            writer.apply_watcher_event(event);
            pods.heard(event);
        }
        let indexed = pods.of(&app(of)).iter().map(|pod| pod.name_any()).collect();
        let ours = |pod: &&Arc<Pod>| {
            pod.namespace().as_deref() == Some("shop")
                && pod.labels().get(APP_LABEL).map(String::as_str) == Some(of)
        };
        let mut all: Vec<String> = pods.all().iter().filter(ours).map(|pod| pod.name_any()).collect();
        all.sort();
        (indexed, all)
    }

    #[test]
    fn the_index_has_the_pods_that_going_through_all_of_them_finds() {
        let listed = || {
            [
                Event::Init,
                Event::InitApply(pod("a-0", "shop", "a")),
                Event::InitApply(pod("b-0", "shop", "b")),
                Event::InitApply(pod("a-0", "bank", "a")),
                Event::InitDone,
            ]
        };
        let cases: [(Vec<Event<Pod>>, &[&str]); 6] = [
            (vec![], &[]),
            (vec![Event::Apply(pod("a-1", "shop", "a"))], &["a-0", "a-1"]),
            (vec![Event::Delete(pod("a-0", "shop", "a"))], &[]),
            (vec![Event::Apply(pod("a-0", "shop", "b"))], &[]),
            (vec![Event::Delete(pod("a-0", "bank", "a"))], &["a-0"]),
            (vec![Event::Init, Event::InitApply(pod("a-2", "shop", "a")), Event::InitDone], &["a-2"]),
        ];
        assert_eq!(both(&cases[0].0, "a").0, Vec::<String>::new());
        for (events, expected) in &cases[1..] {
            let events: Vec<Event<Pod>> = listed().into_iter().chain(events.iter().cloned()).collect();
            let (indexed, all) = both(&events, "a");
            assert_eq!((&indexed, &indexed), (&all, &expected.iter().map(ToString::to_string).collect()));
        }
    }

    #[test]
    fn until_a_new_listing_is_complete_the_old_one_holds() {
        let (store, mut writer) = reflector::store::<Pod>();
        let pods = Pods::new(store);
        let mut count = |event: Event<Pod>| {
            writer.apply_watcher_event(&event);
            pods.heard(&event);
            pods.of(&app("a")).len()
        };
        assert_eq!(count(Event::Apply(pod("a-0", "shop", "a"))), 1);
        assert_eq!(count(Event::Init), 1);
        assert_eq!(count(Event::InitApply(pod("a-0", "shop", "a"))), 1);
        assert_eq!(count(Event::InitDone), 1);
        assert_eq!(count(Event::Init), 1);
        assert_eq!(count(Event::InitDone), 0);
    }
}
