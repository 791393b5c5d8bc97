//! Names of objects in a store. Every key of an application starts with its identity and a slash, so that no
//! application can reach another one's objects.

use std::str::FromStr;

use crate::ids::{AppId, CheckpointId, LeaseId, PackId, PinName};

/// The commit record; a checkpoint exists if and only if this object does.
pub fn manifest(app: &AppId, id: CheckpointId) -> String {
    format!("{app}/checkpoints/{id}/manifest")
}

/// CRIU's images other than pages.
pub fn bundle(app: &AppId, id: CheckpointId) -> String {
    format!("{app}/checkpoints/{id}/bundle")
}

/// Hashes of all stored pages.
pub fn hashes(app: &AppId, id: CheckpointId) -> String {
    format!("{app}/checkpoints/{id}/hashes")
}

/// What is known of a handover: a manifest whose pages are not in the store.
pub fn handover(app: &AppId, id: CheckpointId) -> String {
    format!("{app}/handovers/{id}/manifest")
}

/// What the keys of all objects of all handovers start with.
pub fn handovers(app: &AppId) -> String {
    format!("{app}/handovers/")
}

/// CRIU's images other than pages, of a handover.
pub fn handover_bundle(app: &AppId, id: CheckpointId) -> String {
    format!("{app}/handovers/{id}/bundle")
}

/// How a checkpoint was taken, or how its processes were stopped to be handed over.
pub fn taken(app: &AppId, id: CheckpointId, handover: bool) -> String {
    format!("{}{id}/taken.json", home(app, handover))
}

/// How a checkpoint, or a handover, was restored by whoever held this lease: what `role` has to tell of it.
pub fn restored(app: &AppId, id: CheckpointId, handover: bool, lease: LeaseId, role: &str) -> String {
    format!("{}{id}/{RESTORES}{lease}/{role}", home(app, handover))
}

fn home(app: &AppId, handover: bool) -> String {
    if handover { handovers(app) } else { checkpoints(app) }
}

/// What parts of a checkpoint that tell of restores start with.
pub const RESTORES: &str = "restores/";

/// Part of a checkpoint that is being deleted, or was.
pub const TOMBSTONE: &str = "tombstone";

/// A copy of the manifest of a checkpoint that is being deleted.
pub fn tombstone(app: &AppId, id: CheckpointId) -> String {
    format!("{app}/checkpoints/{id}/{TOMBSTONE}")
}

/// "Keep this checkpoint".
pub fn pin(app: &AppId, name: &PinName) -> String {
    format!("{app}/pins/{name}")
}

/// Frames.
pub fn pack(app: &AppId, id: PackId) -> String {
    format!("{app}/packs/{id}")
}

/// A claim on a checkpoint's data.
pub fn lease(app: &AppId, id: LeaseId) -> String {
    format!("{app}/leases/{id}")
}

/// What the keys of all objects of all checkpoints start with.
pub fn checkpoints(app: &AppId) -> String {
    format!("{app}/checkpoints/")
}

/// What the keys of all packs start with.
pub fn packs(app: &AppId) -> String {
    format!("{app}/packs/")
}

/// What the keys of all leases start with.
pub fn leases(app: &AppId) -> String {
    format!("{app}/leases/")
}

/// What the keys of all pins start with.
pub fn pins(app: &AppId) -> String {
    format!("{app}/pins/")
}

/// The application whose checkpoint's manifest has this key; `None` for any other object.
pub fn app_of_manifest(key: &str) -> Option<AppId> {
    let app = key.rsplitn(4, '/').nth(3)?;
    // `AppId` completes short names; only full ones are keys.
    let app = AppId::from_str(app).ok().filter(|parsed| parsed.as_str() == app)?;
    let (_, "manifest") = checkpoint_part(&checkpoints(&app), key)? else { return None };
    Some(app)
}

/// The checkpoint that owns the object with this key and the object's role, given that `prefix` is [`checkpoints`].
pub fn checkpoint_part<'k>(prefix: &str, key: &'k str) -> Option<(CheckpointId, &'k str)> {
    let (id, part) = key.strip_prefix(prefix)?.split_once('/')?;
    let parsed: CheckpointId = id.parse().ok()?;
    // ULIDs can be spelled in more than one way, keys cannot.
    (parsed.to_string() == id).then_some((parsed, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manifests_of_full_names_tell_an_application() {
        let id = CheckpointId::new();
        for name in ["a/b/c", "a/b/checkpoints", "checkpoints/checkpoints/manifest"] {
            let app: AppId = name.parse().unwrap();
            assert_eq!(app_of_manifest(&manifest(&app, id)), Some(app));
        }
        let app: AppId = "a/b/c".parse().unwrap();
        assert_eq!(app_of_manifest(&bundle(&app, id)), None);
        assert_eq!(app_of_manifest(&format!("c/checkpoints/{id}/manifest")), None);
        assert_eq!(app_of_manifest(&format!("{app}/checkpoints/x/manifest")), None);
    }

    #[test]
    fn parts_of_checkpoints_are_told_from_their_keys() {
        let app: AppId = "web".parse().unwrap();
        let id = CheckpointId::new();
        assert_eq!(checkpoint_part(&checkpoints(&app), &hashes(&app, id)), Some((id, "hashes")));
        assert_eq!(checkpoint_part(&checkpoints(&app), &pack(&app, PackId::new())), None);
    }
}
