//! Proof that a store does what committing a checkpoint needs, by doing it.

use bytes::Bytes;
use ulid::Ulid;

use super::{ObjectStore, StoreError};

/// Creates an object of a new name, tries to create it again, reads it back and removes it.
///
/// The object is removed on every path; one left behind by a crash is below `.probe/` and holds no memory.
pub(super) async fn probe(store: &dyn ObjectStore) -> Result<(), StoreError> {
    let key = format!(".probe/{}", Ulid::new());
    let outcome = create_twice(store, &key).await;
    let removed = store.delete(&key).await;
    outcome.and(removed)
}

async fn create_twice(store: &dyn ObjectStore, key: &str) -> Result<(), StoreError> {
    let first = Bytes::from(format!("first writer of {key}\n"));
    let second = Bytes::from(format!("second writer of {key}\n"));
    let dishonoured = || StoreError::NoConditionalCreate { store: store.describe() };
    match store.put_new(key, first.clone()).await {
        // Nobody else can have made this name: a store that says so does not look.
        Err(StoreError::AlreadyExists { .. }) => return Err(dishonoured()),
        outcome => outcome?,
    }
    match store.put_new(key, second).await {
        Ok(()) => return Err(dishonoured()),
        Err(StoreError::AlreadyExists { .. }) => {}
        Err(error) => return Err(error),
    }
    if store.get(key, first.len() as u64).await? != first {
        return Err(dishonoured());
    }
    Ok(())
}
